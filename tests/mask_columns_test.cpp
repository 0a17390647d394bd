// SPDX-License-Identifier: Apache-2.0
// Plans without bits: masks by key columns are classed exactly in one pass over the keys, and hold
// memory by the token; any other mask loses its bits and keeps its classes.
#include <gtest/gtest.h>

#include <random>

#include "expr/program.hpp"
#include "flashmask_kinds.hpp"
#include "mask/plan.hpp"
#include "mask_catalogue.hpp"
#include "undivided/plan.hpp"

namespace undivided {
namespace {

using flashmask::Kind;
using flashmask::kinds;

Sequence sized(int q_len, int k_len, int q_origin = 0) {
  Sequence s;
  s.q_len = q_len;
  s.k_len = k_len;
  s.q_origin = q_origin;
  return s;
}
std::shared_ptr<const BoundProgram> bound(const Mask& m, const Sequence& s, std::int64_t heads) {
  Positions reach;
  reach.heads = heads;
  reach.q_low = s.q_origin;
  reach.q_high = s.q_origin + s.q_len - 1;
  reach.k_high = s.k_len - 1;
  reach.max_q_len = s.q_len;
  reach.max_k_len = s.k_len;
  return bind(m, reach);
}
std::shared_ptr<MaskPlan> plan_of(const Mask& m,
                                  const Sequence& s,
                                  Inside inside,
                                  std::int64_t heads = 1,
                                  Executor& executor = inline_executor()) {
  return make_mask_plan(*bound(m, s, heads), heads, {&s, 1}, executor, inside);
}
std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was refused";
}

std::vector<int> block_classes(const MaskPlan& plan, const MaskPlan::Entry& e, bool by_query) {
  const int rows = by_query ? e.q_blocks : e.k_blocks;
  std::vector<int> out(static_cast<std::size_t>(e.q_blocks) * e.k_blocks);
  for (int i = 0; i < rows; ++i) {
    const int at = (by_query ? e.query_runs : e.key_runs) + i;
    int reached = 0;
    for (int r = plan.run_offsets[at]; r < plan.run_offsets[at + 1]; ++r) {
      const MaskPlan::Run& run = plan.runs[r];
      EXPECT_LT(run.begin, run.end);
      EXPECT_GE(run.begin, reached);
      reached = run.end;
      for (int j = run.begin; j < run.end; ++j)
        out[by_query ? i * e.k_blocks + j : j * e.k_blocks + i] = run.tiles < 0 ? 2 : 1;
    }
    EXPECT_LE(reached, by_query ? e.k_blocks : e.q_blocks);
  }
  return out;
}

// The same classes in both orders, the same counts: all but the bits.
void expect_same_blocks(const MaskPlan& got, const MaskPlan& want) {
  ASSERT_EQ(got.inside, Inside::program);
  EXPECT_TRUE(got.tile_ids.empty() && got.tiles_by_query.empty() && got.tiles_by_key.empty());
  ASSERT_EQ(got.entry_of, want.entry_of);
  for (std::size_t i = 0; i < got.entries.size(); ++i) {
    const MaskPlan::Entry &a = got.entries[i], &b = want.entries[i];
    EXPECT_EQ(a.empty, b.empty);
    EXPECT_EQ(a.partial, b.partial);
    EXPECT_EQ(a.full, b.full);
    EXPECT_EQ(a.kept_pairs, b.kept_pairs);
    EXPECT_EQ(a.rows_without_key, b.rows_without_key);
    const std::vector<int> wanted = block_classes(want, b, true);
    EXPECT_EQ(block_classes(got, a, true), wanted);
    EXPECT_EQ(block_classes(got, a, false), wanted);
  }
}

// Columns with no order at all.
FlashMask random_columns(int n, bool causal, int columns, int rows, unsigned seed) {
  std::mt19937 random(seed);
  FlashMask m;
  m.causal = causal;
  m.columns = columns;
  m.keys = n;
  for (int i = 0; i < n * columns; ++i)
    m.values.push_back(static_cast<std::int32_t>(random() % (rows + 20)) - 10);
  return m;
}

TEST(MaskColumns, every_kind_of_flashmask_has_the_classes_of_its_bits) {
  for (const int n : {1, 63, 64, 127, 300, 1025})
    for (const Kind& kind : kinds(std::max(n, 40))) {
      SCOPED_TRACE(fmt::format("{}, {}", kind.name, n));
      const Mask m = import_flashmask(kind.mask);
      for (const Sequence& s : {sized(n, n), sized(std::min(70, n), n), sized(2 * n, n)}) {
        const auto want = plan_of(m, s, Inside::bits);
        ASSERT_NO_FATAL_FAILURE(expect_same_blocks(*plan_of(m, s, Inside::program), *want));
      }
      // Aligned at the end: positions of queries do not begin at 0.
      const Sequence late = sized(n / 2 + 1, n, n - n / 2 - 1);
      ASSERT_NO_FATAL_FAILURE(
          expect_same_blocks(*plan_of(m, late, Inside::program), *plan_of(m, late, Inside::bits)));
    }
}

TEST(MaskColumns, columns_without_order_are_classed_exactly) {
  const auto executor = make_executor(3);
  for (unsigned seed = 0; seed < 12; ++seed)
    for (const auto& [causal, columns] : {std::pair{true, 1}, {true, 2}, {false, 2}, {false, 4}}) {
      const int n = 200 + 700 * static_cast<int>(seed % 3),
                rows = 100 + 97 * static_cast<int>(seed);
      const Mask m = import_flashmask(random_columns(n, causal, columns, rows, seed));
      const Sequence s = sized(rows, n);
      const auto want = plan_of(m, s, Inside::bits);
      ASSERT_NO_FATAL_FAILURE(expect_same_blocks(*plan_of(m, s, Inside::program), *want));
      ASSERT_NO_FATAL_FAILURE(
          expect_same_blocks(*plan_of(m, s, Inside::program, 1, *executor), *want));
    }
}

TEST(MaskColumns, any_connective_and_compare_is_read) {
  std::vector<std::int32_t> a, b;
  std::mt19937 random(7);
  for (int j = 0; j < 500; ++j) {
    a.push_back(static_cast<std::int32_t>(random() % 500));
    b.push_back(static_cast<std::int32_t>(random() % 500));
  }
  const Captures captures{{Array(a, "a"), Array(b, "b")}, {}};
  for (const char* text : {"a[k] < q || q == b[k]",
                           "q != a[k]",
                           "(q <= a[k]) == (k > 100)",
                           "(q > a[k]) != (q >= b[k])",
                           "k % 3 == 0 ? q < a[k] : b[k] <= q",
                           "!(a[k] >= q) && head == 0",
                           "a[k] > 250",
                           "min(a[k], b[k]) <= q && q < max(a[k], b[k]) + 2"}) {
    SCOPED_TRACE(text);
    const Mask m = Mask::parse(text, captures);
    ASSERT_FALSE(expr::by_columns(*m.program()).leaves.empty());
    const Sequence s = sized(450, 500);
    ASSERT_NO_FATAL_FAILURE(
        expect_same_blocks(*plan_of(m, s, Inside::program, 2), *plan_of(m, s, Inside::bits, 2)));
  }
  for (const char* text : {"a[q] == a[k]", "a[q] <= k && k <= q", "q % 3 == 0 && k <= q"})
    EXPECT_TRUE(expr::by_columns(*Mask::parse(text, captures).program()).leaves.empty()) << text;
}

TEST(MaskColumns, any_other_mask_keeps_its_classes_without_bits) {
  const testing::MaskCatalogue catalogue(2048);
  for (const auto& m : catalogue.masks()) {
    SCOPED_TRACE(m.name);
    const Sequence s = sized(330, 500);
    const Mask mask = catalogue.mask(m);
    ASSERT_NO_FATAL_FAILURE(
        expect_same_blocks(*plan_of(mask, s, Inside::program), *plan_of(mask, s, Inside::bits)));
  }
}

TEST(MaskColumns, are_chosen_for_masks_that_read_columns) {
  const Sequence s = sized(100, 100);
  EXPECT_EQ(plan_of(import_flashmask(kinds(100)[3].mask), s, Inside::automatic)->inside,
            Inside::program);
  EXPECT_EQ(plan_of(prefix(10), s, Inside::automatic)->inside, Inside::bits);
}

TEST(MaskColumns, memory_grows_with_the_tokens) {
  const auto bytes = [](const Mask& m, int n) {
    return plan_of(m, sized(n, n), Inside::program)->bytes();
  };
  for (const std::size_t kind : {3u, 4u, 6u, 7u, 10u, 11u}) {
    SCOPED_TRACE(kinds(64)[kind].name);
    for (const int n : {8192, 65536})
      EXPECT_LE(bytes(import_flashmask(kinds(n)[kind].mask), n), 16u * n) << n;
  }
  // Every other block of keys is kept: each row of blocks has a run for each. Rows are written
  // coarser then, without losing a pair.
  const int n = 131072;
  FlashMask stripes;
  stripes.columns = 2;
  stripes.keys = n;
  for (int j = 0; j < n; ++j) {
    stripes.values.push_back(j / 64 % 2 ? n : 0);
    stripes.values.push_back(0);
  }
  const Mask m = import_flashmask(stripes);
  const Sequence s = sized(n, n);
  const auto plan = plan_of(m, s, Inside::program);
  EXPECT_LE(plan->bytes(), 128u * n);
  const auto& e = plan->entries[0];
  EXPECT_EQ(e.full, e.empty);
  EXPECT_EQ(e.kept_pairs, std::int64_t{n} * n / 2);
  const MaskPlan::Run first = plan->runs[plan->run_offsets[e.query_runs]];
  EXPECT_GE(first.tiles, 0);
  EXPECT_EQ(first.begin, 0);
}

TEST(MaskColumns, answers_that_need_bits_are_refused) {
  const auto plan = plan_of(import_flashmask(kinds(300)[6].mask), sized(300, 300), Inside::program);
  const auto& e = plan->entries[0];
  EXPECT_EQ(plan->classify(e, 0, 64, 0, 64), BlockClass::partial);
  EXPECT_EQ(plan->classify(e, 256, 300, 256, 300), BlockClass::partial);
  EXPECT_EQ(plan->classify(e, 200, 210, 70, 80), BlockClass::empty);
  for (const auto& f : std::vector<std::function<void()>>{[&] { plan->classify(e, 0, 10, 0, 64); },
                                                          [&] { plan->classify(e, 0, 64, 3, 64); },
                                                          [&] { MaskIndex(plan, 0, 0); },
                                                          [&] { export_flashmask(*plan, e); },
                                                          [&] { export_dense(*plan, e); }})
    EXPECT_NE(refusal(f).find("Inside::bits"), std::string::npos) << refusal(f);
}

}  // namespace
}  // namespace undivided
