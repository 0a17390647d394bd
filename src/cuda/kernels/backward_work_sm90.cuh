// SPDX-License-Identifier: Apache-2.0
// What the roles of the sm90 backward share: shared memory, the keys of a task and their query
// tiles. A warpgroup holds S^T: a thread has two keys, 8 apart, of an accumulator and queries 2 t
// and 2 t + 1 of each 8.
#pragma once

#include "device/cluster.cuh"
#include "kernels/output_sm90.cuh"

namespace undivided::cuda {

struct BackwardMaps {
  TensorMap q, k, v, dout;  // axes: dim, token, head, batch; ragged: one batch
};

/// Which CTA of a pair this is.
template <class C>
__device__ inline int pair_rank() {
  return C::ctas == 2 ? cluster_rank() : 0;
}

/// Offsets in shared memory; K is at 0. Tiles are slabs of 64 columns; see wgmma.cuh.
template <class C>
struct SharedBackward90 {
  static constexpr bool wide = C::n == 64;  // both warpgroups share all keys
  /// Do two CTAs share a task, each with half its keys? See backward_wide_sm90.cuh.
  static constexpr bool paired = C::ctas == 2;
  static constexpr int task_keys = C::n * C::ctas;
  static constexpr int key_blocks = C::n / 64;
  static constexpr int q_slabs = (C::dqk + 63) / 64, v_slabs = (C::dv + 63) / 64;
  static constexpr int dout_stages = paired && q_slabs + v_slabs > 6 ? 1 : C::stages;
  /// 128 keys and dqk above 128: registers hold dP of 32 queries at a time.
  static constexpr bool broad = !wide && q_slabs > 2;
  static constexpr int row_slab = C::m * 128, key_slab = C::n * 128;
  static constexpr int row_slabs = C::m / 64;  // of dS: its columns are queries
  static constexpr int q_bytes = q_slabs * row_slab, dout_bytes = v_slabs * row_slab;
  static constexpr int ds_bytes = row_slabs * key_slab, ds_tiles = broad ? 1 : 2;
  static constexpr int p_bytes = wide ? 64 * 64 * 4 : 0;
  // A tile of dQ in the order of its accumulators, a half a warpgroup.
  static constexpr int dq_floats = 64 * (wide ? q_slabs * 64 : broad ? 192 : 128);
  static constexpr int dq_second = wide ? (q_slabs + 1) / 2 * 64 * 64 : dq_floats / 2;
  static constexpr int dq_bytes = wide ? 0 : dq_floats / 2 * 4;
  /// Wide: columns of dQ that a warpgroup makes, and the first of them. Of three slabs the CTAs of
  /// a pair share the one in the middle.
  static __device__ constexpr int dq_width(int group) {
    if (paired) return group == 0 || q_slabs == 4 ? 64 : 32;
    return (q_slabs + 1 - group) / 2 * 64;
  }
  static __device__ int dq_column(int group) {
    if (!paired) return group * dq_width(0);
    return group == 0 ? pair_rank<C>() * 128 : 64 + pair_rank<C>() * (q_slabs == 4 ? 128 : 32);
  }
  static constexpr int v_at = q_slabs * key_slab, q_at = v_at + v_slabs * key_slab;
  static constexpr int dout_at = q_at + C::stages * q_bytes;
  static constexpr int ds_at = dout_at + dout_stages * dout_bytes;  // taken in turn
  // Paired: dS of the other CTA, and of its K the columns that this one needs.
  static constexpr int other_ds_at = ds_at + ds_tiles * ds_bytes;
  static constexpr int other_k_at = other_ds_at + (paired ? ds_tiles * ds_bytes : 0);
  static constexpr int dq_at = other_k_at + (paired ? 2 * key_slab : 0);  // one a warpgroup
  static constexpr int p_at = dq_at + 2 * dq_bytes;                       // wide: P of the tile
  // LSE in log2, a float a row, then delta; of a plan then 64 words for each block with bits.
  static constexpr int lse = p_at + p_bytes, delta = lse + C::m * 4;
  static constexpr int stats_bytes = 2 * C::m * 4;
  static constexpr bool near_bits =
      C::mask == MaskKind::plan && !C::inside_program && q_slabs + v_slabs < 8;
  static constexpr int blocks = C::mask == MaskKind::plan ? key_blocks * row_slabs : 0;
  static constexpr int bits = lse + C::stages * stats_bytes;
  static constexpr int keys_full = bits + (near_bits ? C::stages * blocks * 512 : 0);  // barriers
  static constexpr int keys_empty = keys_full + 8, tail = keys_empty + 8;
  static constexpr int q_full = tail + 8, q_empty = q_full + 8 * C::stages;
  static constexpr int dout_full = q_empty + 8 * C::stages;
  static constexpr int dout_empty = dout_full + 8 * dout_stages;
  static constexpr int dq_full = dout_empty + 8 * dout_stages, dq_empty = dq_full + 16;
  static constexpr int p_full = dq_full, p_empty = p_full + 8;  // wide: instead
  static constexpr int ds_full = dq_empty + 16, ds_empty = ds_full + 16;
  static constexpr int task_slots = 3, task_full = ds_empty + 16;
  static constexpr int task_empty = task_full + 8 * task_slots;
  static constexpr int order_full = task_empty + 8 * task_slots, order_empty = order_full + 8;
  // Wide and ordered: of each warpgroup; see keep_turns().
  static constexpr int turn_asked = order_empty + 8, turn_ready = turn_asked + 16;
  static constexpr int turn_added = turn_ready + 16;
  // Paired: dS of the other CTA is here; CTA 1: the next task is, CTA 0: it has been taken.
  static constexpr int other_ds_full = turn_added + 16, shared_task_full = other_ds_full + 16;
  static constexpr int shared_task_empty = shared_task_full + 8;
  static constexpr int shared_task = shared_task_empty + 8;
  static constexpr int dq_to = shared_task + 8;  // the tile of dQ of each warpgroup, or -1: the end
  static constexpr int dq_turn = dq_to + 8;      // ordered: and its place in the order
  static constexpr int tasks = (dq_turn + 8 + 15) / 16 * 16;  // of KeyTask90
  // Per stage: head; query tile; the tile of its sums; ordered: its place in their order; is it the
  // last of the task; bit g: must warpgroup g look at pairs; of a plan: a class per 64 x 64 block.
  static constexpr int info = tasks + task_slots * 64;
  static constexpr int info_tile = 4, info_sums = 8, info_turn = 12, info_last = 16, info_look = 20;
  static constexpr int info_classes = 24;
  static constexpr int info_bytes = info_classes + 4 * blocks;
  // The next tile, from the scheduler to the producer: what becomes its info; first token of its
  // rows and their batch, as the copy engine counts; how many of them there are; the task in shared
  // memory if it is the first tile of one, else 0. Head -1: there are no more.
  static constexpr int order = info + C::stages * info_bytes, order_token = info_bytes;
  static constexpr int order_batch = order_token + 4, order_clean = order_batch + 4;
  static constexpr int order_task = order_clean + 4, order_bytes = order_task + 4;
  static_assert(order_bytes <= 128, "a word a lane");
  static constexpr int bytes = order + order_bytes;
};

/// The keys of a task as the scheduler tells the others.
struct KeyTask90 {
  int kv_head, b, j0;  // kv_head -1: there are no more
  int any;             // is there a query for them?
  Sequence s;
  int low, high;  // of a band: key j0 is kept by queries [low, high], the next key one further

