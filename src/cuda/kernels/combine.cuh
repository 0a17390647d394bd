// SPDX-License-Identifier: Apache-2.0
// Partial results into whole ones: splits, pairs, and a sink at the end (Rabe and Staats 2021,
// section 3): with w_i = e^(lse_i - max lse), O = sum w_i O_i / sum w_i, in ascending order of i.
//
// Grid: a warp a row, 4 rows a block; rows as in rows_of(). Block: 128 threads. No shared memory.
#pragma once

#include "device/types.cuh"
#include "kernels/sequence.cuh"

namespace undivided::cuda {

/// A row by its number in rows_of().
struct FlatRow {
  int b, h;
  long long i;  // ragged: packed row
  bool live;
};

/// The offset of a row in a tensor or scalar array: ragged ones by packed row.
template <class C, class Ref>
__device__ long long flat_offset(const Ref& r, const FlatRow& row) {
  if constexpr (C::rows == RowKind::ragged)
    return row.h * r.head + row.i * r.token;
  else
    return row.b * r.batch + row.h * r.head + row.i * r.token;
}

template <class C>
__device__ FlatRow flat_row(const Params& p, long long index) {
  FlatRow r{};
  if (index >= rows_of<C>(p)) return r;
  const long long tokens = C::rows == RowKind::ragged ? p.total_q : p.max_q_len;
  r.i = index % tokens;
  const long long above = index / tokens;
  r.h = static_cast<int>(above % p.heads);
  r.b = static_cast<int>(above / p.heads);
  r.live = true;
  return r;
}

__device__ inline long long warp_row() {
  return static_cast<long long>(blockIdx.x) * 4 + threadIdx.x / 32;
}

/// log(e^a + e^b), with -inf as the unit.
__device__ inline float log_add(float a, float b) {
  const float high = fmaxf(a, b);
  return high == -infinity() ? high : high + logf(expf(a - high) + expf(b - high));
}

/// Writes the row sum_i w_i part(i, column) / sum w_i, after adding the sink. A lane asks for the
/// weight of one part in 32 and hands it on, and parts are read before it is known whether they
/// count: their loads must not wait for each other.
template <class C, class Lse, class Part>
__device__ void write_combined(
    const Params& p, const FlatRow& row, int count, const Lse& lse_of, const Part& part) {
  using Out = typename C::Out;
  constexpr unsigned all = 0xffffffffu;
  constexpr int columns = (C::dv + 31) / 32, at_once = columns > 4 ? 32 / columns : 8;
  const int lane = threadIdx.x & 31;
  const auto own = [&](int first) {
    return first + lane < count ? lse_of(first + lane) : -infinity();
  };
  float high = -infinity(), sum = 0.0f, total[columns] = {};
  for (int first = 0; first < count; first += 32) high = fmaxf(high, own(first));
  for (int apart = 16; apart > 0; apart /= 2) high = fmaxf(high, __shfl_xor_sync(all, high, apart));
  const float base = high == -infinity() ? 0.0f : high;
  for (int first = 0; first < count; first += 32) {
    const float mine = expf(own(first) - base);
#pragma unroll at_once
    for (int i = first; i < minimum(count, first + 32); ++i) {
      const float weight = __shfl_sync(all, mine, i - first);
      sum += weight;
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const int x = lane + 32 * c;
        const float value = x < C::dv ? part(i, x) : 0.0f;
        if (weight != 0) total[c] += weight * value;  // an empty part holds no numbers
      }
    }
  }
  float lse = sum == 0.0f ? -infinity() : base + logf(sum);
  float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  if (p.sink) {
    const float with_sink = log_add(lse, p.sink[row.h]);
    scale *= expf(lse - with_sink);
    lse = with_sink;
  }
  if (lane == 0 && p.lse.data) p.lse.data[flat_offset<C>(p.lse, row)] = lse;
  Out* to = static_cast<Out*>(p.o.data) + flat_offset<C>(p.o, row);
#pragma unroll
  for (int c = 0; c < columns; ++c)
    if (lane + 32 * c < C::dv) to[lane + 32 * c] = from_float<Out>(total[c] * scale);
}

template <class C, class Mask, class Score>
__device__ void combine(const Params& p) {
  const long long index = warp_row(), rows = rows_of<C>(p);
  const FlatRow row = flat_row<C>(p, index);
  if (!row.live) return;
  if constexpr (C::rows == RowKind::ragged)  // rows past the last sequence belong to nobody
    if (row.i >= index_at(p.q_offsets, p.batch)) return;
  bool written = true;
  if constexpr (C::rows == RowKind::dense)
    written = !p.q_lengths.data || row.i < index_at(p.q_lengths, row.b);
  Params q = p;
  if (!written) q.sink = nullptr;  // padding: O = 0, LSE = -inf
  write_combined<C>(
      q,
      row,
      written ? p.splits : 0,
      [&](int i) { return p.partial_lse[i * rows + index]; },
      [&](int i, int x) { return p.partial_o[(i * rows + index) * C::dv + x]; });
}

template <class C, class Mask, class Score>
__device__ void merge(const Params& p) {
  const FlatRow row = flat_row<C>(p, warp_row());
  if (!row.live) return;
  write_combined<C>(
      p,
      row,
      p.b_o.data ? 2 : 1,
      [&](int i) {
        const ScalarRef& r = i ? p.b_lse : p.a_lse;
        return r.data[flat_offset<C>(r, row)];
      },
      [&](int i, int x) {
        const MatrixRef& r = i ? p.b_o : p.a_o;
        return static_cast<const float*>(r.data)[flat_offset<C>(r, row) + x];
      });
}

/// Grid: batch * heads threads.
template <class C, class Mask, class Score>
__device__ void init_max_logit(const Params& p) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  if (i < p.batch * p.heads)
    p.max_logit[i / p.heads * p.max_logit_batch + i % p.heads * p.max_logit_head] = -infinity();
}

}  // namespace undivided::cuda
