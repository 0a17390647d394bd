// SPDX-License-Identifier: Apache-2.0
// The loading side of the sm90 backward: which keys a CTA takes next, their query tiles, and the
// warp that adds dQ.
#pragma once

#include "kernels/backward_work_sm90.cuh"

namespace undivided::cuda {

template <class C>
struct BackwardProducer90 {
  using L = SharedBackward90<C>;
  const Params& p;
  const BackwardMaps& maps;
  const Schedule& schedule;
  unsigned base;
  bool lead;
  Ring<C::stages> ring;
  Ring<1> keys_ring;
  unsigned tail_parity = 0;

  /// A tile of `rows` tokens, of which the first `clean` are ours and the rest become zeros.
  template <int slabs, int rows>
  __device__ void load(
      unsigned to, const TensorMap& map, unsigned full, int token, int head, int batch, int clean) {
    constexpr int slab = rows * 128;
    const unsigned barrier = clean < rows ? base + L::tail : full;
    if (lead) {
      mbarrier_expect(barrier, slabs * slab);
#pragma unroll
      for (int i = 0; i < slabs; ++i)
        tma_load(to + i * slab, map, barrier, i * 64, token, head, batch);
    }
    if (clean >= rows) return;
    mbarrier_wait(barrier, tail_parity);
    tail_parity ^= 1;
    const unsigned zero[4] = {};
#pragma unroll 1
    for (int i = 0; i < slabs; ++i)
#pragma unroll 1
      for (unsigned at = to + i * slab + maximum(clean, 0) * 128 + (threadIdx.x & 31) * 16;
           at < to + (i + 1) * slab;
           at += 512)
        store_shared(at, zero);
    async_proxy_fence();
    __syncwarp();
    if (lead) mbarrier_arrive(full);
  }

  __device__ void keys(const KeyTask90& t) {
    const Sequence& s = t.s;
    const int b = t.b, kv_head = t.kv_head, j0 = t.j0;
    mbarrier_wait(base + L::keys_empty, keys_ring.parity() ^ 1);
    keys_ring.next();
    const int token = static_cast<int>(s.k_first) + j0, batch = C::kv == KvKind::ragged ? 0 : b;
    const int clean = C::kv == KvKind::ragged || p.k_lengths.data ? s.k_len - j0 : C::n;
    load<L::q_slabs, C::n>(base, maps.k, base + L::keys_full, token, kv_head, batch, clean);
    load<L::v_slabs, C::n>(
        base + L::v_at, maps.v, base + L::keys_full, token, kv_head, batch, clean);
  }

