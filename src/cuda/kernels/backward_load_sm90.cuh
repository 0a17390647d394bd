// SPDX-License-Identifier: Apache-2.0
// The warps of the sm90 backward beside the consumers: the scheduler finds which keys its CTA takes
// next and their query tiles, the producer brings them, and a third adds dQ. Wide: the consumers
// add it, and if its order is fixed, two threads wait for their turns.
#pragma once

#include "kernels/backward_work_sm90.cuh"

namespace undivided::cuda {

/// Finds the tiles. What it waits for (the counter, lengths, runs of a plan) holds nobody up, as it
/// is ahead of the producer, and the producer two tiles ahead of the consumers.
template <class C>
struct BackwardScheduler90 {
  using L = SharedBackward90<C>;
  const Params& p;
  const Schedule& schedule;
  unsigned base;
  bool lead;
  Ring<1> orders;
  int counted = -1, turns = 0;  // ordered: lane i has the turn of tile `counted` - i; -1: none

  /// All heads of a group meet a query tile before the next one: CTAs of shorter walks stay beside
  /// the others, and what they read stays in L2. A plan has other tiles for each head, and captured
  /// sums are those of a head.
  static constexpr bool heads_inside = !QueryTiles<C>::planned && C::capture == Capture::none;

  /// Tells the producer of the tile at hand of query head h. `step` goes to the next one and says
  /// whether there is one.
  template <class Step>
  __device__ void order(unsigned slot, bool first, int h, QueryTiles<C>& tiles, const Step& step) {
    const KeyTask90 t = KeyTask90::read<C>(slot);  // kept from tile to tile it would cost registers
    const Sequence& s = t.s;
    const int tile = tiles.tile, i0 = tile * C::m;
    int classes[L::blocks ? L::blocks : 1];
    if constexpr (L::blocks > 0) {
#pragma unroll
      for (int g = 0; g < L::key_blocks; ++g)
#pragma unroll
        for (int x = 0; x < L::row_slabs; ++x) {
          const int i = QueryTiles<C>::down ? L::row_slabs - 1 - x : x;
          classes[g * L::row_slabs + i] = tiles.block_class(g, i);
        }
    }
    int turn = 0;
    if constexpr (C::ordered && QueryTiles<C>::planned)
      turn = counted_turn(t, h, tile);
    else if constexpr (C::ordered)
      turn = visitors_before<C>(p, s, t.b, h, tile, t.j0);
    const int last = !step();
    mbarrier_wait(base + L::order_empty, orders.parity() ^ 1);
    orders.next();
    if (!lead) return;
    const auto word = [&](int at, int x) { store_shared_word(base + L::order + at, x); };
    word(0, h);
    word(L::info_tile, tile);
    word(L::info_sums, dq_tile<C>(p, s, t.b, h, tile));
    word(L::info_turn, turn);
    word(L::info_last, last);
    word(L::info_look, Keys90<C>::looks(t, i0));
#pragma unroll
    for (int i = 0; i < L::blocks; ++i) word(L::info_classes + 4 * i, classes[i]);
    word(L::order_token, static_cast<int>(s.q_first) + i0);
    word(L::order_batch, C::rows == RowKind::ragged ? 0 : t.b);
    word(L::order_clean,
         C::rows == RowKind::ragged || p.q_lengths.data ? s.q_len - i0 : static_cast<int>(C::m));
    word(L::order_task, first ? slot : 0);
    mbarrier_arrive(base + L::order_full);
  }

  /// The turn of a tile in a plan. To look it up takes about as long as a tile does, four reads of
  /// L2 after each other: each lane looks up that of one of the next 32 tiles.
  __device__ int counted_turn(const KeyTask90& t, int h, int tile) {
    if (counted < 0 || counted - tile > 31) {
      counted = tile;
      const int own = maximum(0, tile - static_cast<int>(threadIdx.x & 31));
      turns = visitors_before<C>(p, t.s, t.b, h, own, t.j0);
    }
    return __shfl_sync(0xffffffffu, turns, counted - tile);
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
      b = sequence_of_slot(p.k_offsets, p.total_k, L::task_keys, p.batch, tile);
      tile = maximum(0, tile - first_slot(p.k_offsets, p.total_k, L::task_keys, b));
    }
    j0 = tile * L::task_keys;
  }

  /// The next task. CTA 1 of a pair hears it from CTA 0.
  __device__ int next_task(unsigned parity) const {
    int at = 0;
    if constexpr (L::paired) {
      if (cluster_rank() == 1) {
        cluster_wait(base + L::shared_task_full, parity);
        at = load_shared_word(base + L::shared_task);
        __syncwarp();
        if (lead) cluster_arrive(cluster_address(base + L::shared_task_empty, 0));
        return at;
      }
      cluster_wait(base + L::shared_task_empty, parity ^ 1);
    }
    if (lead) at = atomicAdd(schedule.counter, 1);
    at = __shfl_sync(0xffffffffu, at, 0);
    if (L::paired && lead) {
      cluster_store_word(cluster_address(base + L::shared_task, 1), at);
      cluster_arrive(cluster_address(base + L::shared_task_full, 1));
    }
    return at;
  }

