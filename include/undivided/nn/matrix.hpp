// SPDX-License-Identifier: Apache-2.0
// What modules pass to one another: matrices of activations, named parameters, and the pass itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "undivided/context.hpp"

namespace undivided::nn {

/// A dense row-major matrix. Activations are [batch * tokens, features].
template <class T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::int64_t rows, std::int64_t cols)
      : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(rows * cols)) {}
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t count() const { return rows_ * cols_; }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  T* row(std::int64_t r) { return values_.data() + r * cols_; }
  const T* row(std::int64_t r) const { return values_.data() + r * cols_; }
  /// Elementwise sum; the shapes agree.
  Matrix& operator+=(const Matrix& other) {
    T* a = data();
    const T* b = other.data();
    for (std::int64_t i = 0; i < count(); ++i) a[i] += b[i];
    return *this;
  }

 private:
  std::int64_t rows_ = 0, cols_ = 0;
  std::vector<T> values_;
};

/// A learned tensor and the sum of its gradients since they were last cleared.
template <class T>
struct Parameter {
  std::vector<std::int64_t> shape;
  std::vector<T> value, grad;

  Parameter() = default;
  explicit Parameter(std::vector<std::int64_t> dims, T fill = T(0)) : shape(std::move(dims)) {
    std::size_t n = 1;
    for (const std::int64_t d : shape) n *= static_cast<std::size_t>(d);
    value.assign(n, fill);
    grad.assign(n, T(0));
  }
  std::int64_t count() const { return static_cast<std::int64_t>(value.size()); }
};

/// Parameters with their dotted names, in a fixed order. Each parameter is listed once.
template <class T>
using ParameterList = std::vector<std::pair<std::string, Parameter<T>*>>;

template <class T>
std::int64_t count_of(const ParameterList<T>& list) {
  std::int64_t n = 0;
  for (const auto& named : list) n += named.second->count();
  return n;
}
template <class T>
void clear_gradients(const ParameterList<T>& list) {
  for (const auto& named : list) named.second->grad.assign(named.second->grad.size(), T(0));
}

/// How a forward runs. Dropout is active only in training; its seeds follow from `seed` and the
/// order of the calls, so that equal passes drop equal elements.
struct Pass {
  Context context{};
  bool training = false;
  std::uint64_t seed = 0;
  std::uint64_t calls = 0;

  std::uint64_t next_seed() {
    std::uint64_t z = seed + 0x9E3779B97F4A7C15u * ++calls;  // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
};

/// A batch of equally long rows: activations have batch * tokens rows. `lengths` is empty, or says
/// how many leading tokens of each sequence are real; the rest is padding.
struct Extent {
  std::int64_t batch = 1, tokens = 0;
  std::vector<std::int32_t> lengths{};
  std::int64_t rows() const { return batch * tokens; }
};

}  // namespace undivided::nn
