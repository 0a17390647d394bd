// SPDX-License-Identifier: Apache-2.0
// Makes a MaskPlan from a bound mask and the lengths and origins of each sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "problem/bound.hpp"
#include "problem/sequence.hpp"
#include "undivided/context.hpp"
#include "undivided/mask_plan.hpp"

namespace undivided {

/// Classes every block exactly. A band is classed from its bounds; any other program by the
/// analysis of quadtree.hpp. One entry per distinct (lengths, origins, and batch or head where the
/// program reads them). With Inside::program, masks by key columns are planned in O(keys); see
/// columns.hpp; `automatic` takes it for those that read arrays. Host arrays only. Raises
/// Error{plan} when the plan would be too large to hold.
std::shared_ptr<MaskPlan> make_mask_plan(const BoundProgram& mask,
                                         std::int64_t heads,
                                         std::span<const Sequence> sequences,
                                         Executor& executor,
                                         Inside inside = Inside::bits);

namespace masks {

class RowEvaluator;

/// Queries and keys of one block.
inline constexpr std::int64_t block_size = MaskPlan::block;

/// The same plan, made from every element (bands and all): slow, and simple enough to trust.
std::shared_ptr<MaskPlan> exhaustive_mask_plan(const BoundProgram& mask,
                                               std::int64_t heads,
                                               std::span<const Sequence> sequences,
                                               Executor& executor);

/// Raises Error{plan} for a plan of Inside::program; `what` says who asks.
void want_bits(const MaskPlan& plan, const char* what);

/// Does a plan keep the pair (q, k) of an entry? Local indices.
bool keeps(const MaskPlan& plan, const MaskPlan::Entry& entry, std::int64_t q, std::int64_t k);

/// One row (or column) of blocks while a plan is built: runs of tiles index into `tiles`.
struct BlockRow {
  std::vector<MaskPlan::Run> runs;
  std::vector<MaskPlan::Tile> tiles;
  std::int64_t kept_pairs = 0, rows_without_key = 0;

  void add_full(std::int64_t begin, std::int64_t end);
  void add_partial(std::int64_t block, const MaskPlan::Tile& tile);
};

/// Rows of blocks of a band, in closed form. `left` and `right` bound local q - k and k - q.
struct LocalBand {
  std::int64_t q_len = 0, k_len = 0, left = 0, right = 0;
  LocalBand transposed() const { return {k_len, q_len, right, left}; }
};
BlockRow evaluated_row(RowEvaluator& evaluator, const Sequence& s, std::int64_t q_block);
BlockRow band_row(const LocalBand& band, std::int64_t q_block);

/// Bit i of word j becomes bit j of word i.
MaskPlan::Tile transposed(const MaskPlan::Tile& tile);

}  // namespace masks
}  // namespace undivided
