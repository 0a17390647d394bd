// SPDX-License-Identifier: Apache-2.0
// What a comparison needs: the tensors of one direction from a backend, the oracle and the twin.
#pragma once

#include <vector>

#include "check/inputs.hpp"
#include "check/reading.hpp"

namespace undivided::check {

/// Tensors of one direction: what came, what is true (and what it is of unrounded inputs, for
/// scores of int8), what a plain implementation makes of it.
struct Evidence {
  std::vector<Reading> got, oracle, exact;
  std::vector<std::vector<Reading>> twins;
};
Evidence of_forward(const Case& c, const Inputs& in, const Forward& f, const Sample& sample);
/// A sample is compared with gradients that start from `forward`, the backend's own.
Evidence of_backward(const Case& c,
                     const Inputs& in,
                     const Forward& forward,
                     const Gradients& gradients,
                     const Sample& sample);

/// What rounds most: the type of the inputs, or of P and V where they have another.
DType multiplied_as(const Case& c);

}  // namespace undivided::check
