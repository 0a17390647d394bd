// SPDX-License-Identifier: Apache-2.0
// How the sm90 kernels share their work: shared memory, the order of query tiles, and the key tiles
// of a query tile.
#pragma once

#include "device/copy.cuh"
#include "device/mbarrier.cuh"
#include "device/tma.cuh"
#include "device/warpgroup.cuh"
#include "device/wgmma.cuh"
#include "kernels/walk.cuh"

namespace undivided::cuda {

struct TensorMaps {
  // Axes: dim, token, head, batch; ragged: one batch; paged: a page is a batch; packed: those of q
  // are dim, head, token, batch. A box of o is 16 rows, those of a warp.
  TensorMap q, k, v, o;
};

/// Query tiles are taken a section of heads at a time, the last tiles of all heads of the section
/// first: under a causal mask the longest, and their keys stay in L2. Packed rows: the tiles of all
/// sequences are one column, in which sequence b begins at floor(first row / tokens) + b; that
/// leaves room for every tail, and at most one empty tile a sequence.
struct Schedule {
  int tiles;     // q_tiles * splits * heads * batch; packed: KV heads
  int section;   // heads times batch of a section; ragged: heads
  int box;       // rows of K and V that one copy brings; paged: a divisor of the page size
  int* counter;  // of the tiles after the first of each CTA: zero at launch. Null: there are none
  // Paged: token j is in slot j * page_factor >> page_shift, for any j below 2^31.
  unsigned page_factor;
  int page_shift;
};

struct Work {
  int q_tile, head, b, split;  // packed: a KV head
};

/// Tokens of a query tile. Packed: row x of a tile is token x / group and head x % group of the
/// group; rows past the last whole token are dead.
template <class C>
__device__ int tile_tokens(const Params& p) {
  return C::packed ? C::m / p.group : C::m;
}

/// Where the tiles of `size` rows of sequence b begin in the column of all sequences.
__device__ inline int first_slot(const IndexRef& offsets, long long total, int size, int b) {
  return static_cast<int>(clamped<long long>(index_at(offsets, b), 0, total) / size) + b;
}
/// The sequence that has this slot: the last that begins at or before it. A whole warp asks.
__device__ inline int sequence_of_slot(
    const IndexRef& offsets, long long total, int size, int batch, int slot) {
  int low = 0, count = batch;
  while (count > 1) {
    const int step = (count + 31) / 32, b = low + (threadIdx.x & 31) * step;
    const bool before = b < low + count && first_slot(offsets, total, size, b) <= slot;
    const int last = maximum(0, __popc(__ballot_sync(0xffffffffu, before)) - 1);
    low += last * step;
    count = minimum(step, count - last * step);
  }
  return low;
}

/// A whole warp asks.
template <class C>
__device__ Work work_at(const Params& p, const Schedule& s, int at) {
  constexpr bool ragged = C::rows == RowKind::ragged;
  const int heads = C::packed ? p.kv_heads : p.heads;
  const int splits = C::split ? p.splits : 1, column = p.q_tiles * splits;
  const int tall = s.section * column, first = at / tall * s.section, rest = at % tall;
  const int width = minimum(s.section, heads * (ragged ? 1 : p.batch) - first);
  const int pair = first + rest % width, down = column - 1 - rest / width;
  Work w{down / splits, pair % heads, pair / heads, down % splits};
  if constexpr (ragged) {
    const int size = tile_tokens<C>(p);
    w.b = sequence_of_slot(p.q_offsets, p.total_q, size, p.batch, w.q_tile);
    w.q_tile = maximum(0, w.q_tile - first_slot(p.q_offsets, p.total_q, size, w.b));
  }
  return w;
}

/// What the loader tells the others about a query tile.
struct Task90 {
  static constexpr int bytes = 64, verdict = 60;  // verdict: warps that ask for it again
  static constexpr int over = -1, nothing = -2;   // in place of a tile
  Work work;
  int first, end;  // its key tiles
  int low, high;   // of a band: the first row keeps keys [low, high], the next row one further;
                   // as far outside the keys as no row comes back from
                   // of a plan, low: needed() of the last tile
  Sequence s;
  int again;  // warps that lost their rows the first time

