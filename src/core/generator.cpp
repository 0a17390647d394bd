// SPDX-License-Identifier: Apache-2.0
// Seeded random tensors: Philox words, then Box and Muller (1958). Logarithm, sine and cosine are
// written out with + - * / only, because those of C libraries differ in their last bits; this file
// is compiled without fused multiply-add for the same reason.
#include "core/generator.hpp"

#include <fmt/format.h>

#include <cmath>
#include <numbers>

#include "core/philox.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

constexpr double unit = 0x1p-32;  // one word, as a fraction

// ln(x) for x in (0, 1]: mantissa near 1, then the series of 2 artanh(z).
double natural_log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < std::numbers::sqrt2 / 2) {
    m *= 2;
    --exponent;
  }
  const double z = (m - 1) / (m + 1), zz = z * z;
  double sum = 0;
  for (int i = 23; i >= 1; i -= 2) sum = sum * zz + 1.0 / i;
  return 2 * z * sum + exponent * std::numbers::ln2;
}

// sin and cos of 2 pi * turn for turn in [0, 1), by Taylor series on an eighth of a turn each way.
void sine_cosine(double turn, double& sine, double& cosine) {
  const double quarter = std::floor(turn * 4 + 0.5);
  const double x = (turn - quarter / 4) * (2 * std::numbers::pi), xx = x * x;
  double s = 1, c = 1;
  for (int i = 18; i >= 2; i -= 2) {
    s = 1 - s * xx / (i * (i + 1));
    c = 1 - c * xx / (i * (i - 1));
  }
  s *= x;
  switch (static_cast<int>(quarter) & 3) {
    case 0:
      sine = s, cosine = c;
      break;
    case 1:
      sine = c, cosine = -s;
      break;
    case 2:
      sine = -s, cosine = -c;
      break;
    default:
      sine = -c, cosine = s;
  }
}

philox::Counter words(std::uint64_t seed, std::int64_t block, std::uint32_t purpose) {
  return philox::random4(
      {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), purpose, 0},
      philox::key_of(seed));
}

// Calls next(i) once for each element in row-major order and stores what it returns.
template <class Next>
void fill(const View& view, const Next& next) {
  if (view.device.kind != Device::Kind::cpu)
    throw Error(
        Code::unsupported,
        Stage::resolve,
        fmt::format("random values are made in host memory, not on {}", to_string(view.device)));
  View v = view;
  while (v.rank < max_rank) v = v.unsqueezed(0);
  std::int64_t i = 0;
  for (std::int64_t a = 0; a < v.shape[0]; ++a)
    for (std::int64_t b = 0; b < v.shape[1]; ++b)
      for (std::int64_t c = 0; c < v.shape[2]; ++c)
        for (std::int64_t d = 0; d < v.shape[3]; ++d)
          store_element(v.dtype, v.at({a, b, c, d}), next(i++));
}

bool whole_numbers(DType dtype) {
  return dtype == DType::i8 || dtype == DType::i32 || dtype == DType::i64 ||
         dtype == DType::boolean;
}

}  // namespace

void fill_normal(const View& view, std::uint64_t seed, double mean, double deviation) {
  double four[4] = {};
  fill(view, [&](std::int64_t i) {
    if (i % 4 == 0) {
      const philox::Counter w = words(seed, i / 4, 1);
      for (std::size_t pair = 0; pair < 2; ++pair) {
        const double radius = std::sqrt(-2 * natural_log((w[2 * pair] + 1.0) * unit));
        double sine, cosine;
        sine_cosine(w[2 * pair + 1] * unit, sine, cosine);
        four[2 * pair] = radius * cosine;
        four[2 * pair + 1] = radius * sine;
      }
    }
    return mean + deviation * four[i % 4];
  });
}

void fill_uniform(const View& view, std::uint64_t seed, double low, double high) {
  philox::Counter w{};
  const bool whole = whole_numbers(view.dtype);
  fill(view, [&](std::int64_t i) {
    if (i % 4 == 0) w = words(seed, i / 4, 2);
    const double value = low + (high - low) * (w[static_cast<std::size_t>(i % 4)] * unit);
    return whole ? std::floor(value) : value;
  });
}

Tensor random_normal(DType dtype,
                     std::initializer_list<std::int64_t> shape,
                     std::uint64_t seed,
                     double deviation) {
  Tensor t = Tensor::empty(dtype, shape);
  fill_normal(t, seed, 0, deviation);
  return t;
}

}  // namespace undivided
