// SPDX-License-Identifier: Apache-2.0
// A mask index counts any rectangle as brute force does, in a number of steps that hardly grows.
#include <gtest/gtest.h>

#include <random>

#include "mask/index.hpp"
#include "mask/plan.hpp"
#include "mask_catalogue.hpp"
#include "undivided/undivided.hpp"  // the formats are part of it

namespace undivided {
namespace {

std::shared_ptr<MaskPlan> indexed_plan_of(const Mask& mask,
                                          std::int64_t q_len,
                                          std::int64_t k_len,
                                          std::int64_t heads = 1) {
  Sequence s;
  s.q_len = q_len;
  s.k_len = k_len;
  Positions reach{1, heads, 0, q_len - 1, 0, k_len - 1, q_len, k_len};
  const std::vector<Sequence> one{s};
  return make_mask_plan(*bind(mask, reach), heads, one, default_executor());
}

/// Every pair, counted in front of each corner.
class Counts {
 public:
  Counts(const MaskPlan& plan, const MaskPlan::Entry& e)
      : q_len_(e.q_len),
        k_len_(e.k_len),
        bits_(export_dense(plan, e)),
        sum_((q_len_ + 1) * (k_len_ + 1)) {
    for (std::int64_t q = 0; q < q_len_; ++q)
      for (std::int64_t k = 0; k < k_len_; ++k)
        at(q + 1, k + 1) = at(q, k + 1) + at(q + 1, k) - at(q, k) + bits_[q * k_len_ + k];
  }
  std::int64_t pairs(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) {
    return at(q1, k1) - at(q0, k1) - at(q1, k0) + at(q0, k0);
  }
  masks::Span keys(std::int64_t q0, std::int64_t q1) {
    std::int64_t first = 0, end = k_len_;
    if (pairs(q0, q1, 0, k_len_) == 0) return {0, 0};
    while (pairs(q0, q1, 0, first + 1) == 0) ++first;
    while (pairs(q0, q1, end - 1, k_len_) == 0) --end;
    return {first, end};
  }

