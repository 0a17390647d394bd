// SPDX-License-Identifier: Apache-2.0
// Activations seen as heads, and the options of one attention call.
#pragma once

#include <fmt/format.h>

#include "nn/blas.hpp"
#include "undivided/attention.hpp"
#include "undivided/nn/matrix.hpp"

namespace undivided::nn {

template <class T>
View heads_of(const Matrix<T>& m,
              const Extent& extent,
              std::int64_t column,
              std::int64_t heads,
              std::int64_t dim) {
  View v = view(const_cast<T*>(m.data()) + column, {extent.batch, heads, extent.tokens, dim});
  v.stride = {extent.tokens * m.cols(), dim, m.cols(), 1};
  return v;
}

inline View lengths_of(const std::vector<std::int32_t>& lengths) {
  return lengths.empty() ? View{}
                         : view(lengths.data(), {static_cast<std::int64_t>(lengths.size())});
}

inline Options options_of(bool causally, Align align, double dropout, std::uint64_t seed) {
  static const Mask mask = causal();
  Options o;
  if (causally) o.mask = mask;
  if (causally || dropout > 0) o.align = align;  // both read positions
  o.dropout = dropout;
  o.seed = seed;
  return o;
}

inline void check_extent(const Extent& e, std::int64_t rows) {
  require(
      e.batch > 0 && e.rows() == rows,
      fmt::format(
          "{} sequences of {} tokens want {} rows; {} came", e.batch, e.tokens, e.rows(), rows));
  require(e.lengths.empty() || static_cast<std::int64_t>(e.lengths.size()) == e.batch,
          fmt::format("{} lengths came for {} sequences", e.lengths.size(), e.batch));
}

}  // namespace undivided::nn
