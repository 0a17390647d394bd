// SPDX-License-Identifier: Apache-2.0
// CUDA text: one statement a node, named v<node>, and out<i> for each root.
#include <fmt/format.h>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

const char* cuda_type(Type type) {
  switch (type) {
    case Type::boolean:
      return "bool";
    case Type::i32:
      return "int";
    case Type::f32:
      return "float";
  }
  return "";
}

std::string real_literal(double value) {
  if (std::isinf(value))
    return value < 0 ? "__int_as_float(0xff800000)" : "__int_as_float(0x7f800000)";
  std::string text = fmt::format("{:.9g}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text + "f";
}

std::string integer_literal(std::int64_t value) {
  return value == INT32_MIN ? "(-2147483647 - 1)" : std::to_string(value);
}

// 1 for k - q, -1 for q - k: the kernels know both as floats.
int distance_sign(const Program& p, std::int32_t node) {
  const Node& n = p.nodes[static_cast<std::size_t>(node)];
  if (n.op != Op::sub) return 0;
  const Op a = p.nodes[static_cast<std::size_t>(n.operand[0])].op;
  const Op b = p.nodes[static_cast<std::size_t>(n.operand[1])].op;
  return a == Op::k && b == Op::q ? 1 : a == Op::q && b == Op::k ? -1 : 0;
}

std::string value_of(const Program& p, const Node& n, bool fast) {
  auto v = [&](std::size_t i) { return fmt::format("v{}", n.operand[i]); };
  const bool real = n.type == Type::f32;
  switch (n.op) {
    case Op::constant:
      if (n.type == Type::boolean) return n.integer ? "true" : "false";
      return real ? real_literal(n.real) : integer_literal(n.integer);
    case Op::param:
      return fmt::format("env.p{}", n.slot);
    case Op::load: {
      const char* suffix = real ? "f32" : n.type == Type::i32 ? "i32" : "b";
      std::string text = fmt::format("load_{}(env.a{}", suffix, n.slot);
      const int rank = p.slots[static_cast<std::size_t>(n.slot)].rank;
      for (int i = 0; i < rank; ++i) text += ", " + v(static_cast<std::size_t>(i));
      return text + ")";
    }
    case Op::floordiv:
      return fmt::format("floor_div({}, {})", v(0), v(1));
    case Op::mod:
      return fmt::format("floor_mod({}, {})", v(0), v(1));
    case Op::abs:
      return real ? fmt::format("fabsf({})", v(0)) : fmt::format("({0} < 0 ? -{0} : {0})", v(0));
    case Op::min:
      return fmt::format("({0} < {1} ? {0} : {1})", v(0), v(1));
    case Op::max:
      return fmt::format("({0} > {1} ? {0} : {1})", v(0), v(1));
    case Op::neg:
      return "-" + v(0);
    case Op::shl:  // unsigned: a signed overflow would be undefined
      return fmt::format("(int)((unsigned)({}) << ({} & 31))", v(0), v(1));
    case Op::shr:
      return fmt::format("({} >> ({} & 31))", v(0), v(1));
    case Op::logical_not:
      return "!" + v(0);
    case Op::select:
      return fmt::format("({} ? {} : {})", v(0), v(1), v(2));
    case Op::tanh:
      return fmt::format("{}({})", fast ? "tanh_fast<Config::Element>" : "tanhf", v(0));
    case Op::exp:
      return fmt::format("expf({})", v(0));
    case Op::log:
      return fmt::format("logf({})", v(0));
    case Op::sqrt:
      return fmt::format("sqrtf({})", v(0));
    case Op::to_float:
      if (const int sign = fast ? distance_sign(p, n.operand[0]) : 0)
        return sign > 0 ? "distance" : "-distance";
      return fmt::format("(float)({})", v(0));
    case Op::trunc:
      return fmt::format("__float2int_rz({})", v(0));  // saturates; NaN gives 0
    case Op::div:  // by what is the same for all pairs: once the inverse
      if (fast && real) {
        const Op by = p.nodes[static_cast<std::size_t>(n.operand[1])].op;
        if (by == Op::constant || by == Op::param)
          return fmt::format("{} * (1.0f / {})", v(0), v(1));
        return fmt::format("__fdividef({}, {})", v(0), v(1));
      }
      break;
    default:
      break;
  }
  if (arity(n.op) == 0) return std::string(symbol_of(n.op));
  return fmt::format("{} {} {}", v(0), symbol_of(n.op), v(1));
}

}  // namespace

std::string print_cuda(const Program& p, bool fast) {
  std::string text;
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const Node& n = p.nodes[i];
    text += fmt::format("const {} v{} = {};\n", cuda_type(n.type), i, value_of(p, n, fast));
  }
  for (std::size_t i = 0; i < p.roots.size(); ++i)
    text += fmt::format("out{} = v{};\n", i, p.roots[i]);
  return text;
}

}  // namespace undivided::expr
