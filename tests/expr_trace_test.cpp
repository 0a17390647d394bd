// SPDX-License-Identifier: Apache-2.0
// Tracing lambdas, captured arrays and parameters, the library, and how masks and scores combine.
#include <gtest/gtest.h>

#include <thread>

#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using testing::Bound;
using testing::Point;

Bound bind_host(const expr::Program& p, const Captures& captures) {
  Bound b;
  for (const auto& s : p.slots)
    for (const Array& a : captures.arrays) {
      if (a.name() != s.name) continue;
      Bound::ArrayRef r;
      r.data = a.view().data;
      r.dtype = a.view().dtype;
      for (int i = 0; i < a.view().rank; ++i) {
        r.shape[static_cast<std::size_t>(i)] = a.view().size(i);
        r.stride[static_cast<std::size_t>(i)] = a.view().step(i);
      }
      b.arrays.push_back(r);
    }
  for (const auto& d : p.params) b.params.push_back(d.value);
  return b;
}

template <class M>
double value(const M& m, const Point& at) {
  return testing::run(*m.program(), bind_host(*m.program(), m.captures()), at);
}

template <class M>
std::string text_of(const M& m) {
  return expr::print(*m.program(), false);
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Trace, ALambdaIsTheSameAsItsText) {
  const Mask m = mask([](auto batch, auto head, auto q, auto k) {
    return (k <= q && q - k < 1024) || (head == 1 && batch != 0);
  });
  EXPECT_EQ(m, Mask::parse("(k <= q && q - k < 1024) || (head == 1 && batch != 0)"));
  const Array slope(std::vector<float>{0.5F, 0.25F}, "m");
  const Score s =
      score([=](auto x, auto, auto head, auto q, auto k) { return x - slope[head] * (q - k); });
  EXPECT_EQ(s, Score::parse("score - m[head] * (q - k)", {.arrays = {slope}, .params = {}}));
}

TEST(Trace, EveryOperatorMeansWhatTheTextMeans) {
  const Mask m = mask([](auto batch, auto head, auto q, auto k) {
    return ((q + k) * 2 - q / 3 + q % 5 < (k << 2) + (q >> 1)) == (abs(q - k) > min(q, k)) ||
           !((q & 6) != (k | 1)) || (q ^ k) >= max(head, -batch) ||
           clamp(q, 1, 4) == select(k > 2, k, q);
  });
  const Mask t = Mask::parse(
      "((q + k) * 2 - q / 3 + q % 5 < (k << 2) + (q >> 1)) == (abs(q - k) > min(q, k)) || "
      "!((q & 6) != (k | 1)) || (q ^ k) >= max(head, -batch) || clamp(q, 1, 4) == (k > 2 ? k : q)");
  EXPECT_EQ(m, t);
  const Score s = score([](auto x, auto, auto, auto q, auto) {
    return tanh(x) + exp(x) * log(x) / sqrt(x) + trunc(x) + 1.5 * q;
  });
  EXPECT_EQ(s,
            Score::parse("tanh(score) + exp(score) * log(score) / sqrt(score) + trunc(score) + "
                         "1.5 * q"));
}

TEST(Trace, LengthsAreLeaves) {
  const Mask m = mask([](auto, auto, auto q, auto k) { return k <= q + k_len(q) - q_len(q); });
  EXPECT_EQ(text_of(m), "k <= q + k_len - q_len");
}

TEST(Trace, FloorDivisionAndModulus) {
  auto at = [](std::int64_t q, std::int64_t k) { return Point{0, 0, q, k, 0, 0, 0}; };
  const Score quotient = score([](auto, auto, auto, auto q, auto k) { return q / k; });
  const Score rest = score([](auto, auto, auto, auto q, auto k) { return q % k; });
  EXPECT_EQ(value(quotient, at(-7, 2)), -4);
  EXPECT_EQ(value(rest, at(-7, 2)), 1);
  EXPECT_EQ(value(quotient, at(7, -2)), -4);
  EXPECT_EQ(value(rest, at(7, -2)), -1);
  EXPECT_EQ(value(quotient, at(7, 0)), 0);
  EXPECT_EQ(value(rest, at(7, 0)), 0);
  const Score real = score([](auto, auto, auto, auto q, auto k) { return q / (1.0 * k); });
  EXPECT_EQ(value(real, at(-7, 2)), -3.5);
}

