// SPDX-License-Identifier: Apache-2.0
// Sets of int32 under each operation of the language.
#include <algorithm>
#include <bit>
#include <initializer_list>

#include "expr/internal.hpp"
#include "mask/abstract.hpp"

namespace undivided::masks {
namespace {

using expr::Op;
using Wide = std::int64_t;

std::uint32_t bits(Wide x) { return static_cast<std::uint32_t>(x); }
std::int32_t as_signed(std::uint32_t x) { return static_cast<std::int32_t>(x); }
constexpr std::uint32_t sign = 0x80000000u;

// Lets the interval and the bits tell each other what they know.
Value refined(Wide low, Wide high, std::uint32_t ones, std::uint32_t unknown) {
  const std::uint32_t least = unknown & sign ? ones | sign : ones;
  const std::uint32_t most = unknown & sign ? (ones | unknown) & ~sign : ones | unknown;
  low = std::max<Wide>(low, as_signed(least));
  high = std::min<Wide>(high, as_signed(most));
  const std::uint32_t differ = bits(low) ^ bits(high);
  const std::uint32_t below = differ == 0 ? 0 : (~std::uint32_t{0} >> std::countl_zero(differ));
  // Numbers of one sign share the leading bits of both ends.
  if ((low < 0) == (high < 0)) {
    ones = (ones & ~unknown) | (bits(low) & unknown & ~below);
    unknown &= below;
  }
  return {
      static_cast<std::int32_t>(low), static_cast<std::int32_t>(high), ones & ~unknown, unknown};
}

Value with_bits(Wide low, Wide high, std::uint32_t ones, std::uint32_t unknown) {
  if (!expr::fits_int32(low) || !expr::fits_int32(high)) low = INT32_MIN, high = INT32_MAX;
  return refined(low, high, ones & ~unknown, unknown);
}

Value condition(bool may_fail, bool may_hold) {
  const std::uint32_t unknown = may_fail && may_hold;
  const std::uint32_t one = !may_fail;
  return {static_cast<std::int32_t>(one), static_cast<std::int32_t>(may_hold), one, unknown};
}

Value hull(std::initializer_list<Wide> x) { return Value::between(std::min(x), std::max(x)); }

Value united(const Value& a, const Value& b) {
  const std::uint32_t unknown = a.unknown | b.unknown | (a.ones ^ b.ones);
  return refined(std::min(a.low, b.low), std::max(a.high, b.high), a.ones & ~unknown, unknown);
}

// How many of the lowest bits both operands know.
std::uint32_t known_low_bits(const Value& a, const Value& b) {
  const std::uint32_t unknown = a.unknown | b.unknown;
  return unknown == 0 ? ~std::uint32_t{0} : (unknown & (0u - unknown)) - 1;
}

Value divided(const Value& a, const Value& b) {
  if (b.low <= 0 && b.high >= 0) {
    if (b.single()) return Value::point(0);
    const Wide far = std::max(std::abs(Wide{a.low}), std::abs(Wide{a.high}));
    return Value::between(-far - (a.low < 0 || a.high > 0), far);
  }
  if (b.single() && b.low > 0 && std::has_single_bit(bits(b.low)))
    return apply(Op::shr, a, Value::point(std::countr_zero(bits(b.low))), a, false);
  return hull({expr::floor_div(a.low, b.low),
               expr::floor_div(a.low, b.high),
               expr::floor_div(a.high, b.low),
               expr::floor_div(a.high, b.high)});
}

Value modulus(const Value& a, const Value& b) {
  if (b.single() && b.low > 0) {
    const Wide c = b.low;
    if (std::has_single_bit(bits(c))) {
      Value r = apply(Op::bit_and, a, Value::point(c - 1), a, false);
      if (expr::floor_div(a.low, c) == expr::floor_div(a.high, c))
        r = refined(std::max<Wide>(r.low, expr::floor_mod(a.low, c)),
                    std::min<Wide>(r.high, expr::floor_mod(a.high, c)),
                    r.ones,
                    r.unknown);
      return r;
    }
    if (expr::floor_div(a.low, c) == expr::floor_div(a.high, c))
      return Value::between(expr::floor_mod(a.low, c), expr::floor_mod(a.high, c));
    return Value::between(0, c - 1);
  }
  if (a.low >= 0 && a.high < b.low) return a;
  return Value::between(std::min<Wide>(Wide{b.low} + 1, 0), std::max<Wide>(Wide{b.high} - 1, 0));
}

Value shifted(Op op, const Value& a, const Value& b) {
  if (!b.single()) {
    if (b.low < 0 || b.high > 31) return Value::any();
    if (op == Op::shl)
      return hull({Wide{a.low} << b.low,
                   Wide{a.low} << b.high,
                   Wide{a.high} << b.low,
                   Wide{a.high} << b.high});
    return hull({a.low >> b.low, a.low >> b.high, a.high >> b.low, a.high >> b.high});
  }
  const int n = b.low & 31;
  if (op == Op::shl)
    return with_bits(Wide{a.low} << n, Wide{a.high} << n, a.ones << n, a.unknown << n);
  return with_bits(
      a.low >> n, a.high >> n, bits(as_signed(a.ones) >> n), bits(as_signed(a.unknown) >> n));
}

Value bitwise(Op op, const Value& a, const Value& b) {
  const std::uint32_t zeros_a = ~(a.ones | a.unknown), zeros_b = ~(b.ones | b.unknown);
  std::uint32_t ones = 0, unknown = 0;
  Wide low = INT32_MIN, high = INT32_MAX;
  if (op == Op::bit_and) {
    ones = a.ones & b.ones;
    unknown = ~(ones | zeros_a | zeros_b);
    if (a.low >= 0) low = 0, high = a.high;
    if (b.low >= 0) low = 0, high = std::min<Wide>(high, b.high);
  } else if (op == Op::bit_or) {
    ones = a.ones | b.ones;
    unknown = ~(ones | (zeros_a & zeros_b));
    // Setting bits never lowers a number of the same sign.
    if (a.low >= 0 && b.low >= 0) low = std::max(a.low, b.low);
  } else {
    unknown = a.unknown | b.unknown;
    ones = (a.ones ^ b.ones) & ~unknown;
  }
  return refined(low, high, ones, unknown);
}

Value compared(Op op, const Value& a, const Value& b, bool same) {
  if (same) {
    const bool holds = op == Op::le || op == Op::ge || op == Op::eq;
    return condition(!holds, holds);
  }
  switch (op) {
    case Op::lt:
      return condition(a.high >= b.low, a.low < b.high);
    case Op::le:
      return condition(a.high > b.low, a.low <= b.high);
    case Op::gt:
      return condition(a.low <= b.high, a.high > b.low);
    case Op::ge:
      return condition(a.low < b.high, a.high >= b.low);
    default:
      break;
  }
  const bool apart =
      a.high < b.low || b.high < a.low || ((a.ones ^ b.ones) & ~(a.unknown | b.unknown)) != 0;
  const bool equal = a.single() && b.single() && a.low == b.low;
  return op == Op::eq ? condition(!equal, !apart) : condition(!apart, !equal);
}

}  // namespace

Value Value::any() { return {INT32_MIN, INT32_MAX, 0, ~std::uint32_t{0}}; }
Value Value::point(std::int64_t x) { return {as_signed(bits(x)), as_signed(bits(x)), bits(x), 0}; }
Value Value::between(std::int64_t low, std::int64_t high) {
  if (low > high || !expr::fits_int32(low) || !expr::fits_int32(high)) return any();
  return refined(low, high, 0, ~std::uint32_t{0});
}

Value apply(Op op, const Value& a, const Value& b, const Value& c, bool same) {
  switch (op) {
    case Op::add:
    case Op::sub: {
      if (op == Op::sub && same) return Value::point(0);
      const bool add = op == Op::add;
      const Wide low = add ? Wide{a.low} + b.low : Wide{a.low} - b.high;
      const Wide high = add ? Wide{a.high} + b.high : Wide{a.high} - b.low;
      const std::uint32_t known = known_low_bits(a, b);
      return with_bits(low, high, (add ? a.ones + b.ones : a.ones - b.ones) & known, ~known);
    }
    case Op::mul: {
      const Wide w = Wide{a.low} * b.low, x = Wide{a.low} * b.high, y = Wide{a.high} * b.low,
                 z = Wide{a.high} * b.high;
      const std::uint32_t known = known_low_bits(a, b);
      return with_bits(
          std::min({w, x, y, z}), std::max({w, x, y, z}), (a.ones * b.ones) & known, ~known);
    }
    case Op::neg:
      return Value::between(-Wide{a.high}, -Wide{a.low});
    case Op::abs: {
      const Wide x = std::abs(Wide{a.low}), y = std::abs(Wide{a.high});
      return Value::between(a.low <= 0 && a.high >= 0 ? 0 : std::min(x, y), std::max(x, y));
    }
    case Op::min:
      return a.high <= b.low   ? a
             : b.high <= a.low ? b
                               : Value::between(std::min(a.low, b.low), std::min(a.high, b.high));
    case Op::max:
      return a.low >= b.high   ? a
             : b.low >= a.high ? b
                               : Value::between(std::max(a.low, b.low), std::max(a.high, b.high));
    case Op::floordiv:
      return divided(a, b);
    case Op::mod:
      return modulus(a, b);
    case Op::shl:
    case Op::shr:
      return shifted(op, a, b);
    case Op::bit_and:
    case Op::bit_or:
    case Op::bit_xor:
      return bitwise(op, a, b);
    case Op::lt:
    case Op::le:
    case Op::gt:
    case Op::ge:
    case Op::eq:
    case Op::ne:
      return compared(op, a, b, same);
    case Op::logical_and:
      return condition(!(a.low && b.low), a.high && b.high);
    case Op::logical_or:
      return condition(!(a.low || b.low), a.high || b.high);
    case Op::logical_not:
      return condition(a.high, !a.low);
    case Op::select:
      return a.single() ? (a.low ? b : c) : united(b, c);
    default:
      return Value::any();  // trunc, and whatever reads floats
  }
}

}  // namespace undivided::masks