  template <class C, class Tiles>
  __device__ static Task90 of(
      const Params& p, const Sequence& s, const Work& w, const Tiles& tiles, int again) {
    Task90 t{w, tiles.first, tiles.tile + 1, 0, 0, s, again};
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      const int row = w.q_tile * tile_tokens<C>(p);
      t.low = static_cast<int>(clamped<long long>(band.first_key(row), -C::m, s.k_len));
      t.high = static_cast<int>(clamped<long long>(band.last_key(row), -1 - C::m, s.k_len - 1));
    }
    if constexpr (C::mask == MaskKind::plan) t.low = tiles.needed();
    return t;
  }
  __device__ void write(unsigned at) const {
    store_shared(at, make_int4(work.q_tile, work.head, work.b, work.split));
    store_shared(at + 16, make_int4(first, end, low, high));
    store_shared(at + 32, make_int4(s.q_len, s.k_len, s.q_origin, s.k_origin));
    store_shared(
        at + 48,
        make_int4(static_cast<int>(s.q_first), static_cast<int>(s.q_first >> 32), again, 0));
  }
  __device__ static Task90 read(unsigned at) {
    const int4 a = load_shared_ints(at), b = load_shared_ints(at + 16),
               c = load_shared_ints(at + 32), d = load_shared_ints(at + 48);
    return {{a.x, a.y, a.z, a.w},
            b.x,
            b.y,
            b.z,
            b.w,
            {c.x, c.y, static_cast<long long>(d.y) << 32 | static_cast<unsigned>(d.x), 0, c.z, c.w},
            d.z};
  }
};

/// Offsets in shared memory. Tiles are slabs of 64 columns; see wgmma.cuh.
template <class C>
struct Shared90 {
  static constexpr bool v_apart = C::kv == KvKind::paged;  // has V a loader of its own?
  static constexpr int q_slabs = (C::dqk + 63) / 64, v_slabs = (C::dv + 63) / 64;
  static constexpr int q_slab = C::m * 128, k_slab = C::n * 128;
  static constexpr int q_bytes = q_slabs * q_slab;
  static constexpr int k_bytes = q_slabs * k_slab, v_bytes = v_slabs * k_slab;
  static constexpr int k_at = C::q_stages * q_bytes, v_at = k_at + C::stages * k_bytes;
  static constexpr int barriers = v_at + C::stages * v_bytes;
  static constexpr int q_full = barriers, q_empty = q_full + 8 * C::q_stages;
  static constexpr int k_full = q_empty + 8 * C::q_stages, k_empty = k_full + 8 * C::stages;
  static constexpr int v_full = k_empty + 8 * C::stages, v_empty = v_full + 8 * C::stages;
  static constexpr int work_full = v_empty + 8 * C::stages, work_empty = work_full + 16;
  static constexpr int tail = work_empty + 16;            // counts the bytes of a last V tile
  static constexpr int work = (tail + 8 + 15) / 16 * 16;  // two of Task90
  // Plans: per stage the key tile, what needed() says of the next one (-1: there is none), and a
  // class per 64 x 64 block.
  static constexpr int blocks = C::mask == MaskKind::plan ? C::n / 64 : 0;
  static constexpr int info_bytes = blocks ? 8 + 4 * blocks * C::warpgroups : 0;
  static constexpr int info = work + 2 * Task90::bytes;
  static constexpr int bytes = info + C::stages * info_bytes;
};

/// Which of several buffers is next, and the parity of its phase, in one register.
template <int count>
struct Ring {
  int turn = 0;  // below 2 * count
  __device__ int at() const { return turn < count ? turn : turn - count; }
  __device__ unsigned parity() const { return turn >= count; }
  __device__ void next() { turn = turn == 2 * count - 1 ? 0 : turn + 1; }
};

