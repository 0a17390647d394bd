// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory that count arrivals and bytes, one instruction per function (sm_90).
#pragma once

namespace undivided::cuda {

/// PTX: mbarrier.init
__device__ inline void mbarrier_init(unsigned at, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
/// Makes the counts known to the copy engine. PTX: fence.mbarrier_init
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// PTX: mbarrier.arrive
__device__ inline void mbarrier_arrive(unsigned at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
/// Arrives, and the phase also waits for `bytes` of copies. PTX: mbarrier.arrive.expect_tx
__device__ inline void mbarrier_expect(unsigned at, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
}
/// Waits until the phase of this parity is over. PTX: mbarrier.try_wait.parity
__device__ inline void mbarrier_wait(unsigned at, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(at),
      "r"(parity)
      : "memory");
}

/// PTX: st.shared
__device__ inline void store_shared_word(unsigned at, int x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}
/// PTX: red.shared.or.b32
__device__ inline void or_shared_word(unsigned at, int x) {
  asm volatile("red.shared.or.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}
/// PTX: ld.shared
__device__ inline int load_shared_word(unsigned at) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}

}  // namespace undivided::cuda
