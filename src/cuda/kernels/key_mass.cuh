// SPDX-License-Identifier: Apache-2.0
// key_mass[j] = sum over queries of e^(s - LSE), before dropout: one block a key tile of a query
// head, over the query tiles in fixed order, without atomics.
//
// Grid: k_tiles x heads x batch, key tile fastest. Block: 4 warps, 16 keys each.
// Shared: K [n, dqk], Q [m, dqk].
#pragma once

#include "kernels/tile.cuh"
#include "kernels/walk.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
__device__ void key_mass(const Params& p) {
  using T = typename C::Element;
  constexpr int m = C::m, n = C::n;
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned k_at = shared_address(shared), q_at = k_at + tile_bytes<n, C::dqk>;

  int x = blockIdx.x;
  const int k_tile = x % p.k_tiles;
  x /= p.k_tiles;
  const int h = x % p.heads, b = x / p.heads, kv_head = h / p.group;
  const Sequence s = sequence<C>(p, b);
  const int j0 = k_tile * n, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  const int mine = j0 + warp * 16 + lane / 4;
  float sum[2] = {};

  if (j0 < s.k_len) {
    const int j1 = minimum(j0 + n, s.k_len) - 1;
    load_tile<T, n, C::dqk, C::threads, C::aligned>(
        k_at, static_cast<const T*>(p.k.data), s.k_len - j0, C::dqk, [&](int r) {
          return key_offset<C>(p, p.k, s, b, kv_head, j0 + r);
        });
    for (auto walk = query_walk<C>(p, s, b, h, j0, j1); walk.valid; walk.next()) {
      const int i0 = walk.tile * m, bit_tile = walk.bit_tile;
      load_tile<T, m, C::dqk, C::threads, C::aligned>(
          q_at, static_cast<const T*>(p.q.data), s.q_len - i0, C::dqk, [&](int r) {
            return row_offset<C>(p.q, s, b, h, i0 + r);
          });
      float acc[m / 8][4];
      clear(acc);
      wait_copies();
      __syncthreads();
      multiply_transposed<T, C::dqk, m>(acc, k_at + tile_bytes<16, C::dqk> * warp, q_at);
      const Scale scale(p);
      const float unit = Score::unit(p, scale.value);
      const typename Score::Fixed fixed(p, b, h, s.q_len, s.k_len);
      scale.apply(p, acc);
#pragma unroll
      for (int c = 0; c < m / 8; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = i0 + c * 8 + (lane & 3) * 2 + e;
          const bool inside = i < s.q_len;
          const float lse = inside ? *row_scalar<C>(p.lse, s, b, h, i) : infinity();
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int j = mine + 8 * half;
            const float score = unit * Score::apply(p,
                                                    b,
                                                    h,
                                                    s.q_origin + i,
                                                    s.k_origin + j,
                                                    s.q_len,
                                                    s.k_len,
                                                    distance_of(s, i, j),
                                                    acc[c][2 * half + e],
                                                    scale.value,
                                                    fixed);
            if (inside && j < s.k_len && kept<C, Mask>(p, s, bit_tile, b, h, i, j))
              sum[half] += exp2_fast((score - lse) * log2_e);
          }
        }
      __syncthreads();
    }
    wait_copies();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = mine + 8 * half;
    const float total = quad_sum(sum[half]);
    if ((lane & 3) != 0) continue;
    if constexpr (C::kv == KvKind::ragged) {
      if (j < s.k_len)
        p.key_mass.data[h * p.key_mass.head + (s.k_first + j) * p.key_mass.token] = total;
    } else {
      if (j < p.key_extent)
        p.key_mass.data[b * p.key_mass.batch + h * p.key_mass.head + j * p.key_mass.token] = total;
    }
  }
}

}  // namespace undivided::cuda
