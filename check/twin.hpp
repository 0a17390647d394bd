// SPDX-License-Identifier: Apache-2.0
// The twin: what a plain implementation in the precision of the inputs gets wrong. It calls no
// kernel.
//
// float32 scores from the rounded inputs, float32 softmax, P (and dS) rounded to the input type
// before the second product, float32 sums, one rounding of the result.
#pragma once

#include <vector>

#include "check/reading.hpp"

namespace undivided::check {

/// Results of a forward problem. `nudge` > 0 moves the rounding grid of P, so that several runs
/// sample the error of small tensors better than one.
std::vector<Reading> twin_forward(const Problem& p, double nudge = 0, const Sample& sample = {});

/// Gradients of a backward problem; its O and LSE are the twin's own, but those of rows outside the
/// sample are the problem's.
std::vector<Reading> twin_backward(const Problem& p, double nudge = 0, const Sample& sample = {});

}  // namespace undivided::check
