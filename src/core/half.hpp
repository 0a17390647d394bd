// SPDX-License-Identifier: Apache-2.0
// Small floating-point formats as bits: f16, bf16, e4m3, e5m2. Rounding is to nearest even, once,
// also from double. NaN stays NaN.
#pragma once

#include <cstdint>

namespace undivided {

std::uint16_t f16_from_double(double x);
std::uint16_t bf16_from_double(double x);
/// e4m3 has no infinity: what is too large becomes +-448.
std::uint8_t e4m3_from_double(double x);
/// e5m2 is a short f16: what is too large becomes infinity.
std::uint8_t e5m2_from_double(double x);
float float_from_e4m3(std::uint8_t bits);
float float_from_e5m2(std::uint8_t bits);

}  // namespace undivided
