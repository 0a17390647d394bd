// SPDX-License-Identifier: Apache-2.0
// Claims: the equations of docs/guide/derivation.md, each named by its number, give what the oracle
// gives; and the formulas that are printed wrong elsewhere give something else.
#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "core/philox.hpp"
#include "variants_support.hpp"

namespace undivided {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
using Vector = std::vector<double>;
using Rows2 = std::vector<Vector>;  // [row][column]

double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}
Rows2 zeros(std::size_t rows, std::size_t columns) { return Rows2(rows, Vector(columns)); }
void add(Vector& to, double factor, const Vector& x) {
  for (std::size_t c = 0; c < x.size(); ++c) to[c] += factor * x[c];
}

/// 4 query heads on 2 key heads, 6 queries, 7 keys, d 3, dv 4; causal with aligned ends, and query
/// 2 keeps nothing; a bias for each pair and dropout if asked for.
struct Case {
  static constexpr std::int64_t heads = 4, kv_heads = 2, group = 2, n = 6, m = 7, d = 3, dv = 4;
  static constexpr double tau = .7;
  Tensor q = wave(DType::f64, {1, heads, n, d}, 0, 2),
         k = wave(DType::f64, {1, kv_heads, m, d}, 1, 2),
         v = wave(DType::f64, {1, kv_heads, m, dv}, 2),
         dout = wave(DType::f64, {1, heads, n, dv}, 3), bias = wave(DType::f32, {heads, n, m}, 4),
         dlse = wave(DType::f32, {1, heads, n}, 5);
  double p = 0;
  std::uint64_t seed = 99;

  explicit Case(double dropped = 0) : p(dropped) {}

  static Vector row(const Tensor& t, std::int64_t h, std::int64_t i) {
    Vector x(static_cast<std::size_t>(t.size(3)));
    for (std::size_t c = 0; c < x.size(); ++c)
      x[c] = load_element(t.dtype, t.at({0, h, i, static_cast<std::int64_t>(c)}));
    return x;
  }
  static bool kept(std::int64_t i, std::int64_t j) { return j <= i + (m - n) && i != 2; }
  /// Equation 1.
  double s(std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (!kept(i, j)) return -infinity;
    return tau * dot(row(q, h, i), row(k, h / group, j)) +
           load_element(DType::f32, bias.at({h, i, j}));
  }
  double z(std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (p == 0) return 1;
    return philox::keep(seed, philox::dropout_threshold(p), 0, h, i + (m - n), j) ? 1 / (1 - p) : 0;
  }
  /// Equation 2.
  double lse(std::int64_t h, std::int64_t i) const {
    double sum = 0;
    for (std::int64_t j = 0; j < m; ++j) sum += std::exp(s(h, i, j));
    return std::log(sum);
  }
  double weight(std::int64_t h, std::int64_t i, std::int64_t j) const {
    return kept(i, j) ? std::exp(s(h, i, j) - lse(h, i)) : 0;
  }
  /// Equation 3.
  Vector o(std::int64_t h, std::int64_t i) const {
    Vector sum(dv);
    for (std::int64_t j = 0; j < m; ++j)
      add(sum, z(h, i, j) * weight(h, i, j), row(v, h / group, j));
    return sum;
  }
  /// Equation 9.
  double dp(std::int64_t h, std::int64_t i, std::int64_t j) const {
    return z(h, i, j) * dot(row(dout, h, i), row(v, h / group, j));
  }
  /// Equation 10, left side.
  double delta(std::int64_t h, std::int64_t i) const {
    double sum = 0;
    for (std::int64_t j = 0; j < m; ++j) sum += weight(h, i, j) * dp(h, i, j);
    return sum;
  }
  /// Equation 11.
  double ds(std::int64_t h, std::int64_t i, std::int64_t j, bool with_lse = false) const {
    const double extra = with_lse ? load_element(DType::f32, dlse.at({0, h, i})) : 0;
    return weight(h, i, j) * (dp(h, i, j) - delta(h, i) + extra);
  }

