// SPDX-License-Identifier: Apache-2.0
// The last step of a softmax row: the sink, the factor of O, and LSE.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/problem.hpp"

namespace undivided::cpu {

struct RowEnd {
  float factor = 0;  // O = factor * unnormalised O
  float lse = -std::numeric_limits<float>::infinity();
};

/// `m` in log2 units and `l` relative to it; `sink` is -inf when there is none.
inline RowEnd end_of_row(float m, float l, double sink) {
  if (l == 0) return {0, static_cast<float>(sink)};
  if (sink == -std::numeric_limits<double>::infinity()) {  // the same bits, sooner
    const double sum = l;
    return {static_cast<float>(1 / sum), static_cast<float>((m + std::log2(sum)) * ln_2)};
  }
  const double sink2 = sink * log2_e, top = std::max<double>(m, sink2);
  const double kept = std::exp2(m - top);
  const double sum = l * kept + std::exp2(sink2 - top);
  return {static_cast<float>(kept / sum), static_cast<float>((top + std::log2(sum)) * ln_2)};
}

}  // namespace undivided::cpu
