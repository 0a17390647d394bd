// SPDX-License-Identifier: Apache-2.0
// Pictures of training: the loss over steps, and which source tokens an answer looked at.
#pragma once

#include <string>
#include <vector>

#include "undivided/tensor.hpp"

namespace undivided::cli {

/// PNG bytes of the loss over steps: each step, and their running mean. Logarithmic in the loss.
std::string loss_curve(const std::vector<float>& losses, const std::string& title);
/// PNG bytes of weights [answer, source]: rows are the answer's letters, darker is more.
std::string attention_map(const Tensor& weights,
                          const std::string& source,
                          const std::string& answer);

}  // namespace undivided::cli
