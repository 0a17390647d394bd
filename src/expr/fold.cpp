// SPDX-License-Identifier: Apache-2.0
// Operations on constants, where every reading gets the same bits.
#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

Node boolean(bool value) {
  Node n;
  n.op = Op::constant;
  n.type = Type::boolean;
  n.integer = value;
  return n;
}

std::optional<Node> integer(std::int64_t value) {
  if (!fits_int32(value)) return {};
  Node n;
  n.op = Op::constant;
  n.type = Type::i32;
  n.integer = value;
  return n;
}

// Only what is exact: a float64 reading and a float32 kernel must agree.
std::optional<Node> real(double value) {
  if (std::isnan(value) || std::fabs(value) > 3.4028234663852886e38 ||
      static_cast<double>(static_cast<float>(value)) != value)
    return {};
  Node n;
  n.op = Op::constant;
  n.type = Type::f32;
  n.real = value;
  return n;
}

std::optional<Node> on_integers(Op op, std::int64_t x, std::int64_t y) {
  if ((op == Op::floordiv || op == Op::mod) && y == 0) return {};
  if ((op == Op::shl || op == Op::shr) && (y < 0 || y > 31)) return {};
  return integer(integer_result(op, x, y));
}

std::optional<Node> on_reals(Op op, double x, double y) {
  switch (op) {
    case Op::add:
      return real(x + y);
    case Op::sub:
      return real(x - y);
    case Op::mul:
      return real(x * y);
    case Op::div:
      return real(x / y);
    case Op::abs:
      return real(std::fabs(x));
    case Op::neg:
      return real(-x);
    case Op::min:
      return real(x < y ? x : y);
    case Op::max:
      return real(x > y ? x : y);
    default:
      return {};  // tanh, exp, log, sqrt
  }
}

}  // namespace

std::optional<Node> folded_constant(const Node& n, const Node& x, const Node& y) {
  if (is_compare(n.op)) {
    if (x.type == Type::f32) return boolean(compare_result(n.op, x.real, y.real));
    return boolean(
        compare_result(n.op, static_cast<double>(x.integer), static_cast<double>(y.integer)));
  }
  switch (n.op) {
    case Op::logical_and:
      return boolean(x.integer != 0 && y.integer != 0);
    case Op::logical_or:
      return boolean(x.integer != 0 || y.integer != 0);
    case Op::logical_not:
      return boolean(x.integer == 0);
    case Op::trunc:
      return integer(saturating_trunc(x.real));
    case Op::to_float:
      return real(static_cast<double>(x.integer));
    default:
      break;
  }
  return n.type == Type::i32 ? on_integers(n.op, x.integer, y.integer)
                             : on_reals(n.op, x.real, y.real);
}

}  // namespace undivided::expr
