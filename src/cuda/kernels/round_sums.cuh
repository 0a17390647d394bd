// SPDX-License-Identifier: Apache-2.0
// Ordered gradients of captured arrays and parameters: from fixed point to float32, in place of the
// largest terms (device/captured.cuh). A thread an element, 256 a block.
#pragma once

#include "device/types.cuh"
#include "kernels/policy.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
__device__ void round_sums(const Params& p) {
  long long at = blockIdx.x * 256LL + threadIdx.x;
  if (at >= p.sums) return;
  for (int slot = 0; slot < max_arrays; ++slot) {
    const ArrayRef &to = p.d_arrays[slot], &from = p.d_sums[slot];
    if (!to.data) continue;
    const long long count = from.stride[0] * from.shape[0];
    if (at >= count) {
      at -= count;
      continue;
    }
    const long long sum = static_cast<const long long*>(from.data)[at];
    long long offset = 0;
    for (int axis = 0; axis < 4; ++axis) {
      offset += at / from.stride[axis] * to.stride[axis];
      at %= from.stride[axis];
    }
    float* out = static_cast<float*>(to.data) + offset;
    *out = rounded_sum(*out, sum, p.term_bits);
    return;
  }
  p.d_params[at] = rounded_sum(p.d_params[at], p.d_param_sums[at], p.term_bits);
}

}  // namespace undivided::cuda
