// SPDX-License-Identifier: Apache-2.0
// Simplifying keeps values, lifting keeps structure, and bands are recognised by shape alone.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using namespace testing;
using expr::Band;

std::vector<double> values(const Program& p) {
  std::vector<double> v;
  for (const auto& d : p.params) v.push_back(d.value);
  return v;
}

std::string simple(std::string_view text) {
  return expr::print(expr::parse(text, Type::boolean, {}), false);
}

TEST(Simplify, KeepsTheValueOfRandomPrograms) {
  const Contents contents;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe, bool mask) {
    const Program p = random_program(recipe, mask ? Type::boolean : Type::f32);
    const Program s = expr::simplify(p);
    const Program l = expr::lift(s);
    RC_ASSERT(s.nodes.size() <= p.nodes.size());
    for (const Point& at : sample_points()) {
      const double before = run(p, contents.bound(p), at);
      RC_ASSERT(same_value(before, run(s, contents.bound(s), at)));
      RC_ASSERT(same_value(before, run(l, contents.bound(l), at)));
    }
  }));
}

TEST(Simplify, IsIdempotent) {
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe, bool mask) {
    const Program s = expr::simplify(random_program(recipe, mask ? Type::boolean : Type::f32));
    RC_ASSERT(expr::same_structure(s, expr::simplify(s)));
    RC_ASSERT(expr::structure_hash(s) == expr::structure_hash(expr::simplify(s)));
    const Program l = expr::lift(s);
    RC_ASSERT(expr::same_structure(l, expr::simplify(l)));
  }));
}

TEST(Simplify, FoldsWhatIsExact) {
  EXPECT_EQ(simple("q - k < 2 * 3 + 4"), "q - k < 10");
  EXPECT_EQ(simple("q * 1 + 0 >= k / 1"), "k <= q");
  EXPECT_EQ(simple("!(k > q)"), "k <= q");
  EXPECT_EQ(simple("!!(k <= q) && true"), "k <= q");
  EXPECT_EQ(simple("k <= q || true"), "true");
  EXPECT_EQ(simple("q - q == 0"), "true");
  EXPECT_EQ(simple("q - k < -7 / 2"), "q - k < -4");
  EXPECT_EQ(simple("q - k < -7 % 4"), "q - k < 1");
  EXPECT_EQ(simple("float(q) * 0.5 < 1.0 + 2.0"), "0.5 * q < 3.0");
  EXPECT_EQ(simple("(true ? q : k) < 4"), "q < 4");
}

TEST(Simplify, DoesNotFoldWhatWouldRound) {
  EXPECT_EQ(simple("float(q) < 0.1 + 0.2"), "q < 0.1 + 0.2");
  EXPECT_EQ(simple("float(q) < exp(1.0)"), "q < exp(1.0)");
  EXPECT_EQ(simple("float(q) + 0.0 < 1.0"), "q + 0.0 < 1.0");  // -0.0 + 0.0 is 0.0
  EXPECT_EQ(simple("q < 2147483647 + 1"), "q < 1 + 2147483647");
  EXPECT_EQ(simple("!(float(q) < 1.5)"), "!(q < 1.5)");  // NaN
}

TEST(Simplify, OrdersOperandsAndConjuncts) {
  EXPECT_EQ(simple("q - k < 9 && k <= q"), simple("k <= q && q - k < 9"));
  EXPECT_EQ(simple("1 + q == k"), simple("k == q + 1"));
  EXPECT_EQ(simple("(k <= q && head == 0) && k <= q"), simple("head == 0 && k <= q"));
  EXPECT_EQ(simple("k <= q && (head == 0 && batch == 1)"),
            simple("(batch == 1 && k <= q) && head == 0"));
}

TEST(Lift, MakesStructureIndependentOfBounds) {
  auto lifted = [](const Mask& m) { return expr::lift(*m.program()); };
  EXPECT_TRUE(expr::same_structure(lifted(causal() && window(512)), lifted(causal() && window(3))));
  EXPECT_TRUE(expr::same_structure(lifted(window(5, 5)), lifted(window(7, 2))));
  EXPECT_TRUE(expr::same_structure(lifted(prefix(5)), lifted(prefix(9))));
  EXPECT_FALSE(expr::same_structure(lifted(prefix(5)), lifted(window(9))));
  const auto a = expr::lift(*softcap(30).program()), b = expr::lift(*softcap(50).program());
  EXPECT_TRUE(expr::same_structure(a, b));
  EXPECT_EQ(values(b), (std::vector<double>{50, 50}));
  EXPECT_TRUE(a.params[0].lifted);
}

