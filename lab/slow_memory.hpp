// SPDX-License-Identifier: Apache-2.0
// The only door between slow memory and tiles: it counts.
#pragma once

#include <algorithm>

#include "lab/loop_orders.hpp"

namespace undivided::lab {

class SlowMemory {
 public:
  Traffic traffic;

  /// Rows [begin, end) as a tile.
  Matrix load(const Matrix& m, std::int64_t begin, std::int64_t end) {
    Matrix tile(end - begin, m.columns);
    std::copy(
        m.data.begin() + begin * m.columns, m.data.begin() + end * m.columns, tile.data.begin());
    traffic.loads += (end - begin) * m.columns;
    return tile;
  }
  void store(const Matrix& tile, Matrix& m, std::int64_t begin) {
    std::copy(tile.data.begin(), tile.data.end(), m.data.begin() + begin * m.columns);
    traffic.stores += tile.rows * tile.columns;
  }
};

inline std::int64_t block_end(std::int64_t begin, std::int64_t size, std::int64_t length) {
  return std::min(begin + size, length);
}
inline bool kept(const Blocks& b, std::int64_t q_block, std::int64_t k_block) {
  return !b.keep || b.keep(q_block, k_block);
}

/// scale * a b^T.
inline Matrix product_transposed(const Matrix& a, const Matrix& b, double scale) {
  Matrix s(a.rows, b.rows);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t j = 0; j < b.rows; ++j) {
      double sum = 0;
      for (std::int64_t c = 0; c < a.columns; ++c) sum += a(i, c) * b(j, c);
      s(i, j) = scale * sum;
    }
  return s;
}

}  // namespace undivided::lab
