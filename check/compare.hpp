// SPDX-License-Identifier: Apache-2.0
// The gates: how far a tensor may be from the oracle, given its type and the twin's own error.
#pragma once

#include <vector>

#include "check/check.hpp"
#include "check/reading.hpp"

namespace undivided::check {

/// Which rule applies, beyond the tensor's own name and type.
struct Gate {
  DType inputs = DType::f32;
  bool gradient = false;
  bool softcap = false;  // or another score that bends: three times the twin's error, not twice
  bool rough = false;    // its tanh is the bfloat16 one of the CUDA kernels
};

/// 16-bit inputs: max|x - oracle| <= 2 (3) * max|twin - oracle| + 1 ulp of the stored type at
/// max|oracle|, and the same factor for the relative L1. float32: 1e-5 (gradients 3e-5) of
/// max|oracle|. LSE and max_logit: 1e-5 + 1e-6 relative, element by element; `rough`: 1e-4 of the
/// larger of the value and 1, and key_mass 1e-4 of max|oracle|. NaN and Inf must be
/// where the oracle has them. Several `twins` sample the twin's error.
Comparison compare(const Reading& result,
                   const Reading& oracle,
                   const std::vector<Reading>& twins,
                   const Gate& gate);

/// Sum of |result - oracle| over that of |oracle|, where both are finite.
double relative_l1(const Reading& result, const Reading& oracle);

/// Distance between neighbours of `dtype` at magnitude x.
double ulp(DType dtype, double x);

}  // namespace undivided::check
