// SPDX-License-Identifier: Apache-2.0
// Plans of masks by key columns (expr::by_columns), without looking at pairs.
//
// A key keeps a few stretches of queries. The stretches that the 64 keys of a block keep, rounded
// out to blocks of queries, are where the block is not Empty; those that they mask are where it is
// not Full. So classes are exact in one pass over the keys: O(keys) time and memory. FlashMask
// (Wang et al. 2024, section 4) keeps the minimum and maximum of each column instead, which takes
// blocks between two stretches for Partial.
#pragma once

#include <cstdint>
#include <vector>

#include "mask/plan.hpp"

namespace undivided::masks {

/// Adds both orders of runs and the counts of an entry to a plan of Inside::program. Rows of blocks
/// whose classes change more often than memory of O(q_len + k_len) allows are written coarser:
/// groups of blocks that differ are Partial.
void add_columns(MaskPlan& plan,
                 MaskPlan::Entry& entry,
                 const BoundProgram& mask,
                 const Sequence& sequence,
                 std::int64_t batch,
                 std::int64_t head,
                 Executor& executor);

/// Takes the bits of a plan away: Partial blocks ask the program from now on.
void drop_bits(MaskPlan& plan);

}  // namespace undivided::masks
