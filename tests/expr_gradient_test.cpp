// SPDX-License-Identifier: Apache-2.0
// Symbolic gradients against finite differences of the scalar reading, per operation and at random.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>

#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using namespace testing;

// All derivatives at one point: score, each element of `table`, the parameter `c`.
struct Derivatives {
  double score = 0, c = 0;
  std::vector<double> table;
};

Derivatives symbolic(const Program& p, const Contents& contents, const Point& at) {
  const auto g = expr::differentiate(p);
  std::vector<double> scratch(g.program.nodes.size()), results(g.program.roots.size());
  expr::evaluate(g.program, contents.bound(g.program), at, scratch.data(), results.data());
  Derivatives d;
  d.table.assign(contents.table.size(), 0);
  d.score = results[0];
  for (std::size_t t = 0; t < g.terms.size(); ++t) {
    const auto& term = g.terms[t];
    if (term.is_param) {
      EXPECT_EQ(p.params[static_cast<std::size_t>(term.slot)].name, "c");
      d.c += results[t + 1];
      continue;
    }
    EXPECT_EQ(p.slots[static_cast<std::size_t>(term.slot)].name, "table");
    const auto index = static_cast<std::int64_t>(scratch[static_cast<std::size_t>(term.index[0])]);
    const auto last = static_cast<std::int64_t>(d.table.size()) - 1;
    d.table[static_cast<std::size_t>(std::clamp<std::int64_t>(index, 0, last))] += results[t + 1];
  }
  return d;
}

// A central difference that distrusts itself: false near kinks, jumps and poles.
template <class F>
bool difference(F&& f, double x, double h, double& slope) {
  auto central = [&](double step) {
    const auto up = static_cast<double>(static_cast<float>(x + step));
    const auto down = static_cast<double>(static_cast<float>(x - step));
    return (f(up) - f(down)) / (up - down);
  };
  slope = central(h);
  const double finer = central(h / 4), coarser = central(h * 2);
  const double scale = 1e-3 * std::max(1.0, std::fabs(slope));
  // A kink exactly here fools central differences, but not one-sided ones.
  const double tiny = h / 8, middle = f(x);
  const double bend = (f(x + tiny) - middle) / tiny - (middle - f(x - tiny)) / tiny;
  return std::fabs(bend) < 2e-3 * std::max(1.0, std::fabs(slope)) && std::isfinite(slope) &&
         std::fabs(slope - finer) < scale && std::fabs(slope - coarser) < scale &&
         std::fabs(slope) < 1e4;
}

int checked = 0, wrong_slopes = 0, singular = 0;

void check(double symbolic, double slope, const Program& p, const char* what) {
  ++checked;
  if (!std::isfinite(symbolic)) {  // sqrt(c - c): a part has no slope here
    ++singular;
    return;
  }
  const double allowed = 4e-3 * std::max(1.0, std::fabs(slope));
  wrong_slopes += !(std::fabs(symbolic - slope) <= allowed);
  EXPECT_NEAR(symbolic, slope, allowed) << "by " << what << " of " << expr::print(p);
}

void compare(const Program& p, const Point& at) {
  Contents contents;
  std::vector<double> scratch(p.nodes.size());
  double result = 0;
  expr::evaluate(p, contents.bound(p), at, scratch.data(), &result);
  for (std::size_t i = 0; i < scratch.size(); ++i)  // differences drown beside huge parts
    if (p.nodes[i].type == Type::f32 && std::fabs(scratch[i]) > 1e5) return;
  const Derivatives d = symbolic(p, contents, at);
  double slope = 0;
  auto by_score = [&](double x) {
    Point moved = at;
    moved.score = x;
    return run(p, contents.bound(p), moved);
  };
  if (difference(by_score, at.score, 1.0 / 256, slope)) check(d.score, slope, p, "score");
  for (std::size_t i = 0; i < contents.table.size(); ++i) {
    const float held = contents.table[i];
    auto by_table = [&](double x) {
      contents.table[i] = static_cast<float>(x);
      const double y = run(p, contents.bound(p), at);
      contents.table[i] = held;
      return y;
    };
    if (difference(by_table, static_cast<double>(held), 1.0 / 256, slope))
      check(d.table[i], slope, p, "table");
  }
  for (std::size_t i = 0; i < p.params.size(); ++i) {
    if (p.params[i].name != "c") continue;
    Bound bound = contents.bound(p);
    auto by_c = [&](double x) {
      bound.params[i] = x;
      return run(p, bound, at);
    };
    if (difference(by_c, p.params[i].value, 1.0 / 256, slope)) check(d.c, slope, p, "c");
  }
}

