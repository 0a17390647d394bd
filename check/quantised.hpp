// SPDX-License-Identifier: Apache-2.0
// The problem that scores of int8 solve exactly: inputs that a plain loop rounded the same way.
#pragma once

#include <vector>

#include "undivided/attention.hpp"

namespace undivided::check {

/// float64 Q and K of one more column, which adds q.mean to each score, and V as the second product
/// reads it. Options without a precision and with the scale of the original.
struct Quantised {
  Rows q;
  Kv kv;
  Options options;
  std::vector<Tensor> keep;
};
/// `options.precision.qk` is i8; k_mean is [kv head, dim], or not given.
Quantised quantised(const Rows& q, const Kv& kv, const Options& options);

}  // namespace undivided::check
