// SPDX-License-Identifier: Apache-2.0
// O = softmax(mask(score(scale Q K^T))) V by online softmax, on mma.sync.
//
// Grid: q_tiles x dv_chunks x splits x heads (KV heads when packed) x batch, query tile fastest.
// Block: 4 warps, 16 query rows each. Shared: Q [m, dqk], K [n, dqk], V [n, dv_width].
// For each key tile (Dao 2023, FlashAttention-2, algorithm 1; Milakov and Gimelshein 2018):
//   S = Q K^T; s = mask(score(scale S)) log2(e); m' = max(m, rowmax s); P = 2^(s - m')
//   l = l 2^(m - m') + rowsum P; O = O 2^(m - m') + P V
// V is in flight during Q K^T, the next K during the softmax and P V. O / l and LSE at the end; a
// sink joins the denominator there. Key tiles begin at fixed multiples of n and a tile that is
// masked for a row leaves the row's bits alone, so a row does not depend on its neighbours. Packed:
// row r of a tile is token r / group and head r % group of the KV head's group. Split: keys of one
// split only, float32 results to partial_o and partial_lse, no sink. dv above 256: CTAs share the
// columns of O, each with its own S.
#pragma once

#include "kernels/tile.cuh"
#include "kernels/walk.cuh"

namespace undivided::cuda {

/// One of the two rows that a thread holds.
struct QueryRow {
  int token, head;
  bool live;     // inside the sequence
  bool written;  // live, or dense padding (which gets O = 0, LSE = -inf)
};

template <class C>
__device__ QueryRow query_row(const Params& p, const Sequence& s, int row, int head) {
  QueryRow r;
  if constexpr (C::packed) {
    r.token = row / p.group;
    r.head = head * p.group + row % p.group;
  } else {
    r.token = row;
    r.head = head;
  }
  r.live = r.token < s.q_len;
  r.written = C::rows == RowKind::dense ? r.token < p.max_q_len : r.live;
  return r;
}

/// Turns raw products into log2-scaled scores; -inf where masked.
template <class C, class Mask, class Score, int n>
__device__ void score_tile(const Params& p,
                           const Sequence& s,
                           float (&acc)[n][4],
                           int b,
                           const QueryRow (&rows)[2],
                           int j0,
                           int bit_tile,
                           bool look) {
  const Scale scale(p);
  scale.apply(p, acc);
  const float unit = Score::unit(p, scale.value) * log2_e;
  const typename Score::Fixed fixed[2] = {{p, b, rows[0].head, s.q_len, s.k_len},
                                          {p, b, rows[1].head, s.q_len, s.k_len}};
  const int first = j0 + (threadIdx.x & 3) * 2;
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const QueryRow& r = rows[e >> 1];
      const int j = first + i * 8 + (e & 1);
      float x = unit * Score::apply(p,
                                    b,
                                    r.head,
                                    s.q_origin + r.token,
                                    s.k_origin + j,
                                    s.q_len,
                                    s.k_len,
                                    distance_of(s, r.token, j),
                                    acc[i][e],
                                    scale.value,
                                    fixed[e >> 1]);
      if (look && !(r.live && j < s.k_len && kept<C, Mask>(p, s, bit_tile, b, r.head, r.token, j)))
        x = -infinity();
      acc[i][e] = x;
    }
}

/// Zeros the weights that dropout drops; the rest are scaled at the end.
template <int n>
__device__ void drop_tile(const Dropout& dropout,
                          const Sequence& s,
                          float (&acc)[n][4],
                          int b,
                          const QueryRow (&rows)[2],
                          int j0) {
  const int first = s.k_origin + j0 + (threadIdx.x & 3) * 2;
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bool x, y;
      dropout.keep_pair(b, rows[half].head, s.q_origin + rows[half].token, first + i * 8, x, y);
      if (!x) acc[i][2 * half] = 0.0f;
      if (!y) acc[i][2 * half + 1] = 0.0f;
    }
}

