// SPDX-License-Identifier: Apache-2.0
// Small floating-point formats: one rounding routine for all of them, quick paths from float.
#include "core/half.hpp"

#include <bit>
#include <cmath>

#include "undivided/tensor.hpp"

namespace undivided {
namespace {

constexpr std::uint32_t float_infinity = 0x7f800000;

// A format with `mantissa` stored bits whose smallest normal number is 2^min_exponent. `overflow`
// is the pattern of what lies above `largest`, `nan` that of NaN, both without the sign.
struct Format {
  int bits, mantissa, min_exponent;
  std::uint32_t largest, overflow, nan;
};
constexpr Format f16_format{16, 10, -14, 0x7bff, 0x7c00, 0x7e00};
constexpr Format bf16_format{16, 7, -126, 0x7f7f, 0x7f80, 0x7fc0};
constexpr Format e4m3_format{8, 3, -6, 0x7e, 0x7e, 0x7f};
constexpr Format e5m2_format{8, 2, -14, 0x7b, 0x7c, 0x7e};

std::uint32_t encode(const Format& format, double x) {
  const std::uint32_t sign = std::signbit(x) ? 1u << (format.bits - 1) : 0u;
  if (std::isnan(x)) return sign | format.nan;
  const double magnitude = std::fabs(x);
  if (std::isinf(magnitude)) return sign | format.overflow;
  if (magnitude == 0) return sign;
  int exponent = std::ilogb(magnitude);
  if (exponent < format.min_exponent) exponent = format.min_exponent;
  if (exponent > 128) return sign | format.overflow;
  // Scaling by a power of two is exact, so nearbyint is the only rounding. A result that reaches
  // the next power of two carries into the exponent field by itself.
  const double scaled = std::nearbyint(std::scalbn(magnitude, format.mantissa - exponent));
  const std::uint32_t pattern =
      static_cast<std::uint32_t>(scaled) +
      (static_cast<std::uint32_t>(exponent - format.min_exponent) << format.mantissa);
  return sign | (pattern > format.largest ? format.overflow : pattern);
}

}  // namespace

std::uint16_t f16_from_double(double x) {
  return static_cast<std::uint16_t>(encode(f16_format, x));
}
std::uint16_t bf16_from_double(double x) {
  return static_cast<std::uint16_t>(encode(bf16_format, x));
}
std::uint8_t e4m3_from_double(double x) {
  return static_cast<std::uint8_t>(encode(e4m3_format, x));
}
std::uint8_t e5m2_from_double(double x) {
  return static_cast<std::uint8_t>(encode(e5m2_format, x));
}

float float_from_e4m3(std::uint8_t bits) {
  const std::uint32_t sign = (bits & 0x80u) << 24;
  const std::uint32_t exponent = (bits >> 3) & 15u;
  const std::uint32_t mantissa = bits & 7u;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

float float_from_e5m2(std::uint8_t bits) {
  return to_float(Half{static_cast<std::uint16_t>(bits << 8)});
}

float to_float(Half x) {
  const std::uint32_t sign = (x.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (x.bits >> 10) & 31u;
  const std::uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | float_infinity | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

Half to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude > float_infinity) {  // NaN: keep the payload, make it quiet
    result = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    result = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // subnormal: 0.5 has the unit 2^-24 in its last place, so the addition rounds
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    result = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
  }
  return Half{static_cast<std::uint16_t>(sign | result)};
}

BFloat16 to_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > float_infinity)
    return BFloat16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return BFloat16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace undivided
