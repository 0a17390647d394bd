// SPDX-License-Identifier: Apache-2.0
// The epilogues of differential attention. With x = o1 - lambda o2, r = (mean x^2 + eps)^-1/2 and
// a = gain * weight * dy:  dx = r a - x r^3 mean(a x),  d1 = dx,  d2 = -lambda dx.
#include "attention/differential_rows.hpp"

#include <cmath>
#include <cstddef>

#include "attention/head_rows.hpp"

namespace undivided {
namespace {

double weight_at(const Epilogue& norm, std::int64_t c) {
  return norm.weight.empty() ? 1.0 : norm.weight[static_cast<std::size_t>(c)];
}

double scalar(const View& v, std::int64_t b, std::int64_t h, std::int64_t i) {
  return load_element(v.dtype, v.at({b, h, i}));
}

/// In T with many partial sums, so that it runs in vectors: the forward calls it for each row while
/// the row is in the cache.
template <class T>
double inverse_rms(const Epilogue& norm, const T* a, const T* b, std::int64_t dim) {
  constexpr std::int64_t wide = 16;
  const T lambda = static_cast<T>(norm.lambda);
  T part[wide] = {};
  std::int64_t c = 0;
  for (; c + wide <= dim; c += wide)
    for (std::int64_t i = 0; i < wide; ++i) {
      const T x = a[c + i] - lambda * b[c + i];
      part[i] += x * x;
    }
  double sum = 0;
  for (; c < dim; ++c) {
    const double x = a[c] - lambda * b[c];
    sum += x * x;
  }
  for (const T x : part) sum += x;
  const double mean = sum / static_cast<double>(dim) + norm.eps;
  return mean == 0 ? 0 : 1 / std::sqrt(mean);  // a row without keys stays zero without eps too
}

template <class T>
void norm_forward(
    const Epilogue& norm, const View& o1, const View& o2, const View& y, const RowSpan& at) {
  const std::int64_t dim = o1.size(3);
  const T lambda = static_cast<T>(norm.lambda);
  for (std::int64_t i = at.first; i < at.first + at.count; ++i) {
    const T *p = row<T>(o1, at.b, at.h, i), *q = row<T>(o2, at.b, at.h, i);
    T* out = row<T>(y, at.b, at.h, i);
    const T r = static_cast<T>(inverse_rms(norm, p, q, dim) * norm.gain);
    for (std::int64_t c = 0; c < dim; ++c) out[c] = r * (p[c] - lambda * q[c]);
    if (norm.weight.empty()) continue;
    const double* weight = norm.weight.data();
    for (std::int64_t c = 0; c < dim; ++c) out[c] *= static_cast<T>(weight[c]);
  }
}

template <class T>
EpilogueGradient norm_backward(const Epilogue& norm,
                               const View& dy,
                               const View& o1,
                               const View& o2,
                               const View& d1,
                               const View& d2,
                               Executor& executor) {
  const std::int64_t dim = o1.size(3), heads = o1.size(0) * o1.size(1);
  const auto width = static_cast<std::size_t>(dim + 1);  // the weight's gradient, then lambda's
  std::vector<double> parts(static_cast<std::size_t>(heads) * width);
  for_each_head(o1, executor, [&](std::int64_t b, std::int64_t h) {
    double* part = parts.data() + static_cast<std::size_t>(b * o1.size(1) + h) * width;
    for (std::int64_t i = 0; i < o1.size(2); ++i) {
      const T *p = row<T>(o1, b, h, i), *q = row<T>(o2, b, h, i), *g = row<T>(dy, b, h, i);
      T *to1 = row<T>(d1, b, h, i), *to2 = row<T>(d2, b, h, i);
      const double r = inverse_rms(norm, p, q, dim);
      double inner = 0;
      for (std::int64_t c = 0; c < dim; ++c) {
        const double x = p[c] - norm.lambda * q[c];
        inner += norm.gain * weight_at(norm, c) * g[c] * x;
        part[c] += norm.gain * r * x * g[c];
      }
      inner *= r * r * r / static_cast<double>(dim);
      for (std::int64_t c = 0; c < dim; ++c) {
        const double x = p[c] - norm.lambda * q[c];
        const double dx = r * norm.gain * weight_at(norm, c) * g[c] - x * inner;
        part[dim] -= dx * q[c];
        to1[c] = static_cast<T>(dx);
        to2[c] = static_cast<T>(-norm.lambda * dx);
      }
    }
  });
  EpilogueGradient sum{0, std::vector<double>(static_cast<std::size_t>(dim))};
  for (std::size_t n = 0; n < static_cast<std::size_t>(heads); ++n) {
    for (std::size_t c = 0; c + 1 < width; ++c) sum.weight[c] += parts[n * width + c];
    sum.lambda += parts[n * width + width - 1];
  }
  return sum;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void sigmoid_forward(
    const View& logits, const View& o1, const View& o2, const View& y, const RowSpan& at) {
  for (std::int64_t i = at.first; i < at.first + at.count; ++i) {
    const T s = static_cast<T>(sigmoid(scalar(logits, at.b, at.h, i)));
    const T *p = row<T>(o1, at.b, at.h, i), *q = row<T>(o2, at.b, at.h, i);
    T* out = row<T>(y, at.b, at.h, i);
    for (std::int64_t c = 0; c < o1.size(3); ++c) out[c] = p[c] - s * q[c];
  }
}

template <class T>
void sigmoid_backward(const View& logits,
                      const View& dy,
                      const View& o2,
                      const View& d1,
                      const View& d2,
                      const View& dlogits,
                      Executor& executor) {
  for_each_head(o2, executor, [&](std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < o2.size(2); ++i) {
      const double s = sigmoid(scalar(logits, b, h, i));
      const T *q = row<T>(o2, b, h, i), *g = row<T>(dy, b, h, i);
      T *to1 = row<T>(d1, b, h, i), *to2 = row<T>(d2, b, h, i);
      double dot = 0;
      for (std::int64_t c = 0; c < o2.size(3); ++c) {
        dot += static_cast<double>(g[c]) * q[c];
        to1[c] = g[c];
        to2[c] = static_cast<T>(-s * g[c]);
      }
      store_element(dlogits.dtype, dlogits.at({b, h, i}), -s * (1 - s) * dot);
    }
  });
}

}  // namespace

void difference(
    const Epilogue& e, const View& o1, const View& o2, const View& y, const RowSpan& rows) {
  const bool wide = o1.dtype == DType::f64;
  if (e.logits)
    (wide ? sigmoid_forward<double> : sigmoid_forward<float>)(e.logits, o1, o2, y, rows);
  else
    (wide ? norm_forward<double> : norm_forward<float>)(e, o1, o2, y, rows);
}

EpilogueGradient difference_backward(const Epilogue& e,
                                     const View& dy,
                                     const View& o1,
                                     const View& o2,
                                     const View& d1,
                                     const View& d2,
                                     const View& dlogits,
                                     Executor& executor) {
  const bool wide = o1.dtype == DType::f64;
  if (!e.logits)
    return (wide ? norm_backward<double> : norm_backward<float>)(e, dy, o1, o2, d1, d2, executor);
  (wide ? sigmoid_backward<double>
        : sigmoid_backward<float>)(e.logits, dy, o2, d1, d2, dlogits, executor);
  return {};
}

}  // namespace undivided
