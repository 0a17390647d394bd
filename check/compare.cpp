// SPDX-License-Identifier: Apache-2.0
// Compares one tensor with the oracle.
#include "check/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace undivided::check {
namespace {

struct Distance {
  double max_abs = 0, relative_l1 = 0;
};

double largest(const std::vector<double>& values) {
  double most = 0;
  for (const double x : values)
    if (std::isfinite(x)) most = std::max(most, std::fabs(x));
  return most;
}

/// Over elements where both are finite.
Distance distance(const std::vector<double>& x, const std::vector<double>& oracle) {
  Distance out;
  double sum = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i]) || !std::isfinite(oracle[i])) continue;
    const double error = std::fabs(x[i] - oracle[i]);
    out.max_abs = std::max(out.max_abs, error);
    sum += error;
    size += std::fabs(oracle[i]);
  }
  out.relative_l1 = size > 0 ? sum / size : sum > 0 ? INFINITY : 0;
  return out;
}

void gain_and_bias(const std::vector<double>& x, const std::vector<double>& oracle, Comparison& c) {
  double xo = 0, oo = 0, error = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i]) || !std::isfinite(oracle[i])) continue;
    xo += x[i] * oracle[i];
    oo += oracle[i] * oracle[i];
    error += x[i] - oracle[i];
    size += std::fabs(oracle[i]);
  }
  c.gain = oo > 0 ? xo / oo : 1;
  c.bias = size > 0 ? error / size : 0;
}

/// Index of the first element whose NaN or Inf is not that of the oracle, or -1.
std::ptrdiff_t pattern_break(const std::vector<double>& x, const std::vector<double>& oracle) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    const bool same = std::isnan(x[i]) == std::isnan(oracle[i]) &&
                      std::isinf(x[i]) == std::isinf(oracle[i]) &&
                      (!std::isinf(x[i]) || x[i] == oracle[i]);
    if (!same) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

}  // namespace

double relative_l1(const Reading& result, const Reading& oracle) {
  return distance(result.values, oracle.values).relative_l1;
}

double ulp(DType dtype, double x) {
  const int digits = dtype == DType::bf16  ? 7
                     : dtype == DType::f16 ? 10
                     : dtype == DType::f64 ? 52
                                           : 23;
  const double smallest = dtype == DType::f16 ? 0x1p-24 : 0x1p-133;
  if (!(x > 0) || !std::isfinite(x)) return smallest;
  return std::max(smallest, std::ldexp(1.0, std::ilogb(x) - digits));
}

Comparison compare(const Reading& result,
                   const Reading& oracle,
                   const std::vector<Reading>& twins,
                   const Gate& gate) {
  Comparison c;
  c.tensor = result.name;
  const auto fail = [&](std::string why) {
    c.passed = false;
    c.reason = std::move(why);
    return c;
  };
  if (result.values.size() != oracle.values.size())
    return fail(fmt::format(
        "{} has {} elements, the oracle {}", c.tensor, result.values.size(), oracle.values.size()));
  if (const auto i = pattern_break(result.values, oracle.values); i >= 0) {
    const auto at = static_cast<std::size_t>(i);
    c.max_abs = INFINITY;
    return fail(fmt::format("{}: element {} is {}, the oracle says {}",
                            c.tensor,
                            i,
                            result.values[at],
                            oracle.values[at]));
  }
  const Distance d = distance(result.values, oracle.values);
  gain_and_bias(result.values, oracle.values, c);
  c.max_abs = d.max_abs;
  c.relative_l1 = d.relative_l1;

  Distance twin;
  double floor = std::numeric_limits<float>::min();  // no result holds less in full
  for (const Reading& t : twins) {
    if (t.values.size() != oracle.values.size()) continue;
    const Distance one = distance(t.values, oracle.values);
    twin.max_abs = std::max(twin.max_abs, one.max_abs);
    twin.relative_l1 = std::max(twin.relative_l1, one.relative_l1);
    floor = std::max(floor, t.floor);
  }
  const double most = largest(oracle.values);
  const bool sixteen = is_float16(gate.inputs);
  const double factor = gate.gradient || gate.softcap ? 3 : 2;

  if (c.tensor == "lse" || c.tensor == "max_logit") {
    // Element by element; reported is the element nearest to (or farthest beyond) its limit.
    double worst = -1;
    for (std::size_t i = 0; i < oracle.values.size(); ++i) {
      if (!std::isfinite(oracle.values[i])) continue;
      const double error = std::fabs(result.values[i] - oracle.values[i]);
      double limit = 1e-5 + 1e-6 * std::fabs(oracle.values[i]);
      if (sixteen) limit = std::max(limit, factor * twin.max_abs);
      if (gate.rough) limit = std::max(limit, 1e-4 * std::max(1.0, std::fabs(oracle.values[i])));
      if (error / limit > worst) {
        worst = error / limit;
        c.max_abs = error;
        c.limit = limit;
      }
    }
    c.relative_l1_limit = INFINITY;
    if (worst > 1)
      return fail(
          fmt::format("{}: error {:.3g} over the limit {:.3g}", c.tensor, c.max_abs, c.limit));
    return c;
  }
  // Sums of float32 weights: no rounding to 16 bits takes part.
  const bool statistic = c.tensor == "key_mass";
  if (sixteen && !statistic) {
    c.limit = factor * twin.max_abs + ulp(result.dtype, most);
    // Rounding the result correctly costs a quarter ulp on average; half of that is slack.
    c.relative_l1_limit = factor * twin.relative_l1 + ulp(result.dtype, 1) / 8;
  } else {
    c.limit = (gate.gradient ? 3e-5 : gate.rough ? 1e-4 : 1e-5) * most;
    c.relative_l1_limit = INFINITY;
  }
  if (c.limit < floor) {  // the oracle is near zero by cancellation: judge by what cancelled
    c.limit = floor;
    c.relative_l1_limit = INFINITY;
    c.gain = 1;
    c.bias = 0;
  }
  if (c.max_abs > c.limit)
    return fail(
        fmt::format("{}: error {:.3g} over the limit {:.3g} (max|oracle| {:.3g}, twin {:.3g})",
                    c.tensor,
                    c.max_abs,
                    c.limit,
                    most,
                    twin.max_abs));
  if (c.relative_l1 > c.relative_l1_limit)
    return fail(fmt::format("{}: relative L1 {:.3g} over the limit {:.3g}",
                            c.tensor,
                            c.relative_l1,
                            c.relative_l1_limit));
  return c;
}

}  // namespace undivided::check
