// SPDX-License-Identifier: Apache-2.0
// Gradients of captured arrays and parameters: sums over pairs that blocks meet in any order.
//
// Capture::atomic adds in float32, in the order of arrival. The ordered way adds integers, which
// commute: a pass of `largest` leaves the bits of the largest |term| of each element in its float32
// place; a pass of `sums` rounds each term to a multiple of 2^-term_bits times the power of two
// above that one and adds it to 64 bits; round_sums makes float32 of them. Up to 2^(62 - term_bits)
// terms stay inside.
// Elements with a term that is not finite get Inf or NaN as a float32 sum would.
#pragma once

#include "device/math.cuh"

namespace undivided::cuda {

inline constexpr unsigned infinite_bits = 0x7f800000u;
inline constexpr long long positive_infinity = 1, negative_infinity = 2;

/// The exponent e of a largest term: it is below 2^(e - 126). Terms are never cut finer than the
/// smallest normal float32.
__device__ inline int term_exponent(unsigned largest, int term_bits) {
  return maximum(static_cast<int>(largest >> 23), term_bits);
}

/// One term of one element. PTX: red.add.f32, red.max.u32, red.add.u64, red.or.b64
template <Capture how>
__device__ inline void add_term(const Params& p, float* to, long long* sum, float x) {
  if constexpr (how == Capture::atomic) {
    if (x != 0) atomicAdd(to, x);
  } else if constexpr (how == Capture::largest) {
    auto* at = reinterpret_cast<unsigned*>(to);
    const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    if (bits > *static_cast<volatile unsigned*>(at)) atomicMax(at, bits);
  } else {
    auto* at = reinterpret_cast<unsigned long long*>(sum);
    const unsigned largest = __float_as_uint(*to);
    if (largest >= infinite_bits) {
      if (x == infinity()) atomicOr(at, positive_infinity);
      if (x == -infinity()) atomicOr(at, negative_infinity);
      return;
    }
    const int e = term_exponent(largest, p.term_bits);
    const float scale = __int_as_float((127 + p.term_bits + 126 - e) << 23);
    const long long most = 1LL << p.term_bits;
    const long long fixed = clamped(__float2ll_rn(x * scale), -most, most);
    if (fixed != 0) atomicAdd(at, static_cast<unsigned long long>(fixed));
  }
}

/// What the terms of an element add up to.
__device__ inline float rounded_sum(float largest_term, long long sum, int term_bits) {
  const unsigned largest = __float_as_uint(largest_term);
  if (largest > infinite_bits) return __int_as_float(0x7fffffff);
  if (largest == infinite_bits)
    return sum == positive_infinity   ? infinity()
           : sum == negative_infinity ? -infinity()
                                      : __int_as_float(0x7fffffff);
  const int e = term_exponent(largest, term_bits);
  const double unit = __longlong_as_double((1023LL + e - 126 - term_bits) << 52);
  return static_cast<float>(static_cast<double>(sum) * unit);
}

/// Adds x to element (i...) of gradient `slot` if `live`; every lane of the warp calls it. Lanes
/// that all hit one element (a slope of a head, say) are summed first.
template <Capture how, class... I>
__device__ inline void add_captured(const Params& p, int slot, float x, bool live, I... i) {
  const ArrayRef& a = p.d_arrays[slot];
  if (!a.data) return;
  float* at = static_cast<float*>(a.data) + element(a, i...);
  long long* sum = nullptr;
  if constexpr (how == Capture::sums)
    sum = static_cast<long long*>(p.d_sums[slot].data) + element(p.d_sums[slot], i...);
  const unsigned all = 0xffffffffu;
  const auto mine = reinterpret_cast<unsigned long long>(at);
  if (__all_sync(all, mine == __shfl_sync(all, mine, 0))) {
    const float total = warp_sum(live ? x : 0.0f);
    if ((threadIdx.x & 31) == 0) add_term<how>(p, at, sum, total);
  } else if (live) {
    add_term<how>(p, at, sum, x);
  }
}

}  // namespace undivided::cuda
