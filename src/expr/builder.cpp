// SPDX-License-Identifier: Apache-2.0
// Appends nodes once each, with type checks and conversions.
#include "expr/builder.hpp"

#include <fmt/format.h>

#include <functional>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

std::size_t hash_of(const Node& n) {
  std::size_t seed = static_cast<std::size_t>(n.op) * 31 + static_cast<std::size_t>(n.type);
  auto mix = [&](std::size_t v) { seed = (seed ^ v) * 0x100000001b3ULL; };
  for (auto o : n.operand) mix(static_cast<std::size_t>(o));
  mix(static_cast<std::size_t>(n.slot));
  mix(static_cast<std::size_t>(n.integer));
  mix(std::hash<double>{}(n.real));
  return seed;
}

[[noreturn]] void wrong_types(Op op, const std::string& wanted, const std::string& got) {
  refuse(Stage::parse, fmt::format("`{}` wants {}, but got {}", symbol_of(op), wanted, got));
}

}  // namespace

std::int32_t Builder::push(Node node) {
  const std::size_t hash = hash_of(node);
  auto [first, last] = seen_.equal_range(hash);
  for (; first != last; ++first)
    if (same_node(program_.nodes[static_cast<std::size_t>(first->second)], node))
      return first->second;
  if (program_.nodes.size() >= limit_)
    refuse(
        Stage::parse,
        fmt::format("the program has more than {} operations; move repeated work into a captured "
                    "array",
                    limit_));
  const auto id = static_cast<std::int32_t>(program_.nodes.size());
  program_.nodes.push_back(node);
  seen_.emplace(hash, id);
  return id;
}

std::int32_t Builder::leaf(Op op) {
  Node n;
  n.op = op;
  n.type = op == Op::score ? Type::f32 : Type::i32;
  return push(n);
}

std::int32_t Builder::constant(bool value) {
  Node n;
  n.op = Op::constant;
  n.type = Type::boolean;
  n.integer = value;
  return push(n);
}

std::int32_t Builder::constant(std::int64_t value) {
  if (!fits_int32(value))
    refuse(Stage::parse,
           fmt::format("the integer {} does not fit int32; allowed are {} to {}, or write a float",
                       value,
                       INT32_MIN,
                       INT32_MAX));
  Node n;
  n.op = Op::constant;
  n.type = Type::i32;
  n.integer = value;
  return push(n);
}

std::int32_t Builder::constant(double value) {
  if (std::isnan(value)) refuse(Stage::parse, "NaN cannot be a constant; use inf or -inf");
  const auto rounded = static_cast<double>(static_cast<float>(value));
  if (std::isinf(rounded) && !std::isinf(value))
    refuse(Stage::parse, fmt::format("the number {} does not fit float32", value));
  Node n;
  n.op = Op::constant;
  n.type = Type::f32;
  n.real = rounded;
  return push(n);
}

std::int32_t Builder::load(std::int32_t slot, const std::vector<std::int32_t>& index) {
  const Slot& s = program_.slots[static_cast<std::size_t>(slot)];
  if (static_cast<int>(index.size()) != s.rank)
    refuse(Stage::parse,
           fmt::format("array \"{}\" has {} {}, but is indexed by {}",
                       s.name,
                       s.rank,
                       s.rank == 1 ? "axis" : "axes",
                       index.size()));
  Node n;
  n.op = Op::load;
  n.type = type_of(s.dtype);
  n.slot = slot;
  for (std::size_t i = 0; i < index.size(); ++i) {
    if (type(index[i]) != Type::i32)
      refuse(Stage::parse,
             fmt::format("index {} of array \"{}\" must be i32, but is {}{}",
                         i,
                         s.name,
                         type_name(type(index[i])),
                         type(index[i]) == Type::f32 ? "; write trunc(...)" : ""));
    n.operand[i] = index[i];
  }
  return push(n);
}