TEST(Trace, TruncGoesTowardZeroAndSaturates) {
  const Score s = score([](auto x, auto, auto, auto, auto) { return trunc(x); });
  auto at = [](double x) { return Point{0, 0, 0, 0, 0, 0, x}; };
  EXPECT_EQ(value(s, at(-2.9)), -2);
  EXPECT_EQ(value(s, at(1e20)), 2147483647);
  EXPECT_EQ(value(s, at(-INFINITY)), -2147483648.0);
  EXPECT_EQ(value(s, at(NAN)), 0);
}

TEST(Trace, LoadsAreClamped) {
  const Array a(std::vector<std::int32_t>{10, 20, 30}, "a");
  const Score s = score([=](auto, auto, auto, auto q, auto) { return a[q]; });
  EXPECT_EQ(value(s, {0, 0, -5, 0, 0, 0, 0}), 10);
  EXPECT_EQ(value(s, {0, 0, 99, 0, 0, 0, 0}), 30);
  const Array none(std::vector<std::int32_t>{}, "a");
  EXPECT_EQ(value(score([=](auto, auto, auto, auto q, auto) { return none[q]; }), {}), 0);
}

TEST(Trace, WrongResultsAreRefused) {
  EXPECT_EQ(error_of([] { mask([](auto, auto, auto q, auto k) { return q - k; }); }),
            "a mask must be a condition (bool), but `q - k` is i32; compare it with something");
  EXPECT_EQ(error_of([] { score([](auto, auto, auto, auto q, auto k) { return q < k; }); }),
            "a score must be a number, but `q < k` is bool; write select(c, a, b)");
  EXPECT_EQ(error_of([] { mask([](auto, auto, auto q, auto k) { return (q < k) + 1 < k; }); }),
            "`+` wants numbers (a bool converts by c ? 1 : 0), but got bool and i32");
  EXPECT_EQ(error_of([] { Param("q", 3); }),
            "\"q\" is a word of the language and cannot name a parameter; \"q_\" can");
  EXPECT_EQ(error_of([] { Param("_c7", 3); }),
            "\"_c7\" is kept for lifted literals and cannot name a parameter; \"c7\" can");
  EXPECT_EQ(error_of([] {
              const Array a(std::vector<float>{1}, "my table");
              score([=](auto x, auto, auto, auto q, auto) { return x + a[q]; });
            }),
            "\"my table\" cannot name an array: a name is at most 64 letters, digits and "
            "underscores and does not begin with a digit");
  EXPECT_EQ(error_of([] { Expr(std::int64_t{1} << 40); }),
            "the integer 1099511627776 does not fit int32; allowed are -2147483648 to 2147483647, "
            "or write a float");
}

TEST(Trace, ARunawayLambdaIsStopped) {
  EXPECT_NE(error_of([] {
              score([](auto x, auto, auto, auto, auto) {
                Expr y = x;
                for (int i = 0; i < 100000; ++i) y = y + i;
                return y;
              });
            }).find("more than 32768 operations"),
            std::string::npos);
}

TEST(Array, KindsAreChecked) {
  const Tensor wrong = Tensor::zeros(DType::i64, {4});
  EXPECT_EQ(error_of([&] { Array a(wrong); }),
            "a captured array of i64 cannot be read by a mask or score; allowed are i32, f32 and "
            "boolean: see converted()");
  EXPECT_NO_THROW(Array(Tensor::zeros(DType::boolean, {2, 3})));
}

