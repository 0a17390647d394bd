// SPDX-License-Identifier: Apache-2.0
// The epilogue of differential attention (Ye et al. 2024, equations 1 to 3) and its gradient. With
// x = a - lambda b, r = (mean x^2 + eps)^-1/2 and g = gain * weight * dy:
//
//   y = gain * weight * r * x,  dx = r g - x r^3 mean(g x),  da = dx,  db = -lambda dx
// Without the norm y = x and dx = dy; then lambda may be sigmoid(logit) of each row, and
// dlogit = -lambda (1 - lambda) dx . b.
//
// Grid: some lanes of a warp a row, each with 8 columns at a time; the backward walks the rows with
// all its blocks and leaves one sum of dweight and dlambda a block, always of the same rows. Block:
// 256 threads.
#pragma once

#include "difference_params.hpp"
#include "kernels/preprocess.cuh"

namespace undivided::cuda {

/// The columns of a row that one lane owns: 8 at c = (i * lanes + lane) * 8, for i = 0 and 1.
using LaneRow = float[2][8];

struct DifferenceLane {
  int lanes, lane, group;
  __device__ explicit DifferenceLane(const DifferenceParams& p)
      : lanes(row_lanes(p.dim)), lane(threadIdx.x % lanes), group(threadIdx.x / lanes) {}
  __device__ int column(int i) const { return (i * lanes + lane) * 8; }
  __device__ float sum(float x) const {
    for (int i = lanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
  }
};

struct DifferenceRow {
  long long b, h, i;
  bool live;
  __device__ DifferenceRow(const DifferenceParams& p, long long index) {
    i = index % p.tokens;
    const long long above = index / p.tokens;
    h = above % p.heads;
    b = above / p.heads;
    live = index < p.rows && (!p.offsets.data || i < index_at(p.offsets, p.sequences));
  }
  template <class Ref>
  __device__ long long of(const Ref& r) const {
    return b * r.batch + h * r.head + i * r.token;
  }
};

__device__ inline void load_row(LaneRow& x,
                                const DifferenceParams& p,
                                const RowsRef& from,
                                const DifferenceLane& lane,
                                const DifferenceRow& row) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int c = lane.column(i);
    if (row.live && from.at.data && c < p.dim) {
      const long long at = row.of(from.at) + c;
      if (p.aligned)
        load_eight<true>(x[i], from.at.data, from.type, at);
      else
        load_eight<false>(x[i], from.at.data, from.type, at);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] = 0.0f;
    }
  }
}

template <class T>
__device__ inline void store_eight(T* to, const float (&x)[8], bool aligned) {
  if (!aligned) {
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j] = from_float<T>(x[j]);
  } else if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(
        pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
  }
}

__device__ inline void store_row(const LaneRow& x,
                                 const DifferenceParams& p,
                                 const RowsRef& to,
                                 const DifferenceLane& lane,
                                 const DifferenceRow& row) {
  if (!row.live) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int c = lane.column(i);
    if (c >= p.dim) continue;
    const long long at = row.of(to.at) + c;
    if (to.type == element_f32)
      store_eight(static_cast<float*>(to.at.data) + at, x[i], p.aligned);
    else if (to.type == element_f16)
      store_eight(static_cast<Half*>(to.at.data) + at, x[i], p.aligned);
    else
      store_eight(static_cast<BFloat16*>(to.at.data) + at, x[i], p.aligned);
  }
}

__device__ inline float lambda_of(const DifferenceParams& p, const DifferenceRow& row) {
  if (!p.logits.data || !row.live) return p.lambda;
  return 1.0f / (1.0f + expf(-p.logits.data[row.of(p.logits)]));
}

/// (mean x^2 + eps)^-1/2, and 0 for a row of zeros without eps.
__device__ inline float inverse_rms(const DifferenceParams& p,
                                    const DifferenceLane& lane,
                                    const LaneRow& x) {
  float square = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) square = fmaf(x[i][j], x[i][j], square);
  const float mean = lane.sum(square) / static_cast<float>(p.dim) + p.eps;
  return mean == 0.0f ? 0.0f : rsqrtf(mean);
}

