// SPDX-License-Identifier: Apache-2.0
// Element types as bits, and their conversions. NVRTC has no headers, so they are ours.
#pragma once

namespace undivided::cuda {

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

/// Two floats as a pair of 16-bit numbers, `low` in the low half. PTX: cvt.rn.<T>x2.f32
template <class T>
__device__ inline unsigned pack(float low, float high);
template <>
__device__ inline unsigned pack<Half>(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ inline unsigned pack<BFloat16>(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ inline float to_float(float x) { return x; }
/// PTX: cvt.f32.f16
__device__ inline float to_float(Half x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}
__device__ inline float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

template <class T>
__device__ inline T from_float(float x) {
  return T{static_cast<unsigned short>(pack<T>(x, 0.0f))};
}
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}

/// Writes two neighbours; `aligned`: as one store.
template <class T, bool aligned>
__device__ inline void store_pair(T* at, float a, float b) {
  if constexpr (!aligned) {
    at[0] = from_float<T>(a);
    at[1] = from_float<T>(b);
  } else if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
  } else {
    *reinterpret_cast<unsigned*>(at) = pack<T>(a, b);
  }
}

/// The first step of a kernel that may follow another of the same call (griddepcontrol.wait): what
/// that one wrote is there then. Nothing if the launch was not to follow one.
__device__ inline void follow() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace undivided::cuda
