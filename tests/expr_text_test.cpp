// SPDX-License-Identifier: Apache-2.0
// Text: what is printed parses back to the same program, and every complaint names its place.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <string>

#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using namespace testing;

Program again(const Program& p) { return expr::parse(expr::print(p), p.root().type, {}); }

std::string error_of(const std::string& text, Type wanted = Type::boolean) {
  Captures captures;
  captures.arrays.emplace_back(std::vector<std::int32_t>{0, 0, 1}, "doc");
  captures.params = {{"w", 4}, {"half", 0.5}};
  try {
    expr::parse(text, wanted, captures);
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::parse);
    EXPECT_EQ(e.code(), Code::invalid_argument);
    return e.what();
  }
  return "no error";
}

TEST(Text, RandomProgramsParseBack) {
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe, bool mask) {
    const Program p = expr::simplify(random_program(recipe, mask ? Type::boolean : Type::f32));
    const Program l = expr::lift(p);
    RC_ASSERT(expr::same_structure(p, again(p)));
    RC_ASSERT(expr::same_structure(l, again(l)));
    RC_ASSERT(expr::print(again(l)) == expr::print(l));
    RC_ASSERT(again(l).params.size() == l.params.size());
    for (std::size_t i = 0; i < l.params.size(); ++i) {
      RC_ASSERT(again(l).params[i].value == l.params[i].value);
      RC_ASSERT(again(l).params[i].lifted == l.params[i].lifted);
    }
  }));
}

TEST(Text, UnsimplifiedProgramsKeepTheirValue) {
  const Contents contents;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe, bool mask) {
    const Program p = random_program(recipe, mask ? Type::boolean : Type::f32);
    const Program b = again(p);
    for (const Point& at : sample_points())
      RC_ASSERT(same_value(run(p, contents.bound(p), at), run(b, contents.bound(b), at)));
  }));
}

TEST(Text, IsCanonical) {
  const std::pair<const char*, const char*> masks[] = {
      {"q>=k", "k <= q"},
      {"( ( k<=q ) && q-k<1024 )", "k <= q && q - k < 1024"},
      {"k <= q || k < 4 && head == 0", "k <= q || k < 4 && head == 0"},
      {"(k <= q || k < 4) && head == 0", "head == 0 && (k < 4 || k <= q)"},
      {"(q & 7) == 0", "(q & 7) == 0"},
      {"q - (k - 1) < 0", "q - (k - 1) < 0"},
      {"q / 4 % 3 * 2 == k", "k == 2 * (q / 4 % 3)"},
      {"!(head == 3 || k > q)", "!(q < k || head == 3)"},
      {"head == 3 ? k <= q : q - k < 8", "head == 3 ? k <= q : q - k < 8"},
      {"select(head < 2, k, q) < 8", "(head < 2 ? k : q) < 8"},
      {"clamp(q - k, 0, 7) == 2", "min(max(q - k, 0), 7) == 2"},
      {"k <= q + -3", "k <= q + -3"},
      {"-q < -3", "-q < -3"},
      {"k < 0x10", "k < 16"},
      {"k <= q;", "k <= q"},
      {"let d = q - k; 0 <= d && d < 8", "q - k < 8 && 0 <= q - k"},
  };
  for (const auto& [text, canonical] : masks)
    EXPECT_EQ(Mask::parse(text).text(), canonical) << text;
  const std::pair<const char*, const char*> scores[] = {
      {"score", "score"},
      {"score-0.5f*(q-k)", "score - 0.5 * (q - k)"},
      {"30*tanh(score/30)", "30.0 * tanh(score / 30.0)"},
      {"k <= q ? score : -inf", "k <= q ? score : -inf"},
      {"score * 1e-7", "1e-07 * score"},
      {"q", "float(q)"},
      {"score + float(q / 2)", "score + q / 2"},
      {"param c: f32 = 2; score * c", "param c: f32 = 2.0; score * c"},
  };
  for (const auto& [text, canonical] : scores)
    EXPECT_EQ(Score::parse(text).text(), canonical) << text;
}

