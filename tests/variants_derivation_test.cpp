// SPDX-License-Identifier: Apache-2.0
// Claims: the equations of docs/guide/derivation.md, each named by its number, give what the oracle
// gives.
#include <array>
#include <optional>

#include "derivation_support.hpp"

namespace undivided::derivation {
namespace {

TEST(Derivation, Equations1To3AreTheOracle) {
  for (const double p : {0., .4}) {
    const Case c(p);
    const Forward f = c.forward();
    for_rows([&](std::int64_t h, std::int64_t i) {
      const double got = load_element(DType::f64, f.lse.at({0, h, i}));
      if (i == 2)
        EXPECT_EQ(got, -infinity);
      else
        EXPECT_NEAR(got, c.lse(h, i), 1e-12);
      expect_near(c.o(h, i), Case::row(f.o, h, i));
    });
  }
}

TEST(Derivation, Equations4To6BuildTheRowBlockByBlock) {
  for (const std::int64_t block : {1, 2, 3, 7}) {
    const Case c(.4);
    for_rows([&](std::int64_t h, std::int64_t i) {
      State s;
      for (std::int64_t j = 0; j < Case::m; j += block)
        absorb(s, c, h, i, j, std::min(j + block, Case::m));
      expect_near(output(s), c.o(h, i));
      if (i != 2) EXPECT_NEAR(s.max + std::log(s.sum), c.lse(h, i), 1e-12);
    });
  }
}

TEST(Derivation, Equation7MergesDisjointKeys) {
  const Case c(.4);
  for_rows([&](std::int64_t h, std::int64_t i) {
    State a, b, none;
    absorb(a, c, h, i, 0, 3);
    absorb(b, c, h, i, 3, Case::m);
    const auto lse = [](const State& s) { return s.max + std::log(s.sum); };
    const double la = lse(a), lb = lse(b), l = std::log(std::exp(la) + std::exp(lb));
    if (l == -infinity) return;
    Vector o(Case::dv);
    add(o, std::exp(la - l), output(a));
    add(o, std::exp(lb - l), output(b));
    expect_near(o, c.o(h, i));
    EXPECT_NEAR(l, c.lse(h, i), 1e-12);
    // Nothing is the identity.
    EXPECT_EQ(lse(none), -infinity);
    EXPECT_EQ(std::log(std::exp(la) + std::exp(lse(none))), std::log(std::exp(la)));
  });
}

TEST(Derivation, Equation8SumsOverTheGroup) {
  for (const double p : {0., .4}) {
    const Case c(p);
    const Gradients g = c.backward();
    for (std::int64_t kv = 0; kv < Case::kv_heads; ++kv)
      for (std::int64_t j = 0; j < Case::m; ++j) {
        Vector sum(Case::dv);
        for_rows([&](std::int64_t h, std::int64_t i) {
          if (h / Case::group == kv)
            add(sum, c.z(h, i, j) * c.weight(h, i, j), Case::row(c.dout, h, i));
        });
        expect_near(sum, Case::row(g.v, kv, j));
      }
  }
}

TEST(Derivation, Equation10NeedsTheOutputOnlyDropoutOrNot) {
  for (const double p : {0., .4}) {
    const Case c(p);
    for_rows([&](std::int64_t h, std::int64_t i) {
      EXPECT_NEAR(c.delta(h, i), dot(Case::row(c.dout, h, i), c.o(h, i)), 1e-12);
    });
  }
}

TEST(Derivation, Equations9To12AreTheGradients) {
  for (const double p : {0., .4})
    for (const bool with_lse : {false, true}) {
      const Case c(p);
      const Gradients g = c.backward(with_lse);
      std::vector<Rows2> dk(Case::kv_heads, zeros(Case::m, Case::d));
      for_rows([&](std::int64_t h, std::int64_t i) {
        Vector dq(Case::d);
        for (std::int64_t j = 0; j < Case::m; ++j) {
          const double ds = c.ds(h, i, j, with_lse);
          add(dq, Case::tau * ds, Case::row(c.k, h / Case::group, j));
          add(dk[h / Case::group][j], Case::tau * ds, Case::row(c.q, h, i));
          EXPECT_NEAR(load_element(DType::f64, g.captured.at(0).second.at({h, i, j})), ds, 1e-12);
        }
        expect_near(dq, Case::row(g.q, h, i));
      });
      for (std::int64_t kv = 0; kv < Case::kv_heads; ++kv)
        for (std::int64_t j = 0; j < Case::m; ++j) expect_near(dk[kv][j], Case::row(g.k, kv, j));
    }
}

TEST(Derivation, Equation13RowsOfTheScoreGradientSumToThatOfLse) {
  const Case c(.4);
  for_rows([&](std::int64_t h, std::int64_t i) {
    double plain = 0, with = 0;
    for (std::int64_t j = 0; j < Case::m; ++j) {
      plain += c.ds(h, i, j);
      with += c.ds(h, i, j, true);
    }
    EXPECT_NEAR(plain, 0, 1e-12);
    EXPECT_NEAR(with, i == 2 ? 0 : load_element(DType::f32, c.dlse.at({0, h, i})), 1e-12);
  });
  // So dK sums to 0, and without dropout dV to the sum of dO over rows with a key.
  const Case plain;
  const Gradients g = plain.backward();
  for (std::int64_t kv = 0; kv < Case::kv_heads; ++kv) {
    Vector dk(Case::d), dv(Case::dv), all(Case::dv);
    for (std::int64_t j = 0; j < Case::m; ++j) {
      add(dk, 1, Case::row(g.k, kv, j));
      add(dv, 1, Case::row(g.v, kv, j));
    }
    for_rows([&](std::int64_t h, std::int64_t i) {
      if (h / Case::group == kv && i != 2) add(all, 1, Case::row(plain.dout, h, i));
    });
    expect_near(dk, Vector(Case::d));
    expect_near(dv, all);
  }
}

TEST(Derivation, Equation14ChainsAScoreProgram) {
  Case c;
  Options o = c.options();
  o.score = softcap(1.5);
  const Gradients g = reference_backward(c.dout, c.q, dense(c.k, c.v), o);
  const auto raw = [&](std::int64_t h, std::int64_t i, std::int64_t j) {
    return Case::tau * dot(Case::row(c.q, h, i), Case::row(c.k, h / Case::group, j));
  };
  for_rows([&](std::int64_t h, std::int64_t i) {
    Vector p(Case::m), dp(Case::m), dq(Case::d);
    double sum = 0, delta = 0;
    for (std::int64_t j = 0; j < Case::m; ++j) {
      p[j] = Case::kept(i, j) ? std::exp(1.5 * std::tanh(raw(h, i, j) / 1.5)) : 0;
      sum += p[j];
      dp[j] = dot(Case::row(c.dout, h, i), Case::row(c.v, h / Case::group, j));
    }
    if (sum == 0) return;
    for (std::int64_t j = 0; j < Case::m; ++j) delta += (p[j] /= sum) * dp[j];
    for (std::int64_t j = 0; j < Case::m; ++j) {
      const double t = std::tanh(raw(h, i, j) / 1.5);
      add(dq, Case::tau * p[j] * (dp[j] - delta) * (1 - t * t), Case::row(c.k, h / Case::group, j));
    }
    expect_near(dq, Case::row(g.q, h, i));
  });
}

TEST(Derivation, Equation15ASinkTakesWeightAndGivesNoValue) {
  const Case c;
  const Tensor sink = wave(DType::f32, {Case::heads}, 6);
  Options o = c.options();
  o.sink = sink;
  BackwardOptions wanted;
  wanted.dlse = c.dlse;
  const Forward f = reference(c.q, dense(c.k, c.v), o);
  const Gradients g = reference_backward(c.dout, c.q, dense(c.k, c.v), o, wanted);
  for (std::int64_t h = 0; h < Case::heads; ++h) {
    const double a = value(sink, h);
    double dsink = 0;
    for (std::int64_t i = 0; i < Case::n; ++i) {
      const double l = std::log(std::exp(c.lse(h, i)) + std::exp(a));
      EXPECT_NEAR(load_element(DType::f64, f.lse.at({0, h, i})), l, 1e-12);
      Vector row(Case::dv);
      add(row, std::exp(c.lse(h, i) - l), c.o(h, i));
      expect_near(row, Case::row(f.o, h, i));
      dsink += std::exp(a - l) *
               (load_element(DType::f32, c.dlse.at({0, h, i})) - dot(Case::row(c.dout, h, i), row));
    }
    EXPECT_NEAR(load_element(DType::f64, g.sink.at({h})), dsink, 1e-12);
  }
}

TEST(Derivation, EmptyRowsGiveZeroAndNoGradient) {
  const Case c;
  const Forward f = c.forward();
  const Gradients g = c.backward(true);
  for (std::int64_t h = 0; h < Case::heads; ++h) {
    expect_near(Case::row(f.o, h, 2), Vector(Case::dv), 0);
    expect_near(Case::row(g.q, h, 2), Vector(Case::d), 0);
  }
}

}  // namespace
}  // namespace undivided::derivation