  /// Tasks are taken in ascending order by all CTAs: who waits for another's dQ has come after it.
  __device__ void run() {
    const int mine = pair_rank<C>() * C::n;  // of the keys of a task
    Ring<1> shared_tasks;
#pragma unroll 1
    for (Ring<L::task_slots> tasks;; tasks.next(), shared_tasks.next()) {
      const int at = next_task(shared_tasks.parity());
      const unsigned slot = base + L::tasks + 64 * tasks.at();
      const unsigned full = base + L::task_full + 8 * tasks.at();
      mbarrier_wait(base + L::task_empty + 8 * tasks.at(), tasks.parity() ^ 1);
      if (at >= schedule.tiles) {
        mbarrier_wait(base + L::order_empty, orders.parity() ^ 1);
        if (lead) {
          store_shared_word(slot, -1);
          mbarrier_arrive(full);
          store_shared_word(base + L::order, -1);
          mbarrier_arrive(base + L::order_full);
        }
        return;
      }
      int kv_head, b, j0;
      find(at, kv_head, b, j0);
      int h, left;  // the query head, and how many there are from it on
      QueryTiles<C> tiles;
      const auto settle = [&](const Sequence& s, int of, int key) {  // to a head that has a tile
        counted = -1;
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
        if (lead) KeyTask90::of<C>(p, s, kv_head, b, j0 + mine, any).write(slot);
        __syncwarp();
        if (lead) mbarrier_arrive(full);
      }
#pragma unroll 1
      for (bool first = true; any; first = false)
        order(slot, first, h, tiles, [&] {
          if constexpr (heads_inside) {
            ++h;
            if (--left > 0) return true;
            h -= p.group;
            left = p.group;
            tiles.next();
            return any = tiles.valid();
          }
          tiles.next();
          any = tiles.valid();
          if (any || --left == 0) return any;
          ++h;
          const KeyTask90 t = KeyTask90::read<C>(slot);
          return any = settle(t.s, t.b, t.j0 - mine);
        });
    }
  }
};

/// Brings what the scheduler orders.
template <class C>
struct BackwardProducer90 {
  using L = SharedBackward90<C>;
  const Params& p;
  const BackwardMaps& maps;
  unsigned base;
  bool lead;
  Ring<C::stages> ring;
  Ring<L::dout_stages> douts;
  Ring<1> orders, keys_ring;
  unsigned tail_parity = 0;

