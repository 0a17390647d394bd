// SPDX-License-Identifier: Apache-2.0
// The rows of one warpgroup and their scores, masked. A thread holds two rows, 8 apart, of an
// accumulator; see wgmma.cuh.
#pragma once

#include "kernels/work_sm90.cuh"

namespace undivided::cuda {

/// One query tile as a thread of a consumer sees it.
struct Rows90 {
  Work work;
  int first, last;            // local tokens of the warpgroup that are inside the sequence
  int tokens[2], heads[2];    // of the thread's two rows, 8 apart; a dead row has a far token
  int low[2], high[2];        // they keep keys [low, high] of a band or of the length
  int clear_low, clear_high;  // every row of the warpgroup keeps these
  int begin, end;             // key tiles of a band that the warpgroup needs

  template <class C>
  __device__ __forceinline__ void limit(const Task90& t, int row0) {
    const auto from = [&](int row) {
      return C::mask == MaskKind::band ? t.low + minimum(row - row0, C::m) : 0;
    };
    const auto to = [&](int row) {
      return C::mask == MaskKind::band ? minimum(t.high + minimum(row - row0, C::m), t.s.k_len - 1)
                                       : t.s.k_len - 1;
    };
    last = maximum(first, minimum(last, t.s.q_len - 1));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      low[half] = from(tokens[half]);
      high[half] = to(tokens[half]);
    }
    clear_low = from(last);
    clear_high = to(first);
    begin = maximum(from(first), 0) / C::n;
    end = first < t.s.q_len ? (to(last) + C::n) / C::n : 0;
  }
};

/// What a score adds to products times its unit, if it is linear in the distance: to row `half`, at
/// key j0 + (threadIdx.x & 3) * 2 and `further` ones.
template <class Score>
struct Line {
  float at[2], slope[2];
  __device__ __forceinline__ Line(const Params& p,
                                  const Sequence& s,
                                  const Rows90& r,
                                  int j0,
                                  const typename Score::Fixed (&fixed)[2],
                                  float unit) {
    if constexpr (Score::linear) {
      const float scale = Scale(p).value;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        slope[half] =
            unit *
            Score::apply(
                p, r.work.b, r.heads[half], 0, 0, s.q_len, s.k_len, 1.0f, 0.0f, scale, fixed[half]);
        at[half] = slope[half] * distance_of(s, r.tokens[half], j0 + (threadIdx.x & 3) * 2);
      }
    }
  }
  /// The same, above `base`.
  __device__ __forceinline__ float above(float base, int half, int further) const {
    if constexpr (Score::linear)
      return fmaf(slope[half], static_cast<float>(further), at[half] - base);
    return -base;
  }
};

/// Scores in units of Score::unit, or the products alone if `raw`; -inf where masked.
template <class C, class Mask, class Score, int n>
__device__ __forceinline__ void score_tile90(const Params& p,
                                             const Sequence& s,
                                             const Rows90& r,
                                             float (&acc)[n][4],
                                             int j0,
                                             const int* classes,
                                             const typename Score::Fixed (&fixed)[2],
                                             bool raw) {
  const int t = (threadIdx.x & 3) * 2;
  const Scale scale(p);
  scale.apply(p, acc);
  if (!Score::identity && !raw) {
    // Converted once a row; further keys are whole numbers away.
    const float from[2] = {distance_of(s, r.tokens[0], j0 + t),
                           distance_of(s, r.tokens[1], j0 + t)};
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[i][e] = Score::apply(p,
                                 r.work.b,
                                 r.heads[e >> 1],
                                 s.q_origin + r.tokens[e >> 1],
                                 s.k_origin + j0 + t + i * 8 + (e & 1),
                                 s.q_len,
                                 s.k_len,
                                 from[e >> 1] + static_cast<float>(i * 8 + (e & 1)),
                                 acc[i][e],
                                 scale.value,
                                 fixed[e >> 1]);
  }

  if constexpr (C::mask == MaskKind::plan) {
#pragma unroll
    for (int block = 0; block < n / 8; ++block) {
      const int id = classes[block];
      if (id == BlockCursor<true>::full_block) continue;
      unsigned long long keep[2] = {};
      if (id >= 0) {
        if constexpr (C::inside_program) {
#pragma unroll 1  // rolled: as many copies of the program would cost registers
          for (int x = 0; x < 32; ++x) {
            const int half = x >> 4, bit = (x >> 1 & 7) * 8 + (x & 1);
            const bool live = Mask::keep(p,
                                         r.work.b,
                                         r.work.head,
                                         s.q_origin + r.tokens[0] + 8 * half,
                                         s.k_origin + j0 + t + block * 64 + bit,
                                         s.q_len,
                                         s.k_len);
            if (half)
              keep[1] |= static_cast<unsigned long long>(live) << bit;
            else
              keep[0] |= static_cast<unsigned long long>(live) << bit;
          }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            keep[half] = p.plan.tiles[id][r.tokens[half] & 63] >> t;
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!(keep[e >> 1] >> (i * 8 + (e & 1)) & 1)) acc[block * 8 + i][e] = -infinity();
    }
  }

  if constexpr (C::mask == MaskKind::program) {
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e >> 1, j = j0 + t + i * 8 + (e & 1);
        if (!(j < s.k_len && Mask::keep(p,
                                        r.work.b,
                                        r.heads[half],
                                        s.q_origin + r.tokens[half],
                                        s.k_origin + j,
                                        s.q_len,
                                        s.k_len)))
          acc[i][e] = -infinity();
      }
    return;
  }

  if (j0 + C::n - 1 > r.clear_high) {
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (i * 8 + (e & 1) > r.high[e >> 1] - j0 - t) acc[i][e] = -infinity();
  }
  if (C::mask == MaskKind::band && j0 < r.clear_low) {
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (i * 8 + (e & 1) < r.low[e >> 1] - j0 - t) acc[i][e] = -infinity();
  }
}

}  // namespace undivided::cuda
