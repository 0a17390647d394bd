// SPDX-License-Identifier: Apache-2.0
// What the sm90 backward needs before and after it, a block of 256 threads a query tile.
//
// prepare_rows: delta = rowsum(dO * O) - dLSE (Dao 2023, section 3.3) and the LSE in log2, side by
// side as the copy engine brings them with the tile; zeros for the sums of dQ, or for the turns of
// who stores them and who adds; a float32 dO in 16 bits, as the copy engine brings operands only as
// they are. gather_dq: the sums to dQ.
#pragma once

#include "kernels/backward_work_sm90.cuh"

namespace undivided::cuda {

template <int n>
struct Constant {
  static constexpr int value = n;
};

/// The query tile of a block. Grid: q_tiles x heads x batch; packed rows: one column of tiles.
template <class C>
struct QueryTile90 {
  int b, h, i0;  // i0 < 0: none
  int sums;      // the tile of its sums
  Sequence s;
  __device__ explicit QueryTile90(const Params& p) : i0(-1) {
    int x = blockIdx.x;
    if (p.q_tiles == 0) return;
    int tile = x % p.q_tiles;
    x /= p.q_tiles;
    h = x % p.heads;
    b = x / p.heads;
    if constexpr (C::rows == RowKind::ragged) {
      b = sequence_of_slot(p.q_offsets, p.total_q, C::m, p.batch, tile);
      tile -= first_slot(p.q_offsets, p.total_q, C::m, b);
    }
    if (b >= p.batch || tile < 0) return;
    s = sequence<C>(p, b);
    if (tile * C::m >= (C::rows == RowKind::dense ? p.max_q_len : s.q_len)) return;
    i0 = tile * C::m;
    sums = dq_tile<C>(p, s, b, h, tile);
  }
};

/// Eight elements as they lie in memory.
template <class T>
struct Eight {
  uint4 raw[sizeof(T) / 2];
  __device__ void load(const void* data, long long at) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const T*>(data) + at);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) raw[i] = from[i];
  }
  __device__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      const uint4& r = raw[i / 4];
      return __uint_as_float(i % 4 == 0 ? r.x : i % 4 == 1 ? r.y : i % 4 == 2 ? r.z : r.w);
    } else {
      const unsigned w = i / 2 == 0 ? raw->x : i / 2 == 1 ? raw->y : i / 2 == 2 ? raw->z : raw->w;
      return to_float(T{static_cast<unsigned short>(w >> i % 2 * 16)});
    }
  }
};

/// delta of the rows of a tile, to `to`; without dLSE.
template <class C, class O>
__device__ __forceinline__ void row_deltas(const Params& p, const QueryTile90<C>& t, float* to) {
  using Grad = typename C::Grad;
  // Lanes that share a row, and the rows that a thread asks for before it computes.
  constexpr int lanes = row_lanes(C::dv), steps = (C::dv + lanes * 8 - 1) / (lanes * 8);
  constexpr int passes = (C::m * lanes + 255) / 256, batch = passes < 4 ? passes : 4;
  const int lane = threadIdx.x % lanes, top = threadIdx.x / lanes;
#pragma unroll 1
  for (int first = 0; first < passes; first += batch) {
    Eight<O> o[batch][steps];
    Eight<Grad> dout[batch][steps];
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      const int at = top + (first + k) * (256 / lanes), i = t.i0 + at;
#pragma unroll
      for (int x = 0; x < steps; ++x) {
        const int column = (x * lanes + lane) * 8;
        o[k][x] = Eight<O>{};
        dout[k][x] = Eight<Grad>{};
        if (at >= C::m || i >= t.s.q_len || column >= C::dv) continue;
        o[k][x].load(p.o.data, row_offset<C>(p.o, t.s, t.b, t.h, i) + column);
        dout[k][x].load(p.dout.data, row_offset<C>(p.dout, t.s, t.b, t.h, i) + column);
      }
    }
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      const int at = top + (first + k) * (256 / lanes), i = t.i0 + at;
      float sum = 0.0f;
#pragma unroll
      for (int x = 0; x < steps; ++x) {
        const Eight<Grad>& d = dout[k][x];
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(o[k][x][e], d[e], sum);
        if constexpr (C::wide_dout) {
          using T = typename C::Element;
          const int column = (x * lanes + lane) * 8;
          if (at < C::m && i < t.s.q_len && column < C::dv)
            *reinterpret_cast<uint4*>(static_cast<T*>(p.rounded_dout) +
                                      row_index<C>(p, t.s, t.b, t.h, i) * C::dv + column) = {
                pack<T>(d[0], d[1]), pack<T>(d[2], d[3]), pack<T>(d[4], d[5]), pack<T>(d[6], d[7])};
        }
      }
#pragma unroll
      for (int x = lanes / 2; x > 0; x /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, x);
      if (lane == 0 && at < C::m) to[at] = sum;
    }
  }
}