  /// A tile of `rows` tokens, of which the first `clean` are ours and the rest become zeros.
  template <int slabs, int rows>
  __device__ void load(unsigned to,
                       const TensorMap& map,
                       unsigned full,
                       int token,
                       int head,
                       int batch,
                       int clean,
                       int column = 0) {
    constexpr int slab = rows * 128;
    const unsigned barrier = clean < rows ? base + L::tail : full;
    if (lead) {
      mbarrier_expect(barrier, slabs * slab);
#pragma unroll
      for (int i = 0; i < slabs; ++i)
        tma_load(to + i * slab, map, barrier, column + i * 64, token, head, batch);
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
    const bool counted = C::kv == KvKind::ragged || p.k_lengths.data;
    const int clean = counted ? s.k_len - j0 : C::n;
    load<L::q_slabs, C::n>(base, maps.k, base + L::keys_full, token, kv_head, batch, clean);
    load<L::v_slabs, C::n>(
        base + L::v_at, maps.v, base + L::keys_full, token, kv_head, batch, clean);
    if constexpr (L::paired) {
      const int over = cluster_rank() == 0 ? C::n : -C::n;
#pragma unroll
      for (int g = 0; g < 2; ++g)
        load<1, C::n>(base + L::other_k_at + g * L::key_slab,
                      maps.k,
                      base + L::keys_full,
                      token + over,
                      kv_head,
                      batch,
                      counted ? clean - over : C::n,
                      L::dq_column(g) / 64 * 64);
    }
  }

  /// Queries, LSE and delta, and the bits of a plan. Lane i holds word i of the order.
  __device__ void rows(int order) {
    const auto word = [&](int at) { return __shfl_sync(0xffffffffu, order, at / 4); };
    const int at = ring.at(), lane = threadIdx.x & 31;
    const int h = word(0), sums = word(L::info_sums), token = word(L::order_token);
    const int batch = word(L::order_batch), clean = word(L::order_clean);
    const unsigned q_full = base + L::q_full + 8 * at;  // arrivals: of Q, of what goes with it
    mbarrier_wait(base + L::q_empty + 8 * at, ring.parity() ^ 1);
    load<L::q_slabs, C::m>(
        base + L::q_at + L::q_bytes * at, maps.q, q_full, token, h, batch, clean);
    if (lane * 4 < L::info_bytes)
      store_shared_word(base + L::info + L::info_bytes * at + lane * 4, order);
    __syncwarp();
    int bytes = L::stats_bytes;
    if constexpr (L::near_bits) {
#pragma unroll
      for (int i = 0; i < L::blocks; ++i) bytes += word(L::info_classes + 4 * i) >= 0 ? 512 : 0;
    }
    if (lead) {
      mbarrier_expect(q_full, bytes);
      bulk_load(base + L::lse + L::stats_bytes * at,
                p.row_stats + static_cast<long long>(sums) * 2 * C::m,
                L::stats_bytes,
                q_full);
    }
    if constexpr (L::near_bits) {
      const int i = lane - L::info_classes / 4;
      if (i >= 0 && i < L::blocks && order >= 0)
        bulk_load(base + L::bits + (at * L::blocks + i) * 512, p.plan.tiles[order], 512, q_full);
    }
    const int place = douts.at();
    mbarrier_wait(base + L::dout_empty + 8 * place, douts.parity() ^ 1);
    load<L::v_slabs, C::m>(base + L::dout_at + L::dout_bytes * place,
                           maps.dout,
                           base + L::dout_full + 8 * place,
                           token,
                           h,
                           batch,
                           clean);
    ring.next();
    douts.next();
  }

  __device__ void run() {
#pragma unroll 1
    for (;; orders.next()) {
      mbarrier_wait(base + L::order_full, orders.parity());
      const int lane = threadIdx.x & 31;
      const int order =
          lane * 4 < L::order_bytes ? load_shared_word(base + L::order + lane * 4) : 0;
      __syncwarp();
      if (lead) mbarrier_arrive(base + L::order_empty);
      if (__shfl_sync(0xffffffffu, order, 0) < 0) return;
      rows(order);
      // The rows did not wait for the task before.
      if (const int task = __shfl_sync(0xffffffffu, order, L::order_task / 4))
        keys(KeyTask90::read<C>(task));
    }
  }
};

/// Adds what warpgroups [first, end) leave of dQ tiles in shared memory to the sums in global
/// memory: whose turn is first or, without an order, who comes first stores, and the others wait
/// for that, so that no pass writes zeros for them to add to. One thread.
template <class C>
__device__ inline void add_dq(const Params& p, unsigned base, int first, int end) {
  using L = SharedBackward90<C>;
  for (unsigned parity = 0;; parity ^= 1) {
    bool stores = false;
    for (int g = first; g < end; ++g) {
      mbarrier_wait(base + L::dq_full + 8 * g, parity);
      const int tile = load_shared_word(base + L::dq_to + 4 * g);
      if (tile < 0) {
        bulk_wait<0>();
        return;
      }
      int* turns = p.dq_turns + 4 * tile + first;
      if (g == first) {
        const int turn = C::ordered ? load_shared_word(base + L::dq_turn + 4 * g) : claim(turns);
        stores = turn == 0;
        if (C::ordered && turn > 0) wait_for_turn(turns, turn);
        if (!C::ordered && turn == 1) wait_for_turn(turns, 2);  // claimed, not stored yet
      }
      float* sums = p.dq_sum + static_cast<long long>(tile) * L::dq_floats + g * L::dq_second;
      const unsigned from = base + L::dq_at + L::dq_bytes * g;
      if (stores)
        bulk_store(sums, from, L::dq_bytes);
      else
        bulk_add(sums, from, L::dq_bytes);
      bulk_commit();
      bulk_wait_read<0>();
      mbarrier_arrive(base + L::dq_empty + 8 * g);
      if (g + 1 == end && (C::ordered || stores)) {
        bulk_wait<0>();
        pass_turn(turns);
      }
    }
  }
}

/// Wide and ordered: waits for the turns of a warpgroup's additions to dQ and passes them on, so
/// that the consumers meet neither the latency of the flags nor that of the fence. One thread.
template <class C>
__device__ inline void keep_turns(const Params& p, unsigned base, int group) {
  using L = SharedBackward90<C>;
  for (unsigned parity = 0;; parity ^= 1) {
    mbarrier_wait(base + L::turn_asked + 8 * group, parity);
    const int tile = load_shared_word(base + L::dq_to + 4 * group);
    if (tile < 0) return;
    int* turns = p.dq_turns + 4 * tile + 2 * pair_rank<C>() + group;
    wait_for_turn(turns, load_shared_word(base + L::dq_turn + 4 * group));
    mbarrier_arrive(base + L::turn_ready + 8 * group);
    mbarrier_wait(base + L::turn_added + 8 * group, parity);
    pass_turn(turns);
  }
}

}  // namespace undivided::cuda
