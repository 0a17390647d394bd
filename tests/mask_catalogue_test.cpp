// SPDX-License-Identifier: Apache-2.0
// The analysis equals brute force on the catalogue, and sampling does not.
#include "mask_catalogue.hpp"

#include <gtest/gtest.h>

#include "mask/plan.hpp"
#include "reduced.hpp"
#include "undivided/plan.hpp"

namespace undivided {
namespace {

using testing::CatalogueMask;
using testing::MaskCatalogue;

Sequence sequence(std::int64_t q, std::int64_t k, std::int64_t q_origin = 0) {
  Sequence s;
  s.q_len = q;
  s.k_len = k;
  s.q_origin = q_origin;
  return s;
}

std::shared_ptr<const BoundProgram> bound(const Mask& mask, const Sequence& s) {
  Positions reach;
  reach.q_low = s.q_origin;
  reach.q_high = s.q_origin + s.q_len - 1;
  reach.k_high = s.k_len - 1;
  reach.max_q_len = s.q_len;
  reach.max_k_len = s.k_len;
  auto p = std::make_shared<BoundProgram>(*bind(mask, reach));
  p->band = {};  // bands have a shortcut; here the analysis is meant
  return p;
}

/// Equal but for the numbering of tiles.
void expect_same(const MaskPlan& a, const MaskPlan& b) {
  ASSERT_EQ(a.entries.size(), b.entries.size());
  for (std::size_t i = 0; i < a.entries.size(); ++i) {
    const auto &x = a.entries[i], &y = b.entries[i];
    EXPECT_EQ(x.empty, y.empty);
    EXPECT_EQ(x.partial, y.partial);
    EXPECT_EQ(x.full, y.full);
    EXPECT_EQ(x.kept_pairs, y.kept_pairs);
    EXPECT_EQ(x.rows_without_key, y.rows_without_key);
    EXPECT_EQ(x.query_runs, y.query_runs);
    EXPECT_EQ(x.key_runs, y.key_runs);
  }
  ASSERT_EQ(a.run_offsets, b.run_offsets);
  ASSERT_EQ(a.runs.size(), b.runs.size());
  for (std::size_t i = 0; i < a.runs.size(); ++i) {
    ASSERT_EQ(a.runs[i].begin, b.runs[i].begin);
    ASSERT_EQ(a.runs[i].end, b.runs[i].end);
    ASSERT_EQ(a.runs[i].tiles, b.runs[i].tiles);
  }
  ASSERT_EQ(a.tile_ids, b.tile_ids);
  ASSERT_EQ(a.tiles_by_query, b.tiles_by_query);
  ASSERT_EQ(a.tiles_by_key, b.tiles_by_key);
}

TEST(MaskCatalogue, every_mask_equals_brute_force) {
  const MaskCatalogue catalogue(8192);
  for (const Sequence& s : {sequence(8192, 8192),
                            sequence(2048, 2048),
                            sequence(1000, 1500),
                            sequence(777, 3001, 2224),
                            sequence(2111, 130),
                            sequence(1, 8192, 8191)}) {
    if (reduced_grid() && s.q_len * s.k_len > 3'000'000) continue;
    for (const CatalogueMask& m : catalogue.masks()) {
      SCOPED_TRACE(fmt::format("{} {}, {} x {}", m.number, m.name, s.q_len, s.k_len));
      const auto p = bound(catalogue.mask(m), s);
      const std::vector<Sequence> one{s};
      expect_same(*make_mask_plan(*p, 1, one, default_executor()),
                  *masks::exhaustive_mask_plan(*p, 1, one, default_executor()));
    }
  }
}

TEST(MaskCatalogue, rectangles_and_key_ranges_are_counted_exactly) {
  const Sequence s = sequence(300, 413);
  const MaskCatalogue catalogue(2048);
  std::mt19937 random(9);
  for (const CatalogueMask& m : catalogue.masks()) {
    SCOPED_TRACE(m.name);
    const std::vector<Sequence> one{s};
    const auto plan = make_mask_plan(*bound(catalogue.mask(m), s), 1, one, inline_executor());
    const auto& e = plan->entries[0];
    const MaskIndex index(plan);
    for (int trial = 0; trial < 8; ++trial) {
      const auto q0 = static_cast<std::int64_t>(random() % 300),
                 k0 = static_cast<std::int64_t>(random() % 413);
      const std::int64_t q1 = q0 + 1 + random() % (300 - q0), k1 = k0 + 1 + random() % (413 - k0);
      std::int64_t pairs = 0, first = 413, end = 0;
      for (std::int64_t q = q0; q < q1; ++q)
        for (std::int64_t k = 0; k < 413; ++k) {
          if (!masks::keeps(*plan, e, q, k)) continue;
          pairs += k >= k0 && k < k1;
          first = std::min(first, k);
          end = std::max(end, k + 1);
        }
      ASSERT_EQ(index.kept_pairs(q0, q1, k0, k1), pairs);
      const auto range = index.key_range(q0, q1);
      ASSERT_EQ(range, end ? std::pair(first, end) : std::pair(std::int64_t{0}, std::int64_t{0}));
    }
    EXPECT_EQ(index.kept_pairs(0, 300, 0, 413), e.kept_pairs);
  }
}

TEST(MaskCatalogue, a_plan_does_not_depend_on_the_number_of_workers) {
  const MaskCatalogue catalogue(8192);
  const std::vector<Sequence> one{sequence(8192, 8192)};
  for (const CatalogueMask& m : catalogue.masks()) {
    SCOPED_TRACE(m.name);
    const auto p = bound(catalogue.mask(m), one[0]);
    expect_same(*make_mask_plan(*p, 1, one, default_executor()),
                *make_mask_plan(*p, 1, one, inline_executor()));
  }
}

// Corners and centre of each 128 x 128 square, as some systems class blocks.
TEST(MaskCatalogue, five_samples_a_block_are_wrong_on_these_masks) {
  constexpr std::int64_t n = 8192, side = 128;
  const MaskCatalogue catalogue(n);
  const std::vector<Sequence> one{sequence(n, n)};
  for (const CatalogueMask& m : catalogue.masks()) {
    if (!m.sampled_wrong) continue;
    const auto p = bound(catalogue.mask(m), one[0]);
    const auto plan = make_mask_plan(*p, 1, one, default_executor());
    const auto& e = plan->entries[0];
    std::int64_t wrong = 0;
    for (std::int64_t q = 0; q < n; q += side) {
      for (std::int64_t k = 0; k < n; k += side) {
        int kept = 0;
        for (const auto& [i, j] : {std::pair{q, k},
                                   std::pair{q + side - 1, k},
                                   std::pair{q, k + side - 1},
                                   std::pair{q + side - 1, k + side - 1},
                                   std::pair{q + side / 2, k + side / 2}})
          kept += masks::keeps(*plan, e, i, j);
        const BlockClass sampled = kept == 0   ? BlockClass::empty
                                   : kept == 5 ? BlockClass::full
                                               : BlockClass::partial;
        wrong += sampled != BlockClass::partial &&
                 sampled != plan->classify(e, q, q + side, k, k + side);
      }
    }
    // Mask 4 goes wrong at one block in a longer sequence.
    if (m.number != 4) {
      EXPECT_GT(wrong, 0) << m.name;
    }
  }
}

TEST(MaskCatalogue, classes_of_128_match_counts_derived_by_another_program) {
  struct Count {
    int number;
    std::int64_t partial, full;
  };
  constexpr std::int64_t n = 8192, side = 128;
  const MaskCatalogue catalogue(n);
  const std::vector<Sequence> one{sequence(n, n)};
  for (const Count& c :
       {Count{1, 64, 2016},  Count{2, 120, 436},   Count{3, 120, 420}, Count{4, 187, 63},
        Count{5, 56, 2052},  Count{6, 180, 946},   Count{7, 152, 443}, Count{8, 152, 443},
        Count{9, 163, 1067}, Count{10, 1600, 436}, Count{11, 556, 0},  Count{12, 800, 0},
        Count{13, 175, 162}, Count{14, 106, 2016}, Count{15, 96, 992}, Count{16, 832, 0},
        Count{17, 694, 0},   Count{18, 484, 0},    Count{19, 484, 0},  Count{20, 0, 576},
        Count{21, 162, 371}, Count{23, 77, 1915},  Count{26, 2080, 0}}) {
    const CatalogueMask& m = catalogue.masks()[static_cast<std::size_t>(c.number - 1)];
    const auto plan = make_mask_plan(*bound(catalogue.mask(m), one[0]), 1, one, default_executor());
    std::int64_t partial = 0, full = 0;
    for (std::int64_t q = 0; q < n; q += side)
      for (std::int64_t k = 0; k < n; k += side) {
        const BlockClass b = plan->classify(plan->entries[0], q, q + side, k, k + side);
        partial += b == BlockClass::partial;
        full += b == BlockClass::full;
      }
    EXPECT_EQ(partial, c.partial) << m.number << " " << m.name;
    EXPECT_EQ(full, c.full) << m.number << " " << m.name;
  }
}

}  // namespace
}  // namespace undivided
