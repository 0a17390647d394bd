// SPDX-License-Identifier: Apache-2.0
// Expr: numbers, operators and functions while a lambda is traced.
#include <utility>

#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided {
namespace {

using expr::Builder;
using expr::Op;

// A number on its own owns a small builder. When two values meet, the smaller builder's value is
// copied into the larger one.
std::int32_t moved(const Expr& value, const std::shared_ptr<Builder>& to) {
  if (value.builder() == to) return value.id();
  expr::Program part = value.builder()->program();
  part.roots = {value.id()};
  return to->import(expr::compact(part), value.builder()->captures());
}

std::shared_ptr<Builder> larger(const Expr& a, const Expr& b) {
  return a.builder()->program().nodes.size() >= b.builder()->program().nodes.size() ? a.builder()
                                                                                    : b.builder();
}

Expr unary(Op op, const Expr& a) { return {a.builder(), a.builder()->apply(op, a.id())}; }

Expr binary(Op op, const Expr& a, const Expr& b) {
  auto to = larger(a, b);
  const auto x = moved(a, to), y = moved(b, to);
  return {to, to->apply(op, x, y)};
}

}  // namespace

Expr::Expr(std::shared_ptr<Builder> builder, std::int32_t id)
    : builder_(std::move(builder)), id_(id) {}
Expr::Expr(bool value) : builder_(std::make_shared<Builder>()), id_(builder_->constant(value)) {}
Expr::Expr(int value) : Expr(std::int64_t{value}) {}
Expr::Expr(std::int64_t value)
    : builder_(std::make_shared<Builder>()), id_(builder_->constant(value)) {}
Expr::Expr(float value) : Expr(static_cast<double>(value)) {}
Expr::Expr(double value) : builder_(std::make_shared<Builder>()), id_(builder_->constant(value)) {}

Expr operator+(Expr a, Expr b) { return binary(Op::add, a, b); }
Expr operator-(Expr a, Expr b) { return binary(Op::sub, a, b); }
Expr operator*(Expr a, Expr b) { return binary(Op::mul, a, b); }
Expr operator/(Expr a, Expr b) { return binary(Op::div, a, b); }
Expr operator%(Expr a, Expr b) { return binary(Op::mod, a, b); }
Expr operator-(Expr a) { return unary(Op::neg, a); }
Expr operator<<(Expr a, Expr b) { return binary(Op::shl, a, b); }
Expr operator>>(Expr a, Expr b) { return binary(Op::shr, a, b); }
Expr operator&(Expr a, Expr b) { return binary(Op::bit_and, a, b); }
Expr operator|(Expr a, Expr b) { return binary(Op::bit_or, a, b); }
Expr operator^(Expr a, Expr b) { return binary(Op::bit_xor, a, b); }
Expr operator<(Expr a, Expr b) { return binary(Op::lt, a, b); }
Expr operator<=(Expr a, Expr b) { return binary(Op::le, a, b); }
Expr operator>(Expr a, Expr b) { return binary(Op::gt, a, b); }
Expr operator>=(Expr a, Expr b) { return binary(Op::ge, a, b); }
Expr operator==(Expr a, Expr b) { return binary(Op::eq, a, b); }
Expr operator!=(Expr a, Expr b) { return binary(Op::ne, a, b); }
Expr operator&&(Expr a, Expr b) { return binary(Op::logical_and, a, b); }
Expr operator||(Expr a, Expr b) { return binary(Op::logical_or, a, b); }
Expr operator!(Expr a) { return unary(Op::logical_not, a); }
Expr abs(Expr a) { return unary(Op::abs, a); }
Expr min(Expr a, Expr b) { return binary(Op::min, a, b); }
Expr max(Expr a, Expr b) { return binary(Op::max, a, b); }
Expr clamp(Expr x, Expr lo, Expr hi) {
  return min(max(std::move(x), std::move(lo)), std::move(hi));
}
Expr tanh(Expr a) { return unary(Op::tanh, a); }
Expr exp(Expr a) { return unary(Op::exp, a); }
Expr log(Expr a) { return unary(Op::log, a); }
Expr sqrt(Expr a) { return unary(Op::sqrt, a); }
Expr trunc(Expr a) { return unary(Op::trunc, a); }

Expr select(Expr condition, Expr a, Expr b) {
  auto to = larger(a, b);
  if (condition.builder()->program().nodes.size() > to->program().nodes.size())
    to = condition.builder();
  const auto c = moved(condition, to), x = moved(a, to), y = moved(b, to);
  return {to, to->apply(Op::select, c, x, y)};
}

Expr q_len(const Expr& any) { return {any.builder(), any.builder()->leaf(Op::q_len)}; }
Expr k_len(const Expr& any) { return {any.builder(), any.builder()->leaf(Op::k_len)}; }

Expr Array::operator[](Expr i) const {
  auto to = i.builder();
  return {to, to->load(to->slot(*this), {i.id()})};
}
Expr Array::operator()(Expr i) const { return (*this)[std::move(i)]; }

Expr Array::operator()(Expr i, Expr j) const {
  auto to = larger(i, j);
  const auto x = moved(i, to), y = moved(j, to);
  return {to, to->load(to->slot(*this), {x, y})};
}

Expr Array::operator()(Expr i, Expr j, Expr l) const {
  auto to = larger(i, j);
  if (l.builder()->program().nodes.size() > to->program().nodes.size()) to = l.builder();
  const auto x = moved(i, to), y = moved(j, to), z = moved(l, to);
  return {to, to->load(to->slot(*this), {x, y, z})};
}

Expr Array::operator()(Expr i, Expr j, Expr l, Expr m) const {
  auto to = larger(i, j);
  for (const Expr* other : {&l, &m})
    if (other->builder()->program().nodes.size() > to->program().nodes.size())
      to = other->builder();
  const auto x = moved(i, to), y = moved(j, to), z = moved(l, to), w = moved(m, to);
  return {to, to->load(to->slot(*this), {x, y, z, w})};
}

Param::Param(std::string name, std::int32_t value)
    : name_(std::move(name)), type_(expr::Type::i32), value_(value) {
  expr::check_param_name(name_);
}
Param::Param(std::string name, double value)
    : name_(std::move(name)), type_(expr::Type::f32), value_(value) {
  expr::check_param_name(name_);
}
Param::operator Expr() const {
  auto builder = std::make_shared<Builder>();
  const auto id = builder->param(name_, type_, value_);
  return {builder, id};
}

namespace expr {

Leaves begin_trace() {
  auto b = std::make_shared<Builder>();
  auto leaf = [&](Op op) { return Expr(b, b->leaf(op)); };
  return {leaf(Op::score),
          leaf(Op::batch),
          leaf(Op::head),
          leaf(Op::q),
          leaf(Op::k),
          leaf(Op::q_len),
          leaf(Op::k_len)};
}

}  // namespace expr
}  // namespace undivided
