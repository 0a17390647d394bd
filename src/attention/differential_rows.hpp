// SPDX-License-Identifier: Apache-2.0
// The epilogues of differential attention on the host, one row of one head at a time.
#pragma once

#include <vector>

#include "undivided/context.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// y = gain * weight * RMSNorm(o1 - lambda o2), over the last axis (Ye et al. 2024, eq. 2 and 3);
/// with logits, f32 or f64 [batch, head, token]: y = o1 - sigmoid(logit) o2.
struct Epilogue {
  double lambda = 0, gain = 1, eps = 0;
  std::vector<double> weight{};  // [Dv], or empty for ones
  View weight_view{};            // read instead on CUDA
  View logits{};
};

// Views are on the host, [batch, head, token, Dv], with unit last stride, all f32 or all f64.

/// Some rows of one head.
struct RowSpan {
  std::int64_t b, h, first, count;
};

void difference(
    const Epilogue& e, const View& o1, const View& o2, const View& y, const RowSpan& rows);

struct EpilogueGradient {
  double lambda = 0;
  std::vector<double> weight{};  // [Dv]
};
/// Writes the gradients of o1 and o2, and of the logits if there are any; else returns those of
/// lambda and the weight, summed in a fixed order.
EpilogueGradient difference_backward(const Epilogue& e,
                                     const View& dy,
                                     const View& o1,
                                     const View& o2,
                                     const View& d1,
                                     const View& d2,
                                     const View& dlogits,
                                     Executor& executor);

}  // namespace undivided
