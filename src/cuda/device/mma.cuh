// SPDX-License-Identifier: Apache-2.0
// The matrix instruction of every card since sm_80: 16 x 8 += 16 x 16 times 16 x 8.
#pragma once

#include "device/types.cuh"

namespace undivided::cuda {

/// Lane 4 g + t holds c: rows g and g + 8, columns 2 t and 2 t + 1; a: the same rows, columns
/// 2 t (+ 1) and 2 t + 8 (+ 1); b: rows 2 t (+ 1) and 2 t + 8 (+ 1) of column g.
/// PTX: mma.sync.aligned.m16n8k16.row.col.f32.<T>.<T>.f32
template <class T>
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ inline void mma<Half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<BFloat16>(float (&c)[4],
                                     const unsigned (&a)[4],
                                     unsigned b0,
                                     unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace undivided::cuda
