// SPDX-License-Identifier: Apache-2.0
// Scores, online softmax and the output rows of one warpgroup. A thread holds two rows, 8 apart, of
// an accumulator; see wgmma.cuh.
#pragma once

#include "kernels/tile.cuh"
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

template <int n>
__device__ __forceinline__ void rescale_rows(float (&out)[n][4], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    out[i][0] *= by[0];
    out[i][1] *= by[0];
    out[i][2] *= by[1];
    out[i][3] *= by[1];
  }
}

/// The running softmax of two rows. Scores times `unit` are log2 of weights.
struct Softmax90 {
  float base[2];  // log2 that weights are relative to; -inf: no key yet
  float peak[2];  // the largest score, times unit
  float sum[2];   // of this thread's weights
  float rescale[2];
  bool lost = false;  // a weight of the warp is infinite
  static constexpr float most = 4096.0f;

  __device__ void start() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      base[half] = peak[half] = -infinity();
      sum[half] = 0.0f;
      rescale[half] = 1.0f;
    }
  }

  /// Do all rows of the warp have a reference?
  __device__ bool ready() const {
    return __all_sync(0xffffffffu, base[0] > -infinity() && base[1] > -infinity());
  }

  /// Scores to weights. The reference of a row moves when its maximum grows by more than `slack`;
  /// this and all else depends on the row alone. Returns whether a row of the warp moved.
  template <bool lazy, int n>
  __device__ __forceinline__ bool step(float (&acc)[n][4], float unit, float slack) {
    bool moved = false;
    float high[4], from[2];  // two chains a row
#pragma unroll
    for (int e = 0; e < 4; ++e) high[e] = acc[0][e];
#pragma unroll
    for (int i = 1; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) high[e] = fmaxf(high[e], acc[i][e]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float now = quad_max(fmaxf(high[2 * half], high[2 * half + 1])) * unit;
      const float old = base[half];
      peak[half] = fmaxf(peak[half], now);
      if constexpr (lazy) {
        if (now > old + slack) {
          base[half] = now;
          moved = true;
        }
      } else {
        base[half] = peak[half];
      }
      from[half] = base[half] == -infinity() ? 0.0f : base[half];
      rescale[half] = exp2_fast(old - from[half]);  // exactly 1 for a reference that stays
    }
    float part[2];
    weigh(acc, unit, [&](int half, int) { return -from[half]; }, part);
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = fmaf(sum[half], rescale[half], part[half]);
    return lazy ? __any_sync(0xffffffffu, moved) : true;
  }

  /// The same without looking for maxima: references stay until a sum exceeds 2^12. Returns whether
  /// one did: then shift() must follow, before anything reads the weights.
  template <int n, class Line>
  __device__ __forceinline__ bool bold_step(float (&acc)[n][4], float unit, const Line& line) {
    float part[2];
    weigh(
        acc,
        unit,
        [&](int half, int further) { return line.above(base[half], half, further); },
        part);
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] += part[half];
    return !__all_sync(0xffffffffu, sum[0] <= most && sum[1] <= most);  // NaN is not
  }

  /// Moves references to where the sums are, by powers of two, which rounds nothing. Where a weight
  /// is infinite all is lost: the tile must be done again by step().
  template <int n>
  __device__ __forceinline__ void shift(float (&acc)[n][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float largest = quad_max(sum[half]);
      const int by = largest > most ? minimum(__float_as_int(largest) >> 23, 253) - 127 : 0;
      lost = lost || __any_sync(0xffffffffu, largest == infinity());
      base[half] += static_cast<float>(by);
      rescale[half] = __int_as_float((127 - by) << 23);
      sum[half] *= rescale[half];
    }
    rescale_rows(acc, rescale);
  }

 private:
  template <int n, class Above>
  static __device__ __forceinline__ void weigh(float (&acc)[n][4],
                                               float unit,
                                               const Above& above,
                                               float (&part)[2]) {
    float parts[4] = {};
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        parts[e] += acc[i][e] = exp2_fast(fmaf(acc[i][e], unit, above(e >> 1, i * 8 + (e & 1))));
#pragma unroll
    for (int half = 0; half < 2; ++half) part[half] = parts[2 * half] + parts[2 * half + 1];
  }
};

/// Writes row `half` of an accumulator times `scale`. Four lanes share a row: they exchange pieces,
/// so that each stores 16 bytes. All lanes call it; those without a row pass null.
template <class T, int n>
__device__ __forceinline__ void store_row90(T* to,
                                            const float (&acc)[n][4],
                                            int half,
                                            float scale) {
  const int t = threadIdx.x & 3;
  const auto value = [&](int i, int e) { return acc[i][2 * half + e] * scale; };
  constexpr int exchanged = sizeof(T) == 2 ? n / 4 * 4 : 0;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < exchanged; i += 4) {
      unsigned w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = pack<T>(value(i + k, 0), value(i + k, 1));
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, t & 1 ? w[k] : w[k + 1], 1);
        (t & 1 ? w[k] : w[k + 1]) = other;
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, t & 2 ? w[k] : w[k + 2], 2);
        (t & 2 ? w[k] : w[k + 2]) = other;
      }
      if (to) *reinterpret_cast<uint4*>(to + (i + t) * 8) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
