// SPDX-License-Identifier: Apache-2.0
// Tile copies by the tensor memory accelerator, one instruction per function (sm_90).
#pragma once

namespace undivided::cuda {

/// What cuTensorMapEncodeTiled wrote: a kernel parameter of its own, never a local copy.
struct alignas(64) TensorMap {
  unsigned long long words[16];
};

/// PTX: prefetch.tensormap
__device__ inline void tma_prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<unsigned long long>(&map))
               : "memory");
}
/// One box of a tensor of four axes to shared memory; `barrier` counts its bytes. What lies outside
/// the tensor arrives as zeros. PTX: cp.async.bulk.tensor.4d.shared::cluster.global
__device__ inline void tma_load(
    unsigned to, const TensorMap& map, unsigned barrier, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(reinterpret_cast<unsigned long long>(&map)),
      "r"(barrier),
      "r"(x0),
      "r"(x1),
      "r"(x2),
      "r"(x3)
      : "memory");
}
/// One box of shared memory to a tensor of four axes, later; what lies outside it is left out.
/// PTX: cp.async.bulk.tensor.4d.global.shared::cta
__device__ inline void tma_store(
    const TensorMap& map, unsigned from, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          reinterpret_cast<unsigned long long>(&map)),
      "r"(from),
      "r"(x0),
      "r"(x1),
      "r"(x2),
      "r"(x3)
      : "memory");
}
/// `bytes` of global memory to shared memory; both begin at multiples of 16. `barrier` counts them.
/// PTX: cp.async.bulk.shared::cluster.global
__device__ inline void bulk_load(unsigned to, const void* from, int bytes, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(__cvta_generic_to_global(from)),
      "r"(bytes),
      "r"(barrier)
      : "memory");
}
/// `bytes` of shared memory to global memory, later; both begin at multiples of 16.
/// PTX: cp.async.bulk.global.shared::cta
__device__ inline void bulk_store(void* to, unsigned from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(from),
               "r"(bytes)
               : "memory");
}
/// Adds `bytes` of floats in shared memory to global memory, later; both begin at multiples of 16.
/// PTX: cp.reduce.async.bulk.global.shared::cta.add.f32
__device__ inline void bulk_add(float* to, unsigned from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(from),
               "r"(bytes)
               : "memory");
}
/// PTX: cp.async.bulk.commit_group
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// All but the last `pending` groups are done. PTX: cp.async.bulk.wait_group
template <int pending>
__device__ inline void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}
/// The same, of their reads only: shared memory may change. PTX: cp.async.bulk.wait_group.read
template <int pending>
__device__ inline void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
/// Orders ordinary stores to shared memory before reads by wgmma and the copy engine.
/// PTX: fence.proxy.async
__device__ inline void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace undivided::cuda
