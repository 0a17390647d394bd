// SPDX-License-Identifier: Apache-2.0
// Claims: attention and its gradients give values that an independent float64 program gave, and the
// formulas printed wrongly in papers are told apart from the right ones.
#include <gtest/gtest.h>

#include <cmath>

#include "undivided/undivided.hpp"

namespace undivided {
namespace {

/// sin(0.1 (c + 1) t + c) over the row-major index t.
Tensor wave(DType dtype, std::initializer_list<std::int64_t> shape, int c) {
  const Tensor t = Tensor::empty(dtype, shape);
  for (std::int64_t i = 0; i < t.count(); ++i)
    store_element(dtype,
                  static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(dtype),
                  std::sin(0.1 * (c + 1) * static_cast<double>(i) + c));
  return t;
}

struct Four {
  double first, last, sum, l2;
};
Four four(const Tensor& t) {
  const Tensor x = converted(t, DType::f64);
  Four f{x.ptr<double>()[0], x.ptr<double>()[x.count() - 1], 0, 0};
  for (std::int64_t i = 0; i < x.count(); ++i) {
    f.sum += x.ptr<double>()[i];
    f.l2 += x.ptr<double>()[i] * x.ptr<double>()[i];
  }
  f.l2 = std::sqrt(f.l2);
  return f;
}
void expect_four(const Tensor& t, const Four& want, double tolerance, const char* what) {
  const Four got = four(t);
  EXPECT_NEAR(got.first, want.first, tolerance) << what << " first";
  EXPECT_NEAR(got.last, want.last, tolerance) << what << " last";
  EXPECT_NEAR(got.sum, want.sum, 10 * tolerance) << what << " sum";
  EXPECT_NEAR(got.l2, want.l2, 5 * tolerance) << what << " L2";
}

struct Golden {
  const char* name;
  bool causal;
  Align align;
  std::int64_t nq, nk, kv_heads;
  Four o, lse, dq, dk, dv;
};

const Golden table[] = {
    {"full",
     false,
     Align::start,
     5,
     5,
     2,
     {.0039820980, .0758444183, -1.2212577280, 1.2186296434},
     {1.6454572678, 1.5892927444, 20.6185969921, 6.6471882309},
     {.2114802873, .4563116784, 2.4725956586, 1.3123522266},
     {.1518212306, -.0749053826, 0, .7532793787},
     {.1037229174, .0621142206, -4.8849882604, 1.1245454926}},
    {"causal",
     true,
     Align::start,
     5,
     5,
     2,
     {.9092974268, .0758444183, 6.0704415858, 2.5158333394},
     {.2921107413, 1.5892927444, 12.1512928499, 5.3553276128},
     {0, .4563116784, 1.0773638107, 1.7439826337},
     {.1798551881, .0141262953, 0, 1.2688991121},
     {.0525503650, -.0213196153, -4.8849882604, 2.4486562612}},
    {"causal MQA",
     true,
     Align::start,
     5,
     5,
     1,
     {.9092974268, .3830970158, 4.0776619392, 2.3530921375},
     {.2921107413, 1.8516141784, 17.1492310966, 5.8020155675},
     {0, .1981131044, 2.9332874126, .9487055019},
     {.5484712768, .2417867034, 0, 1.3450392573},
     {-.6451271906, -.1260287388, -4.8849882604, 2.0854735059}},
    {"causal at the end",
     true,
     Align::end,
     3,
     5,
     2,
     {.0475179511, .0267055307, -7.1952673061, 2.0618502120},
     {1.2849729433, 2.4964878848, 11.7720862325, 4.9491551693},
     {-.0255144127, .1665461039, -2.2239626380, .8426521108},
     {-.0169076212, -.2595241504, 0, .7287398334},
     {-.3752717304, -.1095304710, -4.8533274744, 1.7720527163}},
};

class Sdpa : public testing::TestWithParam<Golden> {
 protected:
  void SetUp() override {
    const Golden& g = GetParam();
    options.align = g.align;
    if (g.causal) options.mask = causal();
  }
  Tensor q(DType t) const { return wave(t, {1, 2, GetParam().nq, 4}, 0); }
  Tensor k(DType t) const { return wave(t, {1, GetParam().kv_heads, GetParam().nk, 4}, 1); }
  Tensor v(DType t) const { return wave(t, {1, GetParam().kv_heads, GetParam().nk, 4}, 2); }
  Tensor dout(DType t) const { return wave(t, {1, 2, GetParam().nq, 4}, 3); }
  void expect(const Forward& f, const Gradients& g, double tolerance) const {
    expect_four(f.o, GetParam().o, tolerance, "O");
    expect_four(f.lse, GetParam().lse, tolerance, "LSE");
    expect_four(g.q, GetParam().dq, tolerance, "dQ");
    expect_four(g.k, GetParam().dk, tolerance, "dK");
    expect_four(g.v, GetParam().dv, tolerance, "dV");
  }
  Options options;
};

TEST_P(Sdpa, OracleGivesEveryDigit) {
  const DType t = DType::f64;
  const Tensor q64 = q(t), k64 = k(t), v64 = v(t), dout64 = dout(t);
  const Kv kv = dense(k64, v64);
  expect(reference(q64, kv, options), reference_backward(Rows(dout64), q64, kv, options), 1e-9);
}

TEST_P(Sdpa, CpuGivesWhatFloatCanHold) {
  const DType t = DType::f32;
  const Tensor q32 = q(t), k32 = k(t), v32 = v(t);
  const Forward f = attention(q32, k32, v32, options);
  expect(f, attention_backward(dout(t), q32, k32, v32, f), 2e-6);
}

INSTANTIATE_TEST_SUITE_P(Golden, Sdpa, testing::ValuesIn(table), [](const auto& test) {
  std::string name = test.param.name;
  for (char& c : name)
    if (c == ' ') c = '_';
  return name;
});

// ---- identities, and what misprints would give ----

/// Two halves of the keys as partial results, and the whole.
struct Halves {
  Forward a, b, whole;
  Halves() {
    const DType t = DType::f32;
    const Tensor q = wave(t, {1, 2, 6, 4}, 0), k = wave(t, {1, 2, 8, 4}, 1),
                 v = wave(t, {1, 2, 8, 4}, 2);
    Options partial{.partial = true};
    a = attention(q, k.sliced(2, 0, 3), v.sliced(2, 0, 3), partial);
    b = attention(q, k.sliced(2, 3, 8), v.sliced(2, 3, 8), partial);
    whole = attention(q, k, v);
  }
};

TEST(Errata, MergingMultipliesByTheExponentialOfTheDifference) {
  const Halves h;
  double wrong_by = 0;
  for (std::int64_t r = 0; r < 12; ++r) {
    const double la = h.a.lse.ptr<float>()[r], lb = h.b.lse.ptr<float>()[r];
    const double l = std::log(std::exp(la) + std::exp(lb));
    EXPECT_NEAR(h.whole.lse.ptr<float>()[r], l, 1e-6);
    for (std::int64_t d = 0; d < 4; ++d) {
      const double oa = h.a.o.ptr<float>()[r * 4 + d], ob = h.b.o.ptr<float>()[r * 4 + d];
      const double o = h.whole.o.ptr<float>()[r * 4 + d];
      EXPECT_NEAR(o, std::exp(la - l) * oa + std::exp(lb - l) * ob, 1e-6);
      wrong_by = std::max(wrong_by, std::fabs(o - (std::exp(l - la) * oa + std::exp(lb - l) * ob)));
    }
  }
  EXPECT_GT(wrong_by, 0.1) << "the printed inverse would pass unseen";
}

TEST(Identities, GradientsOfKeysSumToNothingAndOfValuesToTheSumOfOutputGradients) {
  const DType t = DType::f64;
  const Tensor q = wave(t, {1, 2, 7, 4}, 0), k = wave(t, {1, 2, 9, 4}, 1),
               v = wave(t, {1, 2, 9, 4}, 2), dout = wave(t, {1, 2, 7, 4}, 3);
  const Gradients g =
      reference_backward(Rows(dout), Rows(q), dense(k, v), {.mask = causal(), .align = Align::end});
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t d = 0; d < 4; ++d) {
      double dk = 0, dv = 0, out = 0;
      for (std::int64_t j = 0; j < 9; ++j) {
        dk += *static_cast<double*>(g.k.at({0, h, j, d}));
        dv += *static_cast<double*>(g.v.at({0, h, j, d}));
      }
      for (std::int64_t i = 0; i < 7; ++i) out += *static_cast<double*>(dout.at({0, h, i, d}));
      EXPECT_NEAR(dk, 0, 1e-12);
      EXPECT_NEAR(dv, out, 1e-12);
    }
}

TEST(Identities, RowsPastALengthHaveNoOutputAndNoWeight) {
  const DType t = DType::f32;
  const Tensor q = wave(t, {2, 1, 3, 4}, 0), k = wave(t, {2, 1, 5, 4}, 1),
               v = wave(t, {2, 1, 5, 4}, 2);
  const std::int32_t lengths[] = {1, 3};
  const Tensor count = Tensor::empty(DType::i32, {2});
  std::copy_n(lengths, 2, count.ptr<std::int32_t>());
  Rows rows(q);
  rows.lengths = count;
  const Forward f = reference(rows, dense(k, v));
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 3; ++i) {
      const bool used = i < lengths[b];
      EXPECT_EQ(*static_cast<double*>(f.lse.at({b, 0, i})) != -INFINITY, used);
      EXPECT_EQ(*static_cast<double*>(f.o.at({b, 0, i, 1})) != 0, used);
    }
}