#pragma unroll
  for (int i = exchanged; i < n; ++i)
    if (to) store_pair<T, true>(to + i * 8 + t * 2, value(i, 0), value(i, 1));
}

/// The rows of a warp, 16 of them, times `scale`, into shared memory as the copy engine wants them:
/// row `first` of slabs of `slab` bytes.
template <class T, int n>
__device__ __forceinline__ void stage_rows90(
    unsigned to, int slab, int first, const float (&acc)[n][4], const float (&scale)[2]) {
  const int lane = threadIdx.x & 31, row = first + (lane & 15);
#pragma unroll
  for (int i = 0; i < n; i += 2) {
    const unsigned words[4] = {pack<T>(acc[i][0] * scale[0], acc[i][1] * scale[0]),
                               pack<T>(acc[i][2] * scale[1], acc[i][3] * scale[1]),
                               pack<T>(acc[i + 1][0] * scale[0], acc[i + 1][1] * scale[0]),
                               pack<T>(acc[i + 1][2] * scale[1], acc[i + 1][3] * scale[1])};
    const int piece = i + (lane >> 4);
    store_matrix(to + i / 8 * slab + row * 128 + ((piece ^ row) & 7) * 16, words);
  }
  async_proxy_fence();
  __syncwarp();
}

/// LSE and the largest score of the thread's two rows, and what their O is to be multiplied with.
template <class C, int n>
__device__ __forceinline__ void finish_rows90(const Params& p,
                                              const Sequence& s,
                                              const Rows90& r,
                                              float (&out)[n][4],
                                              const Softmax90& soft,
                                              float (&scale)[2]) {
  const int b = r.work.b;
  float total[2], lse[2];
  bool empty[2], written[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool live = r.tokens[half] < s.q_len;
    total[half] = quad_sum(soft.sum[half]);
    empty[half] = !live || total[half] == 0.0f;  // NaN is not empty
    written[half] = C::rows == RowKind::dense ? r.tokens[half] < p.max_q_len : live;
    lse[half] = empty[half] ? -infinity() : soft.base[half] * ln_2 + __logf(total[half]);
    scale[half] = empty[half] ? 0.0f : __fdividef(1.0f, total[half]);
    if constexpr (C::dropout) scale[half] *= p.keep_scale;
  }
  if (__any_sync(0xffffffffu, empty[0] || empty[1])) {  // whatever a masked value left there
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (empty[e >> 1]) out[i][e] = 0.0f;
  }
  const bool leader = (threadIdx.x & 3) == 0;
  if (p.max_logit) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (leader && !empty[half])
        atomic_max(p.max_logit + b * p.max_logit_batch + r.heads[half] * p.max_logit_head,
                   soft.peak[half] * ln_2);
  }
  if constexpr (C::split) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (leader && written[half])
        p.partial_lse[row_index<C>(p, s, b, r.heads[half], r.tokens[half]) +
                      r.work.split * rows_of<C>(p)] = lse[half];
    return;
  }
  if (p.sink) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (r.tokens[half] < s.q_len) {
        const float sink = p.sink[r.heads[half]];
        const float both = fmaxf(lse[half], sink);
        const float all =
            empty[half] ? sink : both + logf(expf(lse[half] - both) + expf(sink - both));
        if (!empty[half]) scale[half] *= expf(lse[half] - all);
        lse[half] = all;
      }
  }
  if (p.lse.data) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (leader && written[half])
        *row_scalar<C>(p.lse, s, b, r.heads[half], r.tokens[half]) = lse[half];
  }
}

/// Writes O, or a split's share of it, from registers: any rows, any layout.
template <class C, int n>
__device__ __forceinline__ void store_rows90(const Params& p,
                                             const Sequence& s,
                                             const Rows90& r,
                                             const float (&out)[n][4],
                                             const float (&scale)[2]) {
  using Out = typename C::Out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = r.tokens[half], head = r.heads[half], b = r.work.b;
    const bool written = row < (C::rows == RowKind::dense ? p.max_q_len : s.q_len);
    if constexpr (C::split) {
      const long long at = row_index<C>(p, s, b, head, row) + r.work.split * rows_of<C>(p);
      store_row90<float>(written ? p.partial_o + at * C::dv : nullptr, out, half, scale[half]);
    } else {
      Out* to =
          written ? static_cast<Out*>(p.o.data) + row_offset<C>(p.o, s, b, head, row) : nullptr;
      store_row90<Out>(to, out, half, scale[half]);
    }
  }
}

}  // namespace undivided::cuda
