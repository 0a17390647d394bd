// SPDX-License-Identifier: Apache-2.0
// dQ, and gradients of captured arrays: one block a query tile, over its key tiles in fixed order.
//
// Grid: q_tiles x chunks x heads x batch, query tile fastest. Block: a warp for 16 query rows.
// Shared: Q [m, dqk], dO [m, dv], K [n, dqk], V [n, dv]. For each key tile (Dao 2022, appendix
// B.4):
//   P = e^(s - LSE); dP = dO V^T (dropped and scaled as P was); dS = P * (dP - delta)
//   dS0 = dS * ds/dscore; captured += dS * ds/dcaptured; dQ += dS0 K, times scale at the end
// Capture::largest only looks for the largest terms of captured gradients, and writes no dQ.
// S and P are recomputed here and again in backward_kv: 7 products instead of 5, but no atomics, so
// bits repeat at every head dim. dqk above 256: each block owns a chunk of the columns of dQ.
#pragma once

#include "kernels/forward.cuh"

namespace undivided::cuda {

/// First column and width of a chunk of d columns cut into `chunks`. The last chunk is moved left
/// so that it ends inside the tile; columns that two blocks own get the same bits from both.
template <int d, int chunks>
inline constexpr int chunk_width = rounded((d + chunks - 1) / chunks);
template <int d, int chunks>
__device__ inline int chunk_column(int chunk) {
  return minimum(chunk * chunk_width<d, chunks>, rounded(d) - chunk_width<d, chunks>);
}

/// Loads a tile of dO rows, which may be float32.
template <class C, int rows, class Row>
__device__ inline void load_dout(const Params& p, unsigned to, int valid, const Row& row) {
  using T = typename C::Element;
  if constexpr (C::wide_dout)
    load_tile<T, rows, C::dv, C::threads, C::aligned>(
        to, static_cast<const float*>(p.dout.data), valid, C::dv, row);
  else
    load_tile<T, rows, C::dv, C::threads, C::aligned>(
        to, static_cast<const T*>(p.dout.data), valid, C::dv, row);
}

template <class C, class Mask, class Score>
__device__ void backward_q(const Params& p) {
  using T = typename C::Element;
  constexpr int m = C::m, n = C::n, width = chunk_width<C::dqk, C::chunks>;
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned q_at = shared_address(shared), dout_at = q_at + tile_bytes<m, C::dqk>;
  const unsigned k_at = dout_at + tile_bytes<m, C::dv>, v_at = k_at + tile_bytes<n, C::dqk>;

  int x = blockIdx.x;
  const int q_tile = p.q_tiles - 1 - x % p.q_tiles;
  x /= p.q_tiles;
  const int chunk = x % C::chunks;
  x /= C::chunks;
  const int h = x % p.heads, b = x / p.heads, kv_head = h / p.group;
  const Sequence s = sequence<C>(p, b);
  const int row0 = q_tile * m, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int mine = row0 + warp * 16 + lane / 4;
  const QueryRow rows[2] = {query_row<C>(p, s, mine, h), query_row<C>(p, s, mine + 8, h)};
  const int column = chunk_column<C::dqk, C::chunks>(chunk);
  float dq[width / 8][4];
  clear(dq);

  if (row0 < s.q_len) {
    const int i0 = row0, i1 = minimum(row0 + m, s.q_len) - 1;
    float lse[2], delta[2];
    typename Score::Captures captured;
    for (int half = 0; half < 2; ++half) {
      const QueryRow& r = rows[half];
      lse[half] = r.live ? *row_scalar<C>(p.lse, s, b, h, r.token) : infinity();
      delta[half] = r.live ? p.delta[row_index<C>(p, s, b, h, r.token)] : 0.0f;
    }
    auto walk = key_walk<C>(p, s, b, h, i0, i1, 0, s.k_len);
    const auto load_keys = [&](int tile) {
      load_tile<T, n, C::dqk, C::threads, C::aligned>(
          k_at, static_cast<const T*>(p.k.data), s.k_len - tile * n, C::dqk, [&](int r) {
            return key_offset<C>(p, p.k, s, b, kv_head, tile * n + r);
          });
    };
    const auto load_values = [&](int tile) {
      load_tile<T, n, C::dv, C::threads, C::aligned>(
          v_at, static_cast<const T*>(p.v.data), s.k_len - tile * n, C::dv, [&](int r) {
            return key_offset<C>(p, p.v, s, b, kv_head, tile * n + r);
          });
    };
    if (walk.valid) {
      load_tile<T, m, C::dqk, C::threads, C::aligned>(
          q_at, static_cast<const T*>(p.q.data), s.q_len - row0, C::dqk, [&](int r) {
            return row_offset<C>(p.q, s, b, h, row0 + r);
          });
      load_dout<C, m>(p, dout_at, s.q_len - row0, [&](int r) {
        return row_offset<C>(p.dout, s, b, h, row0 + r);
      });
      load_keys(walk.tile);
      load_values(walk.tile);
    }
    while (walk.valid) {
      const int j0 = walk.tile * n, bit_tile = walk.bit_tile;
      float acc[n / 8][4], dp[n / 8][4];
      clear(acc);
      clear(dp);
      wait_copies();
      __syncthreads();
      multiply_transposed<T, C::dqk, n>(acc, q_at + tile_bytes<16, C::dqk> * warp, k_at);
      multiply_transposed<T, C::dv, n>(dp, dout_at + tile_bytes<16, C::dv> * warp, v_at);
      __syncthreads();
      walk.next();
      if (walk.valid) load_values(walk.tile);

      const bool look = needs_look<C>(
          p, s, bit_tile, i0, i1, j0, j0 + n - 1, j0 + n <= s.k_len && row0 + m <= s.q_len);
      const Scale scale(p);
      const float unit = Score::unit(p, scale.value);
      const typename Score::Fixed fixed(p, b, h, s.q_len, s.k_len);
      scale.apply(p, acc);
#pragma unroll
      for (int i = 0; i < n / 8; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const QueryRow& r = rows[half];
          const int qp = s.q_origin + r.token, j = j0 + i * 8 + (lane & 3) * 2;
          bool keep[2] = {true, true};
          if constexpr (C::dropout)
            Dropout(p).keep_pair(b, h, qp, s.k_origin + j, keep[0], keep[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int kp = s.k_origin + j + e, at = 2 * half + e;
            const bool live = !look || (r.live && j + e < s.k_len &&
                                        kept<C, Mask>(p, s, bit_tile, b, h, r.token, j + e));
            const float raw = acc[i][at];
            const float far = distance_of(s, r.token, j + e);
            const float score =
                unit *
                Score::apply(p, b, h, qp, kp, s.q_len, s.k_len, far, raw, scale.value, fixed);
            const float weight = live ? exp2_fast((score - lse[half]) * log2_e) : 0.0f;
            float grad = dp[i][at];
            if constexpr (C::dropout) grad = keep[e] ? grad * p.keep_scale : 0.0f;
            grad = live ? weight * (grad - delta[half]) : 0.0f;
            if constexpr (C::capture != Capture::none)
              Score::template capture<C::capture>(p,
                                                  b,
                                                  h,
                                                  qp,
                                                  kp,
                                                  s.q_len,
                                                  s.k_len,
                                                  far,
                                                  raw,
                                                  scale.value,
                                                  grad,
                                                  live && chunk == 0,
                                                  captured);
            if constexpr (!Score::identity)
              if (live)
                grad *= Score::derivative(
                    p, b, h, qp, kp, s.q_len, s.k_len, far, raw, scale.value, fixed);
            acc[i][at] = grad;
          }
        }
      if constexpr (C::capture != Capture::largest) {
        unsigned ds[n / 16][4];
        to_fragments<T, n>(ds, acc);
        multiply<T, C::dqk, n, width>(dq, ds, k_at + column * 2);
      }
      __syncthreads();
      if (walk.valid) load_keys(walk.tile);
    }
    if constexpr (C::capture != Capture::none)
      if (chunk == 0) captured.template finish<C::capture>(p);
  }

  if (C::capture == Capture::largest || !p.dq.data) return;
  using Out = typename C::Out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const QueryRow& r = rows[half];
    if (!r.written) continue;
    Out* to = static_cast<Out*>(p.dq.data) + row_offset<C>(p.dq, s, b, h, r.token);
    store_row<Out, C::aligned>(to, dq, half, r.live ? p.scale : 0.0f, column, C::dqk);
  }
}

}  // namespace undivided::cuda
