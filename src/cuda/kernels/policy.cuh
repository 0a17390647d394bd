// SPDX-License-Identifier: Apache-2.0
// What a kernel asks of its policies, and the policies without a program.
//
// A generated Mask answers for one pair at absolute positions:
//   struct Mask {
//     static __device__ bool keep(const Params& p, int batch, int head, int q, int k, int q_len,
//                                 int k_len);
//   };
// and a generated Score (`score` is scale * q.k, `distance` the float of k - q; pairs outside the
// lengths may be asked, and their answer is thrown away):
//   struct Score {
//     static constexpr bool identity = false;
//     static constexpr int params = 2;  // of the program
//     using Captures = Captured<2, Read<0, 1>>;  // each read of an array that has a gradient:
//                                                // its slot and how many indices
//     static __device__ float apply(p, batch, head, q, k, q_len, k_len, distance, score);
//     static __device__ float derivative(p, ..., score);  // d apply / d score
//     // Adds g * d apply / d capture: arrays by captured.add<how, read>(p, g * out, live,
//     // index...), parameters by captured.sums[i] += g * out if live.
//     template <Capture how>
//     static __device__ void capture(p, ..., score, float g, bool live, Captures& captured);
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
  static constexpr bool identity = true;
  static constexpr int params = 1;
  using Captures = Captured<1>;
  static __device__ float apply(const Params&, int, int, int, int, int, int, float, float score) {
    return score;
  }
  static __device__ float derivative(const Params&, int, int, int, int, int, int, float, float) {
    return 1.0f;
  }
  template <Capture>
  static __device__ void capture(
      const Params&, int, int, int, int, int, int, float, float, float, bool, Captures&) {}
};

}  // namespace undivided::cuda
