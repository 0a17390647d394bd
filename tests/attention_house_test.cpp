// SPDX-License-Identifier: Apache-2.0
// The gate on the house: a tree mask, a T5 bias and a shared paged prefix are new rooms, not
// rebuilding.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "core/generator.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

Tensor normal(std::initializer_list<std::int64_t> shape, std::uint64_t seed) {
  Tensor t = Tensor::empty(DType::f32, shape);
  fill_normal(t, seed);
  return t;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.count(), b.count());
  double most = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    const auto at = [i](const Tensor& t) {
      return load_element(
          t.dtype,
          static_cast<const char*>(t.data) + static_cast<std::size_t>(i) * size_of(t.dtype));
    };
    most = std::max(most, std::abs(at(a) - at(b)));
  }
  return most;
}

TEST(Tree, KeepsExactlyTheAncestors) {
  std::mt19937 draw(7);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::int32_t> parent(40);
    for (std::int32_t i = 0; i < 40; ++i)
      parent[static_cast<std::size_t>(i)] =
          static_cast<std::int32_t>(draw() % static_cast<unsigned>(i + 1)) - 1;
    const Tensor q = normal({1, 40, 8}, 1);
    const auto plan = mask_plan(Rows(q), dense(q, q), {.mask = tree(parent)});
    std::int64_t pairs = 0;
    for (std::int32_t i = 0; i < 40; ++i) {
      std::uint64_t ancestors = 0;
      for (std::int32_t a = i; a >= 0; a = parent[static_cast<std::size_t>(a)])
        ancestors |= std::uint64_t{1} << a;
      ASSERT_EQ(plan->tiles_by_query.at(0)[static_cast<std::size_t>(i)], ancestors)
          << "token " << i;
      pairs += __builtin_popcountll(ancestors);
    }
    EXPECT_EQ(plan->kept_pairs(), pairs);
  }
}

TEST(Tree, AChainIsCausal) {
  std::vector<std::int32_t> chain(70);
  for (std::int32_t i = 0; i < 70; ++i) chain[static_cast<std::size_t>(i)] = i - 1;
  const Tensor q = normal({2, 70, 16}, 1), k = normal({2, 70, 16}, 2), v = normal({2, 70, 16}, 3);
  EXPECT_LT(largest_difference(attention(q, k, v, {.mask = tree(chain)}).o,
                               attention(q, k, v, {.mask = causal()}).o),
            1e-6);
}

TEST(Tree, SaysWhatIsWrongWithAParent) {
  EXPECT_THAT([] { tree({-1, 1}); },
              testing::ThrowsMessage<Error>(
                  testing::HasSubstr("parent[1] is 1; a parent comes before its children")));
}

/// The published formula, in its own words.
int bucket_of(int relative, bool bidirectional, int buckets, int max_distance) {
  int result = 0, n = -relative;
  if (bidirectional) {
    buckets /= 2;
    if (n < 0) result += buckets;
    n = std::abs(n);
  } else {
    n = std::max(n, 0);
  }
  const int exact = buckets / 2;
  if (n < exact) return result + n;
  const double large =
      exact + std::floor(std::log(n / double(exact)) / std::log(max_distance / double(exact)) *
                             (buckets - exact) +
                         1e-9);
  return result + std::min(static_cast<int>(large), buckets - 1);
}

class T5 : public testing::TestWithParam<bool> {};

