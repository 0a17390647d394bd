// SPDX-License-Identifier: Apache-2.0
// What a kernel asks of its policies, and the policies without a program.
//
// A generated Mask answers for one pair at absolute positions:
//   struct Mask {
//     static __device__ bool keep(const Params& p, int batch, int head, int q, int k, int q_len,
//                                 int k_len);
//   };
// and a generated Score (raw is q.k, scale is positive: see Scale; `distance` is the float of k -
// q; pairs outside the lengths may be asked, and their answer is thrown away):
//   struct Score {
//     static constexpr bool identity = false;
//     static constexpr bool linear = false;  // is apply raw + slope * distance, the slope that of
//                                            // batch and head?
//     static constexpr int params = 2;  // of the program
//     using Captures = Captured<2, Read<0, 1>>;  // each read of an array that has a gradient:
//                                                // its slot and how many indices
//     struct Fixed;  // what one batch and head share: Fixed(p, batch, head, q_len, k_len)
//     // The score is unit * apply; the unit is positive and the same for all pairs.
//     static __device__ float unit(p, scale);
//     static __device__ float apply(p, batch, head, q, k, q_len, k_len, distance, raw, scale,
//                                   fixed);
//     static __device__ float derivative(p, ..., scale, fixed);  // d score / d (raw * scale)
//     // Adds g * d score / d capture: arrays by captured.add<how, read>(p, g * out, live,
//     // index...), parameters by captured.sums[i] += g * out if live.
//     template <Capture how>
//     static __device__ void capture(p, ..., raw, scale, float g, bool live, Captures& captured);
//   };
// derivative and capture are read by backward kernels only; params is at least 1.
#pragma once

#include "device/captured.cuh"

namespace undivided::cuda {

enum class MaskKind { full, band, program, plan };
enum class RowKind { dense, ragged };
enum class KvKind { dense, ragged, paged };

struct FullMask {
  static __device__ bool keep(const Params&, int, int, int, int, int, int) { return true; }
};

struct IdentityScore {
  static constexpr bool identity = true, linear = false;
  static constexpr int params = 1;
  using Captures = Captured<1>;
  struct Fixed {
    Fixed() = default;
    __device__ Fixed(const Params&, int, int, int, int) {}
  };
  static __device__ float unit(const Params&, float scale) { return scale; }
  static __device__ float apply(
      const Params&, int, int, int, int, int, int, float, float raw, float, const Fixed&) {
    return raw;
  }
  static __device__ float derivative(
      const Params&, int, int, int, int, int, int, float, float, float, const Fixed&) {
    return 1.0f;
  }
  template <Capture>
  static __device__ void capture(
      const Params&, int, int, int, int, int, int, float, float, float, float, bool, Captures&) {}
};

/// The scale of Q K^T as programs want it, positive. A negative one is that of -Q K^T; zero is too
/// small a one to be told from it.
struct Scale {
  float value;
  bool flips;
  __device__ explicit Scale(const Params& p)
      : value(fmaxf(fabsf(p.scale), 1e-30f)), flips(p.scale <= 0.0f) {}
  /// Before any of these products are shown to a Score.
  template <int n>
  __device__ void apply(const Params& p, float (&acc)[n][4]) const {
    if (!flips) return;
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][e] *= p.scale < 0.0f ? -1.0f : 0.0f;
  }
};

}  // namespace undivided::cuda
