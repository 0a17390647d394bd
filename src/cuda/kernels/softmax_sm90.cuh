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

  template <class C>
  __device__ __forceinline__ void limit(const Params& p, const Sequence& s) {
    const auto from = [&](int row) {
      if constexpr (C::mask != MaskKind::band) return 0;
      return static_cast<int>(clamped<long long>(Band(p, s).first_key(row), 0, 0x7fffffff));
    };
    const auto to = [&](int row) {
      if constexpr (C::mask != MaskKind::band) return s.k_len - 1;
      return static_cast<int>(clamped<long long>(Band(p, s).last_key(row), -1, s.k_len - 1));
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      low[half] = from(tokens[half]);
      high[half] = to(tokens[half]);
    }
    clear_low = from(last);
    clear_high = to(first);
  }
};

/// Score modifications, and -inf where masked. `scaled`: leave the scale to the exponent.
template <class C, class Mask, class Score, int n>
__device__ __forceinline__ void score_tile90(const Params& p,
                                             const Sequence& s,
                                             const Rows90& r,
                                             float (&acc)[n][4],
                                             int j0,
                                             const int* classes,
                                             bool scaled) {
  const int t = (threadIdx.x & 3) * 2;
  if constexpr (!Score::identity) {
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
                                 acc[i][e] * p.scale);
  } else if (!scaled) {
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][e] *= p.scale;
  }

  if constexpr (C::mask == MaskKind::plan) {
#pragma unroll
    for (int block = 0; block < n / 8; ++block) {
      const int id = classes[block];
      if (id == KeyTiles<C>::full_block) continue;
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

  if (j0 >= r.clear_low && j0 + C::n - 1 <= r.clear_high) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int a = r.low[half] - j0 - t, z = r.high[half] - j0 - t;
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int x = i * 8 + e;
        if (x < a || x > z) acc[i][2 * half + e] = -infinity();
      }
  }
}

/// The running softmax of two rows. Scores are in units of `unit` log2.
struct Softmax90 {
  float top[2];   // what weights are relative to
  float peak[2];  // the largest score
  float sum[2];   // of this thread's weights
  float rescale[2];

  __device__ void start() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = peak[half] = -infinity();
      sum[half] = 0.0f;
      rescale[half] = 1.0f;
    }
  }

  /// Scores to weights. The reference of a row moves when its maximum grows by more than `slack`;
  /// this and all else depends on the row alone. Returns whether a row of the warp moved.
  template <bool lazy, int n>
  __device__ __forceinline__ bool step(float (&acc)[n][4], float unit, float slack) {
    bool moved = false;
    float high[4], part[4], base[2];  // two chains a row
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      high[e] = acc[0][e];
      part[e] = 0.0f;
    }
#pragma unroll
    for (int i = 1; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) high[e] = fmaxf(high[e], acc[i][e]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float now = quad_max(fmaxf(high[2 * half], high[2 * half + 1]));
      const float old = top[half];
      peak[half] = fmaxf(peak[half], now);
      if constexpr (lazy) {
        if (now > old + slack) {
          top[half] = now;
          moved = true;
        }
      } else {
        top[half] = peak[half];
      }
      base[half] = top[half] == -infinity() ? 0.0f : top[half] * unit;
      rescale[half] = exp2_fast(fmaf(old, unit, -base[half]));
    }
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        part[e] += acc[i][e] = exp2_fast(fmaf(acc[i][e], unit, -base[e >> 1]));
#pragma unroll
    for (int half = 0; half < 2; ++half)
      sum[half] = fmaf(sum[half], rescale[half], part[2 * half] + part[2 * half + 1]);
    return lazy ? __any_sync(0xffffffffu, moved) : true;
  }
};

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

/// O, LSE and the largest score of the thread's two rows; of a split: its share of them.
template <class C, int n>
__device__ __forceinline__ void finish_rows90(const Params& p,
                                              const Sequence& s,
                                              const Rows90& r,
                                              float (&out)[n][4],
                                              const Softmax90& soft,
                                              float unit) {
  using Out = typename C::Out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = r.tokens[half], head = r.heads[half], b = r.work.b;
    const bool live = row < s.q_len;
    const bool written = C::rows == RowKind::dense ? row < p.max_q_len : live;
    const float total = quad_sum(soft.sum[half]);
    const bool empty = !live || total == 0.0f;  // NaN is not empty
    float lse = empty ? -infinity() : soft.top[half] * unit * ln_2 + logf(total);
    float scale = empty ? 0.0f : 1.0f / total;
    if constexpr (C::dropout) scale *= p.keep_scale;
    if (empty) {  // whatever a masked value left there
#pragma unroll
      for (int i = 0; i < n; ++i) out[i][2 * half] = out[i][2 * half + 1] = 0.0f;
    }
    const bool leader = written && (threadIdx.x & 3) == 0;
    if (p.max_logit && leader && !empty)
      atomic_max(p.max_logit + b * p.max_logit_batch + head * p.max_logit_head,
                 soft.peak[half] * unit * ln_2);
    if constexpr (C::split) {
      const long long at = row_index<C>(p, s, b, head, row) + r.work.split * rows_of<C>(p);
      if (leader) p.partial_lse[at] = lse;
      store_row90<float>(written && !empty ? p.partial_o + at * C::dv : nullptr, out, half, scale);
      continue;
    }
    if (p.sink && live) {
      const float sink = p.sink[head];
      if (empty) {
        lse = sink;
      } else {
        const float both = fmaxf(lse, sink);
        const float all = both + logf(expf(lse - both) + expf(sink - both));
        scale *= expf(lse - all);
        lse = all;
      }
    }
    if (p.lse.data && leader) *row_scalar<C>(p.lse, s, b, head, row) = lse;
    Out* to = written ? static_cast<Out*>(p.o.data) + row_offset<C>(p.o, s, b, head, row) : nullptr;
    store_row90<Out>(to, out, half, scale);
  }
}

}  // namespace undivided::cuda