TEST_P(T5, IsTheTableAtThePublishedBucket) {
  const bool both = GetParam();
  const Tensor q = normal({3, 150, 8}, 1), k = normal({3, 150, 8}, 2), v = normal({3, 150, 8}, 3);
  const Tensor table = normal({32, 3}, 4);
  Tensor dense_bias = Tensor::empty(DType::f32, {3, 150, 150});
  for (int h = 0; h < 3; ++h)
    for (int i = 0; i < 150; ++i)
      for (int j = 0; j < 150; ++j)
        dense_bias.ptr<float>()[(h * 150 + i) * 150 + j] =
            table.ptr<float>()[bucket_of(j - i, both, 32, 128) * 3 + h];
  const Forward a = attention(q, k, v, {.score = t5_bias(Array(table), both)});
  const Forward b = attention(q, k, v, {.score = bias(Array(dense_bias))});
  EXPECT_LT(largest_difference(a.o, b.o), 1e-6);
  // The gradient of the table is the sum of the dense gradient over each bucket.
  const Tensor dout = normal({3, 150, 8}, 5);
  const Gradients ga = attention_backward(dout, q, k, v, a),
                  gb = attention_backward(dout, q, k, v, b);
  ASSERT_EQ(ga.captured.size(), 1u);
  Tensor expected = Tensor::zeros(DType::f32, {32, 3});
  for (int h = 0; h < 3; ++h)
    for (int i = 0; i < 150; ++i)
      for (int j = 0; j < 150; ++j)
        expected.ptr<float>()[bucket_of(j - i, both, 32, 128) * 3 + h] +=
            gb.captured[0].second.ptr<float>()[(h * 150 + i) * 150 + j];
  EXPECT_LT(largest_difference(ga.captured[0].second, expected), 2e-5);
}
INSTANTIATE_TEST_SUITE_P(Sides, T5, testing::Bool());

TEST(T5Bias, RefusesATableThatHasNoLogarithmicPart) {
  EXPECT_THAT([] { t5_bias(Array(Tensor::zeros(DType::f32, {2, 1}))); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("at least 4 buckets")));
}

/// Three sequences that begin with two shared pages, and the same by the ordinary table.
struct SharedPrefix {
  static constexpr std::int64_t size = 16, batch = 3, heads = 2, dim = 8;
  std::vector<std::int32_t> shared{5, 1}, table{0, 2, -9, 3, 4, 6, 7, 1 << 30, -1},
      lengths{50, 80, 20};
  std::vector<std::int32_t> whole{5, 1, 0, 2, 8, 5, 1, 3, 4, 6, 5, 1, 8, 8, 8};
  Tensor k = normal({9, heads, size, dim}, 1), v = normal({9, heads, size, dim}, 2);
  Tensor q = normal({batch, 4, 30, dim}, 3);
  Kv pages() {
    return paged(
        k, v, view(shared.data(), {2}), view(table.data(), {3, 3}), view(lengths.data(), {3}));
  }
  Kv ordinary() { return paged(k, v, view(whole.data(), {3, 5}), view(lengths.data(), {3})); }
};

TEST(SharedPagedPrefix, EqualsTheTableThatRepeatsIt) {
  SharedPrefix p;
  const Options options{.mask = causal(), .align = Align::end};
  const Forward a = attention(Rows(p.q), p.pages(), options),
                b = attention(Rows(p.q), p.ordinary(), options);
  EXPECT_EQ(largest_difference(a.o, b.o), 0);
  EXPECT_LT(largest_difference(a.o, reference(Rows(p.q), p.pages(), options).o), 1e-5);
  const Tensor dout = normal({p.batch, 4, 30, p.dim}, 4);
  const Gradients ga = attention_backward(Rows(dout), Rows(p.q), p.pages(), a);
  const Gradients oracle = reference_backward(Rows(dout), Rows(p.q), p.ordinary(), options);
  EXPECT_LT(largest_difference(ga.k, oracle.k),
            3e-5);  // the shared pages hold the sum over sequences
  EXPECT_LT(largest_difference(ga.v, oracle.v), 3e-5);
}

TEST(SharedPagedPrefix, IsRefusedWithoutPages) {
  SharedPrefix p;
  Kv kv = dense(p.q, p.q);
  kv.prefix_table = view(p.shared.data(), {2});
  EXPECT_THAT(
      [&] { attention(Rows(p.q), kv); },
      testing::ThrowsMessage<Error>(testing::HasSubstr("a prefix table belongs to paged K and V")));
}

TEST(SharedPagedPrefix, RefusesAPageThatDoesNotExist) {
  SharedPrefix p;
  p.shared[1] = 9;
  EXPECT_THAT([&] { attention(Rows(p.q), p.pages()); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("is 9; pages 0 to 8 exist")));
}

}  // namespace
}  // namespace undivided
