// SPDX-License-Identifier: Apache-2.0
// What the kernels of kernels/difference.cuh are given: plain data read by the host and by NVRTC.
#pragma once

#include "cuda/params.hpp"

namespace undivided::cuda {

inline constexpr int difference_threads = 256;
inline constexpr int widest_difference = 512;  // two steps of a warp

/// Rows [batch, head, token, dim].
struct RowsRef {
  MatrixRef at;
  int type;  // ElementType
};

struct DifferenceParams {
  long long rows;  // batch * heads * tokens
  int tokens, heads;
  int dim;           // a multiple of 8, up to widest_difference
  int aligned;       // every base and stride a multiple of 16 bytes?
  RowsRef a, b;      // b.at.data null: zero
  float lambda;      // unless there are logits
  ScalarRef logits;  // data null: lambda
  int norm;
  float gain, eps;      // of the norm
  const float* weight;  // [dim] or null: ones
  IndexRef offsets;  // data null: all rows; else those before the last of `sequences` + 1 offsets
  int sequences;

  RowsRef y;           // forward
  RowsRef dy, da, db;  // backward
  ScalarRef dlogits;
  float* sums;  // norm: [blocks, dim + 1], of dweight and then dlambda
};

}  // namespace undivided::cuda
