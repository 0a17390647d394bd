// SPDX-License-Identifier: Apache-2.0
// FlashAttention 1 and 2, and the standard algorithm, as loop orders that count slow memory.
//
// One head in float64. Slow memory is the caller's arrays; a counted load or store moves elements
// between it and tiles. Everything else happens in tiles, which is what the papers call SRAM.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace undivided::lab {

/// Row-major [rows, columns].
struct Matrix {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> data;
  Matrix() = default;
  Matrix(std::int64_t r, std::int64_t c, double value = 0)
      : rows(r), columns(c), data(static_cast<std::size_t>(r * c), value) {}
  double& operator()(std::int64_t r, std::int64_t c) {
    return data[static_cast<std::size_t>(r * columns + c)];
  }
  double operator()(std::int64_t r, std::int64_t c) const {
    return data[static_cast<std::size_t>(r * columns + c)];
  }
};

/// Elements moved. Initial fills are left out, as in the papers.
struct Traffic {
  std::int64_t loads = 0, stores = 0;
  std::int64_t total() const { return loads + stores; }
};

/// Rows of Q and of K in a tile, and which tiles take part (all, when empty).
struct Blocks {
  std::int64_t q = 1, k = 1;
  std::function<bool(std::int64_t q_block, std::int64_t k_block)> keep{};
};
/// What fits: k = ceil(M / 4d), q = min(k, d) for M elements of fast memory (Dao et al. 2022).
Blocks blocks_for(std::int64_t fast_elements, std::int64_t d);

struct Result {
  Matrix o;
  std::vector<double> lse;
  Traffic traffic;
};
struct ResultBackward {
  Matrix dq, dk, dv;
  Traffic traffic;
};

/// Writes S and P to slow memory and reads them back (Dao et al. 2022, algorithm 0).
Result standard(const Matrix& q, const Matrix& k, const Matrix& v, double scale);
/// Outer loop over K and V, inner over Q; O, l and m go back and forth (Dao et al. 2022, algorithm
/// 1).
Result flash1(
    const Matrix& q, const Matrix& k, const Matrix& v, double scale, const Blocks& blocks);
/// Outer loop over Q, inner over K and V; O stays, is divided once (Dao 2023, algorithm 1).
Result flash2(
    const Matrix& q, const Matrix& k, const Matrix& v, double scale, const Blocks& blocks);

/// Backward of either: outer loop over K and V, dQ goes back and forth. `flash1_backward` reads O
/// in the inner loop (Dao et al. 2022, algorithm 4); `flash2_backward` reads D = rowsum(dO * O),
/// made once before (Dao 2023, algorithm 2).
ResultBackward flash1_backward(const Matrix& q,
                               const Matrix& k,
                               const Matrix& v,
                               const Result& forward,
                               const Matrix& dout,
                               double scale,
                               const Blocks& blocks);
ResultBackward flash2_backward(const Matrix& q,
                               const Matrix& k,
                               const Matrix& v,
                               const Result& forward,
                               const Matrix& dout,
                               double scale,
                               const Blocks& blocks);

}  // namespace undivided::lab
