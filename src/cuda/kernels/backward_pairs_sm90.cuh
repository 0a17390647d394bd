// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the sm90 backward on single pairs, and which of them are kept.
#pragma once

#include "kernels/backward_work_sm90.cuh"

namespace undivided::cuda {

/// The pairs of a query tile and the keys of a warpgroup: from S^T and dP^T to P^T and dS^T.
template <class C, class Mask, class Score>
struct Pairs90 {
  using L = SharedBackward90<C>;
  static constexpr int m = C::m, blocks = C::mask == MaskKind::plan ? m / 64 : 0;
  /// Does every tile need the task? Else only one that is looked at reads it, and it takes no
  /// registers.
  static constexpr bool eager =
      !Score::identity || C::inside_program || C::mask == MaskKind::program;
  const Params& p;
  unsigned slot, info;  // of the task and of the tile, in shared memory
  int group;
  unsigned lse;  // in shared memory; delta is behind it
  bool looked;   // may a pair be masked?
  int h, i0;     // known when read_task() was called
  KeyTask90 t;
  Keys90<C> keys;
  typename Score::Fixed fixed;
  int classes[blocks ? blocks : 1];
  unsigned dropped[m / 64];              // a bit an element
  unsigned inside[blocks ? blocks : 1];  // the same: what a block of a plan keeps

  /// The keys of warpgroup `my_group`.
  __device__ __forceinline__ Pairs90(const Params& params, unsigned task, int my_group)
      : p(params), slot(task), group(my_group) {}
  /// The query tile of stage `at`.
  __device__ __forceinline__ void go_to(unsigned base, int at) {
    info = base + L::info + L::info_bytes * at;
    lse = base + L::lse + at * L::stats_bytes;
    looked = load_shared_word(info + L::info_look) >> group & 1;
    if constexpr (eager) read_task();
    if constexpr (!Score::identity) fixed = typename Score::Fixed(p, t.b, h, t.s.q_len, t.s.k_len);
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      classes[i] = load_shared_word(info + L::info_classes + 4 * (L::row_slabs * group + i));
      looked = looked || classes[i] != BlockCursor<false>::full_block;
    }
    if constexpr (L::near_bits) {
      if (looked) read_bits(base + L::bits + (at * L::blocks + L::row_slabs * group) * 512);
    } else if constexpr (C::inside_program) {
#pragma unroll
      for (int i = 0; i < blocks; ++i) inside[i] = classes[i] < 0 ? ~0u : ask(i);
    }
  }

  __device__ __forceinline__ void read_task() {
    h = load_shared_word(info);
    i0 = load_shared_word(info + L::info_tile) * m;
    t = KeyTask90::read<C>(slot);
    keys = Keys90<C>(t, group);
  }

  static __device__ __forceinline__ int column() { return (threadIdx.x & 3) * 2; }
  /// The numbers of queries 8 c + 2 t and the next.
  static __device__ __forceinline__ float2 of_rows(unsigned at, int c) {
    return load_shared_pair(at + (c * 8 + column()) * 4);
  }

