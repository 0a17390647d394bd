// SPDX-License-Identifier: Apache-2.0
// A mask plan says exactly what the mask says: every pair, every block, in both orders.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "expr/program.hpp"
#include "mask/plan.hpp"
#include "undivided/plan.hpp"

namespace undivided {
namespace {

constexpr std::int64_t block = MaskPlan::block;

struct Grid {
  std::vector<Sequence> sequences;
  std::int64_t heads = 1;
};

std::shared_ptr<const BoundProgram> bound(const Mask& mask, const Grid& setup) {
  Positions reach;
  reach.batch = static_cast<std::int64_t>(setup.sequences.size());
  reach.heads = setup.heads;
  reach.q_low = reach.k_low = INT32_MAX;
  reach.q_high = reach.k_high = INT32_MIN;
  for (const Sequence& s : setup.sequences) {
    reach.q_low = std::min(reach.q_low, s.q_origin);
    reach.k_low = std::min(reach.k_low, s.k_origin);
    reach.q_high = std::max(reach.q_high, s.q_origin + s.q_len - 1);
    reach.k_high = std::max(reach.k_high, s.k_origin + s.k_len - 1);
    reach.max_q_len = std::max(reach.max_q_len, s.q_len);
    reach.max_k_len = std::max(reach.max_k_len, s.k_len);
  }
  return bind(mask, reach);
}

Sequence lengths(std::int64_t q,
                 std::int64_t k,
                 std::int64_t q_origin = 0,
                 std::int64_t k_origin = 0) {
  Sequence s;
  s.q_len = q;
  s.k_len = k;
  s.q_origin = q_origin;
  s.k_origin = k_origin;
  return s;
}

// The scalar reading, which the oracle uses too.
bool kept(const BoundProgram& p,
          const Sequence& s,
          std::int64_t b,
          std::int64_t h,
          std::int64_t q,
          std::int64_t k) {
  std::vector<double> scratch(p.program->nodes.size());
  double result = 0;
  expr::Point at{b, h, s.q_origin + q, s.k_origin + k, s.q_len, s.k_len, 0};
  expr::evaluate(*p.program, p.bound, at, scratch.data(), &result);
  return result != 0;
}

// Reads one order of runs back into a class per block and checks that runs are well formed.
std::vector<int> classes(const MaskPlan& plan, const MaskPlan::Entry& e, bool by_query) {
  const int rows = by_query ? e.q_blocks : e.k_blocks, columns = by_query ? e.k_blocks : e.q_blocks;
  std::vector<int> out(static_cast<std::size_t>(e.q_blocks) * e.k_blocks, -1);
  for (int i = 0; i < rows; ++i) {
    const int at = (by_query ? e.query_runs : e.key_runs) + i;
    int previous_end = 0, previous_kind = -2;
    for (int r = plan.run_offsets[at]; r < plan.run_offsets[at + 1]; ++r) {
      const MaskPlan::Run& run = plan.runs[r];
      EXPECT_LT(run.begin, run.end);
      EXPECT_GE(run.begin, previous_end);
      EXPECT_LE(run.end, columns);
      const int kind = run.tiles < 0 ? -1 : 1;
      EXPECT_FALSE(run.begin == previous_end && kind == previous_kind) << "two runs that are one";
      previous_end = run.end;
      previous_kind = kind;
      for (int j = run.begin; j < run.end; ++j) {
        const auto place =
            by_query ? std::size_t(i) * e.k_blocks + j : std::size_t(j) * e.k_blocks + i;
        out[place] = run.tiles < 0 ? -2 : plan.tile_ids[run.tiles + j - run.begin];
      }
    }
  }
  return out;
}

void expect_exact(const Mask& mask, const Grid& setup) {
  SCOPED_TRACE(mask.text());
  const auto program = bound(mask, setup);
  const auto plan = make_mask_plan(*program, setup.heads, setup.sequences, default_executor());
  ASSERT_EQ(plan->batch, static_cast<std::int64_t>(setup.sequences.size()));
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < plan->batch; ++b) {
    for (std::int64_t h = 0; h < setup.heads; ++h) {
      const Sequence& s = setup.sequences[b];
      const MaskPlan::Entry& e = plan->entry(b, h);
      ASSERT_EQ(e.q_len, s.q_len);
      ASSERT_EQ(e.k_len, s.k_len);
      const auto by_query = classes(*plan, e, true);
      ASSERT_EQ(by_query, classes(*plan, e, false)) << "the two orders disagree";
      std::int64_t pairs = 0, empty = 0, partial = 0, full = 0;
      std::vector<std::int64_t> row_keys(s.q_len);
      for (int qb = 0; qb < e.q_blocks; ++qb) {
        for (int kb = 0; kb < e.k_blocks; ++kb) {
          std::int64_t in_block = 0, size = 0;
          MaskPlan::Tile tile{};
          for (std::int64_t q = qb * block; q < std::min((qb + 1) * block, s.q_len); ++q) {
            for (std::int64_t k = kb * block; k < std::min((kb + 1) * block, s.k_len); ++k) {
              const bool keep = kept(*program, s, b, h, q, k);
              in_block += keep;
              row_keys[q] += keep;
              ++size;
              if (keep) tile[q - qb * block] |= std::uint64_t{1} << (k - kb * block);
            }
          }
          pairs += in_block;
          const int id = by_query[std::size_t(qb) * e.k_blocks + kb];
          const BlockClass verdict =
              plan->classify(e, qb * block, (qb + 1) * block, kb * block, (kb + 1) * block);
          if (in_block == 0) {
            ++empty;
            ASSERT_EQ(id, -1) << qb << ", " << kb;
            ASSERT_EQ(verdict, BlockClass::empty);
          } else if (in_block == size) {
            ++full;
            ASSERT_EQ(id, -2) << qb << ", " << kb;
            ASSERT_EQ(verdict, BlockClass::full);
          } else {
            ++partial;
            ASSERT_GE(id, 0) << qb << ", " << kb;
            ASSERT_EQ(verdict, BlockClass::partial);
            ASSERT_EQ(plan->tiles_by_query[id], tile);
            ASSERT_EQ(plan->tiles_by_key[id], masks::transposed(tile));
          }
        }
      }
      EXPECT_EQ(e.kept_pairs, pairs);
      EXPECT_EQ(e.empty, empty);
      EXPECT_EQ(e.partial, partial);
      EXPECT_EQ(e.full, full);
      EXPECT_EQ(e.rows_without_key, std::count(row_keys.begin(), row_keys.end(), 0));
      total += pairs;
    }
  }
  EXPECT_EQ(plan->kept_pairs(), total);
  const std::set<MaskPlan::Tile> distinct(plan->tiles_by_query.begin(), plan->tiles_by_query.end());
  EXPECT_EQ(distinct.size(), plan->tiles_by_query.size()) << "equal tiles are stored once";
}

const Grid& square() {
  static const Grid setup{{lengths(300, 300)}, 1};
  return setup;
}

TEST(MaskPlan, bands_are_exact_at_every_edge) {
  const std::vector<Mask> masks{full(),
                                causal(),
                                window(0),
                                window(5),
                                window(64),
                                window(100, 3),
                                causal() && window(70),
                                window(-3, 200),
                                window(-80, 80),
                                window(130, 64)};
  const std::vector<Sequence> shapes{lengths(1, 1),
                                     lengths(64, 64),
                                     lengths(65, 63),
                                     lengths(200, 131),
                                     lengths(131, 200, 69),
                                     lengths(200, 131, -69),
                                     lengths(10, 300, 290),
                                     lengths(130, 130, 1000, 900),
                                     lengths(0, 70),
                                     lengths(70, 0),
                                     lengths(0, 0)};
  for (const Mask& m : masks)
    for (const Sequence& s : shapes) expect_exact(m, {{s}, 1});
}

TEST(MaskPlan, a_band_equals_its_evaluated_twin) {
  const Grid setup{{lengths(200, 259, 59)}, 1};
  const Mask band = causal() && window(100);
  const auto program = bound(band, setup);
  ASSERT_TRUE(program->band.is_band);
  auto twin = *program;
  twin.band = {};
  const auto a = make_mask_plan(*program, 1, setup.sequences, inline_executor());
  const auto b = make_mask_plan(twin, 1, setup.sequences, inline_executor());
  EXPECT_EQ(a->entries[0].kept_pairs, b->entries[0].kept_pairs);
  EXPECT_EQ(a->run_offsets, b->run_offsets);
  EXPECT_EQ(a->tiles_by_query, b->tiles_by_query);
  EXPECT_EQ(a->tile_ids, b->tile_ids);
}

TEST(MaskPlan, general_masks_are_exact) {
  std::vector<std::int32_t> ids(300);
  for (int i = 0; i < 300; ++i) ids[i] = i / 77;
  expect_exact(documents(Array(ids, "doc")), square());
  expect_exact(documents(Array(ids, "doc")) && causal(), square());
  expect_exact(prefix(90), square());
  expect_exact(!causal(), square());
  expect_exact(!full(), square());
  expect_exact(mask([](auto, auto, auto q, auto k) { return abs(q - k) % 3 == 0; }), square());
  expect_exact(mask([](auto, auto, auto q, auto k) { return (q / 16 ^ k / 16) < 4 || k < 2; }),
               square());
  expect_exact(mask([](auto, auto, auto q, auto k) { return select(q % 2 == 0, k, q) >> 3 != 7; }),
               square());
  expect_exact(mask([](auto, auto, auto q, auto k) { return exp((q - k) * 0.01) < 1.5; }),
               square());
  expect_exact(
      mask([](auto, auto, auto q, auto k) { return trunc(sqrt(abs(q - k) * 1.0)) % 2 == 0; }),
      square());
  expect_exact(
      mask([](auto, auto, auto q, auto k) { return min(q, k) * 2 > k_len(k) - max(q, 7); }),
      square());
  expect_exact(mask([](auto, auto, auto, auto k) { return k % 5 != 0; }), square());
  expect_exact(mask([](auto, auto, auto q, auto) { return q < 128; }), square());
}

TEST(MaskPlan, negative_positions_and_clamped_loads) {
  std::vector<std::int32_t> gone(400);
  std::mt19937 random(7);
  for (auto& g : gone) g = static_cast<std::int32_t>(random() % 400);
  const Array a(gone, "gone");
  expect_exact(mask([=](auto, auto, auto q, auto k) { return k <= q && q < a[clamp(k, 0, 399)]; }),
               {{lengths(150, 260, -40, -70)}, 1});
}

// Arrays that differ by batch or head, lengths that differ and are no multiples of 64.
TEST(MaskPlan, captures_by_batch_and_head_are_exact) {
  std::mt19937 random(21);
  const auto table = [&](std::initializer_list<std::int64_t> shape, int low, int high) {
    const Tensor t = Tensor::zeros(DType::i32, shape);
    for (std::int64_t i = 0; i < t.count(); ++i)
      t.ptr<std::int32_t>()[i] = low + static_cast<int>(random() % (high - low));
    return t;
  };
  const Array ids(table({3, 300}, 0, 4), "ids"), gone(table({4, 300}, 0, 250), "gone"),
      width(table({3, 4}, 1, 200), "width"), slope(table({4}, 1, 4), "slope");
  const std::vector<Sequence> ragged{
      lengths(130, 300, 170), lengths(200, 77, -123), lengths(65, 190)};
  expect_exact(documents(ids), {{lengths(130, 300), lengths(130, 300), lengths(1, 300, 299)}, 1});
  expect_exact(mask([=](auto b, auto, auto q, auto k) {
                 return ids(b, clamp(q, 0, 299)) == ids(b, k) && k <= q;
               }),
               {ragged, 1});
  expect_exact(mask([=](auto, auto h, auto q, auto k) { return k <= q && q < gone(h, k); }),
               {{lengths(130, 300, 170), lengths(130, 300, 170)}, 4});
  expect_exact(
      mask([=](auto b, auto h, auto q, auto k) { return abs(slope[h] * q - k) <= width(b, h); }),
      {ragged, 4});
}

TEST(MaskPlan, entries_are_shared_where_nothing_differs) {
  const std::vector<Sequence> same{lengths(100, 100), lengths(100, 100), lengths(80, 100)};
  const auto entries = [&](const Mask& m) {
    return make_mask_plan(*bound(m, {same, 4}), 4, same, inline_executor())->entries.size();
  };
  EXPECT_EQ(entries(prefix(10)), 2u);
  EXPECT_EQ(entries(mask(
                [](auto, auto h, auto q, auto k) { return (k + q) % (h - h + 2) == 0 || k > h; })),
            8u);
  EXPECT_EQ(entries(mask([](auto b, auto, auto q, auto k) { return (k + q) % 2 == b % 2; })), 3u);
  expect_exact(mask([](auto b, auto h, auto q, auto k) { return q - k <= 10 * h + b && k <= q; }),
               {same, 4});
}

TEST(MaskPlan, parts_of_blocks_are_classed_on_their_elements) {
  const auto plan =
      make_mask_plan(*bound(causal(), square()), 1, square().sequences, inline_executor());
  const auto& e = plan->entries[0];
  EXPECT_EQ(plan->classify(e, 0, 64, 0, 64), BlockClass::partial);
  EXPECT_EQ(plan->classify(e, 0, 32, 32, 64), BlockClass::empty);
  EXPECT_EQ(plan->classify(e, 32, 64, 0, 32), BlockClass::full);
  EXPECT_EQ(plan->classify(e, 128, 192, 0, 128), BlockClass::full);
  EXPECT_EQ(plan->classify(e, 128, 256, 0, 256), BlockClass::partial);
  EXPECT_EQ(plan->classify(e, 256, 320, 0, 256), BlockClass::full) << "clipped to the length";
  EXPECT_EQ(plan->classify(e, 300, 320, 0, 256), BlockClass::empty) << "no element at all";
  std::mt19937 random(3);
  const auto m = bound(prefix(70), square());
  const auto p = make_mask_plan(*m, 1, square().sequences, inline_executor());
  for (int i = 0; i < 300; ++i) {
    const int q0 = random() % 290, k0 = random() % 290;
    const int q1 = q0 + 1 + random() % (300 - q0), k1 = k0 + 1 + random() % (300 - k0);
    bool any = false, all = true;
    for (int q = q0; q < q1; ++q)
      for (int k = k0; k < k1; ++k) (k < 70 || k <= q ? any = true : all = false);
    ASSERT_EQ(p->classify(p->entries[0], q0, q1, k0, k1),
              !any  ? BlockClass::empty
              : all ? BlockClass::full
                    : BlockClass::partial);
  }
}

TEST(MaskPlan, a_transposed_tile_swaps_rows_and_columns) {
  MaskPlan::Tile tile{};
  std::mt19937_64 random(1);
  for (auto& word : tile) word = random();
  const auto turned = masks::transposed(tile);
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 64; ++j) ASSERT_EQ(tile[i] >> j & 1, turned[j] >> i & 1);
}

TEST(MaskPlan, a_score_is_no_mask) {
  const auto program = bind(identity(), Positions{});
  const std::vector<Sequence> one{lengths(1, 1)};
  EXPECT_THROW(make_mask_plan(*program, 1, one, inline_executor()), Error);
}

TEST(MaskPlan, long_bands_cost_their_edges_only) {
  const std::int64_t n = 1 << 20;
  const std::vector<Sequence> one{lengths(n, n)};
  const auto plan = make_mask_plan(*bound(causal(), {one, 1}), 1, one, inline_executor());
  EXPECT_EQ(plan->kept_pairs(), n * (n + 1) / 2);
  EXPECT_EQ(plan->tiles_by_query.size(), 1u);
  EXPECT_EQ(plan->entries[0].partial, n / 64);
}

}  // namespace
}  // namespace undivided
