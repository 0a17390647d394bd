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
/// Orders ordinary stores to shared memory before reads by wgmma and the copy engine.
/// PTX: fence.proxy.async
__device__ inline void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace undivided::cuda
