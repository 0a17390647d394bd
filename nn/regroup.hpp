// SPDX-License-Identifier: Apache-2.0
// Pieces of float64 tensors along one axis.
#pragma once

#include <string>

#include "undivided/nn/convert.hpp"

namespace undivided::nn {

/// An empty float64 tensor of the same shape but for one axis.
Tensor resized(const View& like, int axis, std::int64_t length);
/// Copies `length` places of an axis; the other axes agree.
void copy_slice(const Tensor& from,
                std::int64_t at,
                const Tensor& to,
                std::int64_t to_at,
                std::int64_t length,
                int axis);
/// "1, 2, 4"
std::string divisors(std::int64_t n);

}  // namespace undivided::nn
