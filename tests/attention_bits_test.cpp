// SPDX-License-Identifier: Apache-2.0
// Claims: what `determinism` promises, bit for bit. fast: the forward, run to run. reproducible:
// the backward too. invariant: a row depends only on its own query, keys, mask and lengths.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <tuple>

#include "check/inputs.hpp"
#include "cpu/isa.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

using check::random_tensor;

std::string bytes_of(const View& v) {
  const Tensor dense = converted(v, v.dtype);
  return {static_cast<const char*>(dense.data),
          static_cast<std::size_t>(dense.count()) * size_of(dense.dtype)};
}
bool same_bits(const View& a, const View& b) { return bytes_of(a) == bytes_of(b); }

Context threads(int n) {
  static std::map<int, std::shared_ptr<Executor>> executors;
  auto& e = executors[n];
  if (!e) e = make_executor(n);
  Context c;
  c.executor = e.get();
  return c;
}

struct Problem3 {
  Tensor q, k, v;
  explicit Problem3(DType t, std::int64_t nq = 130, std::int64_t nk = 333, std::int64_t d = 64)
      : q(random_tensor(t, {2, 4, nq, d}, 1)),
        k(random_tensor(t, {2, 2, nk, d}, 2)),
        v(random_tensor(t, {2, 2, nk, d}, 3)) {}
};

/// Every element type on every instruction set of this processor. Plans are made for one of them,
/// so each test has a library of its own.
class Bits : public testing::TestWithParam<std::tuple<DType, std::string>> {
 protected:
  Bits() { ::setenv("UNDIVIDED_ISA", std::get<1>(GetParam()).c_str(), 1); }
  ~Bits() override { ::unsetenv("UNDIVIDED_ISA"); }
  static DType dtype() { return std::get<0>(GetParam()); }
  Context context(int workers = 2) const {
    Context c = threads(workers);
    c.library = library_.get();
    return c;
  }

 private:
  std::shared_ptr<Library> library_ = make_library();
};
const auto everywhere = testing::Combine(testing::Values(DType::f32, DType::f16, DType::bf16),
                                         testing::ValuesIn(cpu::available_isas()));
std::string name_of_case(const testing::TestParamInfo<std::tuple<DType, std::string>>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_" + std::get<1>(info.param);
}
INSTANTIATE_TEST_SUITE_P(All, Bits, everywhere, name_of_case);

TEST_P(Bits, FastForwardRepeatsRunToRunOnAnyThreadsOfOneNumber) {
  const Problem3 p(dtype());
  for (const int n : {1, 2, 4}) {
    const Options o{.mask = causal(), .align = Align::end, .dropout = 0.1, .seed = 3};
    const Forward first = attention(p.q, p.k, p.v, o, context(n));
    for (int run = 0; run < 5; ++run) {
      const Forward again = attention(p.q, p.k, p.v, o, context(n));
      EXPECT_TRUE(same_bits(first.o, again.o)) << n << " threads";
      EXPECT_TRUE(same_bits(first.lse, again.lse)) << n << " threads";
    }
  }
}

TEST_P(Bits, ReproducibleBackwardRepeatsRunToRunAndOverThreads) {
  const Problem3 p(dtype());
  const Tensor dout = random_tensor(dtype(), {2, 4, 130, 64}, 4);
  const Array slope(std::vector<float>{0.5f, 0.25f, 0.125f, 0.0625f}, "slope");
  const Options o{.mask = causal(),
                  .score = alibi(slope),
                  .align = Align::end,
                  .determinism = Determinism::reproducible};
  std::optional<Gradients> first;
  for (const int n : {1, 2, 4, 2}) {
    const Forward f = attention(p.q, p.k, p.v, o, context(n));
    const Gradients g = attention_backward(dout, p.q, p.k, p.v, f, {}, context(n));
    if (!first) {
      first = g;
      continue;
    }
    EXPECT_TRUE(same_bits(first->q, g.q)) << n << " threads";
    EXPECT_TRUE(same_bits(first->k, g.k)) << n << " threads";
    EXPECT_TRUE(same_bits(first->v, g.v)) << n << " threads";
    EXPECT_TRUE(same_bits(first->captured[0].second, g.captured[0].second)) << n << " threads";
  }
}

class Invariant : public Bits {
 protected:
  Options options() const {
    return {.mask = causal() && window(200),
            .align = Align::end,
            .determinism = Determinism::invariant};
  }
};
INSTANTIATE_TEST_SUITE_P(All, Invariant, everywhere, name_of_case);

TEST_P(Invariant, ThreadsDoNotMatter) {
  const Problem3 p(dtype());
  const Forward one = attention(p.q, p.k, p.v, options(), context(1));
  for (const int n : {2, 4}) {
    const Forward many = attention(p.q, p.k, p.v, options(), context(n));
    EXPECT_TRUE(same_bits(one.o, many.o)) << n;
    EXPECT_TRUE(same_bits(one.lse, many.lse)) << n;
  }
}

TEST_P(Invariant, PlaceInTheBatchDoesNotMatter) {
  const Problem3 p(dtype());
  const Forward both = attention(p.q, p.k, p.v, options(), context());
  for (std::int64_t b = 0; b < 2; ++b) {
    const Forward alone = attention(p.q.sliced(0, b, b + 1),
                                    p.k.sliced(0, b, b + 1),
                                    p.v.sliced(0, b, b + 1),
                                    options(),
                                    context());
    EXPECT_TRUE(same_bits(both.o.selected(0, b), alone.o.selected(0, 0))) << b;
    EXPECT_TRUE(same_bits(both.lse.selected(0, b), alone.lse.selected(0, 0))) << b;
  }
}