__device__ inline float weight_of(const DifferenceParams& p, int column) {
  return p.weight && column < p.dim ? p.weight[column] : 1.0f;
}

__device__ inline void difference(const DifferenceParams& p) {
  const DifferenceLane lane(p);
  const int groups = difference_threads / lane.lanes;
  const DifferenceRow row(p, static_cast<long long>(blockIdx.x) * groups + lane.group);
  LaneRow x, b;
  load_row(x, p, p.a, lane, row);
  load_row(b, p, p.b, lane, row);
  const float lambda = lambda_of(p, row);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) x[i][j] = fmaf(-lambda, b[i][j], x[i][j]);
  if (p.norm) {
    const float scale = p.gain * inverse_rms(p, lane, x);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] *= scale * weight_of(p, lane.column(i) + j);
  }
  store_row(x, p, p.y, lane, row);
}

/// The sums of this block's lanes, in the order of their groups, to its row of p.sums.
__device__ inline void store_sums(const DifferenceParams& p,
                                  const DifferenceLane& lane,
                                  const LaneRow& dweight,
                                  float dlambda) {
  // Groups are as many as rows are narrow: 128 of 17 columns, 8 of 513.
  __shared__ float parts[difference_threads / 32 * (widest_difference + 1)];
  const int width = p.dim + 1, groups = difference_threads / lane.lanes;
  float* mine = parts + lane.group * width;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (lane.column(i) + j < p.dim) mine[lane.column(i) + j] = dweight[i][j];
  dlambda = lane.sum(dlambda);
  if (lane.lane == 0) mine[p.dim] = dlambda;
  __syncthreads();
  for (int c = threadIdx.x; c < width; c += difference_threads) {
    float sum = 0.0f;
    for (int g = 0; g < groups; ++g) sum += parts[g * width + c];
    p.sums[static_cast<long long>(blockIdx.x) * width + c] = sum;
  }
}

__device__ inline void difference_backward(const DifferenceParams& p) {
  const DifferenceLane lane(p);
  const int groups = difference_threads / lane.lanes;
  LaneRow dweight = {};
  float dlambda = 0.0f;
  for (long long first = static_cast<long long>(blockIdx.x) * groups; first < p.rows;
       first += static_cast<long long>(gridDim.x) * groups) {
    const DifferenceRow row(p, first + lane.group);
    LaneRow x, b, g;
    load_row(g, p, p.dy, lane, row);
    load_row(b, p, p.b, lane, row);
    const float lambda = lambda_of(p, row);
    if (p.norm) {
      load_row(x, p, p.a, lane, row);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] = fmaf(-lambda, b[i][j], x[i][j]);
      const float r = inverse_rms(p, lane, x);
      float inner = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          dweight[i][j] = fmaf(p.gain * r * x[i][j], g[i][j], dweight[i][j]);
          g[i][j] *= p.gain * weight_of(p, lane.column(i) + j);
          inner = fmaf(g[i][j], x[i][j], inner);
        }
      inner = lane.sum(inner) * r * r * r / static_cast<float>(p.dim);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) g[i][j] = r * g[i][j] - x[i][j] * inner;
    }
    float along = 0.0f;  // dlambda of this row
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        along = fmaf(-g[i][j], b[i][j], along);
        x[i][j] = -lambda * g[i][j];
      }
    store_row(g, p, p.da, lane, row);
    store_row(x, p, p.db, lane, row);
    if (p.dlogits.data) {
      along = lane.sum(along);
      if (row.live && lane.lane == 0)
        p.dlogits.data[row.of(p.dlogits)] = lambda * (1.0f - lambda) * along;
    } else {
      dlambda += along;
    }
  }
  if (p.norm) store_sums(p, lane, dweight, dlambda);
}

}  // namespace undivided::cuda