  /// The tile at hand of query head h. `step` goes to the next one and says whether there is one.
  template <class Step>
  __device__ void rows(unsigned slot, int h, QueryTiles<C>& tiles, const Step& step) {
    const KeyTask90 t = KeyTask90::read<C>(slot);  // kept from tile to tile it would cost registers
    const Sequence& s = t.s;
    const int at = ring.at(), i0 = tiles.tile * C::m;
    const int token = static_cast<int>(s.q_first) + i0;
    const int batch = C::rows == RowKind::ragged ? 0 : t.b;
    const int clean = C::rows == RowKind::ragged || p.q_lengths.data ? s.q_len - i0 : C::m;
    const unsigned q_full = base + L::q_full + 8 * at;  // arrivals: of Q, of what goes with it
    mbarrier_wait(base + L::q_empty + 8 * at, ring.parity() ^ 1);
    load<L::q_slabs, C::m>(
        base + L::q_at + L::q_bytes * at, maps.q, q_full, token, h, batch, clean);
    {
      constexpr int each = C::m / 32;  // rows of a lane: all are asked for before one is waited for
      const int row = threadIdx.x & 31;
      const float* lse_at = row_scalar<C>(p.lse, s, t.b, h, i0 + row);
      const float* delta_at = p.delta + row_index<C>(p, s, t.b, h, i0 + row);
      float lse[each], delta[each];
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const bool live = i0 + row + 32 * i < s.q_len;
        lse[i] = live ? lse_at[32 * i * p.lse.token] : infinity();
        delta[i] = live ? delta_at[32 * i] : 0.0f;
      }
      const unsigned to = base + L::lse + (at * C::m + row) * 4;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        // e^(s - inf) = 0: no weight past the rows, nor in a row without a key.
        const float top = lse[i] == -infinity() ? infinity() : lse[i] * log2_e;
        store_shared_word(to + 128 * i, __float_as_int(top));
        store_shared_word(to + L::delta - L::lse + 128 * i, __float_as_int(delta[i]));
      }
    }
    if (lead) {
      const unsigned info = base + L::info + L::info_bytes * at;
      store_shared_word(info, h);
      store_shared_word(info + L::info_tile, tiles.tile);
      store_shared_word(info + L::info_sums, dq_tile<C>(p, s, t.b, h, tiles.tile));
      store_shared_word(info + L::info_look, Keys90<C>::looks(t, i0));
      if constexpr (C::ordered)
        store_shared_word(info + L::info_turn, visitors_before<C>(p, s, t.b, h, tiles.tile, t.j0));
      if constexpr (C::mask == MaskKind::plan) {
#pragma unroll
        for (int g = 0; g < L::key_blocks; ++g)
#pragma unroll
          for (int i = 0; i < L::row_slabs; ++i)
            store_shared_word(info + L::info_classes + 4 * (g * L::row_slabs + i),
                              tiles.block_class(g, i));
      }
    }
    const int last = !step();
    if (lead) store_shared_word(base + L::info + L::info_bytes * at + L::info_last, last);
    __syncwarp();
    if (lead) mbarrier_arrive(q_full);
    mbarrier_wait(base + L::dout_empty + 8 * at, ring.parity() ^ 1);
    load<L::v_slabs, C::m>(base + L::dout_at + L::dout_bytes * at,
                           maps.dout,
                           base + L::dout_full + 8 * at,
                           token,
                           h,
                           batch,
                           clean);
    ring.next();
  }

  /// Which keys task `at` is. Packed rows: a column of the key tiles of all sequences, as for the
  /// query tiles of the forward.
  __device__ void find(int at, int& kv_head, int& b, int& j0) const {
    constexpr bool ragged = C::kv == KvKind::ragged;
    const int tall = schedule.section * p.k_tiles, first = at / tall * schedule.section;
    const int rest = at % tall;
    const int width = minimum(schedule.section, p.kv_heads * (ragged ? 1 : p.batch) - first);
    const int pair = first + rest % width;
    int tile = rest / width;
    kv_head = pair % p.kv_heads;
    b = pair / p.kv_heads;
    if constexpr (ragged) {
      b = sequence_of_slot(p.k_offsets, p.total_k, C::n, p.batch, tile);
      tile = maximum(0, tile - first_slot(p.k_offsets, p.total_k, C::n, b));
    }
    j0 = tile * C::n;
  }

  /// Tasks are taken in ascending order by all CTAs: who waits for another's dQ has come after it.
  __device__ void run() {
    const auto take = [&] {
      int at = 0;
      if (lead) at = atomicAdd(schedule.counter, 1);
      return __shfl_sync(0xffffffffu, at, 0);
    };
    int at = take();
#pragma unroll 1
    for (Ring<2> tasks;; tasks.next()) {
      const unsigned slot = base + L::tasks + 64 * tasks.at();
      const unsigned full = base + L::task_full + 8 * tasks.at();
      mbarrier_wait(base + L::task_empty + 8 * tasks.at(), tasks.parity() ^ 1);
      if (at >= schedule.tiles) {
        if (lead) {
          store_shared_word(slot, -1);
          mbarrier_arrive(full);
        }
        return;
      }
      int kv_head, b, j0;
      find(at, kv_head, b, j0);
      int h, left;  // the query head, and how many there are from it on
      QueryTiles<C> tiles;
      const auto settle = [&](const Sequence& s, int of, int key) {  // to a head that has a tile
        for (; left > 0; ++h, --left) {
          tiles = QueryTiles<C>(p, s, of, h, key);
          if (tiles.valid()) return true;
        }
        return false;
      };
      bool any;
      {
        const Sequence s = sequence<C>(p, b);
        h = kv_head * p.group;
        left = j0 < s.k_len ? p.group : 0;
        any = settle(s, b, j0);
        if (lead) KeyTask90::of<C>(p, s, kv_head, b, j0, any).write(slot);
        __syncwarp();
        if (lead) mbarrier_arrive(full);
      }
#pragma unroll 1
      for (bool first = true; any; first = false) {
        rows(slot, h, tiles, [&] {
          tiles.next();
          any = tiles.valid();
          if (any || --left == 0) return any;
          ++h;
          const KeyTask90 t = KeyTask90::read<C>(slot);
          return any = settle(t.s, t.b, t.j0);
        });
        if (first) keys(KeyTask90::read<C>(slot));  // the rows did not wait for the task before
      }
      at = take();
    }
  }
};

/// Adds the dQ tiles that the consumers leave in shared memory to the sums in global memory.
template <class C>
__device__ inline void add_dq(const Params& p, unsigned base) {
  using L = SharedBackward90<C>;
  const auto add = [&](int g, int tile) {
    bulk_add(p.dq_sum + static_cast<long long>(tile) * L::dq_floats + g * (L::dq_floats / 2),
             base + L::dq_at + L::dq_bytes * g,
             L::dq_bytes);
    bulk_commit();
  };
  for (unsigned parity = 0;; parity ^= 1) {
    for (int g = 0; g < 2; ++g) {
      mbarrier_wait(base + L::dq_full + 8 * g, parity);
      const int tile = load_shared_word(base + L::dq_to + 4 * g);
      if (tile < 0) {
        bulk_wait<0>();
        return;
      }
      if (C::ordered && g == 0)
        wait_for_turn(p.dq_turns + 2 * tile, load_shared_word(base + L::dq_turn));
      add(g, tile);
      if constexpr (!C::ordered) {
        bulk_wait_read<0>();
        mbarrier_arrive(base + L::dq_empty + 8 * g);
      } else if (g == 1) {
        bulk_wait_read<0>();
        for (int i = 0; i < 2; ++i) mbarrier_arrive(base + L::dq_empty + 8 * i);
        bulk_wait<0>();
        pass_turn(p.dq_turns + 2 * tile);
      }
    }
  }
}

}  // namespace undivided::cuda
