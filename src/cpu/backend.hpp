// SPDX-License-Identifier: Apache-2.0
// The CPU's row in the table of backends.
#pragma once

#include <memory>

#include "problem/backend.hpp"

namespace undivided::cpu {

Support support(const Spec& spec, const Bounds& bounds, const Context& context);
std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device device,
                                  const Context& context);

}  // namespace undivided::cpu