TEST_P(Invariant, PrefillInChunksIsThePrefillAtOnce) {
  const Problem3 p(dtype(), 300, 300);
  const Options o{.mask = causal(), .align = Align::end, .determinism = Determinism::invariant};
  const Forward whole = attention(p.q, p.k, p.v, o, context());
  for (const std::int64_t chunk : {1, 17, 64, 128}) {  // of 1: decode
    for (std::int64_t begin = 0; begin < 300; begin += chunk * (chunk == 1 ? 37 : 1)) {
      const std::int64_t end = std::min<std::int64_t>(begin + chunk, 300);
      // The keys seen so far, as a growing cache would hold them.
      const Forward part = attention(
          p.q.sliced(2, begin, end), p.k.sliced(2, 0, end), p.v.sliced(2, 0, end), o, context());
      EXPECT_TRUE(same_bits(whole.o.sliced(2, begin, end), part.o)) << begin << " to " << end;
      EXPECT_TRUE(same_bits(whole.lse.sliced(2, begin, end), part.lse)) << begin << " to " << end;
    }
  }
}

TEST_P(Invariant, PagesAndTheirSizeDoNotMatter) {
  const Problem3 p(dtype(), 5, 333);
  const Forward dense_result = attention(p.q, p.k, p.v, options(), context());
  std::vector<std::int32_t> lengths{333, 333};
  for (const std::int64_t size : {1, 16, 64, 128}) {
    const std::int64_t pages = (333 + size - 1) / size;
    const Tensor k = Tensor::zeros(dtype(), {2 * pages, 2, size, 64});
    const Tensor v = Tensor::zeros(dtype(), {2 * pages, 2, size, 64});
    std::vector<std::int32_t> table;
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t i = 0; i < pages; ++i) {
        const std::int64_t page = 2 * pages - 1 - (b * pages + i);  // in reverse order
        table.push_back(static_cast<std::int32_t>(page));
        const std::int64_t end = std::min<std::int64_t>(333, (i + 1) * size);
        for (const auto& [from, to] : {std::pair{&p.k, &k}, std::pair{&p.v, &v}})
          copy(from->selected(0, b).sliced(1, i * size, end),
               to->selected(0, page).sliced(1, 0, end - i * size));
      }
    const Forward paged_result =
        attention(Rows(p.q),
                  paged(k, v, view(table.data(), {2, pages}), view(lengths.data(), {2})),
                  options(),
                  context());
    EXPECT_TRUE(same_bits(dense_result.o, paged_result.o)) << "page size " << size;
    EXPECT_TRUE(same_bits(dense_result.lse, paged_result.lse)) << "page size " << size;
  }
}

TEST_P(Invariant, PackingDoesNotMatter) {
  const Problem3 p(dtype(), 130, 130);
  const Options o{.mask = causal(), .align = Align::end, .determinism = Determinism::invariant};
  const Forward apart = attention(p.q, p.k, p.v, o, context());
  // The same two sequences, packed after one another: [total, head, dim].
  const Tensor q = Tensor::empty(dtype(), {260, 4, 64}), k = Tensor::empty(dtype(), {260, 2, 64}),
               v = Tensor::empty(dtype(), {260, 2, 64});
  for (std::int64_t b = 0; b < 2; ++b)
    for (const auto& [from, to] : {std::pair{&p.q, &q}, {&p.k, &k}, {&p.v, &v}})
      copy(from->selected(0, b).permuted({1, 0, 2}), to->sliced(0, 130 * b, 130 * (b + 1)));
  std::vector<std::int32_t> offsets{0, 130, 260};
  const View at = view(offsets.data(), {3});
  const Forward packed = attention(ragged(q, at), ragged(k, v, at), o, context());
  for (std::int64_t b = 0; b < 2; ++b)
    EXPECT_TRUE(same_bits(apart.o.selected(0, b),
                          packed.o.sliced(0, 130 * b, 130 * (b + 1)).permuted({1, 0, 2})));
}

TEST(Dropout, DropsTheSameWeightsForAnyTilingOfTheProblem) {
  // With V = identity, O is the row of weights itself: zeros are the dropped ones.
  const std::int64_t n = 96;
  const Tensor q = random_tensor(DType::f32, {1, 1, n, 8}, 1),
               k = random_tensor(DType::f32, {1, 1, n, 8}, 2);
  const Tensor v = Tensor::zeros(DType::f32, {1, 1, n, n});
  for (std::int64_t i = 0; i < n; ++i) *static_cast<float*>(v.at({0, 0, i, i})) = 1;
  const Options whole{.align = Align::start, .dropout = 0.4, .seed = 11};
  const Forward all = attention(q, k, v, whole);
  int dropped = 0;
  for (std::int64_t i = 0; i < n * n; ++i) dropped += all.o.ptr<float>()[i] == 0;
  EXPECT_NEAR(dropped / double(n * n), 0.4, 0.03);
  std::vector<std::int32_t> origin{32};
  Options part = whole;
  part.align.reset();
  part.q_origin = view(origin.data(), {1});
  const Forward rows = attention(q.sliced(2, 32, 64), k, v, part);
  for (std::int64_t i = 0; i < 32; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      EXPECT_EQ(*static_cast<float*>(all.o.at({0, 0, 32 + i, j})) == 0,
                *static_cast<float*>(rows.o.at({0, 0, i, j})) == 0);
}

}  // namespace
}  // namespace undivided