  template <class C>
  __device__ static KeyTask90 of(
      const Params& p, const Sequence& s, int kv_head, int b, int j0, bool any) {
    KeyTask90 t{kv_head, b, j0, any, s, 0, 0};
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      t.low = static_cast<int>(clamped<long long>(band.first_query(j0), -C::n, s.q_len));
      t.high = static_cast<int>(clamped<long long>(band.last_query(j0), -1 - C::n, s.q_len));
    }
    return t;
  }
  __device__ void write(unsigned at) const {
    store_shared(at, make_int4(kv_head, b, j0, any));
    store_shared(at + 16, make_int4(s.q_len, s.k_len, s.q_origin, s.k_origin));
    store_shared(at + 32, make_int4(low, high, 0, 0));
    store_shared(at + 48,
                 make_int4(static_cast<int>(s.q_first),
                           static_cast<int>(s.q_first >> 32),
                           static_cast<int>(s.k_first),
                           static_cast<int>(s.k_first >> 32)));
  }
  template <class C>
  __device__ static KeyTask90 read(unsigned at) {
    const int4 a = load_shared_ints(at), b = load_shared_ints(at + 16);
    KeyTask90 t{a.x, a.y, a.z, a.w, {b.x, b.y, 0, 0, b.z, b.w}, 0, 0};
    if constexpr (C::mask == MaskKind::band) {
      const int4 c = load_shared_ints(at + 32);
      t.low = c.x;
      t.high = c.y;
    }
    if constexpr (C::rows == RowKind::ragged || C::kv == KvKind::ragged) {
      const int4 c = load_shared_ints(at + 48);
      t.s.q_first = static_cast<long long>(c.y) << 32 | static_cast<unsigned>(c.x);
      t.s.k_first = static_cast<long long>(c.w) << 32 | static_cast<unsigned>(c.z);
    }
    return t;
  }
};

