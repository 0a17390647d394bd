// SPDX-License-Identifier: Apache-2.0
// Merging of partial results on the CPU.
#pragma once

#include "problem/backend.hpp"

namespace undivided::cpu {

std::unique_ptr<Prepared> prepare_merge(const Spec& spec,
                                        const Bounds& bounds,
                                        const Context& context);

}  // namespace undivided::cpu
