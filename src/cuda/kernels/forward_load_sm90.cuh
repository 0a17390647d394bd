// SPDX-License-Identifier: Apache-2.0
// The loading side of the sm90 forward: one warp that brings Q, K and V of a query tile. Of paged
// keys a second one brings V: many small copies, and a look at the page table for each.
#pragma once

#include "kernels/work_sm90.cuh"

namespace undivided::cuda {

/// Where the boxes of paged keys lie: box `part` of a tile, and one of its slabs, is this lane's. A
/// look at the page table takes as long as a tile does, so the pages of 32 slots are kept, one a
/// lane, and those of the 32 slots before them are on their way.
template <class C, bool paged = C::kv == KvKind::paged>
struct PagedBoxes {
  struct Box {};
  __device__ PagedBoxes(const Params&, const Schedule&) {}
  __device__ void sequence(int) {}
  __device__ Box find(int) { return {}; }
};
template <class C>
struct PagedBoxes<C, true> {
  struct Box {
    int page, inside;
  };
  const Params& p;
  const Schedule& schedule;
  int parts, part, slab, b;
  int window = -1, here, before;

  __device__ PagedBoxes(const Params& params, const Schedule& s) : p(params), schedule(s) {
    const int lane = threadIdx.x & 31;
    parts = C::n / s.box;
    part = lane % parts;
    slab = lane / parts;
  }
  /// Has each box of a tile a lane of its own?
  __device__ bool fit() const {
    return parts * maximum((C::dqk + 63) / 64, (C::dv + 63) / 64) <= 32;
  }
  __device__ void sequence(int at) {
    b = at;
    window = -1;
  }
  /// The whole warp asks.
  __device__ Box find(int tile) {
    const unsigned first = tile * C::n, j = first + part * schedule.box, slot = slot_of(j);
    const int low = slot_of(first) / 32, high = slot_of(first + C::n - schedule.box) / 32;
    const int inside = static_cast<int>(j - slot * p.pages.size);
    if (low != high) return {look(slot), inside};
    if (low != window) {
      here = low + 1 == window ? before : look(low * 32 + (threadIdx.x & 31));
      window = low;
      before = low > 0 ? look((low - 1) * 32 + (threadIdx.x & 31)) : 0;
    }
    return {__shfl_sync(0xffffffffu, here, slot & 31), inside};
  }
  __device__ Box find_row(unsigned j) const {
    const unsigned slot = slot_of(j);
    return {look(slot), static_cast<int>(j - slot * p.pages.size)};
  }

 private:
  /// A division would take as long as all else that a tile needs.
  __device__ unsigned slot_of(unsigned j) const {
    return static_cast<unsigned>(static_cast<unsigned long long>(j) * schedule.page_factor >>
                                 schedule.page_shift);
  }
  __device__ int look(int slot) const { return static_cast<int>(p.pages.page(b, slot)); }
};

template <class C>
struct Producer90 {
  using L = Shared90<C>;
  const Params& p;
  const TensorMaps& maps;
  const Schedule& schedule;
  unsigned base;
  bool lead;
  PagedBoxes<C> boxes;
  Ring<C::q_stages> q;
  Ring<C::stages> k, v;
  unsigned tail_parity = 0;
  using Box = typename PagedBoxes<C>::Box;

  // Of the query tile at hand.
  int token, kv_head, b, k_len;  // token: of key 0, in the tensor maps
  int clean;                     // V rows from here on are another's

  /// The rows of a key tile; `barrier` counts their bytes.
  template <int slabs>
  __device__ void load_rows(
      unsigned to, const TensorMap& map, unsigned barrier, int tile, const Box& mine) {
    if constexpr (C::kv == KvKind::paged) {
      const int box = schedule.box, first = tile * C::n, rows = minimum(C::n, k_len - first);
      const auto load = [&](int part, int slab, const Box& at) {
        const unsigned place = to + slab * L::k_slab + part * box * 128;
        tma_load(place, map, barrier, slab * 64, at.inside, kv_head, at.page);
      };
      const int whole = rows == C::n ? rows : (rows + box - 1) / box * box;
      if (lead) mbarrier_expect(barrier, whole * slabs * 128);
      __syncwarp();
      if (boxes.fit()) {
        if (boxes.slab < slabs && boxes.part * box < rows) load(boxes.part, boxes.slab, mine);
      } else {
#pragma unroll 1
        for (int i = threadIdx.x & 31; i / slabs * box < rows; i += 32)
          load(i / slabs, i % slabs, boxes.find_row(first + i / slabs * box));
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
    const int tile = tiles.tile;
    const Box mine = boxes.find(tile);
    mbarrier_wait(base + L::k_empty + 8 * k.at(), k.parity() ^ 1);
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
        base + L::k_at + L::k_bytes * k.at(), maps.k, base + L::k_full + 8 * k.at(), tile, mine);
    k.next();
  }

  __device__ void load_v(int tile) {
    const Box mine = boxes.find(tile);
    mbarrier_wait(base + L::v_empty + 8 * v.at(), v.parity() ^ 1);
    const unsigned full = base + L::v_full + 8 * v.at(), to = base + L::v_at + L::v_bytes * v.at();
    const bool dirty = (tile + 1) * C::n > clean;
    const unsigned barrier = dirty ? base + L::tail : full;
    load_rows<L::v_slabs>(to, maps.v, barrier, tile, mine);
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

  __device__ void begin(const Work& w, const Sequence& s) {
    token = static_cast<int>(s.k_first);
    kv_head = C::packed ? w.head : w.head / p.group;
    b = w.b;
    boxes.sequence(b);
    k_len = s.k_len;
    clean = C::kv != KvKind::dense || p.k_lengths.data ? s.k_len : 0x7fffffff;
  }

  __device__ void tile(const Work& w, const Sequence& s, KeyTiles<C>& tiles) {
    begin(w, s);
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
      if constexpr (!L::v_apart) load_v(last);
      last = now;
    }
    if constexpr (!L::v_apart) load_v(last);
  }

  /// V of all query tiles, which the other warp announces.
  __device__ void values() {
    for (Ring<2> ring;; ring.next()) {
      mbarrier_wait(base + L::work_full + 8 * ring.at(), ring.parity());
      const unsigned slot = base + L::work + Task90::bytes * ring.at();
      const int first = load_shared_word(slot);
      if (first == Task90::over) break;
      if (first != Task90::nothing) {
        const Task90 task = Task90::read(slot);
        begin(task.work, task.s);
        for (KeyTiles<C> tiles(p, task.s, task.work); tiles.valid(); tiles.next())
          load_v(tiles.tile);
      }
      __syncwarp();
      if (lead) mbarrier_arrive(base + L::work_empty + 8 * ring.at());
    }
  }
};

}  // namespace undivided::cuda