/// A walk over the blocks of one row of a plan, up or down. The run at hand is kept, since to look
/// it up for each tile takes longer than to compute the tile.
template <bool down>
struct BlockCursor {
  static constexpr int empty_block = -2, full_block = -1;
  int at, stop;
  PlanRun run;  // past the last: one that no block reaches

  __device__ void start(const PlanRef& plan, int offsets, bool live) {
    const int first = live ? plan.run_offsets[offsets] : 0;
    const int end = live ? plan.run_offsets[offsets + 1] : 0;
    at = down ? end - 1 : first;
    stop = down ? first - 1 : end;
    load(plan);
  }
  /// Goes to the run of this block, or the next one. Blocks are asked in the order of the walk.
  __device__ void seek(const PlanRef& plan, int block) {
    while (down ? run.begin > block : run.end <= block) {
      at += down ? -1 : 1;
      load(plan);
    }
  }
  /// Empty, full, or what inside_block() says.
  template <class C>
  __device__ int block_class(const PlanRef& plan, int block) {
    seek(plan, block);
    if (down ? block >= run.end : block < run.begin) return empty_block;
    return inside_block<C>(plan, run, block);
  }

 private:
  __device__ void load(const PlanRef& plan) {
    constexpr int far = down ? -1 : 0x7fffffff;
    run = at != stop ? plan.runs[at] : PlanRun{far, far, 0};
  }
};

/// The key tiles that a query tile visits, descending: the keys nearest to causal rows come first.
/// There a score that falls with the distance is largest, and the mask is over with the first
/// tiles.
template <class C>
struct KeyTiles {
  static constexpr bool planned = C::mask == MaskKind::plan;
  static constexpr int per = C::n / 64;  // of a plan: blocks of a tile

  int tile = -1, first = 0;
  const PlanRef& plan;
  BlockCursor<true> rows[C::warpgroups];  // of blocks

  __device__ KeyTiles(const Params& p, const Sequence& s, const Work& w) : plan(p.plan) {
    const int tokens = tile_tokens<C>(p), row0 = w.q_tile * tokens;
    if (row0 >= s.q_len) return;
    const int i1 = minimum(row0 + tokens, s.q_len) - 1;
    long long low = 0, high = s.k_len;
    if constexpr (C::split) {
      low = static_cast<long long>(w.split) * p.split_keys;
      high = minimum<long long>(high, low + p.split_keys);
    }
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      low = maximum<long long>(low, band.first_key(row0));
      high = minimum<long long>(high, band.last_key(i1) + 1);
    }
    if constexpr (planned) {
      const PlanEntry& e = p.plan.entries[p.plan.entry_of[w.b * p.heads + w.head]];
      high = minimum<long long>(high, e.k_len);
#pragma unroll
      for (int g = 0; g < C::warpgroups; ++g) {
        const int block = row0 / 64 + g;
        rows[g].start(plan, e.query_runs + block, block < e.q_blocks && block * 64 < s.q_len);
      }
    }
    if (low >= high) return;
    first = static_cast<int>(low / C::n);
    tile = static_cast<int>((high - 1) / C::n);
    if constexpr (planned) settle();
  }
  __device__ bool valid() const { return tile >= first; }
  __device__ void next() {
    --tile;
    if constexpr (planned) settle();
  }
  /// Of a plan: the warpgroups that need the tile at hand, as bits; asked before block_class().
  __device__ int needed() const {
    int bits = 0;
#pragma unroll
    for (int g = 0; g < C::warpgroups; ++g) bits |= (rows[g].run.end > tile * per) << g;
    return bits;
  }
  /// Class of one 64 x 64 block of the tile at hand, asked once each, i descending.
  __device__ int block_class(int g, int i) {
    return rows[g].template block_class<C>(plan, tile * per + i);
  }

 private:
  __device__ void settle() {
    int best = -1;
#pragma unroll
    for (int g = 0; g < C::warpgroups; ++g) {
      rows[g].seek(plan, tile * per + per - 1);
      best = maximum(best, minimum(tile, (rows[g].run.end + per - 1) / per - 1));
    }
    tile = best;
  }
};

}  // namespace undivided::cuda
