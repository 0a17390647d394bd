// SPDX-License-Identifier: Apache-2.0
// One problem with everything the derivation speaks of, and its equations one row at a time, by
// their numbers in docs/guide/derivation.md.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "core/philox.hpp"
#include "variants_support.hpp"

namespace undivided::derivation {

inline constexpr double infinity = std::numeric_limits<double>::infinity();
using Vector = std::vector<double>;
using Rows2 = std::vector<Vector>;  // [row][column]

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}
inline Rows2 zeros(std::size_t rows, std::size_t columns) { return Rows2(rows, Vector(columns)); }
inline void add(Vector& to, double factor, const Vector& x) {
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
inline void expect_near(const Vector& a, const Vector& b, double tolerance = 1e-12) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t c = 0; c < a.size(); ++c) EXPECT_NEAR(a[c], b[c], tolerance);
}
inline double distance(const Vector& a, const Vector& b) {
  double most = 0;
  for (std::size_t c = 0; c < a.size(); ++c) {
    const double x = std::abs(a[c] - b[c]);
    if (!(x <= most)) most = x;
  }
  return most;
}

/// Equation 4: what is known of a row after some keys.
struct State {
  double max = -infinity, sum = 0;
  Vector u = Vector(Case::dv);
};
enum class Rescale { right, inverted };
/// Equation 5, one block of keys [from, to).
inline void absorb(State& s,
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
inline Vector output(const State& s) {
  Vector o = s.u;
  for (double& x : o) x = s.sum == 0 ? 0 : x / s.sum;
  return o;
}

}  // namespace undivided::derivation
