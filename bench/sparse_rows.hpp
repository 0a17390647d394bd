// SPDX-License-Identifier: Apache-2.0
// Rows to drop and buckets for the benches of sparse attention, and the pairs that they leave.
#pragma once

#include <vector>

#include "undivided/tensor.hpp"

namespace undivided::bench {

/// Numbers in [0, most), the same for each run.
inline Tensor draw(std::int64_t heads, std::int64_t n, std::uint64_t most, std::uint64_t seed) {
  const Tensor t = Tensor::empty(DType::i32, {1, heads, n});
  for (std::int64_t i = 0; i < t.count(); ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    t.ptr<std::int32_t>()[i] = static_cast<std::int32_t>((seed >> 33) % most);
  }
  return t;
}

/// The share of the causal pairs that meet.
inline double share_of(const Tensor& q, const Tensor& k, bool buckets) {
  double kept = 0;
  const std::int64_t heads = q.size(1), n = q.size(2);
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<double> seen(64, 0);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto a = static_cast<std::size_t>(q.ptr<std::int32_t>()[h * n + i]),
                 b = static_cast<std::size_t>(k.ptr<std::int32_t>()[h * n + i]);
      if (buckets) {
        kept += seen[a];
        ++seen[b];
      } else {
        seen[0] += static_cast<double>(b);
        if (a != 0) kept += seen[0];
      }
    }
  }
  const auto tokens = static_cast<double>(n);
  return kept / (static_cast<double>(heads) * tokens * (tokens + 1) / 2);
}

/// Numbers below `percent` become flags that drop a row.
inline void keep_from(const Tensor& numbers, int percent) {
  for (std::int64_t i = 0; i < numbers.count(); ++i)
    numbers.ptr<std::int32_t>()[i] = numbers.ptr<std::int32_t>()[i] >= percent;
}

}  // namespace undivided::bench
