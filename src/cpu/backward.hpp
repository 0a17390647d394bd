// SPDX-License-Identifier: Apache-2.0
// The backward on the CPU.
#pragma once

#include "cpu/problem.hpp"
#include "problem/backend.hpp"

namespace undivided::cpu {

std::unique_ptr<Prepared> prepare_backward(const Spec& spec,
                                           const Bounds& bounds,
                                           const Context& context);

}  // namespace undivided::cpu
