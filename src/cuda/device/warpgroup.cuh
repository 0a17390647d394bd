// SPDX-License-Identifier: Apache-2.0
// Roles of four warps: register budgets and named barriers, one instruction per function (sm_90a).
#pragma once

namespace undivided::cuda {

/// The same number in every lane, and the compiler knows it.
__device__ inline int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
}

/// PTX: setmaxnreg.inc
template <int registers>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
/// PTX: setmaxnreg.dec
template <int registers>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

/// PTX: bar.sync
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// PTX: bar.arrive
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace undivided::cuda
