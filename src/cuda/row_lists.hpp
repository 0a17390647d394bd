// SPDX-License-Identifier: Apache-2.0
// Lists of rows for sparse attention, made on the device of the flags without waiting for it.
#pragma once

#include <memory>

#include "undivided/context.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cuda {

struct RowRule {
  View q, k;  // flags that keep rows (boolean or i32), or buckets (i32): [batch, head, token]
  bool buckets = false;
  int order =
      0;  // a key is seen by all queries (0), by later ones and its own (1), by later ones (2)
  std::int64_t origin = 0;  // added to the times of queries
};

/// As in SparseForward, with room for all tokens.
struct RowLists {
  Tensor q_rows, k_rows, q_places, k_places;
  Tensor first, end;
  std::shared_ptr<MaskPlan> plan;  // Inside::program; on the device alone, without counts
};
RowLists list_rows(const RowRule& rule, const Context& context);

/// to[b, h, i] = from[b, h, index[b, h, i]]; `empty` for -1 and in columns that `to` has more;
/// nothing for -2. `to` and `index` are dense.
void take_rows(
    const View& to, const View& from, const View& index, float empty, const Context& context);

}  // namespace undivided::cuda