TEST(Array, RangeIsScannedOncePerVersion) {
  std::vector<std::int32_t> memory{3, -1, 7, 100, 2, 5, 9, 100};
  View v = view(memory.data(), {2, 3});
  v.stride = {4, 1, 0, 0};  // the fourth column is not part of it
  Array a(v, "a");
  EXPECT_EQ(a.range(), (std::pair<std::int64_t, std::int64_t>{-1, 9}));
  const auto version = a.version();
  memory[0] = 50;
  EXPECT_EQ(a.range().second, 9);  // nobody said that it changed
  a.touch();
  EXPECT_NE(a.version(), version);
  EXPECT_EQ(a.range().second, 50);
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i)
    readers.emplace_back([&] {
      for (int j = 0; j < 200; ++j) EXPECT_EQ(a.range().first, -1);
    });
  for (auto& t : readers) t.join();
}

TEST(Array, DeviceIntegersDeclareTheirRange) {
  const View v = View::of(nullptr, DType::i32, {4}, {Device::Kind::cuda, 0});
  EXPECT_NE(error_of([&] { Array(v, "ids").range(); }).find("declares no range"),
            std::string::npos);
  EXPECT_EQ(Array(v, "ids", {{0, 9}}).range().second, 9);
  EXPECT_NE(error_of([&] { Array(v, "ids", {{4, 3}}); }).find("empty range"), std::string::npos);
}

TEST(Array, NamedSharesStorage) {
  const Array a(std::vector<std::int32_t>{1, 2}, "a");
  EXPECT_EQ(a.named("b").owner(), a.owner());
  EXPECT_EQ(a.named("b").version(), a.version());
  EXPECT_NE(Array(std::vector<std::int32_t>{1, 2}, "a").owner(), a.owner());
}

TEST(Library, IsWhatItsDefinitionSays) {
  EXPECT_EQ(full(), Mask::parse("true"));
  EXPECT_EQ(full(), Mask());
  EXPECT_EQ(causal(), Mask::parse("k <= q"));
  EXPECT_EQ(window(512, 3), Mask::parse("q - k <= 512 && k - q <= 3"));
  EXPECT_EQ(window(4), window(4, 4));
  EXPECT_EQ(prefix(17), Mask::parse("k < 17 || k <= q"));
  EXPECT_EQ(identity(), Score());
  EXPECT_EQ(softcap(30), Score::parse("30.0 * tanh(score / 30.0)"));
  const Array doc(std::vector<std::int32_t>{0, 0, 1});
  EXPECT_EQ(text_of(documents(doc)), "doc[q] == doc[k]");
  EXPECT_EQ(text_of(documents(Array(Tensor::zeros(DType::i32, {2, 8})))),
            "doc[batch, q] == doc[batch, k]");
  const Array slope(std::vector<float>{0.5F});
  EXPECT_EQ(text_of(alibi(slope)), "score + slope[head] * (k - q)");
  EXPECT_EQ(text_of(bias(Array(Tensor::zeros(DType::f32, {4, 4})))), "score + bias[q, k]");
  EXPECT_EQ(text_of(bias(Array(Tensor::zeros(DType::f32, {2, 4, 4})))), "score + bias[head, q, k]");
  EXPECT_EQ(text_of(bias(Array(Tensor::zeros(DType::f32, {1, 2, 4, 4}), "t"))),
            "score + t[batch, head, q, k]");
}

TEST(Library, RefusesTheWrongArrays) {
  EXPECT_EQ(error_of([] { documents(Array(std::vector<float>{1})); }),
            "documents(id) wants i32 [tokens] or [batch, tokens], but f32 [1] came");
  EXPECT_EQ(error_of([] { alibi(Array(Tensor::zeros(DType::f32, {2, 2}))); }),
            "alibi(slope) wants f32 [heads], but f32 [2, 2] came");
  EXPECT_EQ(error_of([] { bias(Array(std::vector<float>{1})); }),
            "bias(table) wants f32 [q, k], [head, q, k] or [batch, head, q, k], but f32 [1] came");
  EXPECT_NE(error_of([] { softcap(0); }).find("above 0"), std::string::npos);
}

