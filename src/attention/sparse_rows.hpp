// SPDX-License-Identifier: Apache-2.0
// Which rows of a sparse attention take part, in which order, and which of them meet, on the host.
#pragma once

#include "undivided/plan.hpp"
#include "undivided/sparse.hpp"

namespace undivided {

/// Flags that keep rows, or the buckets of all rows: i32 (flags: boolean too) [batch, head, token]
/// of the query heads and of the KV heads.
struct SparseRule {
  View q, k;
  Order order;
  bool buckets;
};

/// Fills the lists of `f`. Queries are `origin` later than their number says.
void list_rows(SparseForward& f,
               const SparseRule& rule,
               std::int64_t origin,
               const Context& context);

}  // namespace undivided
