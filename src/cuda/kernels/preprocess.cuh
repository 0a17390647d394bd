// SPDX-License-Identifier: Apache-2.0
// What a backward needs once a row: delta = rowsum(dO * O) - dLSE (Dao 2023, section 3.3), and what
// a sink gets: dsink = sum over rows of e^(sink - LSE) * -delta, in fixed order.
//
// preprocess: some lanes of a warp a row, each 8 columns at a time; 4 warps a block. The sm90
// backward has prepare_rows. sink_gradient: a block of 256 threads a head.
#pragma once

#include "kernels/combine.cuh"

namespace undivided::cuda {

__device__ inline float load_any(const void* data, int type, long long at) {
  if (type == element_f32) return static_cast<const float*>(data)[at];
  if (type == element_f16) return to_float(static_cast<const Half*>(data)[at]);
  return to_float(static_cast<const BFloat16*>(data)[at]);
}

/// Elements at .. at + 7.
template <bool aligned>
__device__ inline void load_eight(float (&x)[8], const void* data, int type, long long at) {
  if constexpr (aligned) {
    if (type == element_f32) {
      const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
      const float4 a = from[0], b = from[1];
      x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
      x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
      const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const Half*>(data) + at);
      const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const auto bits = static_cast<unsigned short>(words[i / 2] >> i % 2 * 16);
        x[i] = type == element_f16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = load_any(data, type, at + i);
  }
}

/// Is this row inside its sequence?
template <class C>
__device__ bool inside(const Params& p, const FlatRow& row) {
  if constexpr (C::rows == RowKind::ragged) return row.i < index_at(p.q_offsets, p.batch);
  return !p.q_lengths.data || row.i < index_at(p.q_lengths, row.b);
}

template <class C, class Mask, class Score>
__device__ void preprocess(const Params& p) {
  constexpr int lanes = row_lanes(C::dv);
  const int lane = threadIdx.x % lanes;
  const long long index = warp_row() * (32 / lanes) + (threadIdx.x & 31) / lanes;
  const FlatRow row = flat_row<C>(p, index);
  float sum = 0.0f;
  const bool live = row.live && inside<C>(p, row);
  if (live) {
    const long long o = flat_offset<C>(p.o, row), dout = flat_offset<C>(p.dout, row);
    for (int x = lane * 8; x < C::dv; x += lanes * 8) {
      float a[8], b[8];
      load_eight<C::aligned>(a, p.o.data, p.o_type, o + x);
      load_eight<C::aligned>(b, p.dout.data, p.dout_type, dout + x);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
    }
  }
#pragma unroll
  for (int i = lanes / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  if (live && p.dlse.data) sum -= p.dlse.data[flat_offset<C>(p.dlse, row)];
  if (row.live && lane == 0) p.delta[index] = sum;
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