  Options options() const {
    Options o;
    o.scale = tau;
    o.align = Align::end;
    o.dropout = p;
    o.seed = seed;
    // Positions of queries begin at m - n.
    o.mask = mask([](auto, auto, auto i, auto j) { return j <= i && i != 2 + (m - n); });
    const Array b(bias, "bias");
    o.score = score([=](auto s, auto, auto h, auto i, auto j) { return s + b(h, i - (m - n), j); });
    return o;
  }
  Forward forward() const { return reference(q, dense(k, v), options()); }
  Gradients backward(bool with_lse = false) const {
    BackwardOptions wanted;
    if (with_lse) wanted.dlse = dlse;
    return reference_backward(dout, q, dense(k, v), options(), wanted);
  }
};

template <class F>
void for_rows(F&& fn) {
  for (std::int64_t h = 0; h < Case::heads; ++h)
    for (std::int64_t i = 0; i < Case::n; ++i) fn(h, i);
}
void expect_near(const Vector& a, const Vector& b, double tolerance = 1e-12) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t c = 0; c < a.size(); ++c) EXPECT_NEAR(a[c], b[c], tolerance);
}
double distance(const Vector& a, const Vector& b) {
  double most = 0;
  for (std::size_t c = 0; c < a.size(); ++c) {
    const double x = std::abs(a[c] - b[c]);
    if (!(x <= most)) most = x;
  }
  return most;
}

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

/// Equation 4: what is known of a row after some keys.
struct State {
  double max = -infinity, sum = 0;
  Vector u = Vector(Case::dv);
};
enum class Rescale { right, inverted };
/// Equation 5, one block of keys [from, to).
void absorb(State& s,
            const Case& c,
            std::int64_t h,
            std::int64_t i,
            std::int64_t from,
            std::int64_t to,
            Rescale how = Rescale::right) {
  double most = s.max;
  for (std::int64_t j = from; j < to; ++j) most = std::max(most, c.s(h, i, j));
  if (most == -infinity) return;
  const double keep = s.max == -infinity ? 0 : std::exp(s.max - most);
  s.sum *= keep;
  const double factor = how == Rescale::right || keep == 0 ? keep : 1 / keep;
  for (double& x : s.u) x *= factor;
  for (std::int64_t j = from; j < to; ++j) {
    const double e = std::exp(c.s(h, i, j) - most);
    s.sum += e;
    add(s.u, c.z(h, i, j) * e, Case::row(c.v, h / Case::group, j));
  }
  s.max = most;
}
/// Equation 6.
Vector output(const State& s) {
  Vector o = s.u;
  for (double& x : o) x = s.sum == 0 ? 0 : x / s.sum;
  return o;
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

// ---- printed elsewhere, and wrong ----

TEST(Errata, A_TheInverseRescalingIsNotAttention) {
  const Case c;
  double worst = 0;
  for_rows([&](std::int64_t h, std::int64_t i) {
    State s;
    for (std::int64_t j = 0; j < Case::m; j += 2)
      absorb(s, c, h, i, j, std::min(j + 2, Case::m), Rescale::inverted);
    worst = std::max(worst, distance(output(s), c.o(h, i)));
  });
  EXPECT_GT(worst, 1);
}

TEST(Errata, B_TheFirstPartIsScaledByItsShareNotByTheInverse) {
  const Case c;
  double right = 0, printed = 0;
  for_rows([&](std::int64_t h, std::int64_t i) {
    State a, both;
    absorb(a, c, h, i, 0, 1);
    both = a;
    absorb(both, c, h, i, 1, Case::m);
    if (a.sum == 0) return;
    Vector second(Case::dv);
    for (std::int64_t j = 1; j < Case::m; ++j)
      if (Case::kept(i, j))
        add(second,
            std::exp(c.s(h, i, j) - both.max) / both.sum,
            Case::row(c.v, h / Case::group, j));
    Vector x = second, y = second;
    add(x, a.sum / both.sum * std::exp(a.max - both.max), output(a));
    add(y, both.sum / a.sum, output(a));
    right = std::max(right, distance(x, c.o(h, i)));
    printed = std::max(printed, distance(y, c.o(h, i)));
  });
  EXPECT_LT(right, 1e-12);
  EXPECT_GT(printed, .5);
}

TEST(Errata, C_TheSumDividesBothTerms) {
  const Case c;
  double worst = 0;
  for_rows([&](std::int64_t h, std::int64_t i) {
    State a, both;
    absorb(a, c, h, i, 0, 1);
    both = a;
    absorb(both, c, h, i, 1, Case::m);
    if (both.sum == 0) return;
    // Only the first term is divided.
    Vector printed = both.u, first(Case::dv);
    add(first, std::exp(a.max - both.max), a.u);
    add(printed, 1 / both.sum - 1, first);
    worst = std::max(worst, distance(printed, c.o(h, i)));
  });
  EXPECT_GT(worst, .1);
}

TEST(Errata, D_KeysGetTheTransposedScoreGradient) {
  // dK = dS^T Q; "dK = Q dS^T" has no meaning unless N = d, and then another value.
  constexpr std::int64_t n = 3;
  const Tensor q = wave(DType::f64, {1, n, n}, 0), k = wave(DType::f64, {1, n, n}, 1),
               v = wave(DType::f64, {1, n, n}, 2), dout = wave(DType::f64, {1, n, n}, 3);
  Options o;
  o.scale = 1;
  const Gradients g = reference_backward(dout, q, dense(k, v), o);
  double ds[n][n];
  const auto at = [](const Tensor& t, std::int64_t i, std::int64_t c) {
    return value(t, i * n + c);
  };
  for (std::int64_t i = 0; i < n; ++i) {
    double p[n], dp[n], sum = 0, delta = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      double s = 0;
      dp[j] = 0;
      for (std::int64_t c = 0; c < n; ++c) {
        s += at(q, i, c) * at(k, j, c);
        dp[j] += at(dout, i, c) * at(v, j, c);
      }
      sum += p[j] = std::exp(s);
    }
    for (std::int64_t j = 0; j < n; ++j) delta += p[j] / sum * dp[j];
    for (std::int64_t j = 0; j < n; ++j) ds[i][j] = p[j] / sum * (dp[j] - delta);
  }
  double right = 0, printed = 0;
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t c = 0; c < n; ++c) {
      double a = 0, b = 0;
      for (std::int64_t x = 0; x < n; ++x) {
        a += ds[x][r] * at(q, x, c);
        b += at(q, r, x) * ds[c][x];
      }
      right = std::max(right, std::abs(a - at(g.k, r, c)));
      printed = std::max(printed, std::abs(b - at(g.k, r, c)));
    }
  EXPECT_LT(right, 1e-12);
  EXPECT_GT(printed, .05);
}

