// SPDX-License-Identifier: Apache-2.0
// How the sm90 kernels share their work: shared memory, the order of query tiles, and the key tiles
// of a query tile.
#pragma once

#include "device/mbarrier.cuh"
#include "device/tma.cuh"
#include "device/warpgroup.cuh"
#include "device/wgmma.cuh"
#include "kernels/walk.cuh"

namespace undivided::cuda {

struct TensorMaps {
  TensorMap q, k, v;  // axes: dim, token, head, batch; ragged: one batch; paged: a page is a batch
                      // packed: those of q are dim, head, token, batch
};

/// Query tiles are taken a section of heads at a time, the last tiles of all heads of the section
/// first: under a causal mask the longest, and their keys stay in L2.
struct Schedule {
  int tiles;     // q_tiles * splits * heads * batch; packed: KV heads
  int section;   // heads times batch of a section
  int box;       // rows of K and V that one copy brings; paged: a divisor of the page size
  int* counter;  // of the tiles after the first of each CTA: zero at launch. Null: there are none
};

struct Work {
  int q_tile, head, b, split;  // packed: a KV head
};

template <class C>
__device__ Work work_at(const Params& p, const Schedule& s, int at) {
  const int heads = C::packed ? p.kv_heads : p.heads;
  const int splits = C::split ? p.splits : 1, column = p.q_tiles * splits;
  const int tall = s.section * column, first = at / tall * s.section, rest = at % tall;
  const int width = minimum(s.section, heads * p.batch - first);
  const int pair = first + rest % width, down = column - 1 - rest / width;
  return {down / splits, pair % heads, pair / heads, down % splits};
}

/// Tokens of a query tile. Packed: row x of a tile is token x / group and head x % group of the
/// group; rows past the last whole token are dead.
template <class C>
__device__ int tile_tokens(const Params& p) {
  return C::packed ? C::m / p.group : C::m;
}

/// Offsets in shared memory. Tiles are slabs of 64 columns; see wgmma.cuh.
template <class C>
struct Shared90 {
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
  static constexpr int tail = work_empty + 16;  // counts the bytes of a last V tile
  static constexpr int work_bytes = 16;         // a query tile is four numbers
  static constexpr int work = tail + 8;         // two of them
  // Plans: per stage the key tile, whether another follows, and a class per 64 x 64 block.
  static constexpr int blocks = C::mask == MaskKind::plan ? C::n / 64 : 0;
  static constexpr int info_bytes = blocks ? 8 + 4 * blocks * C::warpgroups : 0;
  static constexpr int info = work + 2 * work_bytes;
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

/// The key tiles that a query tile visits, ascending. Every thread that asks gets the same answer.
template <class C>
struct KeyTiles {
  static constexpr bool planned = C::mask == MaskKind::plan;
  static constexpr int per = C::n / 64;  // of a plan: blocks of a tile
  static constexpr int empty_block = -2, full_block = -1;

  int tile = 0, end = 0;
  const PlanRef* plan = nullptr;
  int run[C::warpgroups], run_end[C::warpgroups];

  __device__ KeyTiles(const Params& p, const Sequence& s, const Work& w) {
    const int tokens = tile_tokens<C>(p), row0 = w.q_tile * tokens;
    if (row0 >= s.q_len) return;
    const int i1 = minimum(row0 + tokens, s.q_len) - 1;
    long long first = 0, last = s.k_len;
    if constexpr (C::split) {
      first = static_cast<long long>(w.split) * p.split_keys;
      last = minimum<long long>(last, first + p.split_keys);
    }
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      first = maximum<long long>(first, band.first_key(row0));
      last = minimum<long long>(last, band.last_key(i1) + 1);
    }
    if constexpr (planned) {
      plan = &p.plan;
      const PlanEntry& e = p.plan.entries[p.plan.entry_of[w.b * p.heads + w.head]];
      last = minimum<long long>(last, e.k_len);
#pragma unroll
      for (int g = 0; g < C::warpgroups; ++g) {
        const int block = row0 / 64 + g;
        const bool live = block < e.q_blocks && block * 64 < s.q_len;
        run[g] = live ? p.plan.run_offsets[e.query_runs + block] : 0;
        run_end[g] = live ? p.plan.run_offsets[e.query_runs + block + 1] : 0;
      }
    }
    if (first >= last) return;
    tile = static_cast<int>(first / C::n);
    end = static_cast<int>((last + C::n - 1) / C::n);
    if constexpr (planned) settle();
  }
  __device__ bool valid() const { return tile < end; }
  /// Where the tiles of local rows [i0, i1] end; none of them: 0.
  __device__ int end_of(const Params& p, const Sequence& s, int i0, int i1) const {
    if (i0 >= s.q_len) return 0;
    if constexpr (C::mask != MaskKind::band) return end;
    const long long last = Band(p, s).last_key(i1) + 1;
    return static_cast<int>(clamped<long long>((last + C::n - 1) / C::n, 0, end));
  }
  __device__ void next() {
    ++tile;
    if constexpr (planned) settle();
  }
  /// Class of one 64 x 64 block of the tile at hand: empty, full, or the id of its bits.
  __device__ int block_class(int g, int i) {
    const int block = tile * per + i;
    int r = run[g];
    while (r < run_end[g] && plan->runs[r].end <= block) ++r;
    if (r == run_end[g]) return empty_block;
    const PlanRun x = plan->runs[r];
    if (block < x.begin) return empty_block;
    return inside_block<C>(*plan, x, block);
  }

 private:
  __device__ void settle() {
    int best = end;
#pragma unroll
    for (int g = 0; g < C::warpgroups; ++g) {
      while (run[g] < run_end[g] && plan->runs[run[g]].end <= tile * per) ++run[g];
      if (run[g] < run_end[g]) best = minimum(best, maximum(tile, plan->runs[run[g]].begin / per));
    }
    tile = best;
  }
};

}  // namespace undivided::cuda
