// SPDX-License-Identifier: Apache-2.0
// Seeded random tensors. The same seed gives the same values on every machine, whatever the strides
// and the element type (apart from its rounding).
#pragma once

#include <cstdint>

#include "undivided/tensor.hpp"

namespace undivided {

/// Normal values with this mean and standard deviation, in row-major order of the shape.
void fill_normal(const View& view, std::uint64_t seed, double mean = 0, double deviation = 1);
/// Uniform in [low, high). For integer types: whole numbers of that range.
void fill_uniform(const View& view, std::uint64_t seed, double low, double high);
/// A dense host tensor of normal values.
Tensor random_normal(DType dtype,
                     std::initializer_list<std::int64_t> shape,
                     std::uint64_t seed,
                     double deviation = 1);

}  // namespace undivided