/// Where a dQ tile has its sums, in tiles. Sequences of packed rows
/// begin new tiles: floor(first / m) + b leaves room for every tail.
template <class C>
__device__ inline int dq_tile(const Params& p, const Sequence& s, int b, int h, int tile) {
  if constexpr (C::rows == RowKind::ragged)
    return h * static_cast<int>(p.total_q / C::m + p.batch + 1) +
           static_cast<int>(s.q_first / C::m) + b + tile;
  else
    return (b * p.heads + h) * p.q_tiles + tile;
}

/// The query tiles that the keys of a CTA visit: ascending; descending under a band, so that with a
/// causal mask CTAs of all keys begin at the same queries and share them in L2; and when dQ is
/// added in a fixed order, which is that of keys: then CTAs follow each other through the tiles,
/// and none waits for one that starts later.
template <class C>
struct QueryTiles {
  static constexpr bool planned = C::mask == MaskKind::plan;
  static constexpr bool down = C::ordered || C::mask == MaskKind::band;
  static constexpr int per = C::m / 64;  // of a plan: blocks of a tile
  static constexpr int key_blocks = SharedBackward90<C>::task_keys / 64;

  int tile = down ? -1 : 0, first = 0, end = 0;
  const PlanRef* plan = nullptr;
  BlockCursor<down> keys[key_blocks];

  QueryTiles() = default;
  /// Of the task whose first key is j0.
  __device__ QueryTiles(const Params& p, const Sequence& s, int b, int h, int j0) {
    const int j1 = minimum(j0 + SharedBackward90<C>::task_keys, s.k_len) - 1;
    long long low = 0, high = s.q_len;
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      low = maximum<long long>(low, band.first_query(j0));
      high = minimum<long long>(high, band.last_query(j1) + 1);
    }
    if constexpr (planned) {
      plan = &p.plan;
      const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
      high = minimum<long long>(high, e.q_len);
#pragma unroll
      for (int g = 0; g < key_blocks; ++g) {
        const int block = j0 / 64 + g;
        keys[g].start(p.plan, e.key_runs + block, block < e.k_blocks && block * 64 < s.k_len);
      }
    }
    if (low >= high) return;
    first = static_cast<int>(low / C::m);
    end = static_cast<int>((high + C::m - 1) / C::m);
    tile = down ? end - 1 : first;
    if constexpr (planned) settle();
  }
  // One bound each: asked for both, NVRTC 13.0 drops the loop after its first turn.
  __device__ bool valid() const { return down ? tile >= first : tile < end; }
  __device__ void next() {
    tile += down ? -1 : 1;
    if constexpr (planned) settle();
  }
  /// Class of one 64 x 64 block of the tile at hand and this CTA's keys, asked once each, in the
  /// order of the walk.
  __device__ int block_class(int g, int i) {
    if constexpr (SharedBackward90<C>::paired)
      if (pair_rank<C>() == 1) return keys[1].template block_class<C>(*plan, tile * per + i);
    return keys[g].template block_class<C>(*plan, tile * per + i);
  }

 private:
  __device__ void settle() {
    int best = down ? -1 : end;
#pragma unroll
    for (int g = 0; g < key_blocks; ++g) {
      keys[g].seek(*plan, tile * per + (down ? per - 1 : 0));
      if constexpr (down)
        best = maximum(best, minimum(tile, keys[g].run.end > 0 ? (keys[g].run.end - 1) / per : -1));
      else
        best = minimum(best, maximum(tile, keys[g].run.begin / per));
    }
    tile = best;
  }
};