  /// What the bits of this warpgroup's blocks, rows of queries at `from`, keep of its elements.
  __device__ __forceinline__ void read_bits(unsigned from) {
    const int key = (threadIdx.x & 127) / 32 * 16 + (threadIdx.x & 31) / 4;  // j0 begins a block
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      inside[i] = classes[i] == BlockCursor<false>::empty_block ? 0 : ~0u;
      if (classes[i] < 0) continue;
      inside[i] = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int4 two = load_shared_ints(from + i * 512 + (c * 8 + column()) * 8);
        // Keys 0 to 31 of a query are its lower word; the thread's two lie in the same.
        const unsigned a = static_cast<unsigned>(key < 32 ? two.x : two.y) >> (key & 31);
        const unsigned b = static_cast<unsigned>(key < 32 ? two.z : two.w) >> (key & 31);
        inside[i] |= ((a & 1) | (b & 1) << 1 | (a >> 8 & 1) << 2 | (b >> 8 & 1) << 3) << c * 4;
      }
    }
  }

  /// The program's answers for the elements of one block of queries.
  __device__ __forceinline__ unsigned ask(int block) const {
    unsigned bits = 0;
#pragma unroll 1  // rolled: as many copies of the program would cost registers
    for (int x = 0; x < 32; ++x) {
      const int i = i0 + block * 64 + x / 4 * 8 + column() + (x & 1), half = x >> 1 & 1;
      const int j = keys.mine + 8 * half;
      bits |= static_cast<unsigned>(
                  Mask::keep(p, t.b, h, t.s.q_origin + i, t.s.k_origin + j, t.s.q_len, t.s.k_len))
              << x;
    }
    return bits;
  }

  /// Is the pair of accumulator element (c, e) kept? Only asked of tiles that are `looked` at.
  __device__ __forceinline__ bool kept(int c, int e) const {
    const int half = e >> 1, x = c * 8 + column() + (e & 1), i = i0 + x;
    bool keep = i >= keys.low[half] && i <= keys.high[half];
    const int j = keys.mine + 8 * half;
    if constexpr (C::mask == MaskKind::plan) {
      const int id = classes[c / 8];
      if (id == BlockCursor<false>::empty_block) keep = false;
      if constexpr (C::inside_program || L::near_bits)
        keep = keep && (inside[c / 8] >> (c % 8 * 4 + e) & 1);
      else if (id >= 0)
        keep = keep && (p.plan.tiles[id][x & 63] >> (j & 63) & 1);
    }
    if constexpr (C::mask == MaskKind::program)
      keep = keep && i < t.s.q_len &&
             Mask::keep(p, t.b, h, t.s.q_origin + i, t.s.k_origin + j, t.s.q_len, t.s.k_len);
    return keep;
  }

  __device__ __forceinline__ bool keeps_weight(int c, int e) const {
    const int i = i0 + c * 8 + column() + (e & 1), j = keys.mine + 8 * (e >> 1);
    return Dropout(p).keep(t.b, h, t.s.q_origin + i, t.s.k_origin + j);
  }
  __device__ __forceinline__ void drop() {
    if constexpr (C::dropout) {
      if constexpr (!eager) read_task();
#pragma unroll
      for (int w = 0; w < m / 64; ++w) {
        dropped[w] = 0;
#pragma unroll
        for (int k = 0; k < 32; ++k)
          if (!keeps_weight(w * 8 + k / 4, k % 4)) dropped[w] |= 1u << k;
      }
    }
  }
  __device__ __forceinline__ bool is_dropped(int c, int e) const {
    if constexpr (C::dropout) return dropped[c / 8] >> (c % 8 * 4 + e) & 1;
    return false;
  }

  /// S^T to P^T as if all pairs were kept, of 8 n queries from 8 `first` on.
  template <int first, int n>
  __device__ __forceinline__ void exponentials(float (&acc)[m / 8][4]) {
    const float unit = p.scale * log2_e;
#pragma unroll
    for (int c = first; c < first + n; ++c) {
      const float2 top = of_rows(lse, c);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[c][e] = exp2_fast(fmaf(acc[c][e], unit, e & 1 ? -top.y : -top.x));
    }
  }
  /// Then the others have no weight.
  __device__ __forceinline__ void mask(float (&acc)[m / 8][4]) {
    if (looked) {
      if constexpr (!eager) read_task();
#pragma unroll
      for (int c = 0; c < m / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!kept(c, e)) acc[c][e] = 0.0f;
    }
  }
  /// Both.
  __device__ __forceinline__ void weights(float (&acc)[m / 8][4]) {
    exponentials<0, m / 8>(acc);
    mask(acc);
  }

  /// What dP is added to: -delta.
  template <int n>
  __device__ __forceinline__ void start_gradients(float (&dp)[n][4]) const {
    if constexpr (C::dropout) return;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float2 d = of_rows(lse + L::delta - L::lse, c);
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[c][e] = e & 1 ? -d.y : -d.x;
    }
  }

  /// dP^T to dS^T = P * (dP - delta), of 8 n queries from 8 `first` on; a masked pair has none,
  /// whatever V holds.
  template <bool started = false, int n>
  __device__ __forceinline__ void gradients(const float (&weight)[m / 8][4],
                                            float (&dp)[n][4],
                                            int first = 0) const {
#pragma unroll
    for (int c = 0; c < n; ++c) {
      if constexpr (started && !C::dropout) {
#pragma unroll
        for (int e = 0; e < 4; ++e) dp[c][e] *= weight[first + c][e];
        continue;
      }
      const float2 d = of_rows(lse + L::delta - L::lse, first + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float grad = dp[c][e];
        if constexpr (C::dropout) grad = is_dropped(first + c, e) ? 0.0f : grad * p.keep_scale;
        dp[c][e] = weight[first + c][e] * (grad - (e & 1 ? d.y : d.x));
      }
    }
    if (looked) {
#pragma unroll
      for (int c = 0; c < n; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (weight[first + c][e] == 0.0f) dp[c][e] = 0.0f;
    }
  }

  /// k - q of the first query of a thread; further ones are whole numbers away.
  __device__ __forceinline__ float distance(int half) const {
    return distance_of(t.s, i0 + column(), keys.mine + 8 * half);
  }

  /// S^T to P^T and P^T * ds/dscore.
  __device__ __forceinline__ void weights_and_slopes(float (&acc)[m / 8][4],
                                                     float (&slope)[m / 8][4]) {
    each_pair(acc, [&](int c, int e, float weight, float by, int, int, float, float) {
      slope[c][e] = weight * by;
    });
    forget(acc, slope);
  }

  /// Both at once, for a score program: its derivative is taken at what P was made of. With the
  /// terms of what it captures.
  __device__ __forceinline__ void both(float (&acc)[m / 8][4],
                                       float (&dp)[m / 8][4],
                                       typename Score::Captures& captured) {
    each_pair(acc, [&](int c, int e, float weight, float by, int qp, int kp, float far, float raw) {
      const float2 d = of_rows(lse + L::delta - L::lse, c);
      float grad = dp[c][e];
      if constexpr (C::dropout) grad = is_dropped(c, e) ? 0.0f : grad * p.keep_scale;
      grad = weight * (grad - (e & 1 ? d.y : d.x));
      const bool live = keeps(c, e);
      if constexpr (C::capture != Capture::none)
        Score::template capture<C::capture>(p,
                                            t.b,
                                            h,
                                            qp,
                                            kp,
                                            t.s.q_len,
                                            t.s.k_len,
                                            far,
                                            raw,
                                            Scale(p).value,
                                            grad,
                                            live,
                                            captured);
      dp[c][e] = live ? grad * by : 0.0f;
    });
    forget(acc, dp);
  }

  /// P^T without what dropout drops, as left operands, of 16 n queries from 8 `first` on.
  template <int n>
  __device__ __forceinline__ void fragments(unsigned (&left)[n][4],
                                            const float (&acc)[m / 8][4],
                                            int first = 0) const {
    float rest[2 * n][4];
#pragma unroll
    for (int c = 0; c < 2 * n; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        rest[c][e] = C::dropout && is_dropped(first + c, e) ? 0.0f : acc[first + c][e];
    to_fragments<typename C::Element, 16 * n>(left, rest);
  }

 private:
  /// Replaces scores of a program by weights; f(c, e, weight, derivative of the score).
  template <class F>
  __device__ __forceinline__ void each_pair(float (&acc)[m / 8][4], F&& f) const {
    const float from[2] = {distance(0), distance(1)};
    const Scale scale(p);
    const float unit = Score::unit(p, scale.value) * log2_e;
    scale.apply(p, acc);
#pragma unroll
    for (int c = 0; c < m / 8; ++c) {
      const float2 top = of_rows(lse, c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = i0 + c * 8 + column() + (e & 1), j = keys.mine + 8 * (e >> 1);
        const int qp = t.s.q_origin + i, kp = t.s.k_origin + j;
        const float far = from[e >> 1] - static_cast<float>(c * 8 + (e & 1)), raw = acc[c][e];
        const float score =
            Score::apply(p, t.b, h, qp, kp, t.s.q_len, t.s.k_len, far, raw, scale.value, fixed);
        acc[c][e] = exp2_fast(fmaf(score, unit, e & 1 ? -top.y : -top.x));
        if (!keeps(c, e)) acc[c][e] = 0.0f;
        const float by = Score::derivative(
            p, t.b, h, qp, kp, t.s.q_len, t.s.k_len, far, raw, scale.value, fixed);
        f(c, e, acc[c][e], by, qp, kp, far, raw);
      }
    }
  }

  /// Where single pairs are captured they are also told apart one by one; else forget() does it,
  /// and only for a tile that must be looked at.
  __device__ __forceinline__ bool keeps(int c, int e) const {
    return C::capture == Capture::none || !looked || kept(c, e);
  }
  /// Zeros the pairs that are masked, whatever Q, K and V hold there.
  __device__ __forceinline__ void forget(float (&weight)[m / 8][4],
                                         float (&other)[m / 8][4]) const {
    if (C::capture != Capture::none || !looked) return;
#pragma unroll
    for (int c = 0; c < m / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (!kept(c, e)) weight[c][e] = other[c][e] = 0.0f;
  }
};

}  // namespace undivided::cuda