Program parsed_score(const std::string& text) {
  return expr::parse(
      "array table: f32[1]; array doc: i32[1]; param c: f32 = 0.375; " + text, Type::f32, {});
}

TEST(Gradient, OfEveryOperation) {
  for (const char* text : {"score + table[q]",
                           "score - c * table[k]",
                           "table[k] * score * score",
                           "score / (c + 2.0)",
                           "c / (score * score + 1.0)",
                           "-score",
                           "abs(score - 0.1) + abs(table[q])",
                           "min(score, table[q]) + max(score, c)",
                           "q - k < 2 ? score * score : c * score",
                           "score < c ? exp(score) : table[doc[k]]",
                           "tanh(score * c)",
                           "exp(0.25 * score + c)",
                           "log(score * score + 0.5)",
                           "sqrt(score * score + c)",
                           "score + float(trunc(score)) + float(q / 2)",
                           "30.0 * tanh(score / 30.0) + table[head] * (k - q)"}) {
    SCOPED_TRACE(text);
    const int before = checked;
    for (const Point& at : sample_points()) compare(parsed_score(text), at);
    EXPECT_GT(checked - before, 30);
    EXPECT_EQ(singular, 0);
  }
}

TEST(Gradient, OfRandomPrograms) {
  checked = singular = 0;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe) {
    const Program p = expr::simplify(random_program(recipe, Type::f32));
    const int before = wrong_slopes;
    for (const Point& at : sample_points()) compare(p, at);
    RC_ASSERT(wrong_slopes == before);
  }));
  EXPECT_GT(checked, 1000);  // most differences were trustworthy
  EXPECT_LT(singular, checked / 10);
  singular = 0;
}

TEST(Gradient, HasATermForEachUsefulLoadAndParameter) {
  const auto g = expr::differentiate(parsed_score("score + table[q] * c + table[k]"));
  ASSERT_EQ(g.terms.size(), 3U);
  EXPECT_EQ(g.program.roots.size(), 4U);
  // Read only through a condition: no slope.
  EXPECT_TRUE(expr::differentiate(parsed_score("table[q] < c ? score : 0.0")).terms.empty());
}

TEST(Gradient, LeavesLiftedLiteralsOut) {
  const auto g = expr::differentiate(expr::lift(*softcap(30).program()));
  EXPECT_TRUE(g.terms.empty());
  EXPECT_EQ(g.program.params.size(), 2U);
}

TEST(Gradient, OfTheLibrary) {
  EXPECT_EQ(expr::print(expr::differentiate(*identity().program()).program, false), "1.0");
  const auto slopes = Array(std::vector<float>{1, 2}, "m");
  EXPECT_EQ(expr::print(expr::differentiate(*alibi(slopes).program()).program, false),
            "1.0, float(k - q)");
}

TEST(Gradient, TheOtherBranchCannotPoison) {
  const auto p = parsed_score("score > 0.0 ? log(score) : 2.0 * score");
  Point at;
  at.score = 0;
  EXPECT_EQ(symbolic(p, {}, at).score, 2);
}

TEST(Gradient, TiesGoToTheFirstOperandAndAbsIsFlatAtZero) {
  Point at;
  at.score = 2.0;  // table[2] is 2
  EXPECT_EQ(symbolic(parsed_score("min(score, table[2])"), {}, at).score, 1);
  EXPECT_EQ(symbolic(parsed_score("max(table[2], score)"), {}, at).score, 0);
  at.score = 0;
  EXPECT_EQ(symbolic(parsed_score("abs(score)"), {}, at).score, 0);
}

}  // namespace
}  // namespace undivided
