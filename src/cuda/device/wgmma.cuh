// SPDX-License-Identifier: Apache-2.0
// The matrix instruction of a warpgroup: 64 x n += 64 x 16 times 16 x n (sm_90a).
//
// The instruction names every accumulator, so the wrappers of one n are generated for the kernels
// that need them (wgmma_text() in spec_sm90.cpp):
//   template <> struct Wgmma<T, n> {
//     static void shared_shared(c, a, b, accumulate);   // a and b: descriptors, rows of 16
//     static void register_shared(c, a, b);             // a: fragments; b: columns of 16
//   };
// Warp w of the warpgroup holds rows 16 w to 16 w + 15 of c and a, each as in mma.cuh.
#pragma once

#include "device/types.cuh"

namespace undivided::cuda {

template <class T, int n>
struct Wgmma;

/// Tiles lie in shared memory as slabs of 64 columns (128 bytes) with the 128-byte swizzle of the
/// copy engine; a slab begins at a multiple of 1024 bytes. Eight rows of a slab are 1024 bytes.
/// `slab`: bytes from one slab to the next, read only when the columns are the n of B.
__device__ inline unsigned long long wgmma_descriptor(unsigned at, unsigned slab) {
  return static_cast<unsigned long long>((at & 0x3FFFFu) >> 4) |
         static_cast<unsigned long long>(slab >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

/// Registers written by ordinary instructions are ready. PTX: wgmma.fence
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// PTX: wgmma.commit_group
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// All but the last `pending` groups are done. PTX: wgmma.wait_group
template <int pending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Hides where a number came from: descriptors made of it are made anew in each turn of a loop, and
/// do not take registers all through it.
__device__ __forceinline__ void opaque(unsigned& x) { asm volatile("" : "+r"(x)); }
/// Keeps the compiler from moving reads and writes of accumulators over this point.
template <int n>
__device__ __forceinline__ void pin(float (&c)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; ++i)
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}

}  // namespace undivided::cuda