template <class C, class Mask, class Score>
__device__ void prepare_rows(const Params& p) {
  using L = SharedBackward90<C>;
  __shared__ float delta[C::m];
  if (blockIdx.x == 0 && threadIdx.x < 4) p.dq_sum[p.dq_floats + threadIdx.x] = 0.0f;
  const QueryTile90<C> t(p);
  if (t.i0 < 0) return;
  const int at = threadIdx.x, i = t.i0 + at;
  const bool live = at < C::m && i < t.s.q_len;
  const float lse = live ? *row_scalar<C>(p.lse, t.s, t.b, t.h, i) : -infinity();
  const float dlse = live && p.dlse.data ? *row_scalar<C>(p.dlse, t.s, t.b, t.h, i) : 0.0f;
  if constexpr (L::wide) {
    float4* sums =
        reinterpret_cast<float4*>(p.dq_sum + static_cast<long long>(t.sums) * L::dq_floats);
#pragma unroll
    for (int k = 0; k < L::dq_floats / 4; k += 256) sums[k + at] = float4{0.0f, 0.0f, 0.0f, 0.0f};
  }
  if ((C::ordered || !L::wide) && at < 4) p.dq_turns[4 * t.sums + at] = 0;
  if (p.o_type == element_f32)
    row_deltas<C, float>(p, t, delta);
  else
    row_deltas<C, typename C::Element>(p, t, delta);
  __syncthreads();
  if (at >= C::m) return;
  float* stats = p.row_stats + static_cast<long long>(t.sums) * 2 * C::m + at;
  // e^(s - inf) = 0: no weight past the rows, nor in a row without a key.
  stats[0] = lse == -infinity() ? infinity() : lse * log2_e;
  stats[C::m] = delta[at] - dlse;
  if (live && p.dsink) p.delta[row_index<C>(p, t.s, t.b, t.h, i)] = delta[at] - dlse;
}

/// The sums of dQ, times scale, as rows.
template <class C, class Mask, class Score>
__device__ void gather_dq(const Params& p) {
  using Out = typename C::Out;
  using L = SharedBackward90<C>;
  const QueryTile90<C> r(p);
  if (r.i0 < 0) return;
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  const float4* from =
      reinterpret_cast<const float4*>(p.dq_sum + static_cast<long long>(r.sums) * L::dq_floats +
                                      group * L::dq_second) +
      thread;
  const bool none = !L::wide && p.dq_turns[4 * r.sums] == 0;  // no key, and so no sums
  // A half holds 64 rows of all columns, or all rows of its columns.
  const int row = r.i0 + (C::m == 128 ? group * 64 : 0) + thread / 32 * 16 + (thread & 31) / 4;
  const auto columns = [&](auto first, auto end, int quad = 0) {
    constexpr int n = (decltype(end)::value - decltype(first)::value) / 8;
    if constexpr (n > 0) {
      float acc[n][4];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float4 v = none ? float4{0.0f, 0.0f, 0.0f, 0.0f} : from[(quad + i) * 128];
        acc[i][0] = v.x;
        acc[i][1] = v.y;
        acc[i][2] = v.z;
        acc[i][3] = v.w;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = row + 8 * half;
        const bool written = i < (C::rows == RowKind::dense ? p.max_q_len : r.s.q_len);
        Out* to = written ? static_cast<Out*>(p.dq.data) + row_offset<C>(p.dq, r.s, r.b, r.h, i)
                          : nullptr;
        store_row90<Out>(to ? to + decltype(first)::value : nullptr, acc, half, p.scale);
      }
    }
  };
  constexpr int half = C::m == 128 ? C::dqk : L::broad ? 64 : L::dq_width(0);
  constexpr int end = L::broad ? 128 : C::dqk;
  if (C::m == 128 || group == 0)
    columns(Constant<0>{}, Constant<(end < half ? end : half)>{});
  else
    columns(Constant<half>{}, Constant<end>{});
  if constexpr (L::broad) {
    constexpr int middle = C::dqk < 160 ? C::dqk : 160;
    if (group == 0)
      columns(Constant<128>{}, Constant<middle>{}, 8);
    else
      columns(Constant<middle>{}, Constant<C::dqk>{}, 8);
  }
}

}  // namespace undivided::cuda