TEST(Errata, E_BlocksAreSkippedWhenAllColumnsLieAfterAllRows) {
  // Blocks of 2 x 2 of a causal 6 x 6: skipping by the swapped condition drops needed pairs.
  std::int64_t right = 0, swapped = 0;
  for (std::int64_t rows = 0; rows < 6; rows += 2)
    for (std::int64_t columns = 0; columns < 6; columns += 2)
      for (std::int64_t i = rows; i < rows + 2; ++i)
        for (std::int64_t j = columns; j < columns + 2; ++j) {
          if (j > i) continue;
          right += columns > rows + 1;    // the block's first column lies after its last row
          swapped += rows > columns + 1;  // the other way round
        }
  EXPECT_EQ(right, 0);
  EXPECT_EQ(swapped, 12);
}

TEST(Errata, F_DeltaHasOneValueForEachQuery) {
  // A sum over rows instead (a vector of d values) cannot be subtracted row by row: rows differ.
  const Case c;
  double least = infinity, most = -infinity;
  for_rows([&](std::int64_t h, std::int64_t i) {
    if (h > 0 || i == 2) return;
    least = std::min(least, c.delta(h, i));
    most = std::max(most, c.delta(h, i));
  });
  EXPECT_GT(most - least, .1);
  EXPECT_NE(Case::n, Case::dv);
}

TEST(Errata, G_TheScaleStandsInBothDirections) {
  const Case c;
  Options unscaled = c.options();
  unscaled.scale = 1;
  EXPECT_GT(largest_difference(c.forward().o, reference(c.q, dense(c.k, c.v), unscaled).o), .1);
  // Without tau in the backward the gradient of Q is 1 / tau times too large.
  const Gradients g = c.backward();
  double printed = 0;
  for_rows([&](std::int64_t h, std::int64_t i) {
    Vector dq(Case::d);
    for (std::int64_t j = 0; j < Case::m; ++j)
      add(dq, c.ds(h, i, j), Case::row(c.k, h / Case::group, j));
    printed = std::max(printed, distance(dq, Case::row(g.q, h, i)));
  });
  EXPECT_GT(printed, .05);
}

}  // namespace
}  // namespace undivided