TEST(Text, DeclarationsStandInForContents) {
  const std::string text = "array doc: i32[1]; param w: i32 = 1024; q - k < w && doc[q] == doc[k]";
  const Mask m = Mask::parse(text);
  EXPECT_EQ(m.text(), text);
  EXPECT_TRUE(m.captures().arrays.empty());
  ASSERT_EQ(m.captures().params.size(), 1U);
  EXPECT_EQ(m.captures().params[0].second, 1024);

  Captures captures;
  captures.arrays.emplace_back(std::vector<std::int32_t>{0, 1}, "doc");
  captures.params = {{"w", 7}};
  const Mask bound = Mask::parse(text, captures);
  EXPECT_EQ(bound.captures().arrays.size(), 1U);
  EXPECT_EQ(bound.captures().params[0].second, 7);
  EXPECT_TRUE(expr::same_structure(*m.program(), *bound.program()));
  // Without declarations the captures supply them.
  EXPECT_EQ(Mask::parse("q - k < w && doc[q] == doc[k]", captures), bound);
}

TEST(Text, SharedPartsOfLargeProgramsGetNames) {
  const Score s = score([](auto x, auto, auto, auto q, auto) {
    Expr y = x;
    for (int i = 0; i < 60; ++i) y = y * y + q;
    return y;
  });
  EXPECT_LT(s.text().size(), 4000U);
  EXPECT_NE(s.text().find("let t0 = "), std::string::npos);
  EXPECT_EQ(Score::parse(s.text()), s);
}

TEST(Text, DeepProgramsParseBack) {
  const Score s = score([](auto x, auto, auto, auto, auto) {
    Expr y = x;
    for (int i = 0; i < 3000; ++i) y = tanh(y);
    return y;
  });
  EXPECT_EQ(Score::parse(s.text()), s);
}

struct Complaint {
  const char* text;
  const char* message;
};

