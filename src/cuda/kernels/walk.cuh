// SPDX-License-Identifier: Apache-2.0
// Which tiles of the other side a tile visits, in ascending order, and which of them need a look at
// single pairs. A band gives a range; a plan gives runs of 64-blocks; a program visits all.
#pragma once

#include "kernels/sequence.cuh"

namespace undivided::cuda {

/// Local band limits: key j is kept for query i iff first_key(i) <= j <= last_key(i).
struct Band {
  long long delta, left, right;
  __device__ Band(const Params& p, const Sequence& s)
      : delta(static_cast<long long>(s.q_origin) - s.k_origin),
        left(p.band_left),
        right(p.band_right) {}
  __device__ long long first_key(long long i) const { return i + delta - left; }
  __device__ long long last_key(long long i) const { return i + delta + right; }
  __device__ long long first_query(long long j) const { return j - delta - right; }
  __device__ long long last_query(long long j) const { return j - delta + left; }
};

/// Of a block of a run: -1 if it is Full, else what decides its pairs: the id of its bits, or 0 for
/// the program.
template <class C>
__device__ inline int inside_block(const PlanRef& plan, const PlanRun& run, int block) {
  if (run.tiles < 0) return -1;
  return C::inside_program ? 0 : plan.tile_ids[run.tiles + block - run.begin];
}

/// Tiles of `size` tokens (16, 32 or 64) of the other side.
template <class C, int size>
struct Walk {
  static constexpr int per_block = 64 / size;
  static constexpr bool planned = C::mask == MaskKind::plan;

  bool valid = false;
  int tile = 0;       // covers local tokens [tile * size, tile * size + size)
  int end = 0;        // tiles
  int bit_tile = -1;  // plan: -1: all kept; else the id of the bit tile of this block, or 0

  /// Tokens [first, last) may be kept.
  __device__ void range(long long first, long long last) {
    first = maximum<long long>(first, 0);
    valid = first < last;
    tile = valid ? static_cast<int>(first / size) : 0;
    end = valid ? static_cast<int>((last + size - 1) / size) : 0;
  }
  /// The runs of a plan from index `at` of run_offsets, cut to tokens [first, last), first a
  /// multiple of 64.
  __device__ void runs(const PlanRef& plan, int at, int first, int last) {
    if (first >= last) return;
    plan_ = &plan;
    run_ = plan.run_offsets[at];
    run_end_ = plan.run_offsets[at + 1];
    block_ = first / 64;
    block_end_ = (last + 63) / 64;
    end = (last + size - 1) / size;
    settle();
  }
  __device__ void next() {
    ++tile;
    if constexpr (planned) {
      if (tile % per_block != 0 && tile < end) return;
      ++block_;
      settle();
    } else {
      valid = tile < end;
    }
  }

 private:
  const PlanRef* plan_ = nullptr;
  int run_ = 0, run_end_ = 0, block_ = 0, block_end_ = 0;

  __device__ void settle() {
    for (valid = false; run_ < run_end_ && block_ < block_end_; ++run_) {
      const PlanRun r = plan_->runs[run_];
      block_ = maximum(block_, r.begin);
      if (block_ < minimum(r.end, block_end_)) {
        valid = true;
        tile = block_ * per_block;
        bit_tile = inside_block<C>(*plan_, r, block_);
        return;
      }
    }
  }
};

/// The key tiles of queries [i0, i1] (local, inside the length), cut to keys [first, last).
template <class C>
__device__ Walk<C, C::n> key_walk(
    const Params& p, const Sequence& s, int b, int h, int i0, int i1, int first, int last) {
  Walk<C, C::n> walk;
  if constexpr (C::mask == MaskKind::plan) {
    const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
    const int block = i0 / 64;
    if (block < e.q_blocks)
      walk.runs(p.plan, e.query_runs + block, first, minimum<long long>(last, e.k_len));
  } else if constexpr (C::mask == MaskKind::band) {
    const Band band(p, s);
    walk.range(maximum<long long>(first, band.first_key(i0)),
               minimum<long long>(last, band.last_key(i1) + 1));
  } else {
    walk.range(first, last);
  }
  return walk;
}

/// The query tiles of keys [j0, j1] (local, inside the length).
template <class C>
__device__ Walk<C, C::m> query_walk(
    const Params& p, const Sequence& s, int b, int h, int j0, int j1) {
  Walk<C, C::m> walk;
  if constexpr (C::mask == MaskKind::plan) {
    const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
    const int block = j0 / 64;
    if (block < e.k_blocks)
      walk.runs(p.plan, e.key_runs + block, 0, minimum<long long>(s.q_len, e.q_len));
  } else if constexpr (C::mask == MaskKind::band) {
    const Band band(p, s);
    walk.range(band.first_query(j0), minimum<long long>(s.q_len, band.last_query(j1) + 1));
  } else {
    walk.range(0, s.q_len);
  }
  return walk;
}

/// Must single pairs of this tile be looked at? Queries [i0, i1], keys [j0, j1]; the tile is
/// `whole` if none of its tokens lies past a length.
template <class C>
__device__ bool needs_look(
    const Params& p, const Sequence& s, int bit_tile, int i0, int i1, int j0, int j1, bool whole) {
  if (!whole) return true;
  if constexpr (C::mask == MaskKind::program) return true;
  if constexpr (C::mask == MaskKind::plan) return bit_tile >= 0;
  if constexpr (C::mask == MaskKind::band) {
    const Band band(p, s);
    return band.first_key(i1) > j0 || band.last_key(i0) < j1;
  }
  return false;
}

/// Is the pair of local query i and key j kept? Both are inside the lengths.
template <class C, class Mask>
__device__ bool kept(const Params& p, const Sequence& s, int bit_tile, int b, int h, int i, int j) {
  if constexpr (C::inside_program) {
    return bit_tile < 0 || Mask::keep(p, b, h, s.q_origin + i, s.k_origin + j, s.q_len, s.k_len);
  } else if constexpr (C::mask == MaskKind::program) {
    return Mask::keep(p, b, h, s.q_origin + i, s.k_origin + j, s.q_len, s.k_len);
  } else if constexpr (C::mask == MaskKind::plan) {
    return bit_tile < 0 || (p.plan.tiles[bit_tile][i % 64] >> (j % 64) & 1);
  } else if constexpr (C::mask == MaskKind::band) {
    const Band band(p, s);
    return j >= band.first_key(i) && j <= band.last_key(i);
  } else {
    return true;
  }
}

}  // namespace undivided::cuda
