// SPDX-License-Identifier: Apache-2.0
// Which rows of a sparse attention take part, in which order, and which of them meet.
#pragma once

#include "undivided/sparse.hpp"

namespace undivided {

/// Flags that keep rows, or the buckets of all rows: i32 (flags: boolean too) [batch, head, token]
/// of the query heads and of the KV heads.
struct SparseRule {
  View q, k;
  Order order;
  bool buckets;
};

/// Fills the lists of `f`, on the device of the flags, and gives the mask of the compact problem: a
/// program by key columns over them. Queries are `origin` later than their number says. Host lists
/// are as long as the longest head; those on a device have a place for each token, so that nothing
/// waits for a count, and come with a mask plan.
Mask list_rows(SparseForward& f,
               const SparseRule& rule,
               std::int64_t origin,
               const Context& context);

/// to[b, h, i] = from[b, h, index[b, h, i]], and `empty` in all its elements where the index is -1.
/// Columns that `to` has more are empty too; rows of index -2 are left alone, as a device has room
/// for rows that nobody reads.
void take_rows(
    const View& to, const View& from, const View& index, float empty, const Context& context);

}  // namespace undivided