template <class C, class Mask, class Score>
__device__ void forward(const Params& p) {
  using T = typename C::Element;
  constexpr int m = C::m, n = C::n, width = C::dv_width;
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned q_at = shared_address(shared);
  const unsigned k_at = q_at + tile_bytes<m, C::dqk>, v_at = k_at + tile_bytes<n, C::dqk>;

  int x = blockIdx.x;
  const int q_tile = p.q_tiles - 1 - x % p.q_tiles;  // under a causal mask the longest first
  x /= p.q_tiles;
  const int column = x % C::dv_chunks * width;
  x /= C::dv_chunks;
  const int split = C::split ? x % p.splits : 0;
  if constexpr (C::split) x /= p.splits;
  const int head_count = C::packed ? p.kv_heads : p.heads;
  const int head = x % head_count, b = x / head_count;
  const int kv_head = C::packed ? head : head / p.group;

  const Sequence s = sequence<C>(p, b);
  const int row0 = q_tile * m, group = C::packed ? p.group : 1;
  const int row_count = s.q_len * group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int mine = row0 + warp * 16 + lane / 4;
  const QueryRow rows[2] = {query_row<C>(p, s, mine, head), query_row<C>(p, s, mine + 8, head)};
  const bool active = row0 + warp * 16 < row_count;

  float out[width / 8][4], top[2] = {-infinity(), -infinity()}, sum[2] = {};
  clear(out);

  if (row0 < row_count) {
    const int i0 = row0 / group, i1 = (minimum(row0 + m, row_count) - 1) / group;
    const int first =
        C::split ? minimum<long long>(static_cast<long long>(split) * p.split_keys, s.k_len) : 0;
    const int last = C::split
                         ? minimum<long long>(static_cast<long long>(first) + p.split_keys, s.k_len)
                         : s.k_len;
    auto walk = key_walk<C>(p, s, b, head, i0, i1, first, last);

    const auto load_keys = [&](unsigned to, int tile) {
      load_tile<T, n, C::dqk, C::threads, C::aligned>(
          to, static_cast<const T*>(p.k.data), s.k_len - tile * n, C::dqk, [&](int r) {
            return key_offset<C>(p, p.k, s, b, kv_head, tile * n + r);
          });
    };
    if (walk.valid) {
      load_tile<T, m, C::dqk, C::threads, C::aligned>(
          q_at, static_cast<const T*>(p.q.data), row_count - row0, C::dqk, [&](int r) {
            const QueryRow row = query_row<C>(p, s, row0 + r, head);
            return row_offset<C>(p.q, s, b, row.head, row.token);
          });
      load_keys(k_at, walk.tile);
    }
    while (walk.valid) {
      const int j0 = walk.tile * n, bit_tile = walk.bit_tile;
      wait_copies();
      __syncthreads();
      load_tile<T, n, width, C::threads, C::aligned>(
          v_at, static_cast<const T*>(p.v.data) + column, s.k_len - j0, C::dv - column, [&](int r) {
            return key_offset<C>(p, p.v, s, b, kv_head, j0 + r);
          });
      float acc[n / 8][4];
      clear(acc);
      if (active)
        multiply_transposed<T, C::dqk, n>(acc, q_at + tile_bytes<16, C::dqk> * warp, k_at);
      walk.next();
      wait_copies();
      __syncthreads();
      if (walk.valid) load_keys(k_at, walk.tile);
      if (!active) continue;

      const bool look = needs_look<C>(p, s, bit_tile, i0, i1, j0, j0 + n - 1, j0 + n <= last);
      score_tile<C, Mask, Score>(p, s, acc, b, rows, j0, bit_tile, look);
      float rescale[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = top[half];
#pragma unroll
        for (int i = 0; i < n / 8; ++i)
          high = fmaxf(high, fmaxf(acc[i][2 * half], acc[i][2 * half + 1]));
        high = quad_max(high);
        const float base = high == -infinity() ? 0.0f : high;
        rescale[half] = exp2_fast(top[half] - base);
        top[half] = high;
        float part = 0.0f;
#pragma unroll
        for (int i = 0; i < n / 8; ++i) {
          part += acc[i][2 * half] = exp2_fast(acc[i][2 * half] - base);
          part += acc[i][2 * half + 1] = exp2_fast(acc[i][2 * half + 1] - base);
        }
        sum[half] = sum[half] * rescale[half] + part;
      }
#pragma unroll
      for (int i = 0; i < width / 8; ++i) {
        out[i][0] *= rescale[0];
        out[i][1] *= rescale[0];
        out[i][2] *= rescale[1];
        out[i][3] *= rescale[1];
      }
      if constexpr (C::dropout) drop_tile(Dropout(p), s, acc, b, rows, j0);
      unsigned weights[n / 16][4];
      to_fragments<T, n>(weights, acc);
      multiply<T, width, n, width>(out, weights, v_at);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const QueryRow r = rows[half];
    const float total = quad_sum(sum[half]);
    if (!r.written) continue;
    const float high = top[half];
    const bool empty = !r.live || total == 0.0f;  // NaN is not empty
    float lse = empty ? -infinity() : high * ln_2 + logf(total);
    float scale = empty ? 0.0f : 1.0f / total;
    if constexpr (C::dropout) scale *= p.keep_scale;
    const bool leader = (lane & 3) == 0 && column == 0;
    if (p.max_logit && leader && !empty)
      atomic_max(p.max_logit + b * p.max_logit_batch + r.head * p.max_logit_head, high * ln_2);
    if constexpr (C::split) {
      const long long row = row_index<C>(p, s, b, r.head, r.token) + split * rows_of<C>(p);
      if (leader) p.partial_lse[row] = lse;
      if (!empty)
        store_row<float, true>(p.partial_o + row * C::dv, out, half, scale, column, C::dv);
    } else {
      using Out = typename C::Out;
      if (p.sink && r.live) {
        const float sink = p.sink[r.head];
        if (empty) {
          lse = sink;
        } else {
          const float both = fmaxf(lse, sink);
          const float sum_both = both + logf(expf(lse - both) + expf(sink - both));
          scale *= expf(lse - sum_both);
          lse = sum_both;
        }
      }
      if (p.lse.data && leader) *row_scalar<C>(p.lse, s, b, r.head, r.token) = lse;
      Out* to = static_cast<Out*>(p.o.data) + row_offset<C>(p.o, s, b, r.head, r.token);
      store_row<Out, C::aligned>(to, out, half, scale, column, C::dv);
    }
  }
}

}  // namespace undivided::cuda