TEST(Identities, TheGradientOfLseIsThatOfAShiftedDelta) {
  // d LSE_i / d s_ij = P_ij: with dO = 0, dQ = scale * sum_j dLSE P_ij k_j.
  const DType t = DType::f64;
  const Tensor q = wave(t, {1, 1, 3, 4}, 0), k = wave(t, {1, 1, 5, 4}, 1),
               v = wave(t, {1, 1, 5, 4}, 2);
  const Tensor zero = Tensor::zeros(t, {1, 1, 3, 4});
  const Tensor dlse = wave(DType::f32, {1, 1, 3}, 6);
  const Gradients g = reference_backward(Rows(zero), Rows(q), dense(k, v), {}, {.dlse = dlse});
  for (std::int64_t i = 0; i < 3; ++i) {
    std::vector<double> p(5);
    double sum = 0;
    for (std::int64_t j = 0; j < 5; ++j) {
      double s = 0;
      for (std::int64_t d = 0; d < 4; ++d)
        s += *static_cast<double*>(q.at({0, 0, i, d})) * *static_cast<double*>(k.at({0, 0, j, d}));
      sum += p[static_cast<std::size_t>(j)] = std::exp(0.5 * s);
    }
    for (std::int64_t d = 0; d < 4; ++d) {
      double want = 0;
      for (std::int64_t j = 0; j < 5; ++j)
        want += 0.5 * dlse.ptr<float>()[i] * p[static_cast<std::size_t>(j)] / sum *
                *static_cast<double*>(k.at({0, 0, j, d}));
      EXPECT_NEAR(*static_cast<double*>(g.q.at({0, 0, i, d})), want, 1e-12);
    }
  }
  for (std::int64_t i = 0; i < g.v.count(); ++i) EXPECT_EQ(g.v.ptr<double>()[i], 0);
}

}  // namespace
}  // namespace undivided
