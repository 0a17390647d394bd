// SPDX-License-Identifier: Apache-2.0
// The online softmax of one warpgroup, with a running maximum or with a reference that stays.
#pragma once

#include "kernels/tile.cuh"
#include "kernels/work_sm90.cuh"

namespace undivided::cuda {

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

}  // namespace undivided::cuda
