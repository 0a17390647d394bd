// SPDX-License-Identifier: Apache-2.0
// The symbolic derivative, by forward differentiation: one pass per thing to differentiate by.
//
// Forward rather than reverse, because select(c, a, b) then becomes select(c, da, db): an infinite
// derivative in the branch that was not taken cannot turn into NaN.
#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

constexpr std::int32_t zero = -1;  // a tangent that is zero by structure

class Forward {
 public:
  explicit Forward(const Program& p) : count_(p.nodes.size()) {
    build_.set_limit(16 * max_nodes);
    build_.program().slots = p.slots;
    build_.program().params = p.params;
    for (const Node& n : p.nodes) {
      Node copy = n;
      for (auto& o : copy.operand)
        if (o >= 0) o = value_[static_cast<std::size_t>(o)];
      value_.push_back(build_.append(copy));
    }
  }

  Builder& build() { return build_; }
  std::int32_t value(std::int32_t id) const { return value_[static_cast<std::size_t>(id)]; }

  // The derivative of `root` by node `by`, as a node of the builder.
  std::int32_t by(const Program& p, std::int32_t by, std::int32_t root) {
    std::vector<std::int32_t> tangent(count_, zero);
    for (std::size_t i = static_cast<std::size_t>(by); i < count_; ++i) {
      if (static_cast<std::int32_t>(i) == by)
        tangent[i] = build_.constant(1.0);
      else if (p.nodes[i].type == Type::f32)
        tangent[i] = step(p, i, tangent);
    }
    return tangent[static_cast<std::size_t>(root)];
  }

 private:
  std::int32_t scaled(std::int32_t t, std::int32_t factor) {
    return t == zero ? zero : build_.apply(Op::mul, t, factor);
  }
  std::int32_t negative(std::int32_t t) { return t == zero ? zero : build_.apply(Op::neg, t); }
  std::int32_t sum(std::int32_t a, std::int32_t b) {
    if (a == zero) return b;
    return b == zero ? a : build_.apply(Op::add, a, b);
  }
  std::int32_t solid(std::int32_t t) { return t == zero ? build_.constant(0.0) : t; }
  std::int32_t either(std::int32_t condition, std::int32_t a, std::int32_t b) {
    if (a == b) return a;
    a = solid(a);
    return build_.apply(Op::select, condition, a, solid(b));
  }

  std::int32_t step(const Program& p, std::size_t i, const std::vector<std::int32_t>& tangent) {
    const Node& n = p.nodes[i];
    auto value = [&](std::size_t j) { return value_[static_cast<std::size_t>(n.operand[j])]; };
    auto moved = [&](std::size_t j) {
      return n.operand[j] < 0 ? zero : tangent[static_cast<std::size_t>(n.operand[j])];
    };
    const std::int32_t self = value_[i];
    const std::int32_t da = moved(0), db = moved(1);
    if (da == zero && db == zero && moved(2) == zero) return zero;
    switch (n.op) {
      case Op::add:
        return sum(da, db);
      case Op::sub:
        return sum(da, negative(db));
      case Op::mul:
        return sum(scaled(da, value(1)), scaled(db, value(0)));
      case Op::div: {  // (da - self * db) / b
        const std::int32_t top = sum(da, negative(scaled(db, self)));
        return build_.apply(Op::div, top, value(1));
      }
      case Op::neg:
        return negative(da);
      case Op::abs: {
        const std::int32_t none = build_.constant(0.0);
        const std::int32_t below = either(build_.apply(Op::lt, value(0), none), negative(da), zero);
        return either(build_.apply(Op::lt, none, value(0)), da, below);
      }
      case Op::min:
        return either(build_.apply(Op::le, value(0), value(1)), da, db);
      case Op::max:
        return either(build_.apply(Op::le, value(1), value(0)), da, db);
      case Op::select:
        return either(value(0), db, moved(2));
      case Op::tanh: {
        const std::int32_t square = build_.apply(Op::mul, self, self);
        return scaled(da, build_.apply(Op::sub, build_.constant(1.0), square));
      }
      case Op::exp:
        return scaled(da, self);
      case Op::log:
        return build_.apply(Op::div, da, value(0));
      case Op::sqrt: {
        const std::int32_t half = scaled(da, build_.constant(0.5));
        return build_.apply(Op::div, half, self);
      }
      default:
        return zero;  // integers and conditions are flat
    }
  }

  std::size_t count_;
  Builder build_;
  std::vector<std::int32_t> value_;
};

}  // namespace

Gradient differentiate(const Program& p) {
  Forward forward(p);
  Gradient g;
  const std::int32_t root = p.roots.front();
  std::int32_t by_score = zero;
  std::vector<std::int32_t> roots;
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const Node& n = p.nodes[i];
    const auto id = static_cast<std::int32_t>(i);
    const bool is_param = n.op == Op::param && !p.params[static_cast<std::size_t>(n.slot)].lifted;
    if (n.type != Type::f32 || (n.op != Op::score && n.op != Op::load && !is_param)) continue;
    const std::int32_t derivative = forward.by(p, id, root);
    if (n.op == Op::score) {
      by_score = derivative;
      continue;
    }
    if (derivative == zero) continue;
    Gradient::Term term;
    term.is_param = is_param;
    term.slot = n.slot;
    for (std::size_t j = 0; j < 4; ++j)
      if (n.operand[j] >= 0) term.index[j] = forward.value(n.operand[j]);
    g.terms.push_back(term);
    roots.push_back(derivative);
  }
  Builder& b = forward.build();
  if (by_score == zero) by_score = b.constant(0.0);
  Program made = b.program();
  made.roots = {by_score};
  made.roots.insert(made.roots.end(), roots.begin(), roots.end());
  std::vector<std::int32_t> indices;
  for (const auto& term : g.terms)
    indices.insert(indices.end(), term.index.begin(), term.index.end());
  g.program = simplify_keeping(made, indices);
  std::size_t next = 0;
  for (auto& term : g.terms)
    for (auto& id : term.index) id = indices[next++];
  return g;
}

}  // namespace undivided::expr
