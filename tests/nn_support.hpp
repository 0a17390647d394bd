// SPDX-License-Identifier: Apache-2.0
// Help for tests of nn: waves as golden values want them, and gradients by central differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/generator.hpp"
#include "undivided/nn/nn.hpp"

namespace undivided::nn {

/// Two sequences of five tokens.
inline const Extent two_of_five{2, 5, {}};

/// The four numbers that golden values give of a matrix: first, last, sum and length.
inline void expect_four(const Matrix<double>& m, double first, double last, double sum, double l2) {
  double s = 0, square = 0;
  for (std::int64_t i = 0; i < m.count(); ++i) {
    s += m.data()[i];
    square += m.data()[i] * m.data()[i];
  }
  EXPECT_NEAR(m.data()[0], first, 2e-9);
  EXPECT_NEAR(m.data()[m.count() - 1], last, 2e-9);
  EXPECT_NEAR(s, sum, 2e-8);
  EXPECT_NEAR(std::sqrt(square), l2, 2e-8);
}

/// s * sin(0.1 (c + 1) t + c) over the index t.
inline void wave(std::vector<double>& to, int c, double s = 1) {
  for (std::size_t t = 0; t < to.size(); ++t)
    to[t] = s * std::sin(0.1 * (c + 1) * static_cast<double>(t) + c);
}
inline Matrix<double> waves(std::int64_t rows, std::int64_t cols, int c, double s = 1) {
  Matrix<double> m(rows, cols);
  for (std::int64_t t = 0; t < m.count(); ++t)
    m.data()[t] = s * std::sin(0.1 * (c + 1) * static_cast<double>(t) + c);
  return m;
}
template <class T>
Matrix<T> random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Matrix<T> m(rows, cols);
  fill_normal(view(m.data(), {m.count()}), seed);
  return m;
}
template <class T>
void randomise(const ParameterList<T>& list, std::uint64_t seed, double deviation = .5) {
  for (const auto& named : list)
    fill_normal(view(named.second->value.data(), {named.second->count()}), ++seed, .1, deviation);
}
inline double dot(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}
template <class T>
double distance(const Matrix<T>& a, const Matrix<T>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return INFINITY;
  double most = 0;
  for (std::int64_t i = 0; i < a.count(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a.data()[i] - b.data()[i])));
  return most;
}

/// Compares a gradient with central differences of `loss` at each value; long arrays at every
/// seventh.
inline void expect_slope(const std::string& what,
                         double* values,
                         const double* gradient,
                         std::int64_t count,
                         const std::function<double()>& loss) {
  constexpr double h = 1e-5;
  for (std::int64_t i = 0; i < count; i += count > 60 ? 7 : 1) {
    const double at = values[i];
    values[i] = at + h;
    const double up = loss();
    values[i] = at - h;
    const double down = loss();
    values[i] = at;
    const double slope = (up - down) / (2 * h);
    ASSERT_NEAR(gradient[i], slope, 1e-6 * (1 + std::abs(slope))) << what << " at " << i;
  }
}
/// The same for every parameter of a list.
inline void expect_slopes(const ParameterList<double>& list, const std::function<double()>& loss) {
  for (const auto& [name, p] : list)
    expect_slope(name, p->value.data(), p->grad.data(), p->count(), loss);
}

}  // namespace undivided::nn
