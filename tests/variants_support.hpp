// SPDX-License-Identifier: Apache-2.0
// Helpers of the variants' tests: golden inputs, linear layers, four numbers that describe a
// tensor.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <string>

#include "undivided/undivided.hpp"

namespace undivided {

inline constexpr DType f64 = DType::f64;

inline void* element(const View& t, std::int64_t i) {
  return static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(t.dtype);
}
inline double value(const View& t, std::int64_t i) { return load_element(t.dtype, element(t, i)); }

/// s sin(0.1 (c + 1) t + c) over the row-major index t.
inline Tensor wave(DType dtype, std::initializer_list<std::int64_t> shape, int c, double s = 1) {
  const Tensor t = Tensor::empty(dtype, shape);
  for (std::int64_t i = 0; i < t.count(); ++i)
    store_element(dtype, element(t, i), s * std::sin(0.1 * (c + 1) * static_cast<double>(i) + c));
  return t;
}

/// Normal numbers times s: sums of them cancel less than those of waves.
inline Tensor noise(DType dtype,
                    std::initializer_list<std::int64_t> shape,
                    std::uint64_t seed,
                    double s = 1) {
  const Tensor t = Tensor::empty(dtype, shape);
  std::mt19937_64 bits(seed);
  std::normal_distribution<double> normal(0, s);
  for (std::int64_t i = 0; i < t.count(); ++i) store_element(dtype, element(t, i), normal(bits));
  return t;
}

/// The same shape on a GPU: an address that nothing may read.
inline View elsewhere(const View& v) {
  View there = v;
  there.device = {Device::Kind::cuda, 0};
  return there;
}

/// x [batch, token, in] times w^T, w [out, in], plus an optional bias.
inline Tensor linear(const View& x, const View& w, const View& bias = {}) {
  const Tensor y = Tensor::empty(x.dtype, {x.size(0), x.size(1), w.size(0)});
  for (std::int64_t b = 0; b < x.size(0); ++b)
    for (std::int64_t i = 0; i < x.size(1); ++i)
      for (std::int64_t o = 0; o < w.size(0); ++o) {
        double sum = bias ? load_element(bias.dtype, bias.at({o})) : 0;
        for (std::int64_t c = 0; c < w.size(1); ++c)
          sum += load_element(x.dtype, x.at({b, i, c})) * load_element(w.dtype, w.at({o, c}));
        store_element(y.dtype, y.at({b, i, o}), sum);
      }
  return y;
}

/// [batch, token, heads * d] seen as [batch, head, token, d].
inline View split(const View& x, std::int64_t heads) {
  View v = x;
  const std::int64_t d = x.size(2) / heads;
  v.rank = 4;
  v.shape = {x.size(0), heads, x.size(1), d};
  v.stride = {x.step(0), d, x.step(1), 1};
  return v;
}

/// [batch, head, token, d] as a dense [batch, token, heads * d].
inline Tensor join(const View& x) {
  const Tensor y = Tensor::empty(x.dtype, {x.size(0), x.size(2), x.size(1) * x.size(3)});
  copy(x, split(y, x.size(1)));
  return y;
}

inline void expect_four(
    const View& t, double first, double last, double sum, double l2, double tolerance) {
  const Tensor x = converted(t, DType::f64);
  double s = 0, q = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    s += value(x, i);
    q += value(x, i) * value(x, i);
  }
  EXPECT_NEAR(value(x, 0), first, tolerance) << "first";
  EXPECT_NEAR(value(x, x.count() - 1), last, tolerance) << "last";
  EXPECT_NEAR(s, sum, 10 * tolerance) << "sum";
  EXPECT_NEAR(std::sqrt(q), l2, 5 * tolerance) << "L2";
}

inline double largest_difference(const View& a, const View& b) {
  const Tensor x = converted(a, DType::f64), y = converted(b, DType::f64);
  EXPECT_EQ(x.count(), y.count());
  double most = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    const double difference = std::abs(value(x, i) - value(y, i));
    if (!(difference <= most)) most = difference;
  }
  return most;
}

/// sum of dO * O.
inline double inner(const View& dout, const View& o) {
  const Tensor x = converted(dout, DType::f64), y = converted(o, DType::f64);
  double sum = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) sum += value(x, i) * value(y, i);
  return sum;
}

/// Central differences of `loss` in every element of the dense float64 tensor `x` are `gradient`.
inline void expect_gradient(const Tensor& x,
                            const View& gradient,
                            const std::function<double()>& loss,
                            const std::string& what,
                            double tolerance = 1e-7) {
  const Tensor g = converted(gradient, DType::f64);
  ASSERT_EQ(x.dtype, DType::f64) << what;
  ASSERT_EQ(x.count(), g.count()) << what;
  const double h = 1e-5;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    double& at = x.ptr<double>()[i];
    const double before = at;
    at = before + h;
    const double up = loss();
    at = before - h;
    const double down = loss();
    at = before;
    EXPECT_NEAR(value(g, i), (up - down) / (2 * h), tolerance) << what << " element " << i;
  }
}

/// `run` raises Error whose message holds every one of `parts`.
inline void expect_refused(const std::function<void()>& run,
                           std::initializer_list<const char*> parts) {
  try {
    run();
    ADD_FAILURE() << "nothing was refused; expected a message with '" << *parts.begin() << "'";
  } catch (const Error& e) {
    for (const char* part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "'" << e.what() << "' lacks '" << part << "'";
  }
}

}  // namespace undivided