/// How many tasks before that of key j0 visit a query tile.
template <class C>
__device__ inline int visitors_before(
    const Params& p, const Sequence& s, int b, int h, int tile, int j0) {
  constexpr int keys = SharedBackward90<C>::task_keys;
  const int mine = j0 / keys;
  if constexpr (C::mask == MaskKind::band) {
    const long long key = maximum<long long>(0, Band(p, s).first_key(tile * C::m));
    return mine - static_cast<int>(key / keys);
  }
  if constexpr (C::mask == MaskKind::plan) {
    // The runs of its rows of blocks, merged: they may meet in a tile, and so may two of one row.
    constexpr int rows = C::m / 64, per = keys / 64;
    const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
    int at[rows], stop[rows], count = 0, counted = 0;
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const int row = minimum(tile * rows + i, e.q_blocks - 1);
      at[i] = p.plan.run_offsets[e.query_runs + row];
      stop[i] = p.plan.run_offsets[e.query_runs + row + 1];
    }
    for (;;) {
      int first = 0x7fffffff, end = 0;
#pragma unroll
      for (int i = 0; i < rows; ++i)
        if (at[i] < stop[i] && p.plan.runs[at[i]].begin < first) {
          first = p.plan.runs[at[i]].begin;
          end = p.plan.runs[at[i]].end;
        }
      if (first >= mine * per) return count;
#pragma unroll
      for (int i = 0; i < rows; ++i)
        if (at[i] < stop[i] && p.plan.runs[at[i]].begin == first) {
          end = maximum(end, p.plan.runs[at[i]].end);
          ++at[i];
        }
      end = minimum((end + per - 1) / per, mine);
      count += maximum(0, end - maximum(counted, first / per));
      counted = maximum(counted, end);
    }
  }
  return mine;
}

/// The keys of a warpgroup as one of its threads sees them.
template <class C>
struct Keys90 {
  int mine;             // the upper of the thread's two keys
  int low[2], high[2];  // queries [low, high] of a band keep them; none past the length

  Keys90() = default;
  __device__ Keys90(const KeyTask90& t, int group) {
    const int thread = threadIdx.x & 127;
    mine = t.j0 + group * 64 + thread / 32 * 16 + (thread & 31) / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      low[half] = first_query(t, mine + 8 * half);
      high[half] = last_query(t, mine + 8 * half);
    }
  }
  static __device__ int first_query(const KeyTask90& t, int j) {
    if (j >= t.s.k_len) return 0x7fffffff;
    return C::mask == MaskKind::band ? t.low + j - t.j0 : 0;
  }
  static __device__ int last_query(const KeyTask90& t, int j) {
    if (j >= t.s.k_len) return -1;
    return C::mask == MaskKind::band ? t.high + j - t.j0 : 0x7fffffff;
  }
  /// A bit a warpgroup: does a pair of its keys and queries [i0, i0 + m) ask for a look?
  static __device__ int looks(const KeyTask90& t, int i0) {
    int bits = 0;
#pragma unroll
    for (int g = 0; g < C::n / 64; ++g) {
      const int first = t.j0 + g * 64;
      if (C::mask == MaskKind::program || i0 < first_query(t, first + 63) ||
          i0 + C::m - 1 > last_query(t, first))
        bits |= 1 << g;
    }
    return bits;
  }
};

}  // namespace undivided::cuda