TEST(Lift, LiftedFloatsArePositiveAndFinite) {
  const auto lifted = [](const char* text) { return expr::lift(expr::parse(text, Type::f32, {})); };
  const auto p = lifted("k <= q ? score * -2.5 + 0.5 : -inf");
  EXPECT_EQ(values(p), (std::vector<double>{2.5, 0.5}));
  EXPECT_NE(expr::print(p, false).find("-_c0"), std::string::npos) << expr::print(p, false);
  EXPECT_NE(expr::print(p, false).find("-inf"), std::string::npos);
  EXPECT_TRUE(values(lifted("max(score, 0.0)")).empty());
  EXPECT_TRUE(values(lifted("score * 1e-50")).empty());  // no float32 but 0
  // Not even a text that claims otherwise makes one.
  EXPECT_EQ(values(lifted("param _c0: f32 = -3; _c0 * score")), (std::vector<double>{3}));
}

TEST(Lift, KeepsDivisorsShiftsAndBooleansLiteral) {
  const auto p = expr::lift(
      expr::parse("(q / 16 + 16 == k % 8) == ((q >> 3) < (k << 2) + 5 || keep[q] == true)",
                  Type::boolean,
                  {.arrays = {Array(std::vector<std::int32_t>{1}, "keep").named("unused"),
                              Array(View{nullptr, DType::boolean, {}, 1, {0}, {1}}, "keep")},
                   .params = {}}));
  EXPECT_EQ(expr::print(p, false),
            "(k % 8 == q / 16 + _c0) == (keep[q] || q >> 3 < (k << 2) + _c1)");
  EXPECT_EQ(values(p), (std::vector<double>{16, 5}));
}

struct BandCase {
  const char* text;
  Band band;
};

TEST(Band, IsRecognisedFromManySpellings) {
  const Band none{}, full{true, false, false, 0, 0};
  const BandCase cases[] = {
      {"true", full},
      {"false", none},
      {"k <= q", {true, false, true, 0, 0}},
      {"q >= k", {true, false, true, 0, 0}},
      {"k < q", {true, false, true, 0, -1}},
      {"q > k", {true, false, true, 0, -1}},
      {"!(q < k)", {true, false, true, 0, 0}},
      {"q - k >= 0", {true, false, true, 0, 0}},
      {"0 <= q - k", {true, false, true, 0, 0}},
      {"k <= q + 3", {true, false, true, 0, 3}},
      {"k - 3 <= q", {true, false, true, 0, 3}},
      {"q - k <= 5", {true, true, false, 5, 0}},
      {"q - k < 5", {true, true, false, 4, 0}},
      {"k > q - 5", {true, true, false, 4, 0}},
      {"k + 5 >= q", {true, true, false, 5, 0}},
      {"-q <= -k", {true, false, true, 0, 0}},
      {"q - k <= 5 && k - q <= 2", {true, true, true, 5, 2}},
      {"k <= q && q - k <= 5 && q - k < 4", {true, true, true, 3, 0}},
      {"abs(q - k) <= 4", {true, true, true, 4, 4}},
      {"abs(k - q + 1) < 4", {true, true, true, 4, 2}},
      {"q == k", {true, true, true, 0, 0}},
      {"q - k == 2", {true, true, true, 2, -2}},
      {"k <= q || q - k <= 5", none},
      {"k < 17", none},
      {"q + k < 9", none},
      {"2 * k <= q", none},
      {"k <= q && head == 0", none},
      {"k <= q + head", none},
      {"k <= q + k_len - q_len", none},
      {"float(k) <= float(q)", none},
      {"k != q", none},
  };
  for (const BandCase& c : cases) {
    SCOPED_TRACE(c.text);
    const Program plain = expr::parse(c.text, Type::boolean, {});
    for (const Program& p : {plain, expr::lift(plain)}) {
      const Band b = expr::recognise_band(p, values(p));
      EXPECT_EQ(b.is_band, c.band.is_band);
      EXPECT_EQ(b.has_left, c.band.has_left);
      EXPECT_EQ(b.has_right, c.band.has_right);
      EXPECT_EQ(b.left, c.band.left);
      EXPECT_EQ(b.right, c.band.right);
      if (!b.is_band) continue;
      for (int q = 0; q < 20; ++q)
        for (int k = 0; k < 20; ++k) {
          Bound bound;
          bound.params = values(p);
          const bool kept = run(p, bound, {0, 0, q, k, 20, 20, 0}) != 0;
          const bool inside =
              (!b.has_left || q - k <= b.left) && (!b.has_right || k - q <= b.right);
          EXPECT_EQ(kept, inside) << q << " " << k;
        }
    }
  }
}

TEST(Band, ReadsNewParameterValues) {
  const auto m = mask([](auto, auto, auto q, auto k) { return q - k < Param("w", 10) && k <= q; });
  const Program& p = *m.program();
  EXPECT_EQ(expr::recognise_band(p, {10}).left, 9);
  EXPECT_EQ(expr::recognise_band(p, {77}).left, 76);
}

}  // namespace
}  // namespace undivided
