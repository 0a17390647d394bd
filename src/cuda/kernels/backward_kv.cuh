// SPDX-License-Identifier: Apache-2.0
// dK and dV: one block a key tile of a KV head, over the query heads of its group and their query
// tiles in fixed order; each gradient is written once, without atomics.
//
// Grid: k_tiles x chunks x kv_heads x batch, key tile fastest. Block: a warp for 16 keys.
// Shared: K [n, dqk], V [n, dv], Q [m, dqk], dO [m, dv]. Transposed tiles, so that P^T and dS^T are
// left operands straight from registers (Dao 2023, algorithm 2):
//   S^T = K Q^T; P = e^(s - LSE); dV += dropped(P)^T dO
//   dP^T = V dO^T; dS0 = P * (dP - delta) * ds/dscore; dK += dS0^T Q, times scale at the end
// Head dims above 128: each block owns a chunk of the columns of dK and of dV.
// Paged: rows go where the page table says; a page that two sequences share is written by both and
// holds the gradient of one of them, so the host refuses shared pages.
#pragma once

#include "kernels/backward_q.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
__device__ void backward_kv(const Params& p) {
  using T = typename C::Element;
  constexpr int m = C::m, n = C::n;
  constexpr int k_width = chunk_width<C::dqk, C::chunks>, v_width = chunk_width<C::dv, C::chunks>;
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned k_at = shared_address(shared), v_at = k_at + tile_bytes<n, C::dqk>;
  const unsigned q_at = v_at + tile_bytes<n, C::dv>, dout_at = q_at + tile_bytes<m, C::dqk>;

  int x = blockIdx.x;
  const int k_tile = x % p.k_tiles;
  x /= p.k_tiles;
  const int chunk = x % C::chunks;
  x /= C::chunks;
  const int kv_head = x % p.kv_heads, b = x / p.kv_heads;
  const Sequence s = sequence<C>(p, b);
  const int j0 = k_tile * n, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int mine = j0 + warp * 16 + lane / 4;
  const int k_column = chunk_column<C::dqk, C::chunks>(chunk);
  const int v_column = chunk_column<C::dv, C::chunks>(chunk);
  float dk[k_width / 8][4], dv[v_width / 8][4];
  clear(dk);
  clear(dv);

  if (j0 < s.k_len) {
    const int j1 = minimum(j0 + n, s.k_len) - 1;
    load_tile<T, n, C::dqk, C::threads, C::aligned>(
        k_at, static_cast<const T*>(p.k.data), s.k_len - j0, C::dqk, [&](int r) {
          return key_offset<C>(p, p.k, s, b, kv_head, j0 + r);
        });
    load_tile<T, n, C::dv, C::threads, C::aligned>(
        v_at, static_cast<const T*>(p.v.data), s.k_len - j0, C::dv, [&](int r) {
          return key_offset<C>(p, p.v, s, b, kv_head, j0 + r);
        });
    for (int h = kv_head * p.group; h < (kv_head + 1) * p.group; ++h) {
      for (auto walk = query_walk<C>(p, s, b, h, j0, j1); walk.valid; walk.next()) {
        const int i0 = walk.tile * m, bit_tile = walk.bit_tile;
        load_tile<T, m, C::dqk, C::threads, C::aligned>(
            q_at, static_cast<const T*>(p.q.data), s.q_len - i0, C::dqk, [&](int r) {
              return row_offset<C>(p.q, s, b, h, i0 + r);
            });
        load_dout<C, m>(p, dout_at, s.q_len - i0, [&](int r) {
          return row_offset<C>(p.dout, s, b, h, i0 + r);
        });
        float acc[m / 8][4], dp[m / 8][4];
        clear(acc);
        clear(dp);
        wait_copies();
        __syncthreads();
        multiply_transposed<T, C::dqk, m>(acc, k_at + tile_bytes<16, C::dqk> * warp, q_at);
        multiply_transposed<T, C::dv, m>(dp, v_at + tile_bytes<16, C::dv> * warp, dout_at);

        const bool look = needs_look<C>(p,
                                        s,
                                        bit_tile,
                                        i0,
                                        minimum(i0 + m, s.q_len) - 1,
                                        j0,
                                        j1,
                                        j0 + n <= s.k_len && i0 + m <= s.q_len);
        const Scale scale(p);
        const float unit = Score::unit(p, scale.value);
        const typename Score::Fixed fixed(p, b, h, s.q_len, s.k_len);
        scale.apply(p, acc);
#pragma unroll
        for (int c = 0; c < m / 8; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int i = i0 + c * 8 + (lane & 3) * 2 + e, qp = s.q_origin + i;
            const bool inside = i < s.q_len;
            const float lse = inside ? *row_scalar<C>(p.lse, s, b, h, i) : infinity();
            const float delta = inside ? p.delta[row_index<C>(p, s, b, h, i)] : 0.0f;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int j = mine + 8 * half, kp = s.k_origin + j, at = 2 * half + e;
              const bool live =
                  !look || (inside && j < s.k_len && kept<C, Mask>(p, s, bit_tile, b, h, i, j));
              const float raw = acc[c][at];
              const float far = distance_of(s, i, j);
              const float score =
                  unit *
                  Score::apply(p, b, h, qp, kp, s.q_len, s.k_len, far, raw, scale.value, fixed);
              const float weight = live ? exp2_fast((score - lse) * log2_e) : 0.0f;
              float dropped = weight, grad = dp[c][at];
              if constexpr (C::dropout) {
                const bool keep = Dropout(p).keep(b, h, qp, kp);
                dropped = keep ? weight : 0.0f;  // scaled when dV is written
                grad = keep ? grad * p.keep_scale : 0.0f;
              }
              grad = live ? weight * (grad - delta) : 0.0f;
              if constexpr (!Score::identity)
                if (live)
                  grad *= Score::derivative(
                      p, b, h, qp, kp, s.q_len, s.k_len, far, raw, scale.value, fixed);
              acc[c][at] = dropped;
              dp[c][at] = grad;
            }
          }
        unsigned left[m / 16][4];
        to_fragments<T, m>(left, acc);
        multiply<T, C::dv, m, v_width>(dv, left, dout_at + v_column * 2);
        to_fragments<T, m>(left, dp);
        multiply<T, C::dqk, m, k_width>(dk, left, q_at + k_column * 2);
        __syncthreads();
      }
    }
    wait_copies();  // of K and V, when no query tile came
  }

  using Out = typename C::Out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = mine + 8 * half;
    const bool live = j < s.k_len;
    // Dense padding gets zeros; pages and packed rows past the length belong to others.
    if (!live && (C::kv != KvKind::dense || j >= p.max_k_len)) continue;
    if (p.dk.data) {
      Out* to = static_cast<Out*>(p.dk.data) + key_offset<C>(p, p.dk, s, b, kv_head, j);
      store_row<Out, C::aligned>(to, dk, half, live ? p.scale : 0.0f, k_column, C::dqk);
    }
    if (p.dv.data) {
      const float scale = C::dropout ? p.keep_scale : 1.0f;
      Out* to = static_cast<Out*>(p.dv.data) + key_offset<C>(p, p.dv, s, b, kv_head, j);
      store_row<Out, C::aligned>(to, dv, half, live ? scale : 0.0f, v_column, C::dv);
    }
  }
}

}  // namespace undivided::cuda
