// SPDX-License-Identifier: Apache-2.0
// Moves between global memory, shared memory and registers, one instruction per function.
#pragma once

namespace undivided::cuda {

/// PTX: cvta.to.shared
__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// 16 bytes to shared memory; zeros when not `live` (then `from` is not read).
/// PTX: cp.async.cg.shared.global
__device__ inline void copy_async(unsigned to, const void* from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)),
               "r"(live ? 16 : 0)
               : "memory");
}
/// PTX: cp.async.wait_all
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// PTX: st.shared.v4
__device__ inline void store_shared(unsigned to, const unsigned (&x)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(x[0]),
               "r"(x[1]),
               "r"(x[2]),
               "r"(x[3])
               : "memory");
}

/// PTX: st.shared.v4
__device__ inline void store_shared(unsigned to, int4 x) {
  asm volatile(
      "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
      : "memory");
}
/// PTX: ld.shared.v4
__device__ inline int4 load_shared_ints(unsigned from) {
  int4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from)
               : "memory");
  return x;
}
__device__ inline void store_shared(unsigned to, const float (&x)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "f"(x[0]),
               "f"(x[1]),
               "f"(x[2]),
               "f"(x[3])
               : "memory");
}
/// PTX: ld.shared.v4
__device__ inline void load_shared(float (&x)[4], unsigned from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(from)
               : "memory");
}
/// Adds four floats to global memory, later. PTX: red.global.add.v4 (sm_90)
__device__ inline void add_quad(float* to, const float (&x)[4]) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(x[0]),
               "f"(x[1]),
               "f"(x[2]),
               "f"(x[3])
               : "memory");
}
/// Waits until *at is `turn`; what its passers wrote before is seen after. PTX: ld.acquire.gpu
__device__ inline void wait_for_turn(const int* at, int turn) {
  int now;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];"
                 : "=r"(now)
                 : "l"(__cvta_generic_to_global(at))
                 : "memory");
  } while (now != turn);
}
/// The value at `at`; if that is 0, it becomes 1. PTX: atom.acquire.gpu.global.cas
__device__ inline int claim(int* at) {
  int was;
  asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], 0, 1;"
               : "=r"(was)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return was;
}
/// PTX: red.release.gpu.global.add
__device__ inline void pass_turn(int* at) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(at))
               : "memory");
}
/// PTX: ld.shared.v2
__device__ inline float2 load_shared_pair(unsigned from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}

/// Four 8 x 8 matrices; lane i gives the address of row i % 8 of matrix i / 8.
/// PTX: ldmatrix.sync.aligned.m8n8.x4
__device__ inline void load_matrix(unsigned (&r)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
/// The same, each matrix transposed. PTX: ldmatrix.sync.aligned.m8n8.x4.trans
__device__ inline void load_matrix_transposed(unsigned (&r)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
/// The reverse of load_matrix. PTX: stmatrix.sync.aligned.m8n8.x4 (sm_90)
__device__ inline void store_matrix(unsigned to, const unsigned (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(r[0]),
               "r"(r[1]),
               "r"(r[2]),
               "r"(r[3])
               : "memory");
}

}  // namespace undivided::cuda
