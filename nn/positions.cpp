// SPDX-License-Identifier: Apache-2.0
// Sinusoidal and rotary positions.
#include <fmt/format.h>

#include <cmath>

#include "nn/blas.hpp"
#include "undivided/nn/layers.hpp"

namespace undivided::nn {

template <class T>
Matrix<T> sinusoidal_positions(std::int64_t tokens,
                               std::int64_t features,
                               Positions form,
                               std::int64_t first) {
  require(features > 0 && features % 2 == 0,
          fmt::format("sinusoidal positions want an even width; {} came", features));
  const std::int64_t half = features / 2;
  require(form == Positions::paper || half > 1, "the t2t form wants a width of at least 4");
  Matrix<T> y(tokens, features);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t i = 0; i < half; ++i) {
      const double exponent = form == Positions::paper
                                  ? 2. * static_cast<double>(i) / static_cast<double>(features)
                                  : static_cast<double>(i) / static_cast<double>(half - 1);
      const double angle = static_cast<double>(first + t) * std::pow(10000., -exponent);
      const bool paper = form == Positions::paper;
      y.row(t)[paper ? 2 * i : i] = static_cast<T>(std::sin(angle));
      y.row(t)[paper ? 2 * i + 1 : half + i] = static_cast<T>(std::cos(angle));
    }
  return y;
}

template <class T>
void rotate(Matrix<T>& x,
            const Extent& extent,
            std::int64_t column,
            std::int64_t heads,
            std::int64_t dim,
            const Rope& rope,
            std::int64_t first,
            bool inverse) {
  if (!rope.on) return;
  require(dim % 2 == 0, fmt::format("rotary positions want an even head dim; {} came", dim));
  const std::int64_t half = dim / 2;
  const bool halves = rope.pairs == Rope::Pairs::halves;
  std::vector<T> sine(static_cast<std::size_t>(half)), cosine(sine);
  for (std::int64_t t = 0; t < extent.tokens; ++t) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(first + t) *
          std::pow(rope.base, -2. * static_cast<double>(i) / static_cast<double>(dim));
      cosine[static_cast<std::size_t>(i)] = static_cast<T>(std::cos(angle));
      sine[static_cast<std::size_t>(i)] =
          static_cast<T>(inverse ? -std::sin(angle) : std::sin(angle));
    }
    for (std::int64_t b = 0; b < extent.batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h) {
        T* at = x.row(b * extent.tokens + t) + column + h * dim;
        for (std::int64_t i = 0; i < half; ++i) {
          T& one = at[halves ? i : 2 * i];
          T& two = at[halves ? i + half : 2 * i + 1];
          const T c = cosine[static_cast<std::size_t>(i)], s = sine[static_cast<std::size_t>(i)];
          const T turned = one * c - two * s;
          two = one * s + two * c;
          one = turned;
        }
      }
  }
}

template Matrix<float> sinusoidal_positions(std::int64_t, std::int64_t, Positions, std::int64_t);
template Matrix<double> sinusoidal_positions(std::int64_t, std::int64_t, Positions, std::int64_t);
template void rotate(Matrix<float>&,
                     const Extent&,
                     std::int64_t,
                     std::int64_t,
                     std::int64_t,
                     const Rope&,
                     std::int64_t,
                     bool);
template void rotate(Matrix<double>&,
                     const Extent&,
                     std::int64_t,
                     std::int64_t,
                     std::int64_t,
                     const Rope&,
                     std::int64_t,
                     bool);

}  // namespace undivided::nn
