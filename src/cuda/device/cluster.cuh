// SPDX-License-Identifier: Apache-2.0
// Blocks of a cluster: their shared memory and barriers, one instruction per function (sm_90).
#pragma once

namespace undivided::cuda {

/// PTX: %cluster_ctarank
__device__ inline int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// Where block `rank` has what this one has at `at`. PTX: mapa.shared::cluster
__device__ inline unsigned cluster_address(unsigned at, int rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
/// Arrives at a barrier of a block of the cluster. PTX: mbarrier.arrive.release.cluster
__device__ inline void cluster_arrive(unsigned there) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there)
               : "memory");
}
/// As mbarrier_wait(), and what other blocks wrote before they arrived is seen after.
/// PTX: mbarrier.try_wait.parity.acquire.cluster
__device__ inline void cluster_wait(unsigned at, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(at),
      "r"(parity)
      : "memory");
}
/// PTX: st.shared::cluster
__device__ inline void cluster_store_word(unsigned there, int x) {
  asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(there), "r"(x) : "memory");
}
/// `bytes` of this block's shared memory to that of another, later; both begin at multiples of 16.
/// Its barrier counts them. PTX: cp.async.bulk.shared::cluster.shared::cta
__device__ inline void cluster_copy(unsigned there, unsigned from, int bytes, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(there),
      "r"(from),
      "r"(bytes),
      "r"(barrier)
      : "memory");
}
/// All threads of all blocks are here. PTX: barrier.cluster.arrive, barrier.cluster.wait
__device__ inline void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

}  // namespace undivided::cuda
