// SPDX-License-Identifier: Apache-2.0
// Masks of other systems come in and go out unchanged; what a format cannot say is refused.
#include "undivided/mask_formats.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "flashmask_kinds.hpp"
#include "mask/plan.hpp"
#include "mask_catalogue.hpp"
#include "undivided/plan.hpp"

namespace undivided {
namespace {

using testing::MaskCatalogue;
using Bytes = std::vector<std::uint8_t>;
using flashmask::Kind;
using flashmask::kinds;
using flashmask::Rule;

std::shared_ptr<MaskPlan> plan_of(const Mask& m, int q_len, int k_len, std::int64_t heads = 1) {
  Sequence s;
  s.q_len = q_len;
  s.k_len = k_len;
  Positions reach;
  reach.heads = heads;
  reach.q_high = q_len - 1;
  reach.k_high = k_len - 1;
  reach.max_q_len = q_len;
  reach.max_k_len = k_len;
  const std::vector<Sequence> one{s};
  return make_mask_plan(*bind(m, reach), heads, one, inline_executor());
}
Bytes dense(const Mask& m, int q_len, int k_len) {
  const auto plan = plan_of(m, q_len, k_len);
  return export_dense(*plan, plan->entries[0]);
}
Bytes dense(const Rule& keep, int q_len, int k_len) {
  Bytes out;
  for (int q = 0; q < q_len; ++q)
    for (int k = 0; k < k_len; ++k) out.push_back(keep(q, k));
  return out;
}
std::string what_was_refused(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was refused";
}

TEST(MaskFormats, the_twelve_kinds_of_flashmask_mean_what_they_say_and_come_back) {
  for (const int n : {127, 128, 300}) {
    const auto all = kinds(n);
    ASSERT_EQ(all.size(), 12u);
    for (const Kind& kind : all) {
      SCOPED_TRACE(fmt::format("{}, {}", kind.name, n));
      const auto plan = plan_of(import_flashmask(kind.mask), n, n);
      const Bytes wanted = dense(kind.keep, n, n);
      ASSERT_EQ(export_dense(*plan, plan->entries[0]), wanted);
      const FlashMask back = export_flashmask(*plan, plan->entries[0]);
      EXPECT_LE(back.columns, kind.mask.columns);
      EXPECT_EQ(dense(import_flashmask(back), n, n), wanted);
    }
  }
}

TEST(MaskFormats, flashmask_with_fewer_or_more_queries_than_keys) {
  for (const Kind& kind : kinds(200)) {
    for (const int q_len : {70, 200}) {
      const Bytes wanted = dense(kind.keep, q_len, 200);
      ASSERT_EQ(dense(import_flashmask(kind.mask), q_len, 200), wanted) << kind.name;
      const auto plan = plan_of(import_flashmask(kind.mask), q_len, 200);
      EXPECT_EQ(dense(import_flashmask(export_flashmask(*plan, plan->entries[0])), q_len, 200),
                wanted)
          << kind.name;
    }
  }
}

TEST(MaskFormats, flashmask_heads_are_shared_by_groups) {
  FlashMask m;
  m.causal = true;
  m.columns = 1;
  m.heads = 2;
  m.keys = 90;
  for (int h = 0; h < 2; ++h)
    for (int j = 0; j < 90; ++j) m.values.push_back(h == 0 ? 90 : j + 3);
  const auto plan = plan_of(import_flashmask(m, 2), 90, 90, 4);
  EXPECT_EQ(plan->entry(0, 1).kept_pairs, 90 * 91 / 2);
  EXPECT_EQ(plan->entry(0, 2).kept_pairs, 3 * 90 - 3);
}

TEST(MaskFormats, every_catalogue_mask_survives_every_format_that_can_say_it) {
  const MaskCatalogue catalogue(2048);
  int columns = 0, slices = 0;
  for (const auto& m : catalogue.masks()) {
    SCOPED_TRACE(m.name);
    const int q_len = 201, k_len = 330;
    const Mask original = catalogue.mask(m);
    const auto plan = plan_of(original, q_len, k_len);
    const auto& e = plan->entries[0];
    const Bytes wanted = export_dense(*plan, e);
    ASSERT_EQ(dense(import_dense(wanted, q_len, k_len), q_len, k_len), wanted);
    ASSERT_EQ(dense(import_bits(export_bits(*plan, e), q_len, k_len), q_len, k_len), wanted);
    for (const int block : {128, 48}) {
      const FlexBlocks blocks = export_flex_blocks(*plan, e, block, 64);
      ASSERT_EQ(dense(import_flex_blocks(blocks, original), q_len, k_len), wanted);
    }
    try {
      ASSERT_EQ(dense(import_slices(export_slices(*plan, e)), q_len, k_len), wanted);
      ++slices;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::unsupported);
    }
    try {
      ASSERT_EQ(dense(import_flashmask(export_flashmask(*plan, e)), q_len, k_len), wanted);
      ++columns;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::unsupported);
    }
  }
  EXPECT_GT(columns, 10);
  EXPECT_GT(slices, 15);
}

