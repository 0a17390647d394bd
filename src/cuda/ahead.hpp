// SPDX-License-Identifier: Apache-2.0
// Kernels that most programs need, compiled ahead of the first call: by a build, without a GPU.
#pragma once

#include <vector>

#include "cuda/emit.hpp"

namespace undivided::cuda {

struct AheadKernel {
  KernelSpec spec;
  Policies policies;
};

/// Forward kernels of bf16 and f16, head dims 64, 128 and 256, dense, ragged and paged keys, a band
/// or the bit tiles of a mask plan, and the plain score or a softcap of any height; for many
/// queries and for one. `arch` as in 90; each kernel once.
std::vector<AheadKernel> usual_kernels(int arch);

}  // namespace undivided::cuda
