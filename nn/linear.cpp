// SPDX-License-Identifier: Apache-2.0
// Linear layers and embedding tables.
#include <fmt/format.h>

#include <algorithm>

#include "nn/blas.hpp"
#include "undivided/nn/layers.hpp"

namespace undivided::nn {

template <class T>
Linear<T>::Linear(std::int64_t in, std::int64_t out, bool with_bias) : weight({out, in}) {
  if (with_bias) bias = Parameter<T>({out});
}

template <class T>
Matrix<T> Linear<T>::forward(const Matrix<T>& x, const Context& context) const {
  const std::int64_t out = weight.shape[0], in = weight.shape[1];
  require(x.cols() == in, fmt::format("a linear layer wants {} features; {} came", in, x.cols()));
  Matrix<T> y(x.rows(), out);
  const bool with_bias = bias.count() > 0;
  if (with_bias)
    for (std::int64_t r = 0; r < y.rows(); ++r) std::copy_n(bias.value.data(), out, y.row(r));
  product<T>(context,
             false,
             true,
             x.rows(),
             out,
             in,
             x.data(),
             in,
             weight.value.data(),
             in,
             with_bias ? T(1) : T(0),
             y.data(),
             out);
  return y;
}

template <class T>
Matrix<T> Linear<T>::backward(const Matrix<T>& x, const Matrix<T>& dy, const Context& context) {
  const std::int64_t out = weight.shape[0], in = weight.shape[1], rows = x.rows();
  product<T>(context,
             true,
             false,
             out,
             in,
             rows,
             dy.data(),
             out,
             x.data(),
             in,
             T(1),
             weight.grad.data(),
             in);
  if (T* db = bias.count() > 0 ? bias.grad.data() : nullptr)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t j = 0; j < out; ++j) db[j] += dy.row(r)[j];
  Matrix<T> dx(rows, in);
  product<T>(context,
             false,
             false,
             rows,
             in,
             out,
             dy.data(),
             out,
             weight.value.data(),
             in,
             T(0),
             dx.data(),
             in);
  return dx;
}

template <class T>
void Linear<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  list.emplace_back(prefix + "weight", &weight);
  if (bias.count() > 0) list.emplace_back(prefix + "bias", &bias);
}

template <class T>
Embedding<T>::Embedding(std::int64_t vocabulary, std::int64_t features)
    : weight({vocabulary, features}) {}

template <class T>
Matrix<T> Embedding<T>::forward(const std::vector<std::int32_t>& ids, T scale) const {
  const std::int64_t features = weight.shape[1];
  Matrix<T> y(static_cast<std::int64_t>(ids.size()), features);
  for (std::int64_t r = 0; r < y.rows(); ++r) {
    const std::int32_t id = ids[static_cast<std::size_t>(r)];
    require(id >= 0 && id < weight.shape[0],
            fmt::format("token {} is outside the vocabulary of {}", id, weight.shape[0]));
    const T* from = weight.value.data() + id * features;
    for (std::int64_t j = 0; j < features; ++j) y.row(r)[j] = scale * from[j];
  }
  return y;
}

template <class T>
void Embedding<T>::backward(const std::vector<std::int32_t>& ids, T scale, const Matrix<T>& dy) {
  const std::int64_t features = weight.shape[1];
  for (std::int64_t r = 0; r < dy.rows(); ++r) {
    T* to = weight.grad.data() + ids[static_cast<std::size_t>(r)] * features;
    for (std::int64_t j = 0; j < features; ++j) to[j] += scale * dy.row(r)[j];
  }
}

template <class T>
Matrix<T> Embedding<T>::project(const Matrix<T>& x, const Context& context) const {
  const std::int64_t vocabulary = weight.shape[0], features = weight.shape[1];
  Matrix<T> y(x.rows(), vocabulary);
  product<T>(context,
             false,
             true,
             x.rows(),
             vocabulary,
             features,
             x.data(),
             features,
             weight.value.data(),
             features,
             T(0),
             y.data(),
             vocabulary);
  return y;
}

template <class T>
Matrix<T> Embedding<T>::project_backward(const Matrix<T>& x,
                                         const Matrix<T>& dy,
                                         const Context& context) {
  const std::int64_t vocabulary = weight.shape[0], features = weight.shape[1];
  product<T>(context,
             true,
             false,
             vocabulary,
             features,
             x.rows(),
             dy.data(),
             vocabulary,
             x.data(),
             features,
             T(1),
             weight.grad.data(),
             features);
  Matrix<T> dx(x.rows(), features);
  product<T>(context,
             false,
             false,
             x.rows(),
             features,
             vocabulary,
             dy.data(),
             vocabulary,
             weight.value.data(),
             features,
             T(0),
             dx.data(),
             features);
  return dx;
}

template <class T>
void Embedding<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  list.emplace_back(prefix + "weight", &weight);
}

template class Linear<float>;
template class Linear<double>;
template class Embedding<float>;
template class Embedding<double>;

}  // namespace undivided::nn
