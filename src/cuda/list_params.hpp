// SPDX-License-Identifier: Apache-2.0
// What the kernels of kernels/row_lists.cuh are given: plain data read by the host and by NVRTC.
#pragma once

#include "cuda/params.hpp"

namespace undivided::cuda {

/// One side of a sparse attention. Lists are [batch * heads, tokens].
struct RowSide {
  const void* flags;             // keep or drop, or buckets
  long long batch, head, token;  // their strides
  int boolean;                   // flags of one byte; else i32
  int heads, tokens;
  int* rows;    // the token of each compact row; -1 or, far behind the last, -2: none
  int* spare;   // of the same size
  int* places;  // the compact row of each token, or -1
  int* counts;  // [batch * heads]: rows that take part
};

/// to[row, i] = from[row, index[row, i]]; the empty value for -1, nothing for -2.
struct TakeRef {
  const void* from;
  long long batch, head, token;  // strides of `from`, in units
  void* to;                      // dense
  const int* index;              // [rows, count]
  long long rows;                // batch * heads
  int heads, count;
  int unit;                  // bytes moved at once: 2, 4, 8 or 16
  int from_units, to_units;  // of a row
  int lanes_log2;            // lanes that share a row
  unsigned empty;            // four bytes
};

struct ListParams {
  RowSide q, k;
  int batch, group;
  int buckets;  // the flags are buckets
  int order;   // a key is seen by all queries (0), by later ones and its own (1), by later ones (2)
  int origin;  // added to the times of queries
  int *first, *end;  // [batch * heads of q, tokens of k]: the compact queries that see a key
  PlanEntry* entries;
  int *entry_of, *run_offsets;
  PlanRun* runs;
  TakeRef take;
};

}  // namespace undivided::cuda
