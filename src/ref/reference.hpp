// SPDX-License-Identifier: Apache-2.0
// The oracle as a backend: float64, three loops.
#pragma once

#include "problem/backend.hpp"
#include "problem/sample.hpp"

namespace undivided::ref {

Support support(const Spec& spec, const Bounds& bounds, const Context& context);
std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device device,
                                  const Context& context);

/// Host Args as resolve() fills them; outputs may be of any float dtype. With a sample only its
/// rows of O, LSE and dQ and (by KV head, alike in every sequence) of dK and dV mean something.
void forward(const Spec& spec, const Args& args, const Sample& sample = {});
void backward(const Spec& spec, const Args& args, const Sample& sample = {});
void merge(const Spec& spec, const Args& args);

}  // namespace undivided::ref
