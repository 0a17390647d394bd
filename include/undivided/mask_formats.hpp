// SPDX-License-Identifier: Apache-2.0
// Masks of other systems: read as Mask, written from a MaskPlan.
//
// Importers give a Mask over positions that start at 0 (Align::start), usable in every verb.
// Exporters take one entry of a plan and raise Error{unsupported} for what a format cannot say,
// with the first place where it fails.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "undivided/expr.hpp"
#include "undivided/mask_plan.hpp"

namespace undivided {

/// FlashMask (Wang et al. 2024): for each key, which query rows are masked. `values` is
/// [heads, keys, columns], int32.
///   causal, 1 column: rows >= c0; 2 columns: rows in [c0, c1); rows before the key always.
///   not causal, 2 columns: rows >= c0 or < c1; 4 columns: rows in [c0, c1) or in [c2, c3).
struct FlashMask {
  bool causal = false;
  std::int64_t heads = 1, keys = 0;
  int columns = 0;
  std::vector<std::int32_t> values;
};
/// `group` query heads share a head of the mask; masks of several heads read the head.
Mask import_flashmask(const FlashMask& m, std::int64_t group = 1);
/// The form with the fewest columns, one head. Refused: more than two runs of masked rows in a
/// column.
FlashMask export_flashmask(const MaskPlan& plan, const MaskPlan::Entry& entry);

/// FlexAttention's block lists for one batch and head. Rows of `*_indices` hold k_blocks entries;
/// those past a count mean nothing.
struct FlexBlocks {
  std::int64_t q_len = 0, k_len = 0;
  std::int32_t q_block = 128, k_block = 128;
  std::vector<std::int32_t> kv_num_blocks, kv_indices;            ///< masked inside
  std::vector<std::int32_t> full_kv_num_blocks, full_kv_indices;  ///< kept whole
  std::int64_t q_blocks() const { return (q_len + q_block - 1) / q_block; }
  std::int64_t k_blocks() const { return (k_len + k_block - 1) / k_block; }
};
/// `inside` says what the blocks of kv_indices keep.
Mask import_flex_blocks(const FlexBlocks& blocks, const Mask& inside);
FlexBlocks export_flex_blocks(const MaskPlan& plan,
                              const MaskPlan::Entry& entry,
                              std::int32_t q_block = 128,
                              std::int32_t k_block = 128);

/// Bytes of 0 and not 0, [q_len, k_len].
Mask import_dense(std::span<const std::uint8_t> keep, std::int64_t q_len, std::int64_t k_len);
std::vector<std::uint8_t> export_dense(const MaskPlan& plan, const MaskPlan::Entry& entry);

/// Bit q * k_len + k, the lowest bit of a byte first (FlashInfer's packed_custom_mask).
Mask import_bits(std::span<const std::uint8_t> bits, std::int64_t q_len, std::int64_t k_len);
std::vector<std::uint8_t> export_bits(const MaskPlan& plan, const MaskPlan::Entry& entry);

/// Block sparse rows: row block i keeps the blocks indices[indptr[i]] .. indices[indptr[i + 1] - 1]
/// whole.
struct BlockSparseRows {
  std::int64_t q_len = 0, k_len = 0;
  std::int32_t rows = 64, columns = 64;  ///< of a block
  std::vector<std::int32_t> indptr, indices;
};
Mask import_bsr(const BlockSparseRows& bsr);
/// Refused: a block that is kept in part.
BlockSparseRows export_bsr(const MaskPlan& plan,
                           const MaskPlan::Entry& entry,
                           std::int32_t rows = 64,
                           std::int32_t columns = 64);

/// Rectangles [q0, q1) x [k0, k1), cut by diagonals (MagiAttention's slices). `causal` ends the
/// keys of the last row at k1 and each row above one earlier; `inverse_causal` starts the first row
/// at k0 and each row below one later; `both` does both.
struct MaskSlice {
  enum class Kind : std::uint8_t { full, causal, inverse_causal, both };
  std::int32_t q0 = 0, q1 = 0, k0 = 0, k1 = 0;
  Kind kind = Kind::full;
};
/// A pair is kept when any slice keeps it. At most 1,024 slices.
Mask import_slices(std::span<const MaskSlice> slices);
/// Disjoint slices. Refused: a mask that needs more than `most`.
std::vector<MaskSlice> export_slices(const MaskPlan& plan,
                                     const MaskPlan::Entry& entry,
                                     std::size_t most = 1024);

/// Packed sequences: query i and key j are kept when the same piece of [offsets[p], offsets[p + 1])
/// holds both.
struct PackedLengths {
  std::vector<std::int32_t> cu_seqlens_q, cu_seqlens_k;
};
Mask import_cu_seqlens(const PackedLengths& lengths);
/// Refused: anything but whole blocks on a diagonal.
PackedLengths export_cu_seqlens(const MaskPlan& plan, const MaskPlan::Entry& entry);

}  // namespace undivided
