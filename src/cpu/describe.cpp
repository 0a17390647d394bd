// SPDX-License-Identifier: Apache-2.0
// Names, counts and notes of CPU plans.
#include "cpu/describe.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

expr::Band band_of(const Spec& spec) {
  std::vector<double> values;
  for (const expr::ParamDecl& p : spec.mask->params) values.push_back(p.value);
  return expr::recognise_band(*spec.mask, values);
}

std::string products_of(const Setup& setup) {
  const char* where = setup.dots && setup.dots == setup.kernels->matrix ? " on tile registers" : "";
  if (setup.quantised && setup.dots) {
    const bool apart = *where && setup.quantised != setup.dots->quantised;
    return fmt::format("i8{} and bf16 pairs{}", apart ? " on vectors" : "", where);
  }
  if (setup.quantised) return setup.bf16_values ? "i8 and bf16 as f32" : "i8 and f32";
  return setup.dots ? fmt::format("bf16 pairs{}", where) : "f32";
}

Explanation describe(const Setup& setup, const char* direction) {
  const Spec& s = setup.spec;
  const expr::Band band = band_of(s);
  const char* mask = s.listed      ? "lists"
                     : s.mask_plan ? (s.inside == Inside::program ? "plan.inside" : "plan")
                     : !setup.band ? "program"
                     : band.has_left || band.has_right ? "band"
                                                       : "full";
  const char* kv = s.kv == KvKind::dense ? "dense" : s.kv == KvKind::ragged ? "ragged" : "paged";
  Explanation e;
  e.backend = "cpu";
  e.kernel = fmt::format("{}.{}.{}{}.d{}{}.{}.{}.{}{}",
                         direction,
                         setup.kernels->name,
                         name_of(s.dtype),
                         setup.quantised ? ".i8" : "",
                         s.dqk,
                         s.dv == s.dqk ? "" : fmt::format("v{}", s.dv),
                         mask,
                         setup.score.used ? "program" : "identity",
                         kv,
                         s.dropout ? ".dropout" : "");
  e.tiles = fmt::format("{} queries in sub-blocks of {} lanes x {} keys, products of {}{}",
                        setup.tile,
                        setup.kernels->lanes,
                        key_block,
                        products_of(setup),
                        setup.packed ? ", the heads of a group packed into lanes" : "");
  if (setup.sliding_tile > setup.tile)
    e.notes.push_back(fmt::format(
        "{} queries a tile where the keys of a row are few and move along with it: at most {} from "
        "the first to the last, on average",
        setup.sliding_tile,
        sliding_keys));
  const char* names[] = {"fast", "reproducible", "invariant"};
  e.determinism = names[static_cast<int>(s.determinism)];
  if (setup.quantised) {
    e.notes.emplace_back(
        "Q and K, less its mean where one is given, are rounded to int8 with a factor per token "
        "and head");
    if (setup.bf16_values) e.notes.emplace_back("P and V are rounded to bf16");
  } else if (setup.dots)
    e.notes.emplace_back("products sum pairs of bf16 in float32; P and dS are rounded to bf16");
  else if (s.dtype != DType::f32)
    e.notes.push_back(
        fmt::format("{} is converted to float32 a key block at a time", name_of(s.dtype)));
  if (!setup.band && !s.mask_plan)
    e.notes.emplace_back("no mask plan: the mask program runs on every tile of the key range");
  return e;
}

double elements_of(const Spec& s, const Bounds& b, double q_columns, double k_columns) {
  const auto n = [](std::int64_t x) { return static_cast<double>(x); };
  return n(b.total_q) * n(b.kv_heads) * s.group * q_columns +
         n(b.total_k) * n(b.kv_heads) * k_columns;
}

}  // namespace

double pairs_at_bounds(const Setup& setup) {
  const Bounds& b = setup.bounds;
  const expr::Band band = band_of(setup.spec);
  const auto heads = static_cast<double>(b.batch * setup.heads());
  const std::int64_t q_len = b.max_q_len, k_len = b.max_k_len;
  if (!band.is_band || (!band.has_left && !band.has_right))
    return heads * static_cast<double>(q_len) * static_cast<double>(k_len);
  const std::int64_t origin = setup.spec.origin == Origin::end ? k_len - q_len : 0;
  double pairs = 0;
  for (std::int64_t i = 0; i < q_len; ++i) {
    const std::int64_t q = origin + i;
    const std::int64_t low = band.has_left ? std::max<std::int64_t>(0, q - band.left) : 0;
    const std::int64_t high = band.has_right ? std::min(k_len, q + band.right + 1) : k_len;
    pairs += static_cast<double>(std::max<std::int64_t>(0, high - low));
  }
  return heads * pairs;
}

Explanation describe_forward(const Setup& setup, std::int64_t splits, std::int64_t split_keys) {
  const Spec& s = setup.spec;
  Explanation e = describe(setup, "fwd");
  e.splits = splits;
  e.flops = 2 * pairs_at_bounds(setup) * (s.dqk + s.dv);
  e.bytes =
      elements_of(s, setup.bounds, s.dqk, s.dqk + s.dv) * static_cast<double>(size_of(s.dtype)) +
      elements_of(s, setup.bounds, s.dv, 0) * static_cast<double>(size_of(s.out_dtype));
  const char* packed = setup.packed ? ", the heads of a group packed into lanes" : "";
  if (setup.decodes(setup.max_rows(), setup.bounds.max_k_len)) {
    e.tiles = fmt::format(
        "decode: up to {} queries x {} keys, K and V read where they lie, products of {}{}",
        setup.decode->most,
        key_block,
        products_of(setup),
        packed);
    if (setup.decodes_at_once(setup.max_rows()) && !setup.score.used && !s.dropout)
      e.notes.emplace_back(
          "decode: scores, softmax and outputs of a tile are one step, but where a mask ends");
    e.notes.push_back(fmt::format("decode floor: one read of K and V, {:.1f} MB at the bounds",
                                  elements_of(s, setup.bounds, 0, s.dqk + s.dv) *
                                      static_cast<double>(size_of(s.dtype)) * 1e-6));
  }
  if (splits > 1)
    e.notes.push_back(
        fmt::format("keys are split at multiples of {} and merged in order", split_keys));
  if (s.determinism == Determinism::invariant)
    e.notes.emplace_back("invariant: keys are never split, so few rows use few cores");
  if (s.key_mass) e.notes.emplace_back("key_mass computes the scores a second time");
  return e;
}

Explanation describe_backward(const Setup& setup) {
  const Spec& s = setup.spec;
  Explanation e = describe(setup, "bwd");
  e.flops = 2 * pairs_at_bounds(setup) * (3.0 * s.dqk + 2.0 * s.dv);
  e.bytes = 2 * elements_of(s, setup.bounds, s.dqk + s.dv, s.dqk + s.dv) *
            static_cast<double>(size_of(s.dtype));
  return e;
}

void want_dtype(const char* name, const View& v, DType dtype) {
  if (v && v.dtype != dtype)
    throw Error(
        Code::invalid_argument,
        Stage::run,
        fmt::format("{} is {}; this plan writes or reads {}", name, v.describe(), name_of(dtype)));
}

}  // namespace undivided::cpu