TEST(Text, ErrorsNameThePlaceAndWhatWasExpected) {
  const Complaint complaints[] = {
      {"", "line 1, column 1: found the end of the text, but expected a value\n  \n  ^"},
      {"k <= ",
       "line 1, column 6: found the end of the text, but expected a value\n  k <= \n       ^"},
      {"k <= q)",
       "line 1, column 7: found \")\", but expected an operator or the end of the text\n"
       "  k <= q)\n        ^"},
      {"(k <= q",
       "line 1, column 8: found the end of the text, but expected \")\"\n  (k <= q\n         ^"},
      {"k <=\n  foo",
       "line 2, column 3: unknown name \"foo\"; known here are batch, head, q, k, q_len, k_len, "
       "doc, w, half\n    foo\n    ^"},
      {"k <= q @ 2", "line 1, column 8: unexpected character \"@\"\n  k <= q @ 2\n         ^"},
      {"k < 99999999999999999999",
       "line 1, column 5: the number 99999999999999999999 does not fit int32\n"
       "  k < 99999999999999999999\n      ^"},
      {"k < 2147483648",
       "line 1, column 5: the integer 2147483648 does not fit int32; allowed are -2147483648 to "
       "2147483647, or write a float\n  k < 2147483648\n      ^"},
      {"float(k) < 1e39",
       "line 1, column 12: the number 1e+39 does not fit float32\n"
       "  float(k) < 1e39\n             ^"},
      {"k < 12ab", "line 1, column 7: unexpected \"a\" after a number\n  k < 12ab\n        ^"},
      {"sin(k) < 1",
       "line 1, column 1: unknown function \"sin\"; known are abs, min, max, clamp, select, tanh, "
       "exp, log, sqrt, trunc, float\n  sin(k) < 1\n  ^"},
      {"min(q) < 1", "line 1, column 1: min takes 2 arguments, but 1 came\n  min(q) < 1\n  ^"},
      {"doc[q, k] == 1",
       "line 1, column 1: array \"doc\" has 1 axis, but is indexed by 2\n  doc[q, k] == 1\n  ^"},
      {"doc[0.5] == 1",
       "line 1, column 1: index 0 of array \"doc\" must be i32, but is f32; write trunc(...)\n"
       "  doc[0.5] == 1\n  ^"},
      {"doc == 1",
       "line 1, column 1: array \"doc\" needs an index: write doc[...]\n  doc == 1\n  ^"},
      {"q && k",
       "line 1, column 3: `&&` wants two bools (compare a number with something), but got i32 and "
       "i32\n  q && k\n    ^"},
      {"q < k < 3",
       "line 1, column 7: `<` wants two numbers, but got bool and i32\n"
       "  q < k < 3\n        ^"},
      {"q % 2.0 == 1.0",
       "line 1, column 3: `%` wants two i32, but got i32 and f32\n  q % 2.0 == 1.0\n    ^"},
      {"(k < q) + 1 < 2",
       "line 1, column 9: `+` wants numbers (a bool converts by c ? 1 : 0), but got bool and i32\n"
       "  (k < q) + 1 < 2\n          ^"},
      {"q ? k : q",
       "line 1, column 3: `? :` wants a bool before the question mark, but got i32\n"
       "  q ? k : q\n    ^"},
      {"q + k",
       "line 1, column 1: a mask must be a condition (bool), but this is i32; compare it with "
       "something\n  q + k\n  ^"},
      {"score < 1.0",
       "line 1, column 1: a mask cannot read the score; use a score modification\n"
       "  score < 1.0\n  ^"},
      {"array doc: i64[1]; doc[q] == 0",
       "line 1, column 12: found \"i64\", but expected a type: i32, f32 or bool\n"
       "  array doc: i64[1]; doc[q] == 0\n             ^"},
      {"array doc: f32[1]; doc[q] == 0",
       "line 1, column 1: array \"doc\" is declared f32 of rank 1, but i32 [3] came\n"
       "  array doc: f32[1]; doc[q] == 0\n  ^"},
      {"array a: i32[5]; a[q] == 0",
       "line 1, column 14: found \"5\", but expected a rank from 1 to 4\n"
       "  array a: i32[5]; a[q] == 0\n               ^"},
      {"param n: i32 = 1.5; k < n",
       "line 1, column 16: found \"1.5\", but expected a whole number, because the parameter is "
       "i32\n  param n: i32 = 1.5; k < n\n                 ^"},
      {"param n: i32; k < n",
       "line 1, column 13: found \";\", but expected \"=\" and the value of \"n\"\n"
       "  param n: i32; k < n\n              ^"},
      {"param q: i32 = 1; k < q",
       "line 1, column 7: \"q\" is a word of the language and cannot name a parameter\n"
       "  param q: i32 = 1; k < q\n        ^"},
      {"let a = q; let a = k; a < k",
       "line 1, column 16: \"a\" is declared twice\n"
       "  let a = q; let a = k; a < k\n                 ^"},
      {"param half: i32 = 2; k < half",
       "line 1, column 1: parameter \"half\" is i32, but its value is 0.5; allowed are whole "
       "numbers "
       "in int32\n  param half: i32 = 2; k < half\n  ^"},
  };
  for (const Complaint& c : complaints) EXPECT_EQ(error_of(c.text), c.message) << c.text;
  EXPECT_EQ(error_of("k <= q", Type::f32),
            "line 1, column 1: a score must be a number, but this is bool; write c ? a : b\n"
            "  k <= q\n  ^");
}

TEST(Text, HostileInputIsRefusedNotObeyed) {
  EXPECT_NE(error_of(std::string(100000, '(')).find("nested deeper than"), std::string::npos);
  EXPECT_NE(error_of(std::string(100000, '!')).find("nested deeper than"), std::string::npos);
  EXPECT_NE(error_of(std::string(2 << 20, ' ')).find("at most 1048576"), std::string::npos);
  EXPECT_NE(error_of(std::string("k < \0 1", 7)).find("\"\\x00\""), std::string::npos);
  EXPECT_NE(error_of("k < \xc3\xa9").find("\"\\xc3\""), std::string::npos);
  std::string sum = "q";
  for (int i = 0; i < 40000; ++i) sum += " + " + std::to_string(i) + " * k";
  EXPECT_NE(error_of(sum + " < 0").find("more than 32768 operations"), std::string::npos);
  std::string both = "k <= q";
  for (int i = 0; i < 3000; ++i) both += " && q != " + std::to_string(i);
  EXPECT_EQ(error_of(both), "no error");
}

}  // namespace
}  // namespace undivided
