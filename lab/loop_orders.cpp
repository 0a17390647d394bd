// SPDX-License-Identifier: Apache-2.0
// Forward loop orders. Elements moved, initial fills left out, with T = ceil(N / block):
//   standard  4Nd + 4N^2
//   flash1    2Nd + Tc (3Nd + 4N)
//   flash2    2Nd + N + Tr 2Nd
#include "lab/loop_orders.hpp"

#include <cmath>
#include <limits>

#include "lab/slow_memory.hpp"

namespace undivided::lab {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

double shrink(double a, double b) { return a == -infinity ? 0 : std::exp(a - b); }

double row_max(const Matrix& s, std::int64_t r) {
  double most = -infinity;
  for (std::int64_t c = 0; c < s.columns; ++c) most = std::max(most, s(r, c));
  return most;
}

}  // namespace

Blocks blocks_for(std::int64_t fast_elements, std::int64_t d) {
  const std::int64_t k = (fast_elements + 4 * d - 1) / (4 * d);
  return {std::min(k, d), k};
}

Result standard(const Matrix& q, const Matrix& k, const Matrix& v, double scale) {
  SlowMemory slow;
  Matrix s(q.rows, k.rows), p(q.rows, k.rows);
  Result out{Matrix(q.rows, v.columns), std::vector<double>(static_cast<std::size_t>(q.rows)), {}};
  slow.store(product_transposed(slow.load(q, 0, q.rows), slow.load(k, 0, k.rows), scale), s, 0);
  {
    Matrix tile = slow.load(s, 0, s.rows);
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const double most = row_max(tile, i);
      double sum = 0;
      for (std::int64_t j = 0; j < tile.columns; ++j) sum += std::exp(tile(i, j) - most);
      out.lse[static_cast<std::size_t>(i)] = most + std::log(sum);
      for (std::int64_t j = 0; j < tile.columns; ++j)
        tile(i, j) = std::exp(tile(i, j) - most) / sum;
    }
    slow.store(tile, p, 0);
  }
  const Matrix weights = slow.load(p, 0, p.rows), values = slow.load(v, 0, v.rows);
  Matrix o(q.rows, v.columns);
  for (std::int64_t i = 0; i < o.rows; ++i)
    for (std::int64_t j = 0; j < values.rows; ++j)
      for (std::int64_t c = 0; c < o.columns; ++c) o(i, c) += weights(i, j) * values(j, c);
  slow.store(o, out.o, 0);
  out.traffic = slow.traffic;
  return out;
}

Result flash1(
    const Matrix& q, const Matrix& k, const Matrix& v, double scale, const Blocks& blocks) {
  SlowMemory slow;
  Matrix o(q.rows, v.columns), l(q.rows, 1), m(q.rows, 1, -infinity);
  for (std::int64_t j = 0; j < k.rows; j += blocks.k) {
    const std::int64_t j_end = block_end(j, blocks.k, k.rows);
    const Matrix kj = slow.load(k, j, j_end), vj = slow.load(v, j, j_end);
    for (std::int64_t i = 0; i < q.rows; i += blocks.q) {
      if (!kept(blocks, i / blocks.q, j / blocks.k)) continue;
      const std::int64_t i_end = block_end(i, blocks.q, q.rows);
      const Matrix qi = slow.load(q, i, i_end);
      Matrix oi = slow.load(o, i, i_end), li = slow.load(l, i, i_end), mi = slow.load(m, i, i_end);
      const Matrix s = product_transposed(qi, kj, scale);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        const double here = row_max(s, r), most = std::max(mi(r, 0), here);
        double sum = 0;
        for (std::int64_t c = 0; c < s.columns; ++c) sum += std::exp(s(r, c) - here);
        const double before = shrink(mi(r, 0), most) * li(r, 0), now = std::exp(here - most);
        const double total = before + now * sum;
        for (std::int64_t c = 0; c < oi.columns; ++c) {
          double add = 0;
          for (std::int64_t t = 0; t < s.columns; ++t) add += std::exp(s(r, t) - here) * vj(t, c);
          oi(r, c) = (before * oi(r, c) + now * add) / total;
        }
        li(r, 0) = total;
        mi(r, 0) = most;
      }
      slow.store(oi, o, i);
      slow.store(li, l, i);
      slow.store(mi, m, i);
    }
  }
  Result out{o, std::vector<double>(static_cast<std::size_t>(q.rows)), slow.traffic};
  for (std::int64_t i = 0; i < q.rows; ++i)
    out.lse[static_cast<std::size_t>(i)] =
        m(i, 0) == -infinity ? -infinity : m(i, 0) + std::log(l(i, 0));
  return out;
}

Result flash2(
    const Matrix& q, const Matrix& k, const Matrix& v, double scale, const Blocks& blocks) {
  SlowMemory slow;
  Matrix o(q.rows, v.columns), lse(q.rows, 1);
  for (std::int64_t i = 0; i < q.rows; i += blocks.q) {
    const std::int64_t i_end = block_end(i, blocks.q, q.rows);
    const Matrix qi = slow.load(q, i, i_end);
    Matrix oi(qi.rows, v.columns), li(qi.rows, 1), mi(qi.rows, 1, -infinity);
    for (std::int64_t j = 0; j < k.rows; j += blocks.k) {
      if (!kept(blocks, i / blocks.q, j / blocks.k)) continue;
      const std::int64_t j_end = block_end(j, blocks.k, k.rows);
      const Matrix kj = slow.load(k, j, j_end), vj = slow.load(v, j, j_end);
      const Matrix s = product_transposed(qi, kj, scale);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        const double most = std::max(mi(r, 0), row_max(s, r));
        const double factor = shrink(mi(r, 0), most);  // multiplies; the paper prints the inverse
        li(r, 0) *= factor;
        for (std::int64_t c = 0; c < oi.columns; ++c) oi(r, c) *= factor;
        for (std::int64_t t = 0; t < s.columns; ++t) {
          const double p = std::exp(s(r, t) - most);
          li(r, 0) += p;
          for (std::int64_t c = 0; c < oi.columns; ++c) oi(r, c) += p * vj(t, c);
        }
        mi(r, 0) = most;
      }
    }
    Matrix logs(qi.rows, 1);
    for (std::int64_t r = 0; r < qi.rows; ++r) {
      const bool any = mi(r, 0) != -infinity;
      for (std::int64_t c = 0; c < oi.columns; ++c) oi(r, c) = any ? oi(r, c) / li(r, 0) : 0;
      logs(r, 0) = any ? mi(r, 0) + std::log(li(r, 0)) : -infinity;
    }
    slow.store(oi, o, i);
    slow.store(logs, lse, i);
  }
  return {o, lse.data, slow.traffic};
}

}  // namespace undivided::lab
