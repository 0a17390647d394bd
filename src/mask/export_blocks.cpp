// SPDX-License-Identifier: Apache-2.0
// Plans as dense and packed masks and as block lists.
#include "mask/intervals.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided {

namespace {

template <class F>
void each_kept(const MaskPlan& plan, const MaskPlan::Entry& e, F&& f) {
  for (std::int64_t q = 0; q < e.q_len; ++q)
    for (const masks::Stretch& s : masks::kept_by(plan, e, true, q))
      for (std::int64_t k = s.begin; k < s.end; ++k) f(static_cast<std::size_t>(q * e.k_len + k));
}

}  // namespace

std::vector<std::uint8_t> export_dense(const MaskPlan& plan, const MaskPlan::Entry& e) {
  std::vector<std::uint8_t> out(static_cast<std::size_t>(e.q_len * e.k_len));
  each_kept(plan, e, [&](std::size_t at) { out[at] = 1; });
  return out;
}

std::vector<std::uint8_t> export_bits(const MaskPlan& plan, const MaskPlan::Entry& e) {
  std::vector<std::uint8_t> out(static_cast<std::size_t>((e.q_len * e.k_len + 7) / 8));
  each_kept(plan, e, [&](std::size_t at) {
    out[at / 8] = static_cast<std::uint8_t>(out[at / 8] | 1u << (at % 8));
  });
  return out;
}

FlexBlocks export_flex_blocks(const MaskPlan& plan,
                              const MaskPlan::Entry& e,
                              std::int32_t q_block,
                              std::int32_t k_block) {
  masks::check_block(q_block, k_block);
  FlexBlocks out;
  out.q_len = e.q_len;
  out.k_len = e.k_len;
  out.q_block = q_block;
  out.k_block = k_block;
  const std::int64_t rows = out.q_blocks(), columns = out.k_blocks();
  for (auto* counts : {&out.kv_num_blocks, &out.full_kv_num_blocks})
    counts->resize(static_cast<std::size_t>(rows));
  for (auto* indices : {&out.kv_indices, &out.full_kv_indices})
    indices->resize(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      const BlockClass b =
          plan.classify(e, r * q_block, (r + 1) * q_block, c * k_block, (c + 1) * k_block);
      if (b == BlockClass::empty) continue;
      const bool full = b == BlockClass::full;
      auto& count =
          (full ? out.full_kv_num_blocks : out.kv_num_blocks)[static_cast<std::size_t>(r)];
      auto& indices = full ? out.full_kv_indices : out.kv_indices;
      indices[static_cast<std::size_t>(r * columns + count++)] = static_cast<std::int32_t>(c);
    }
  return out;
}

BlockSparseRows export_bsr(const MaskPlan& plan,
                           const MaskPlan::Entry& e,
                           std::int32_t rows,
                           std::int32_t columns) {
  masks::check_block(rows, columns);
  BlockSparseRows out;
  out.q_len = e.q_len;
  out.k_len = e.k_len;
  out.rows = rows;
  out.columns = columns;
  out.indptr = {0};
  for (std::int64_t r = 0; r * rows < e.q_len; ++r) {
    for (std::int64_t c = 0; c * columns < e.k_len; ++c) {
      const BlockClass b =
          plan.classify(e, r * rows, (r + 1) * rows, c * columns, (c + 1) * columns);
      if (b == BlockClass::partial)
        masks::refuse_format(
            "block sparse rows keep blocks whole; block ({}, {}) of {} x {} is "
            "kept in part: use packed bits, or smaller blocks",
            r,
            c,
            rows,
            columns);
      if (b == BlockClass::full) out.indices.push_back(static_cast<std::int32_t>(c));
    }
    out.indptr.push_back(static_cast<std::int32_t>(out.indices.size()));
  }
  return out;
}

}  // namespace undivided
