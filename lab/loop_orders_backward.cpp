// SPDX-License-Identifier: Apache-2.0
// Backward loop orders: outer loop over K and V. With P = exp(S - LSE) and D = rowsum(dO * O):
//   dV += P^T dO,  dS = P * (dO V^T - D),  dQ += scale dS K,  dK += scale dS^T Q
// Elements moved, with Tc = ceil(N / k block): flash1 4Nd + Tc (5Nd + N); flash2 6Nd + N +
// Tc (4Nd + 2N). LSE stands for the pair (m, l) of the first paper, so one N less moves there.
#include <cmath>

#include "lab/loop_orders.hpp"
#include "lab/slow_memory.hpp"

namespace undivided::lab {
namespace {

/// rowsum(dO * O) of a tile.
Matrix row_products(const Matrix& a, const Matrix& b) {
  Matrix d(a.rows, 1);
  for (std::int64_t r = 0; r < a.rows; ++r)
    for (std::int64_t c = 0; c < a.columns; ++c) d(r, 0) += a(r, c) * b(r, c);
  return d;
}

ResultBackward backward(const Matrix& q,
                        const Matrix& k,
                        const Matrix& v,
                        const Result& forward,
                        const Matrix& dout,
                        double scale,
                        const Blocks& blocks,
                        bool delta_first) {
  SlowMemory slow;
  ResultBackward g{
      Matrix(q.rows, q.columns), Matrix(k.rows, k.columns), Matrix(v.rows, v.columns), {}};
  Matrix lse(q.rows, 1), delta(q.rows, 1);
  lse.data = forward.lse;
  if (delta_first)
    for (std::int64_t i = 0; i < q.rows; i += blocks.q) {
      const std::int64_t i_end = block_end(i, blocks.q, q.rows);
      slow.store(row_products(slow.load(dout, i, i_end), slow.load(forward.o, i, i_end)), delta, i);
    }
  for (std::int64_t j = 0; j < k.rows; j += blocks.k) {
    const std::int64_t j_end = block_end(j, blocks.k, k.rows);
    const Matrix kj = slow.load(k, j, j_end), vj = slow.load(v, j, j_end);
    Matrix dk(kj.rows, kj.columns), dv(vj.rows, vj.columns);
    for (std::int64_t i = 0; i < q.rows; i += blocks.q) {
      if (!kept(blocks, i / blocks.q, j / blocks.k)) continue;
      const std::int64_t i_end = block_end(i, blocks.q, q.rows);
      const Matrix qi = slow.load(q, i, i_end), d = slow.load(dout, i, i_end);
      Matrix dq = slow.load(g.dq, i, i_end);
      const Matrix li = slow.load(lse, i, i_end);
      const Matrix di = delta_first ? slow.load(delta, i, i_end)
                                    : row_products(d, slow.load(forward.o, i, i_end));
      const Matrix s = product_transposed(qi, kj, scale), dp = product_transposed(d, vj, 1);
      for (std::int64_t r = 0; r < s.rows; ++r)
        for (std::int64_t t = 0; t < s.columns; ++t) {
          const double p = std::exp(s(r, t) - li(r, 0));
          const double ds = scale * p * (dp(r, t) - di(r, 0));
          for (std::int64_t c = 0; c < v.columns; ++c) dv(t, c) += p * d(r, c);
          for (std::int64_t c = 0; c < q.columns; ++c) {
            dq(r, c) += ds * kj(t, c);
            dk(t, c) += ds * qi(r, c);
          }
        }
      slow.store(dq, g.dq, i);
    }
    slow.store(dk, g.dk, j);
    slow.store(dv, g.dv, j);
  }
  g.traffic = slow.traffic;
  return g;
}

}  // namespace

ResultBackward flash1_backward(const Matrix& q,
                               const Matrix& k,
                               const Matrix& v,
                               const Result& forward,
                               const Matrix& dout,
                               double scale,
                               const Blocks& blocks) {
  return backward(q, k, v, forward, dout, scale, blocks, false);
}

ResultBackward flash2_backward(const Matrix& q,
                               const Matrix& k,
                               const Matrix& v,
                               const Result& forward,
                               const Matrix& dout,
                               double scale,
                               const Blocks& blocks) {
  return backward(q, k, v, forward, dout, scale, blocks, true);
}

}  // namespace undivided::lab