std::int32_t Builder::to_float(std::int32_t a) {
  if (type(a) == Type::f32) return a;
  if (type(a) == Type::boolean) wrong_types(Op::to_float, "a number (write c ? 1.0 : 0.0)", "bool");
  const Node& value = program_.nodes[static_cast<std::size_t>(a)];
  if (value.op == Op::constant &&
      static_cast<double>(static_cast<float>(value.integer)) == static_cast<double>(value.integer))
    return constant(static_cast<double>(value.integer));
  return node(Op::to_float, Type::f32, a);
}

std::int32_t Builder::node(Op op, Type result, std::int32_t a, std::int32_t b, std::int32_t c) {
  Node n;
  n.op = op;
  n.type = result;
  n.operand = {a, b, c, -1};
  return push(n);
}

std::int32_t Builder::apply(Op op, std::int32_t a, std::int32_t b, std::int32_t c) {
  const Type ta = type(a);
  const Type tb = b >= 0 ? type(b) : ta;
  auto got = [&] {
    return b >= 0 ? fmt::format("{} and {}", type_name(ta), type_name(tb))
                  : std::string(type_name(ta));
  };
  const bool booleans = ta == Type::boolean && tb == Type::boolean;
  const bool any_boolean = ta == Type::boolean || tb == Type::boolean;
  const bool integers = ta == Type::i32 && tb == Type::i32;
  switch (op) {
    case Op::div:
    case Op::add:
    case Op::sub:
    case Op::mul:
    case Op::min:
    case Op::max:
      if (any_boolean) wrong_types(op, "numbers (a bool converts by c ? 1 : 0)", got());
      if (integers) return node(op == Op::div ? Op::floordiv : op, Type::i32, a, b);
      a = to_float(a);
      return node(op, Type::f32, a, to_float(b));
    case Op::abs:
    case Op::neg:
      if (any_boolean) wrong_types(op, "a number", got());
      return node(op, ta, a);
    case Op::bit_and:
    case Op::bit_or:
    case Op::bit_xor:
      if (booleans)  // the same thing on conditions
        return node(op == Op::bit_and  ? Op::logical_and
                    : op == Op::bit_or ? Op::logical_or
                                       : Op::ne,
                    Type::boolean,
                    a,
                    b);
      [[fallthrough]];
    case Op::floordiv:
    case Op::mod:
    case Op::shl:
    case Op::shr:
      if (!integers) wrong_types(op, "two i32", got());
      return node(op, Type::i32, a, b);
    case Op::eq:
    case Op::ne:
      if (booleans) return node(op, Type::boolean, a, b);
      [[fallthrough]];
    case Op::lt:
    case Op::le:
    case Op::gt:
    case Op::ge:
      if (any_boolean)
        wrong_types(
            op, op == Op::eq || op == Op::ne ? "two numbers or two bools" : "two numbers", got());
      if (integers) return node(op, Type::boolean, a, b);
      a = to_float(a);
      return node(op, Type::boolean, a, to_float(b));
    case Op::logical_and:
    case Op::logical_or:
      if (!booleans) wrong_types(op, "two bools (compare a number with something)", got());
      return node(op, Type::boolean, a, b);
    case Op::logical_not:
      if (!booleans) wrong_types(op, "a bool (compare a number with something)", got());
      return node(op, Type::boolean, a);
    case Op::select: {
      if (ta != Type::boolean) wrong_types(op, "a bool before the question mark", type_name(ta));
      const Type tc = type(c);
      if (tb == tc) return node(op, tb, a, b, c);
      if (tb == Type::boolean || tc == Type::boolean)
        wrong_types(op,
                    "two numbers or two bools to choose from",
                    fmt::format("{} and {}", type_name(tb), type_name(tc)));
      b = to_float(b);
      return node(op, Type::f32, a, b, to_float(c));
    }
    case Op::tanh:
    case Op::exp:
    case Op::log:
    case Op::sqrt:
      if (any_boolean) wrong_types(op, "a number", got());
      return node(op, Type::f32, to_float(a));
    case Op::to_float:
      return to_float(a);
    case Op::trunc:
      if (any_boolean) wrong_types(op, "a number", got());
      return ta == Type::i32 ? a : node(op, Type::i32, a);
    default:
      break;
  }
  refuse(Stage::parse, fmt::format("`{}` is not an operation on values", name_of(op)));
}

}  // namespace undivided::expr
