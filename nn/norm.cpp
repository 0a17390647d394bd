// SPDX-License-Identifier: Apache-2.0
// LayerNorm, RMSNorm and dropout.
#include <fmt/format.h>

#include <cmath>

#include "core/philox.hpp"
#include "nn/blas.hpp"
#include "undivided/nn/layers.hpp"

namespace undivided::nn {

template <class T>
Norm<T>::Norm(std::int64_t features, NormKind kind, double eps)
    : weight({features}, T(1)), kind_(kind), eps_(eps) {
  if (kind == NormKind::layer) bias = Parameter<T>({features});
}

template <class T>
Matrix<T> Norm<T>::forward(const Matrix<T>& x, Saved* saved) const {
  const std::int64_t n = weight.shape[0];
  require(x.cols() == n, fmt::format("a norm wants {} features; {} came", n, x.cols()));
  Matrix<T> y(x.rows(), n);
  if (saved) {
    saved->normalised = Matrix<T>(x.rows(), n);
    saved->scale.resize(static_cast<std::size_t>(x.rows()));
  }
  const bool centre = kind_ == NormKind::layer;
  const T* gain = weight.value.data();
  const T* shift = centre ? bias.value.data() : nullptr;
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    const T* in = x.row(r);
    T* out = y.row(r);
    T mean = 0, square = 0;
    if (centre) {
      for (std::int64_t j = 0; j < n; ++j) mean += in[j];
      mean /= static_cast<T>(n);
    }
    for (std::int64_t j = 0; j < n; ++j) square += (in[j] - mean) * (in[j] - mean);
    const T scale = T(1) / std::sqrt(square / static_cast<T>(n) + static_cast<T>(eps_));
    for (std::int64_t j = 0; j < n; ++j) out[j] = (in[j] - mean) * scale;
    if (saved) {
      std::copy_n(out, n, saved->normalised.row(r));
      saved->scale[static_cast<std::size_t>(r)] = scale;
    }
    for (std::int64_t j = 0; j < n; ++j) out[j] *= gain[j];
    if (shift)
      for (std::int64_t j = 0; j < n; ++j) out[j] += shift[j];
  }
  return y;
}

// With u = (x - mean) / deviation and g = dy * gain: dx = (g - mean(g) - u mean(g u)) / deviation;
// RMSNorm has no mean to subtract.
template <class T>
Matrix<T> Norm<T>::backward(const Saved& saved, const Matrix<T>& dy) {
  const std::int64_t n = weight.shape[0];
  const bool centre = kind_ == NormKind::layer;
  Matrix<T> dx(dy.rows(), n);
  const T* gain = weight.value.data();
  T* d_gain = weight.grad.data();
  T* d_shift = centre ? bias.grad.data() : nullptr;
  for (std::int64_t r = 0; r < dy.rows(); ++r) {
    const T* d = dy.row(r);
    const T* u = saved.normalised.row(r);
    T* out = dx.row(r);
    T sum = 0, dot = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const T g = d[j] * gain[j];
      sum += g;
      dot += g * u[j];
      out[j] = g;
      d_gain[j] += d[j] * u[j];
    }
    if (d_shift)
      for (std::int64_t j = 0; j < n; ++j) d_shift[j] += d[j];
    const T mean = centre ? sum / static_cast<T>(n) : T(0);
    dot /= static_cast<T>(n);
    const T scale = saved.scale[static_cast<std::size_t>(r)];
    for (std::int64_t j = 0; j < n; ++j) out[j] = (out[j] - mean - u[j] * dot) * scale;
  }
  return dx;
}

template <class T>
void Norm<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  list.emplace_back(prefix + "weight", &weight);
  if (bias.count() > 0) list.emplace_back(prefix + "bias", &bias);
}

template <class T>
void dropout(Matrix<T>& x, double p, std::uint64_t seed) {
  require(p >= 0 && p < 1, fmt::format("dropout is {}; 0 <= p < 1 is allowed", p));
  if (p == 0) return;
  const std::uint32_t threshold = philox::dropout_threshold(p);
  const T scale = static_cast<T>(1 / (1 - p));
  T* at = x.data();
  for (std::int64_t i = 0; i < x.count(); i += 4) {
    const philox::Counter words = philox::random4(
        {static_cast<std::uint32_t>(i >> 2), static_cast<std::uint32_t>(i >> 34), 0, 0},
        philox::key_of(seed));
    for (std::int64_t j = 0; j < 4 && i + j < x.count(); ++j)
      at[i + j] *= words[static_cast<std::size_t>(j)] >= threshold ? scale : T(0);
  }
}

template class Norm<float>;
template class Norm<double>;
template void dropout<float>(Matrix<float>&, double, std::uint64_t);
template void dropout<double>(Matrix<double>&, double, std::uint64_t);

}  // namespace undivided::nn
