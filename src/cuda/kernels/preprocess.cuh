// SPDX-License-Identifier: Apache-2.0
// What a backward needs once a row: delta = rowsum(dO * O) - dLSE (Dao 2023, section 3.3), and what
// a sink gets: dsink = sum over rows of e^(sink - LSE) * -delta, in fixed order.
//
// preprocess: a warp a row, 4 rows a block. sink_gradient: a block of 256 threads a head.
#pragma once

#include "kernels/combine.cuh"

namespace undivided::cuda {

__device__ inline float load_any(const void* data, int type, long long at) {
  if (type == element_f32) return static_cast<const float*>(data)[at];
  if (type == element_f16) return to_float(static_cast<const Half*>(data)[at]);
  return to_float(static_cast<const BFloat16*>(data)[at]);
}

/// Is this row inside its sequence?
template <class C>
__device__ bool inside(const Params& p, const FlatRow& row) {
  if constexpr (C::rows == RowKind::ragged) return row.i < index_at(p.q_offsets, p.batch);
  return !p.q_lengths.data || row.i < index_at(p.q_lengths, row.b);
}

template <class C, class Mask, class Score>
__device__ void preprocess(const Params& p) {
  const long long index = warp_row();
  const FlatRow row = flat_row<C>(p, index);
  if (!row.live) return;
  float sum = 0.0f;
  const int lane = threadIdx.x & 31;
  if (inside<C>(p, row)) {
    const long long o = flat_offset<C>(p.o, row), dout = flat_offset<C>(p.dout, row);
    for (int x = lane; x < C::dv; x += 32)
      sum += load_any(p.o.data, p.o_type, o + x) * load_any(p.dout.data, p.dout_type, dout + x);
    sum = warp_sum(sum);
    if (p.dlse.data) sum -= p.dlse.data[flat_offset<C>(p.dlse, row)];
  }
  if (lane == 0) p.delta[index] = sum;
}

template <class C, class Mask, class Score>
__device__ void sink_gradient(const Params& p) {
  __shared__ float parts[256];
  const int h = blockIdx.x;
  const long long tokens = C::rows == RowKind::ragged ? p.total_q : p.max_q_len;
  const long long count = C::rows == RowKind::ragged ? tokens : tokens * p.batch;
  const float sink = p.sink[h];
  float sum = 0.0f;
  for (long long at = threadIdx.x; at < count; at += 256) {
    const FlatRow row{static_cast<int>(at / tokens), h, at % tokens, true};
    if (!inside<C>(p, row)) continue;
    const float lse = p.lse.data[flat_offset<C>(p.lse, row)];
    const long long index = (static_cast<long long>(row.b) * p.heads + h) * tokens + row.i;
    sum -= expf(sink - lse) * p.delta[index];
  }
  parts[threadIdx.x] = sum;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) p.dsink[h] = parts[0];
}

}  // namespace undivided::cuda
