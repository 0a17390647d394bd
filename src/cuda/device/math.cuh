// SPDX-License-Identifier: Apache-2.0
// Scalar functions: exp2, integer division, warp reductions, Philox, loads from captured arrays.
#pragma once

#include "params.hpp"

namespace undivided::cuda {

inline constexpr float log2_e = 1.4426950408889634f;
inline constexpr float ln_2 = 0.6931471805599453f;

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

/// PTX: ex2.approx.ftz.f32 (within 2 ulp; -inf gives 0)
__device__ inline float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

/// PTX: rcp.approx.ftz.f32 (within 1 ulp)
__device__ inline float inverse(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

struct BFloat16;

/// For scores of inputs of type T. Relative error below 3e-6: small x by a series, else from
/// e^(2 x). PTX: ex2, rcp.approx
template <class T>
__device__ inline float tanh_fast(float x) {
  const float square = x * x, e = exp2_fast(x * 2.8853900817779268f);
  const float series = fmaf(x * square, fmaf(square, 2.0f / 15.0f, -1.0f / 3.0f), x);
  return square < 0.01f ? series : 1.0f - __fdividef(2.0f, e + 1.0f);
}
/// Relative error below 2^-10.9, that of bfloat16 is 2^-9. PTX: tanh.approx.f32
template <>
__device__ inline float tanh_fast<BFloat16>(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

template <class T>
__device__ inline T minimum(T a, T b) {
  return b < a ? b : a;
}
template <class T>
__device__ inline T maximum(T a, T b) {
  return a < b ? b : a;
}
template <class T>
__device__ inline T clamped(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}

/// Floor division and modulus, as in the language.
__device__ inline int floor_div(int a, int b) {
  if (b == 0) return 0;  // only in padded lanes: bind proves the rest
  const int q = a / b;
  return q - ((a % b != 0) & ((a < 0) != (b < 0)));
}
__device__ inline int floor_mod(int a, int b) {
  if (b == 0) return 0;
  const int r = a % b;
  return r + (((r != 0) & ((r < 0) != (b < 0))) ? b : 0);
}

/// Over the four lanes that share a row of an mma accumulator. PTX: shfl.sync.bfly
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float warp_sum(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

/// max by integer order; *at starts at -inf. PTX: atom.max.s32, atom.min.u32
__device__ inline void atomic_max(float* at, float x) {
  x += 0.0f;  // -0 would sort below -inf
  if (x >= 0)
    atomicMax(reinterpret_cast<int*>(at), __float_as_int(x));
  else
    atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(x));
}

/// Philox4x32-10 (Salmon et al. 2011): the words of keys 4 * (k / 4) + 0..3 of one row.
__device__ inline uint4 philox(
    unsigned long long seed, unsigned c0, unsigned c1, unsigned c2, unsigned c3) {
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return make_uint4(c0, c1, c2, c3);
}

struct Dropout {
  unsigned long long seed;
  unsigned threshold;
  __device__ explicit Dropout(const Params& p)
      : seed(p.seed_pointer ? *p.seed_pointer : p.seed), threshold(p.dropout_threshold) {}

  __device__ bool keep(int batch, int head, int q, int k) const {
    return pick(words(batch, head, q, k), k) >= threshold;
  }
  /// Keys k and k + 1: one call of Philox when they share a counter.
  __device__ void keep_pair(int batch, int head, int q, int k, bool& first, bool& second) const {
    uint4 w = words(batch, head, q, k);
    first = pick(w, k) >= threshold;
    if ((k & 3) == 3) w = words(batch, head, q, k + 1);
    second = pick(w, k + 1) >= threshold;
  }

 private:
  __device__ uint4 words(int batch, int head, int q, int k) const {
    return philox(seed,
                  static_cast<unsigned>(k) >> 2,
                  static_cast<unsigned>(q),
                  static_cast<unsigned>(head),
                  static_cast<unsigned>(batch));
  }
  static __device__ unsigned pick(const uint4& w, int k) {
    const unsigned low = k & 1 ? w.y : w.x, high = k & 1 ? w.w : w.z;
    return k & 2 ? high : low;
  }
};

/// Element of a captured array, in elements from its base; every index is clamped.
__device__ inline long long element(const ArrayRef& a, int i0, int i1 = 0, int i2 = 0, int i3 = 0) {
  return a.stride[0] * clamped(i0, 0, a.shape[0] - 1) +
         a.stride[1] * clamped(i1, 0, a.shape[1] - 1) +
         a.stride[2] * clamped(i2, 0, a.shape[2] - 1) +
         a.stride[3] * clamped(i3, 0, a.shape[3] - 1);
}
template <class... I>
__device__ inline int load_i32(const ArrayRef& a, I... i) {
  return clamped(static_cast<const int*>(a.data)[element(a, i...)], a.low, a.high);
}
template <class... I>
__device__ inline float load_f32(const ArrayRef& a, I... i) {
  return static_cast<const float*>(a.data)[element(a, i...)];
}
template <class... I>
__device__ inline bool load_b(const ArrayRef& a, I... i) {
  return static_cast<const unsigned char*>(a.data)[element(a, i...)] != 0;
}

}  // namespace undivided::cuda
