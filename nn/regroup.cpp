// SPDX-License-Identifier: Apache-2.0
// K and V heads pooled or repeated.
#include "nn/regroup.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/generator.hpp"
#include "nn/blas.hpp"

namespace undivided::nn {
namespace {

bool floating(DType t) { return t == DType::f64 || t == DType::f32 || is_float16(t); }

// A dense float64 tensor seen as [outer, length, inner] around one axis.
struct Slices {
  std::int64_t outer = 1, length = 1, inner = 1;
  Slices(const View& v, int axis) : length(v.size(axis)) {
    for (int i = 0; i < axis; ++i) outer *= v.size(i);
    for (int i = axis + 1; i < v.rank; ++i) inner *= v.size(i);
  }
};

}  // namespace

Tensor resized(const View& like, int axis, std::int64_t length) {
  View v = like;
  v.shape[static_cast<std::size_t>(axis)] = length;
  return Tensor::empty_like(v, DType::f64);
}

void copy_slice(const Tensor& from,
                std::int64_t at,
                const Tensor& to,
                std::int64_t to_at,
                std::int64_t length,
                int axis) {
  const Slices a(from, axis), b(to, axis);
  for (std::int64_t o = 0; o < a.outer; ++o)
    std::copy_n(from.ptr<double>() + (o * a.length + at) * a.inner,
                length * a.inner,
                to.ptr<double>() + (o * b.length + to_at) * b.inner);
}

std::string divisors(std::int64_t n) {
  std::vector<std::int64_t> all;
  for (std::int64_t i = 1; i <= n; ++i)
    if (n % i == 0) all.push_back(i);
  return fmt::format("{}", fmt::join(all, ", "));
}

Tensor regroup_heads(const View& weights,
                     std::int64_t from,
                     std::int64_t to,
                     HeadMethod method,
                     std::uint64_t seed,
                     int axis) {
  require(
      floating(weights.dtype),
      fmt::format("heads of {} came; f64, f32, f16 and bf16 are converted", weights.describe()));
  require(axis >= 0 && axis < weights.rank,
          fmt::format("axis {} of {} is not there", axis, weights.describe()));
  require(
      from > 0 && weights.size(axis) % from == 0,
      fmt::format("axis {} of {} does not divide into {} heads", axis, weights.describe(), from));
  require(to > 0 && (from % to == 0 || to % from == 0),
          fmt::format("{} heads do not become {}; allowed: {}, or a multiple of {}",
                      from,
                      to,
                      divisors(from),
                      from));
  const Tensor old = converted(weights, DType::f64);
  const Slices s(old, axis);
  const std::int64_t dim = s.length / from, block = dim * s.inner;
  const Tensor made = resized(old, axis, to * dim);
  if (method == HeadMethod::random && to < from) {
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < old.count(); ++i) {
      sum += old.ptr<double>()[i];
      squares += old.ptr<double>()[i] * old.ptr<double>()[i];
    }
    const double n = static_cast<double>(std::max<std::int64_t>(1, old.count())), mean = sum / n;
    fill_normal(made, seed, 0, std::sqrt(std::max(0., squares / n - mean * mean)));
    return converted(made, weights.dtype);
  }
  const std::int64_t group = std::max<std::int64_t>(1, from / to);
  const std::int64_t taken = method == HeadMethod::mean ? group : 1;
  for (std::int64_t o = 0; o < s.outer; ++o)
    for (std::int64_t head = 0; head < to; ++head) {
      const double* source =
          old.ptr<double>() + (o * from + (to > from ? head / (to / from) : head * group)) * block;
      double* target = made.ptr<double>() + (o * to + head) * block;
      for (std::int64_t i = 0; i < block; ++i) {
        double sum = 0;
        for (std::int64_t j = 0; j < taken; ++j) sum += source[j * block + i];
        target[i] = sum / static_cast<double>(taken);
      }
    }
  return converted(made, weights.dtype);
}

}  // namespace undivided::nn
