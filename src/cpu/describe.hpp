// SPDX-License-Identifier: Apache-2.0
// What a CPU plan says about itself.
#pragma once

#include "cpu/problem.hpp"
#include "problem/backend.hpp"

namespace undivided::cpu {

/// Kept pairs at the bounds: exact for a band, all of them otherwise.
double pairs_at_bounds(const Setup& setup);
Explanation describe_forward(const Setup& setup, std::int64_t splits, std::int64_t split_keys);
Explanation describe_backward(const Setup& setup);
/// Raises Error{run} if a given view has another dtype.
void want_dtype(const char* name, const View& v, DType dtype);

}  // namespace undivided::cpu
