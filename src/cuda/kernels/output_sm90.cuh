// SPDX-License-Identifier: Apache-2.0
// What a warpgroup writes: rows of O or of a gradient, LSE and the largest score.
#pragma once

#include "kernels/score_sm90.cuh"
#include "kernels/softmax_sm90.cuh"

namespace undivided::cuda {

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