TEST(Combine, MasksJoinAndNegate) {
  EXPECT_EQ(causal() && window(4, 0), Mask::parse("k <= q && q - k <= 4 && k - q <= 0"));
  EXPECT_EQ(causal() || prefix(3), prefix(3));
  EXPECT_EQ(!causal(), Mask::parse("q < k"));
  EXPECT_EQ(causal() && full(), causal());
  EXPECT_EQ((causal() || full()), full());
  EXPECT_FALSE(causal() == full());
}

TEST(Combine, TheSameArrayIsOneSlotAndAnotherIsRenamed) {
  const Array a(std::vector<std::int32_t>{0, 0, 1}, "doc");
  const Array b(std::vector<std::int32_t>{0, 1, 1}, "doc");
  EXPECT_EQ(documents(a) && documents(a), documents(a));
  EXPECT_FALSE(documents(a) == documents(b));
  const Mask both = documents(a) && documents(b);
  EXPECT_EQ(both.captures().arrays.size(), 2U);
  EXPECT_EQ(text_of(both), "doc[q] == doc[k] && doc_2[q] == doc_2[k]");
  for (std::int64_t q = 0; q < 3; ++q)
    for (std::int64_t k = 0; k < 3; ++k)
      EXPECT_EQ(
          value(both, {0, 0, q, k, 3, 3, 0}),
          value(documents(a), {0, 0, q, k, 3, 3, 0}) * value(documents(b), {0, 0, q, k, 3, 3, 0}));
}

TEST(Combine, ParametersKeepTheirValues) {
  auto within = [](std::int32_t w) {
    return mask([=](auto, auto, auto q, auto k) { return q - k < Param("w", w); });
  };
  auto ahead = [](std::int32_t w) {
    return mask([=](auto, auto, auto q, auto k) { return k - q < Param("w", w); });
  };
  EXPECT_EQ(expr::print(*(within(5) && ahead(5)).program()),
            "param w: i32 = 5; q - k < w && k - q < w");
  EXPECT_EQ(expr::print(*(within(5) && ahead(7)).program()),
            "param w: i32 = 5; param w_2: i32 = 7; q - k < w && k - q < w_2");
  EXPECT_FALSE(within(5) == within(7));
  EXPECT_TRUE(expr::same_structure(*within(5).program(), *within(7).program()));
}

TEST(Combine, BoundAndUnboundArraysOfOneNameDoNotMix) {
  const Array a(std::vector<std::int32_t>{0, 0, 1}, "doc");
  const Mask unbound = Mask::parse("array doc: i32[1]; doc[q] < doc[k]");
  EXPECT_NE(error_of([&] { documents(a) && unbound; }).find("bind both"), std::string::npos);
  EXPECT_NE(error_of([&] { unbound || documents(a); }).find("bind both"), std::string::npos);
}

TEST(Combine, ScoresRunInOrder) {
  const Array m(std::vector<float>{0.5F}, "m");
  EXPECT_EQ(text_of(softcap(30) | alibi(m)), "30.0 * tanh(score / 30.0) + m[head] * (k - q)");
  EXPECT_EQ(text_of(alibi(m) | softcap(30)), "30.0 * tanh((score + m[head] * (k - q)) / 30.0)");
  EXPECT_EQ(identity() | alibi(m), alibi(m));
  EXPECT_EQ(alibi(m) | identity(), alibi(m));
  const Score constant = score([](auto, auto, auto, auto, auto) { return 1.0; });
  EXPECT_EQ(alibi(m) | constant, constant);
  EXPECT_TRUE((alibi(m) | constant).captures().arrays.empty());
}

}  // namespace
}  // namespace undivided
