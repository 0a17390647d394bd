// SPDX-License-Identifier: Apache-2.0
// The library of masks and scores: each is a program in the language, nothing more.
#include <fmt/format.h>

#include <cmath>

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

}  // namespace undivided