TEST(MaskFormats, slices_are_few_for_bands_and_documents) {
  const auto count = [](const Mask& m) {
    const auto plan = plan_of(m, 300, 300);
    return export_slices(*plan, plan->entries[0]).size();
  };
  EXPECT_EQ(count(full()), 1u);
  EXPECT_EQ(count(causal()), 1u);
  EXPECT_EQ(count(window(40)), 3u);
  EXPECT_EQ(count(causal() && window(40)), 2u);
  const std::vector<MaskSlice> both{{10, 20, 30, 50, MaskSlice::Kind::both}};
  EXPECT_EQ(
      dense(import_slices(both), 64, 64),
      dense([](int q, int k) { return q >= 10 && q < 20 && k >= 20 + q && k <= 30 + q; }, 64, 64));
}

TEST(MaskFormats, packed_lengths_come_back) {
  const PackedLengths lengths{{0, 30, 100, 171}, {0, 64, 70, 200}};
  const auto plan = plan_of(import_cu_seqlens(lengths), 171, 200);
  EXPECT_EQ(plan->kept_pairs(), 30 * 64 + 70 * 6 + 71 * 130);
  const PackedLengths back = export_cu_seqlens(*plan, plan->entries[0]);
  EXPECT_EQ(back.cu_seqlens_q, lengths.cu_seqlens_q);
  EXPECT_EQ(back.cu_seqlens_k, lengths.cu_seqlens_k);
}

TEST(MaskFormats, block_sparse_rows_come_back) {
  BlockSparseRows b;
  b.q_len = 150;
  b.k_len = 170;
  b.rows = 64;
  b.columns = 32;
  b.indptr = {0, 2, 2, 5};
  b.indices = {0, 5, 1, 2, 4};
  const auto plan = plan_of(import_bsr(b), 150, 170);
  const BlockSparseRows back = export_bsr(*plan, plan->entries[0], 64, 32);
  EXPECT_EQ(back.indptr, b.indptr);
  EXPECT_EQ(back.indices, b.indices);
  EXPECT_EQ(plan->entries[0].rows_without_key, 64);
}

TEST(MaskFormats, what_a_format_cannot_say_is_refused_with_the_place) {
  using ::testing::HasSubstr;
  const auto dilated = plan_of(Mask::parse("abs(q - k) % 3 == 0"), 100, 100);
  const auto diagonal = plan_of(causal(), 100, 100);
  EXPECT_THAT(what_was_refused([&] { export_flashmask(*dilated, dilated->entries[0]); }),
              HasSubstr("two runs of masked queries for each key; key 0 has"));
  EXPECT_THAT(what_was_refused([&] { export_slices(*dilated, dilated->entries[0], 20); }),
              HasSubstr("more than 20 slices"));
  EXPECT_THAT(what_was_refused([&] { export_cu_seqlens(*diagonal, diagonal->entries[0]); }),
              HasSubstr("the keys of query 1 start at 0"));
  EXPECT_THAT(what_was_refused([&] { export_bsr(*diagonal, diagonal->entries[0]); }),
              HasSubstr("block (0, 0) of 64 x 64 is kept in part"));
}

TEST(MaskFormats, contradictory_input_is_refused) {
  using ::testing::HasSubstr;
  FlashMask m;
  m.columns = 3;
  m.keys = 4;
  EXPECT_THAT(what_was_refused([&] { import_flashmask(m); }),
              HasSubstr("3 columns and causal = false"));
  m.columns = 2;
  m.values.assign(7, 0);
  EXPECT_THAT(what_was_refused([&] { import_flashmask(m); }),
              HasSubstr("has 7 values; this shape wants 8"));
  EXPECT_THAT(what_was_refused([&] { import_dense(Bytes(5), 2, 3); }), HasSubstr("has 5 values"));
  EXPECT_THAT(what_was_refused([&] { import_bits(Bytes(2), 4, 5); }), HasSubstr("has 2 values"));
  EXPECT_THAT(what_was_refused([&] { import_cu_seqlens({{0, 5, 3}, {0, 1, 2}}); }),
              HasSubstr("cu_seqlens_q"));
  EXPECT_THAT(what_was_refused([&] { import_cu_seqlens({{0, 5}, {0, 1, 2}}); }),
              HasSubstr("pair up"));
  BlockSparseRows b;
  b.q_len = b.k_len = 64;
  b.indptr = {0, 1};
  b.indices = {1};
  EXPECT_THAT(what_was_refused([&] { import_bsr(b); }),
              HasSubstr("names block 1; allowed are 0 to 0"));
  const std::vector<MaskSlice> many(2000);
  EXPECT_THAT(what_was_refused([&] { import_slices(many); }), HasSubstr("at most 1024"));
}

}  // namespace
}  // namespace undivided
