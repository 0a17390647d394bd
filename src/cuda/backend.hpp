// SPDX-License-Identifier: Apache-2.0
// The CUDA row of the backend table: what it can do, and how it prepares and runs.
#pragma once

#include <memory>

#include "cuda/modules.hpp"
#include "problem/backend.hpp"

namespace undivided::cuda {

inline constexpr int oldest_arch = 80;  // compute capability 8.0: mma.sync for bf16, cp.async

/// The kernels of the library that the context names.
Modules& modules(const Context& context);
/// Launches a kernel that belongs to no plan, with parameters of its own; none without blocks.
/// Raises Error{invalid_argument, run} that begins with `what` when a launch has not so many.
void launch_alone(KernelKind kind,
                  long long blocks,
                  void* params,
                  const char* what,
                  Device device,
                  const Context& context);

/// First the machine (driver, device), then the spec.
Support support(const Spec& spec, const Bounds& bounds, const Context& context);
/// The spec alone, also where there is no GPU.
Support support_spec(const Spec& spec, const Bounds& bounds);
std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device device,
                                  const Context& context);
/// The same with given modules: tests bring their own driver.
std::unique_ptr<Prepared> prepare_with(
    Modules& modules, const Spec& spec, const Bounds& bounds, int device, Compile compile);

}  // namespace undivided::cuda
