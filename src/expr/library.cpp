// SPDX-License-Identifier: Apache-2.0
// The library of masks and scores: each is a program in the language, nothing more.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "expr/internal.hpp"

namespace undivided {
namespace {

// `ranks` is a sentence for the reader; low and high bound the rank.
void check_array(
    const Array& a, const char* whose, DType dtype, int low, int high, const char* ranks) {
  const View& v = a.view();
  if (v.dtype == dtype && v.rank >= low && v.rank <= high) return;
  expr::refuse(
      Stage::bind,
      fmt::format(
          "{} wants {} {}, but {} came", whose, undivided::name_of(dtype), ranks, v.describe()));
}

Array with_name(const Array& a, const char* name) { return a.name().empty() ? a.named(name) : a; }

}  // namespace

Mask full() { return {}; }

Mask causal() {
  return mask([](Expr, Expr, Expr q, Expr k) { return k <= q; });
}

Mask window(std::int32_t left, std::int32_t right) {
  return mask([=](Expr, Expr, Expr q, Expr k) { return q - k <= left && k - q <= right; });
}

Mask window(std::int32_t width) { return window(width, width); }

Mask prefix(std::int32_t n) {
  return mask([=](Expr, Expr, Expr q, Expr k) { return k < n || k <= q; });
}

Mask documents(const Array& id) {
  check_array(id, "documents(id)", DType::i32, 1, 2, "[tokens] or [batch, tokens]");
  const Array doc = with_name(id, "doc");
  const bool batched = id.view().rank == 2;
  return mask([=](Expr batch, Expr, Expr q, Expr k) {
    return batched ? doc(batch, q) == doc(batch, k) : doc[q] == doc[k];
  });
}

Mask tree(const std::vector<std::int32_t>& parent) {
  // In preorder the tokens below k are one run, so "k is q or an ancestor of q" is an interval
  // test.
  const auto n = static_cast<std::int32_t>(parent.size());
  std::vector<std::int32_t> size(parent.size(), 1), enter(parent.size()),
      next(parent.size() + 1, 0);
  for (std::int32_t i = 0; i < n; ++i)
    if (parent[static_cast<std::size_t>(i)] < -1 || parent[static_cast<std::size_t>(i)] >= i)
      expr::refuse(
          Stage::bind,
          fmt::format("tree(parent): parent[{}] is {}; a parent comes before its children, "
                      "and a root has -1",
                      i,
                      parent[static_cast<std::size_t>(i)]));
  for (std::size_t i = parent.size(); i-- > 0;)
    if (parent[i] >= 0) size[static_cast<std::size_t>(parent[i])] += size[i];
  for (std::size_t i = 0; i < parent.size(); ++i) {
    auto& free = next[static_cast<std::size_t>(parent[i] + 1)];  // next[0] serves the roots
    enter[i] = free;
    free += size[i];
    next[i + 1] = enter[i] + 1;
  }
  for (std::size_t i = 0; i < parent.size(); ++i) size[i] += enter[i];
  const Array first(std::move(enter), "enter"), last(std::move(size), "leave");
  return mask(
      [=](Expr, Expr, Expr q, Expr k) { return first[k] <= first[q] && first[q] < last[k]; });
}

Score identity() { return {}; }

Score softcap(float cap) {
  if (!(cap > 0) || std::isinf(cap))
    expr::refuse(
        Stage::bind,
        fmt::format("softcap(cap) wants a finite cap above 0, but {} came; leave the score "
                    "out for none",
                    cap));
  return score([=](Expr s, Expr, Expr, Expr, Expr) { return Expr(cap) * tanh(s / Expr(cap)); });
}

Score alibi(const Array& slope) {
  check_array(slope, "alibi(slope)", DType::f32, 1, 1, "[heads]");
  const Array m = with_name(slope, "slope");
  return score([=](Expr s, Expr, Expr head, Expr q, Expr k) { return s + m[head] * (k - q); });
}

Score bias(const Array& table) {
  check_array(
      table, "bias(table)", DType::f32, 2, 4, "[q, k], [head, q, k] or [batch, head, q, k]");
  const Array b = with_name(table, "bias");
  const int rank = table.view().rank;
  return score([=](Expr s, Expr batch, Expr head, Expr q, Expr k) {
    if (rank == 2) return s + b(q, k);
    if (rank == 3) return s + b(head, q, k);
    return s + b(batch, head, q, k);
  });
}

Score t5_bias(const Array& table, bool bidirectional, std::int32_t max_distance) {
  check_array(table, "t5_bias(table)", DType::f32, 2, 2, "[buckets, heads]");
  const auto buckets = static_cast<std::int32_t>(table.view().size(0));
  const std::int32_t side = bidirectional ? buckets / 2 : buckets, exact = side / 2;
  if (exact < 1 || max_distance <= exact)
    expr::refuse(Stage::bind,
                 fmt::format("t5_bias: {} buckets and max_distance {}; at least {} buckets and a "
                             "max_distance above {} are expected",
                             buckets,
                             max_distance,
                             bidirectional ? 4 : 2,
                             std::max(exact, 1)));
  // Buckets become integers here, once, so that their bits agree on every backend. The slack
  // decides exact powers, such as distance 16 of (8, 128), as the formula means them.
  std::vector<std::int32_t> bucket(static_cast<std::size_t>(max_distance) + 1);
  for (std::int32_t d = 0; d <= max_distance; ++d) {
    const double large = std::log(std::max(d, 1) / static_cast<double>(exact)) /
                         std::log(max_distance / static_cast<double>(exact)) * (side - exact);
    bucket[static_cast<std::size_t>(d)] =
        d < exact ? d : std::min(side - 1, exact + static_cast<std::int32_t>(large + 1e-9));
  }
  const Array b = with_name(table, "bias"), at(std::move(bucket), "bucket");
  return score([=](Expr s, Expr, Expr head, Expr q, Expr k) {
    if (!bidirectional) return s + b(at[clamp(q - k, 0, max_distance)], head);
    return s + b(at[min(abs(k - q), max_distance)] + select(q < k, side, 0), head);
  });
}

}  // namespace undivided
