// SPDX-License-Identifier: Apache-2.0
// The position-wise feed-forward network and its activations.
#include <cmath>
#include <numbers>

#include "undivided/nn/layers.hpp"

namespace undivided::nn {
namespace {

template <class T>
T normal_cdf(T x) {
  return T(.5) * (T(1) + std::erf(x * static_cast<T>(std::numbers::sqrt2 / 2)));
}
template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

template <class T>
T apply(Activation a, T x) {
  if (a == Activation::relu) return x > T(0) ? x : T(0);
  if (a == Activation::gelu) return x * normal_cdf(x);
  return x * sigmoid(x);
}
template <class T>
T slope(Activation a, T x) {
  if (a == Activation::relu) return x > T(0) ? T(1) : T(0);
  if (a == Activation::gelu)
    return normal_cdf(x) + x * std::exp(-x * x / T(2)) *
                               static_cast<T>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

}  // namespace

template <class T>
FeedForward<T>::FeedForward(
    std::int64_t features, std::int64_t hidden, Activation activation, bool bias, double p)
    : linear1(features, hidden, bias),
      linear2(hidden, features, bias),
      activation_(activation),
      dropout_(p) {
  if (activation == Activation::swiglu) linear3 = Linear<T>(features, hidden, bias);
}

template <class T>
Matrix<T> FeedForward<T>::forward(const Matrix<T>& x, Pass& pass, Saved* saved) const {
  Matrix<T> before = linear1.forward(x, pass.context), gate;
  Matrix<T> after(before.rows(), before.cols());
  for (std::int64_t i = 0; i < before.count(); ++i)
    after.data()[i] = apply(activation_, before.data()[i]);
  if (activation_ == Activation::swiglu) {
    gate = linear3.forward(x, pass.context);
    for (std::int64_t i = 0; i < gate.count(); ++i) after.data()[i] *= gate.data()[i];
  }
  const bool drop = pass.training && dropout_ > 0;
  const std::uint64_t seed = drop ? pass.next_seed() : 0;
  if (drop) dropout(after, dropout_, seed);
  Matrix<T> y = linear2.forward(after, pass.context);
  if (saved) *saved = {x, std::move(before), std::move(gate), std::move(after), seed, drop};
  return y;
}

template <class T>
Matrix<T> FeedForward<T>::backward(const Saved& saved,
                                   const Matrix<T>& dy,
                                   const Context& context) {
  Matrix<T> d = linear2.backward(saved.after, dy, context);
  if (saved.dropped) dropout(d, dropout_, saved.seed);
  if (activation_ != Activation::swiglu) {
    for (std::int64_t i = 0; i < d.count(); ++i)
      d.data()[i] *= slope(activation_, saved.before.data()[i]);
    return linear1.backward(saved.x, d, context);
  }
  Matrix<T> d_gate(d.rows(), d.cols());
  for (std::int64_t i = 0; i < d.count(); ++i) {
    const T x = saved.before.data()[i];
    d_gate.data()[i] = d.data()[i] * apply(activation_, x);
    d.data()[i] *= saved.gate.data()[i] * slope(activation_, x);
  }
  Matrix<T> dx = linear1.backward(saved.x, d, context);
  dx += linear3.backward(saved.x, d_gate, context);
  return dx;
}

template <class T>
void FeedForward<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  linear1.collect(prefix + "linear1.", list);
  linear2.collect(prefix + "linear2.", list);
  if (activation_ == Activation::swiglu) linear3.collect(prefix + "linear3.", list);
}

template class FeedForward<float>;
template class FeedForward<double>;

}  // namespace undivided::nn
