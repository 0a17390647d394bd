// SPDX-License-Identifier: Apache-2.0
// Literals become parameters, so that a new value needs no new code.
#include <fmt/format.h>

#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

// These change the code that a compiler makes, so they stay in it.
bool stays_literal(Op user, int operand) {
  return operand == 1 &&
         (user == Op::floordiv || user == Op::mod || user == Op::shl || user == Op::shr);
}

}  // namespace

Program lift(const Program& program) {
  Program p = program;
  for (Node& n : p.nodes) {  // a parsed text may say what it likes
    if (n.op != Op::param || n.type != Type::f32) continue;
    const ParamDecl& d = p.params[static_cast<std::size_t>(n.slot)];
    if (!d.lifted || (d.value > 0 && std::isfinite(d.value))) continue;
    n = Node{};
    n.op = Op::constant;
    n.type = Type::f32;
    n.real = d.value;
  }
  bool negated = false;
  Builder out;
  out.program().slots = p.slots;
  out.program().params = p.params;
  int next = 0;
  for (const ParamDecl& d : p.params) next += d.lifted;
  auto lifted = [&](const Node& literal) {
    const double value =
        literal.type == Type::f32 ? literal.real : static_cast<double>(literal.integer);
    const bool negate = literal.type == Type::f32 && value < 0;
    Node n;
    n.op = Op::param;
    n.type = literal.type;
    n.slot = static_cast<std::int32_t>(out.program().params.size());
    out.program().params.push_back(
        {fmt::format("_c{}", next++), literal.type, negate ? -value : value, true});
    const std::int32_t made = out.append(n);
    if (!negate) return made;
    negated = true;
    Node minus;
    minus.op = Op::neg;
    minus.type = Type::f32;
    minus.operand[0] = made;
    return out.append(minus);
  };
  auto liftable = [&](std::int32_t id) {
    const Node& n = p.nodes[static_cast<std::size_t>(id)];
    if (n.op != Op::constant || n.type == Type::boolean) return false;
    return n.type == Type::i32 || (n.real != 0 && std::isfinite(n.real));
  };
  // Every use gets a parameter of its own: equal values must not change the structure.
  std::vector<std::int32_t> place(p.nodes.size(), -1);
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    Node n = p.nodes[i];
    for (int j = 0; j < 4; ++j) {
      auto& o = n.operand[static_cast<std::size_t>(j)];
      if (o < 0) continue;
      o = liftable(o) && !stays_literal(n.op, j) ? lifted(p.nodes[static_cast<std::size_t>(o)])
                                                 : place[static_cast<std::size_t>(o)];
    }
    place[i] = out.append(n);
  }
  for (auto r : p.roots)
    out.program().roots.push_back(liftable(r) ? lifted(p.nodes[static_cast<std::size_t>(r)])
                                              : place[static_cast<std::size_t>(r)]);
  Program made = compact(out.program());
  if (negated) made = simplify(made);  // x + -c is x - c
  next = 0;                            // number them as a reader meets them
  for (ParamDecl& d : made.params)
    if (d.lifted) d.name = fmt::format("_c{}", next++);
  return made;
}

}  // namespace undivided::expr