 private:
  std::int64_t& at(std::int64_t q, std::int64_t k) { return sum_[q * (k_len_ + 1) + k]; }
  std::int64_t q_len_, k_len_;
  std::vector<std::uint8_t> bits_;
  std::vector<std::int64_t> sum_;
};

void expect_exact(const std::shared_ptr<MaskPlan>& plan, std::int64_t head = 0, int trials = 300) {
  const MaskPlan::Entry& e = plan->entry(0, head);
  const MaskIndex index(plan, 0, head);
  Counts counts(*plan, e);
  std::mt19937 random(11);
  const auto range = [&](std::int64_t n) {
    std::int64_t a = random() % (n + 1), b = random() % (n + 1);
    if (random() % 3 == 0) a = a / 64 * 64;
    if (random() % 3 == 0) b = b / 64 * 64;
    if (random() % 8 == 0) b = n;
    return std::pair{std::min(a, b), std::max(a, b)};
  };
  for (int i = 0; i < trials; ++i) {
    const auto [q0, q1] = range(e.q_len);
    const auto [k0, k1] = range(e.k_len);
    ASSERT_EQ(index.kept_pairs(q0, q1, k0, k1), counts.pairs(q0, q1, k0, k1))
        << q0 << ".." << q1 << ", " << k0 << ".." << k1;
    ASSERT_EQ(index.key_range(q0, q1), counts.keys(q0, q1)) << q0 << ".." << q1;
  }
  std::int64_t keyless = 0, reached = -1;
  for (const auto& [first, end] : index.rows_without_key()) {
    EXPECT_GT(first, reached) << "ranges that touch are one range";
    EXPECT_EQ(counts.pairs(first, end, 0, e.k_len), 0);
    keyless += end - first;
    reached = end;
  }
  EXPECT_EQ(keyless, e.rows_without_key);
}

TEST(MaskIndex, every_mask_of_the_catalogue_is_counted_exactly) {
  const testing::MaskCatalogue catalogue(2048);
  for (const auto& m : catalogue.masks())
    for (const auto& [q, k] : {std::pair{1000, 1301}, std::pair{640, 512}}) {
      SCOPED_TRACE(fmt::format("{}, {} x {}", m.name, q, k));
      expect_exact(indexed_plan_of(catalogue.mask(m), q, k));
    }
}

TEST(MaskIndex, noise_and_edges_are_counted_exactly) {
  std::mt19937 random(3);
  for (const auto& [q, k] :
       {std::pair{1, 1}, std::pair{64, 64}, std::pair{65, 129}, std::pair{300, 1100}}) {
    std::vector<std::uint8_t> bits(q * k);
    for (auto& b : bits) b = random() % 5 == 0;
    for (int i = 0; i < q / 3; ++i) bits[i * k + i % k] = 1;
    SCOPED_TRACE(fmt::format("{} x {}", q, k));
    expect_exact(indexed_plan_of(import_dense(bits, q, k), q, k));
  }
  expect_exact(indexed_plan_of(full(), 200, 333));
  expect_exact(indexed_plan_of(!full(), 200, 333));
  expect_exact(indexed_plan_of(causal() && window(70), 333, 200));
  expect_exact(
      indexed_plan_of(mask([](auto, auto, auto q, auto) { return q > 100 && q < 190; }), 333, 200));
}

TEST(MaskIndex, each_head_has_its_own_answers) {
  const auto plan = indexed_plan_of(
      mask([](auto, auto h, auto q, auto k) { return k <= q && q - k < 50 * h; }), 400, 400, 3);
  for (const std::int64_t h : {0, 1, 2}) expect_exact(plan, h, 50);
  EXPECT_EQ(MaskIndex(plan, 0, 0).rows_without_key().size(), 1u);
}

TEST(MaskIndex, an_empty_entry_keeps_nothing) {
  const auto plan = indexed_plan_of(causal(), 0, 70);
  const MaskIndex index(plan);
  EXPECT_EQ(index.kept_pairs(0, 10, 0, 10), 0);
  EXPECT_EQ(index.key_range(0, 10), (std::pair<std::int64_t, std::int64_t>{0, 0}));
  EXPECT_EQ(MaskIndex(indexed_plan_of(causal(), 70, 0)).rows_without_key().size(), 1u);
}

TEST(MaskIndex, places_outside_the_plan_are_refused) {
  const auto plan = indexed_plan_of(causal(), 10, 10);
  EXPECT_THROW(MaskIndex(nullptr), Error);
  EXPECT_THROW(MaskIndex(plan, 1, 0), Error);
  EXPECT_THROW(MaskIndex(plan, 0, -1), Error);
}

// A walk over blocks would take thousands of steps for these rectangles.
TEST(MaskIndex, steps_grow_with_the_logarithm) {
  for (const std::int32_t n : {8192, 131072}) {
    const testing::MaskCatalogue catalogue(n);
    for (const int number : {4, 9, 10, 12, 16}) {
      const auto plan = indexed_plan_of(catalogue.mask(catalogue.masks()[number - 1]), n, n);
      const masks::Index index(plan, 0, 0);
      std::mt19937 random(5);
      for (int i = 0; i < 50; ++i) {
        const std::int64_t q0 = random() % (n / 2), k0 = random() % (n / 2);
        std::int64_t steps = 0;
        index.kept_pairs(q0, q0 + n / 2, k0, k0 + n / 2, steps);
        // Two integrals, eight run searches for edges and four for corners, and at most fifteen
        // tiles on either side of an edge.
        ASSERT_LE(steps, 2 * 12 + 12 * 13 + 8 * 15) << number << " at " << n;
      }
    }
  }
}

}  // namespace
}  // namespace undivided
