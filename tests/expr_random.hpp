// SPDX-License-Identifier: Apache-2.0
// Random programs from a list of numbers (so that a failure shrinks), with contents to run them on.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "expr/builder.hpp"
#include "expr/program.hpp"

namespace undivided::testing {

using expr::Bound;
using expr::Builder;
using expr::Op;
using expr::Point;
using expr::Program;
using expr::Type;

/// Arrays `table` f32[1], `doc` i32[1], `keep` bool[2] and parameters `w` i32, `c` f32.
struct Contents {
  std::vector<float> table{0.5F, -1.25F, 2.0F, 0.75F, -0.125F};
  std::vector<std::int32_t> doc{0, 0, 1, 3, 3, -2, 5};
  std::array<std::uint8_t, 12> keep{1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0};

  Bound bound(const Program& p) const {
    Bound b;
    for (const auto& s : p.slots) {
      Bound::ArrayRef a;
      a.dtype = s.dtype;
      if (s.dtype == DType::f32) {
        a.data = table.data();
        a.shape[0] = static_cast<std::int64_t>(table.size());
        a.stride[0] = 1;
      } else if (s.dtype == DType::i32) {
        a.data = doc.data();
        a.shape[0] = static_cast<std::int64_t>(doc.size());
        a.stride[0] = 1;
        a.low = -2;
        a.high = 5;
      } else {
        a.data = keep.data();
        a.shape = {3, 4, 1, 1};
        a.stride = {4, 1, 0, 0};
        a.high = 1;
      }
      b.arrays.push_back(a);
    }
    for (const auto& d : p.params) b.params.push_back(d.value);
    return b;
  }
};

/// Decodes a recipe: each number adds one operation on earlier values of fitting types.
inline Program random_program(const std::vector<std::uint32_t>& recipe, Type wanted) {
  Builder b;
  std::vector<std::int32_t> ints, reals, bools;
  for (Op op : {Op::batch, Op::head, Op::q, Op::k, Op::q_len, Op::k_len})
    ints.push_back(b.leaf(op));
  if (wanted == Type::f32) reals.push_back(b.leaf(Op::score));
  const auto table = b.slot(expr::Slot{"table", DType::f32, 1});
  const auto doc = b.slot(expr::Slot{"doc", DType::i32, 1});
  const auto keep = b.slot(expr::Slot{"keep", DType::boolean, 2});
  ints.push_back(b.param("w", Type::i32, 3));
  reals.push_back(b.param("c", Type::f32, 0.375));
  bools.push_back(b.apply(Op::le, ints[3], ints[2]));
  for (std::uint32_t r : recipe) {
    auto pick = [&](const std::vector<std::int32_t>& from) {
      const std::uint32_t at =
          r % static_cast<std::uint32_t>(std::min<std::size_t>(from.size(), 9));
      r = r * 2654435761U + 12345U;
      r ^= r >> 13;
      return from[from.size() - 1 - at];
    };
    const std::uint32_t kind = r % 40;
    r = (r / 40) * 2246822519U + 7U;
    const auto i = pick(ints), j = pick(ints), x = pick(reals), y = pick(reals), s = pick(bools),
               t = pick(bools);
    const Op binary_int[] = {Op::add,
                             Op::sub,
                             Op::mul,
                             Op::floordiv,
                             Op::mod,
                             Op::min,
                             Op::max,
                             Op::bit_and,
                             Op::bit_or,
                             Op::bit_xor,
                             Op::shl,
                             Op::shr};
    const Op compares[] = {Op::lt, Op::le, Op::gt, Op::ge, Op::eq, Op::ne};
    const Op binary_real[] = {Op::add, Op::sub, Op::mul, Op::div, Op::min, Op::max};
    const Op unary_real[] = {Op::neg, Op::abs, Op::tanh, Op::exp, Op::log, Op::sqrt};
    if (kind < 12) {
      ints.push_back(b.apply(binary_int[kind], i, j));
    } else if (kind < 18) {
      reals.push_back(b.apply(binary_real[kind - 12], x, y));
    } else if (kind < 24) {
      reals.push_back(b.apply(unary_real[kind - 18], x));
    } else {
      switch (kind) {
        case 24:
          bools.push_back(b.apply(compares[r % 6], i, j));
          break;
        case 25:
          bools.push_back(b.apply(compares[r % 6], x, y));
          break;
        case 26:
          bools.push_back(b.apply(r % 2 ? Op::logical_and : Op::logical_or, s, t));
          break;
        case 27:
          bools.push_back(b.apply(Op::logical_not, s));
          break;
        case 28:
          bools.push_back(b.apply(r % 2 ? Op::eq : Op::ne, s, t));
          break;
        case 29:
          ints.push_back(b.apply(Op::select, s, i, j));
          break;
        case 30:
          reals.push_back(b.apply(Op::select, s, x, y));
          break;
        case 31:
          bools.push_back(b.apply(Op::select, s, t, bools.front()));
          break;
        case 32:
          reals.push_back(b.load(table, {i}));
          break;
        case 33:
          ints.push_back(b.load(doc, {i}));
          break;
        case 34:
          bools.push_back(b.load(keep, {i, j}));
          break;
        case 35:
          reals.push_back(b.apply(Op::add, i, x));
          break;
        case 36:
          ints.push_back(b.apply(Op::trunc, x));
          break;
        case 37:
          ints.push_back(b.constant(std::int64_t{r % 7} - 2));
          break;
        case 38:
          reals.push_back(b.constant(static_cast<double>(r % 9) / 4 - 1));
          break;
        default:
          ints.push_back(b.apply(r % 2 ? Op::neg : Op::abs, i));
          break;
      }
    }
  }
  Program p = b.program();
  p.roots = {wanted == Type::boolean ? bools.back() : reals.back()};
  return p;
}

inline std::vector<Point> sample_points() {
  std::vector<Point> points;
  for (int i = 0; i < 12; ++i)
    points.push_back({i % 2, i % 3, (i * 5) % 7, (i * 3) % 6, 7, 6, 0.71 * i - 2.293});
  return points;
}

inline double run(const Program& p, const Bound& bound, const Point& at) {
  std::vector<double> scratch(p.nodes.size()), results(p.roots.size());
  expr::evaluate(p, bound, at, scratch.data(), results.data());
  return results[0];
}

/// Equal as values; NaN equals NaN.
inline bool same_value(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace undivided::testing
