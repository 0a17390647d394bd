// SPDX-License-Identifier: Apache-2.0
// Mask and Score: simplified programs with what they captured, and how they combine.
#include <fmt/format.h>

#include <utility>

#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided {
namespace expr {
namespace {

ProgramPtr finished(Builder& b, std::int32_t root) {
  Program p = b.program();
  p.roots = {root};
  return std::make_shared<const Program>(simplify(p));
}

Mask mask_from(Builder& b, std::int32_t root) {
  auto p = finished(b, root);
  return {p, captures_for(*p, b.captures())};
}

Score score_from(Builder& b, std::int32_t root) {
  auto p = finished(b, root);
  return {p, captures_for(*p, b.captures())};
}

// The expression alone; the declarations are for interchange.
std::string picture(const Expr& root) { return print_node(root.builder()->program(), root.id()); }

// Values given beside a text replace the defaults that the text declares.
Program with_values(Program p, const Captures& captures) {
  for (ParamDecl& d : p.params)
    for (const auto& [name, value] : captures.params)
      if (name == d.name)
        d.value = d.type == Type::f32 ? static_cast<double>(static_cast<float>(value)) : value;
  return p;
}

}  // namespace

Mask finish_mask(const Expr& root) {
  Builder& b = *root.builder();
  if (b.type(root.id()) != Type::boolean)
    refuse(
        Stage::parse,
        fmt::format("a mask must be a condition (bool), but `{}` is {}; compare it with something",
                    picture(root),
                    type_name(b.type(root.id()))));
  Mask made = mask_from(b, root.id());
  if (made.program()->reads(Op::score))
    refuse(Stage::parse,
           "a mask cannot read the score; return -inf from a score modification instead");
  return made;
}

Score finish_score(const Expr& root) {
  Builder& b = *root.builder();
  if (b.type(root.id()) == Type::boolean)
    refuse(Stage::parse,
           fmt::format("a score must be a number, but `{}` is bool; write select(c, a, b)",
                       picture(root)));
  return score_from(b, b.to_float(root.id()));
}

}  // namespace expr

using expr::Builder;
using expr::Op;

Mask::Mask() {
  static const expr::ProgramPtr all = [] {
    Builder b;
    return expr::finished(b, b.constant(true));
  }();
  program_ = all;
}

Mask::Mask(std::shared_ptr<const expr::Program> program, Captures captures)
    : program_(std::move(program)), captures_(std::move(captures)) {}

Mask Mask::parse(std::string_view text, const Captures& captures) {
  auto p = std::make_shared<const expr::Program>(
      expr::with_values(expr::parse(text, expr::Type::boolean, captures), captures));
  return {p, expr::captures_for(*p, captures)};
}

std::string Mask::text() const { return expr::print(*program_); }

bool operator==(const Mask& a, const Mask& b) {
  return expr::same_meaning(*a.program_, a.captures_, *b.program_, b.captures_);
}

Mask operator&&(const Mask& a, const Mask& b) {
  Builder to;
  const auto x = to.import(*a.program(), a.captures());
  const auto y = to.import(*b.program(), b.captures());
  return expr::mask_from(to, to.apply(Op::logical_and, x, y));
}

Mask operator||(const Mask& a, const Mask& b) {
  Builder to;
  const auto x = to.import(*a.program(), a.captures());
  const auto y = to.import(*b.program(), b.captures());
  return expr::mask_from(to, to.apply(Op::logical_or, x, y));
}

Mask operator!(const Mask& a) {
  Builder to;
  const auto x = to.import(*a.program(), a.captures());
  return expr::mask_from(to, to.apply(Op::logical_not, x));
}

Score::Score() {
  static const expr::ProgramPtr same = [] {
    Builder b;
    return expr::finished(b, b.leaf(Op::score));
  }();
  program_ = same;
}

Score::Score(std::shared_ptr<const expr::Program> program, Captures captures)
    : program_(std::move(program)), captures_(std::move(captures)) {}

Score Score::parse(std::string_view text, const Captures& captures) {
  auto p = std::make_shared<const expr::Program>(
      expr::with_values(expr::parse(text, expr::Type::f32, captures), captures));
  return {p, expr::captures_for(*p, captures)};
}

std::string Score::text() const { return expr::print(*program_); }

bool operator==(const Score& a, const Score& b) {
  return expr::same_meaning(*a.program_, a.captures_, *b.program_, b.captures_);
}

Score operator|(const Score& a, const Score& b) {
  Builder to;
  const auto first = to.import(*a.program(), a.captures());
  return expr::score_from(to, to.import(*b.program(), b.captures(), first));
}

}  // namespace undivided
