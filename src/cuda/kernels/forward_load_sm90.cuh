// SPDX-License-Identifier: Apache-2.0
// The loading side of the sm90 forward: one warp that brings Q, K and V of a query tile.
#pragma once

#include "kernels/work_sm90.cuh"

namespace undivided::cuda {

template <class C>
struct Producer90 {
  using L = Shared90<C>;
  const Params& p;
  const TensorMaps& maps;
  const Schedule& schedule;
  unsigned base;
  bool lead;
  Ring<C::q_stages> q;
  Ring<C::stages> k, v;
  unsigned tail_parity = 0;

  // Of the query tile at hand.
  int token, kv_head, b, k_len;  // token: of key 0, in the tensor maps
  int clean;                     // V rows from here on are another's

  /// The rows of a key tile; `barrier` counts their bytes.
  template <int slabs>
  __device__ void load_rows(unsigned to, const TensorMap& map, unsigned barrier, int tile) {
    if constexpr (C::kv == KvKind::paged) {
      const int box = schedule.box, first = tile * C::n,
                count = (minimum(C::n, k_len - first) + box - 1) / box;
      if (lead) mbarrier_expect(barrier, count * box * slabs * 128);
      __syncwarp();
#pragma unroll 1
      for (int i = threadIdx.x & 31; i < count * slabs; i += 32) {
        const int part = i / slabs, slab = i % slabs;
        const unsigned j = first + part * box, size = p.pages.size, slot = j / size;
        tma_load(to + slab * L::k_slab + part * box * 128,
                 map,
                 barrier,
                 slab * 64,
                 j - slot * size,
                 kv_head,
                 static_cast<int>(p.pages.page(b, slot)));
      }
      __syncwarp();
    } else if (lead) {
      mbarrier_expect(barrier, slabs * L::k_slab);
#pragma unroll
      for (int i = 0; i < slabs; ++i)
        tma_load(to + i * L::k_slab,
                 map,
                 barrier,
                 i * 64,
                 token + tile * C::n,
                 kv_head,
                 C::kv == KvKind::ragged ? 0 : b);
    }
  }

  __device__ void load_k(KeyTiles<C>& tiles) {
    mbarrier_wait(base + L::k_empty + 8 * k.at(), k.parity() ^ 1);
    const int tile = tiles.tile;
    if constexpr (KeyTiles<C>::planned) {
      int classes[C::warpgroups][L::blocks];
#pragma unroll
      for (int g = 0; g < C::warpgroups; ++g)
#pragma unroll
        for (int i = L::blocks - 1; i >= 0; --i) classes[g][i] = tiles.block_class(g, i);
      tiles.next();
      if (lead) {
        const unsigned info = base + L::info + L::info_bytes * k.at();
        store_shared_word(info, tile);
        store_shared_word(info + 4, tiles.valid() ? tiles.needed() : -1);
#pragma unroll
        for (int g = 0; g < C::warpgroups; ++g)
#pragma unroll
          for (int i = 0; i < L::blocks; ++i)
            store_shared_word(info + 8 + 4 * (g * L::blocks + i), classes[g][i]);
      }
    } else {
      tiles.next();
    }
    load_rows<L::q_slabs>(
        base + L::k_at + L::k_bytes * k.at(), maps.k, base + L::k_full + 8 * k.at(), tile);
    k.next();
  }

  __device__ void load_v(int tile) {
    mbarrier_wait(base + L::v_empty + 8 * v.at(), v.parity() ^ 1);
    const unsigned full = base + L::v_full + 8 * v.at(), to = base + L::v_at + L::v_bytes * v.at();
    const bool dirty = (tile + 1) * C::n > clean;
    const unsigned barrier = dirty ? base + L::tail : full;
    load_rows<L::v_slabs>(to, maps.v, barrier, tile);
    if (dirty) {
      mbarrier_wait(barrier, tail_parity);
      tail_parity ^= 1;
      const unsigned zero[4] = {};
#pragma unroll 1
      for (int i = 0; i < L::v_slabs; ++i)
#pragma unroll 1
        for (unsigned at =
                 to + i * L::k_slab + (clean - tile * C::n) * 128 + (threadIdx.x & 31) * 16;
             at < to + (i + 1) * L::k_slab;
             at += 512)
          store_shared(at, zero);
      async_proxy_fence();
      __syncwarp();
      if (lead) mbarrier_arrive(full);
    }
    v.next();
  }

  __device__ void tile(const Work& w, const Sequence& s, KeyTiles<C>& tiles) {
    token = static_cast<int>(s.k_first);
    kv_head = C::packed ? w.head : w.head / p.group;
    b = w.b;
    k_len = s.k_len;
    clean = C::kv != KvKind::dense || p.k_lengths.data ? s.k_len : 0x7fffffff;
    mbarrier_wait(base + L::q_empty + 8 * q.at(), q.parity() ^ 1);
    if (lead) {
      const unsigned full = base + L::q_full + 8 * q.at();
      const int tokens = tile_tokens<C>(p);
      const int row = static_cast<int>(s.q_first) + w.q_tile * tokens;
      const int head = C::packed ? w.head * p.group : w.head;
      mbarrier_expect(full, L::q_slabs * 128 * (C::packed ? tokens * p.group : C::m));
#pragma unroll
      for (int i = 0; i < L::q_slabs; ++i)
        tma_load(base + L::q_bytes * q.at() + i * L::q_slab,
                 maps.q,
                 full,
                 i * 64,
                 C::packed ? head : row,
                 C::packed ? row : head,
                 C::rows == RowKind::ragged ? 0 : w.b);
    }
    q.next();
    int last = tiles.tile;
    load_k(tiles);
    while (tiles.valid()) {
      const int now = tiles.tile;
      load_k(tiles);
      load_v(last);
      last = now;
    }
    load_v(last);
  }
};

}  // namespace undivided::cuda
