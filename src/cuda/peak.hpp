// SPDX-License-Identifier: Apache-2.0
// What the matrix instruction of a card reaches, measured: the yardstick of `undivided bench`.
#pragma once

#include <string>

#include "cuda/cache.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cuda {

struct MmaPeak {
  double flops = 0;         ///< a second, over all multiprocessors; a multiply-add counts as 2
  std::string instruction;  ///< "wgmma" on compute capability 9.0, else "mma.sync"
};
/// Runs products of random f16 or bf16 numbers with float32 sums for about a third of a second, so
/// that the clock is that of a card at work, and takes the median launch. Synchronises. Raises
/// Error{plan} when the kernel cannot be compiled or loaded, or the dtype is neither.
MmaPeak measured_mma_peak(int device, DType dtype);

/// The kernel that does it, for one target.
KernelSource peak_source(DType dtype, int arch);

}  // namespace undivided::cuda
