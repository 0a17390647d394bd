// SPDX-License-Identifier: Apache-2.0
// Sets of floats under each operation of the language.
#include <algorithm>
#include <initializer_list>

#include "mask/abstract.hpp"

namespace undivided::masks {
namespace {

using expr::Op;

Real real_hull(std::initializer_list<double> x) { return {std::min(x), std::max(x), false}; }

// Library functions are off by a few units in the last place at most.
Real widened(double low, double high) {
  low = std::min(low, std::numeric_limits<double>::max());
  const double infinity = std::numeric_limits<double>::infinity();
  const auto slack = [](double x) { return 1e-13 * std::fabs(x) + 1e-300; };
  return {low - slack(low), high < infinity ? high + slack(high) : high, false};
}

}  // namespace

Real apply(Op op, const Real& a, const Real& b) {
  if (!a.finite()) return {};
  switch (op) {
    case Op::neg:
      return {-a.high, -a.low, false};
    case Op::abs:
      return a.low >= 0 ? a : Real{std::max(0.0, -a.high), std::max(-a.low, a.high), false};
    case Op::sqrt:
      return a.low >= 0 ? real_hull({std::sqrt(a.low), std::sqrt(a.high)}) : Real{};
    case Op::exp:
      return widened(std::exp(a.low), std::exp(a.high));
    case Op::log:
      return a.low > 0 ? widened(std::log(a.low), std::log(a.high)) : Real{};
    case Op::tanh:
      return widened(std::tanh(a.low), std::tanh(a.high));
    default:
      break;
  }
  if (!b.finite()) return {};
  switch (op) {
    case Op::add:
      return {a.low + b.low, a.high + b.high, false};
    case Op::sub:
      return {a.low - b.high, a.high - b.low, false};
    case Op::mul:
      return real_hull({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
    case Op::div:
      if (b.low <= 0 && b.high >= 0) return {};
      return real_hull({a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
    case Op::min:
      return {std::min(a.low, b.low), std::min(a.high, b.high), false};
    case Op::max:
      return {std::max(a.low, b.low), std::max(a.high, b.high), false};
    default:
      return {};
  }
}

Value compared(Op op, const Real& x, const Real& y) {
  // The scalar reading compares floats as float32; rounding is monotonic.
  const auto rounded = [](const Real& r) {
    return Real{static_cast<double>(static_cast<float>(r.low)),
                static_cast<double>(static_cast<float>(r.high)),
                r.nan};
  };
  const Real a = rounded(x), b = rounded(y);
  const auto verdict = [](bool may_fail, bool may_hold) {
    const std::int32_t low = !may_fail, high = may_hold;
    return Value{low, high, static_cast<std::uint32_t>(low), low != high};
  };
  if (a.nan || b.nan) return verdict(true, true);
  const bool overlap = a.low <= b.high && b.low <= a.high;
  const bool equal = a.low == a.high && b.low == b.high && a.low == b.low;
  switch (op) {
    case Op::lt:
      return verdict(a.high >= b.low, a.low < b.high);
    case Op::le:
      return verdict(a.high > b.low, a.low <= b.high);
    case Op::gt:
      return verdict(a.low <= b.high, a.high > b.low);
    case Op::ge:
      return verdict(a.low < b.high, a.high >= b.low);
    case Op::eq:
      return verdict(!equal, overlap);
    default:
      return verdict(overlap, !equal);
  }
}

}  // namespace undivided::masks
