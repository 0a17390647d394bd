// SPDX-License-Identifier: Apache-2.0
// Cross entropy, Adam, schedules, clipping and averaging.
#include "undivided/nn/optimize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nn/blas.hpp"

namespace undivided::nn {
namespace {

double x_log_x(double x) { return x > 0 ? x * std::log(x) : 0; }

}  // namespace

// With target shares p and probabilities s: loss = constant - sum p log s, gradient = s - p.
template <class T>
Loss<T> cross_entropy(const Matrix<T>& logits,
                      const std::vector<std::int32_t>& targets,
                      double eps,
                      Smoothing form) {
  const std::int64_t n = logits.cols();
  require(static_cast<std::int64_t>(targets.size()) == logits.rows(),
          fmt::format("{} targets came for {} rows of logits", targets.size(), logits.rows()));
  require(eps >= 0 && eps < 1, fmt::format("label smoothing is {}; 0 <= eps < 1 is allowed", eps));
  const bool uniform = form == Smoothing::uniform, skip0 = form == Smoothing::others_but_padding;
  const std::int64_t sharing = uniform ? n : n - (skip0 ? 2 : 1);
  const double share = eps / static_cast<double>(sharing);
  const double constant =
      uniform ? 0 : x_log_x(1 - eps) + static_cast<double>(sharing) * x_log_x(share);
  Loss<T> loss;
  loss.gradient = Matrix<T>(logits.rows(), n);
  for (const std::int32_t t : targets) loss.tokens += t >= 0;
  if (loss.tokens == 0) return loss;
  const double each = 1 / static_cast<double>(loss.tokens);
  for (std::int64_t r = 0; r < logits.rows(); ++r) {
    const std::int32_t target = targets[static_cast<std::size_t>(r)];
    if (target < 0) continue;
    require(target < n, fmt::format("target {} is outside the vocabulary of {}", target, n));
    const T* x = logits.row(r);
    T* d = loss.gradient.row(r);
    const double most = static_cast<double>(*std::max_element(x, x + n));
    double sum = 0;
    for (std::int64_t j = 0; j < n; ++j) sum += std::exp(static_cast<double>(x[j]) - most);
    const double lse = most + std::log(sum);
    loss.mean += constant * each;
    for (std::int64_t j = 0; j < n; ++j) {
      const double log_s = static_cast<double>(x[j]) - lse;
      const double p =
          j == target ? (uniform ? 1 - eps + share : 1 - eps) : (skip0 && j == 0 ? 0 : share);
      loss.mean -= p * log_s * each;
      d[j] = static_cast<T>((std::exp(log_s) - p) * each);
    }
  }
  return loss;
}

double Noam::at(std::int64_t step) const {
  const double s = static_cast<double>(std::max<std::int64_t>(1, step));
  const double rate = factor / std::sqrt(static_cast<double>(features)) *
                      std::min(1 / std::sqrt(s), s * std::pow(static_cast<double>(warmup), -1.5));
  if (total <= 0 || decay <= 0) return rate;
  const double end = static_cast<double>(total), from = end * (1 - decay);
  return rate * std::clamp((end - s) / (end - from), 0., 1.);
}

template <class T>
Adam<T>::Adam(ParameterList<T> parameters, AdamOptions options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const auto& named : parameters_) {
    first.emplace_back(named.second->value.size(), T(0));
    second.emplace_back(named.second->value.size(), T(0));
  }
}

template <class T>
void Adam<T>::step(double rate) {
  ++steps;
  const double s = static_cast<double>(steps);
  const T b1 = static_cast<T>(options_.beta1), b2 = static_cast<T>(options_.beta2);
  const T up1 = static_cast<T>(1 / (1 - std::pow(options_.beta1, s)));
  const T up2 = static_cast<T>(1 / (1 - std::pow(options_.beta2, s)));
  const T lr = static_cast<T>(rate), eps = static_cast<T>(options_.eps);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter<T>& p = *parameters_[i].second;
    T *m = first[i].data(), *v = second[i].data(), *w = p.value.data(), *g = p.grad.data();
    const T keep = p.shape.size() > 1 ? static_cast<T>(1 - rate * options_.weight_decay) : T(1);
    for (std::int64_t j = 0; j < p.count(); ++j) {
      m[j] = b1 * m[j] + (T(1) - b1) * g[j];
      v[j] = b2 * v[j] + (T(1) - b2) * g[j] * g[j];
      w[j] = keep * w[j] - lr * (m[j] * up1) / (std::sqrt(v[j] * up2) + eps);
      g[j] = T(0);
    }
  }
}

template <class T>
double clip_gradients(const ParameterList<T>& parameters, double most) {
  double square = 0;
  for (const auto& named : parameters)
    for (const T g : named.second->grad) square += static_cast<double>(g) * static_cast<double>(g);
  const double norm = std::sqrt(square);
  if (norm > most)
    for (const auto& named : parameters)
      for (T& g : named.second->grad) g = static_cast<T>(static_cast<double>(g) * (most / norm));
  return norm;
}

template <class T>
void Average<T>::add(const ParameterList<T>& parameters) {
  if (mean.empty())
    for (const auto& named : parameters) mean.emplace_back(named.second->value.size(), T(0));
  ++count;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    for (std::size_t j = 0; j < mean[i].size(); ++j)
      mean[i][j] += (parameters[i].second->value[j] - mean[i][j]) / static_cast<T>(count);
}

template <class T>
void Average<T>::assign_to(const ParameterList<T>& parameters) const {
  require(count > 0, "there is no average yet");
  for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].second->value = mean[i];
}

template struct Loss<float>;
template struct Loss<double>;
template Loss<float> cross_entropy(const Matrix<float>&,
                                   const std::vector<std::int32_t>&,
                                   double,
                                   Smoothing);
template Loss<double> cross_entropy(const Matrix<double>&,
                                    const std::vector<std::int32_t>&,
                                    double,
                                    Smoothing);
template class Adam<float>;
template class Adam<double>;
template double clip_gradients(const ParameterList<float>&, double);
template double clip_gradients(const ParameterList<double>&, double);
template struct Average<float>;
template struct Average<double>;

}  // namespace undivided::nn
