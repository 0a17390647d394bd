// SPDX-License-Identifier: Apache-2.0
// Spec as a value: equality and hash by program structure, one-line description.
#include <fmt/format.h>

#include <functional>
#include <tuple>

#include "expr/program.hpp"
#include "undivided/plan.hpp"

namespace undivided {
namespace {

auto fields(const Spec& s) {
  return std::tie(s.op,
                  s.dtype,
                  s.out_dtype,
                  s.dqk,
                  s.dv,
                  s.group,
                  s.rows,
                  s.kv,
                  s.page,
                  s.q_lengths,
                  s.k_lengths,
                  s.shared_pages,
                  s.aligned,
                  s.wide_index,
                  s.listed,
                  s.origin,
                  s.sink,
                  s.dropout,
                  s.partial,
                  s.max_logit,
                  s.key_mass,
                  s.mask_plan,
                  s.inside,
                  s.want_dq,
                  s.want_dk,
                  s.want_dv,
                  s.dlse,
                  s.captured,
                  s.dout_dtype,
                  s.determinism,
                  s.precision.follow,
                  s.precision.qk,
                  s.precision.pv);
}

bool same_program(const expr::ProgramPtr& a, const expr::ProgramPtr& b) {
  return a == b || (a && b && expr::same_structure(*a, *b));
}

const char* name_of(Operation op) {
  switch (op) {
    case Operation::forward:
      return "forward";
    case Operation::backward:
      return "backward";
    case Operation::merge:
      return "merge";
    case Operation::differential:
      return "differential";
    case Operation::fastformer:
      return "fastformer";
    case Operation::quantize:
      return "quantize";
  }
  return "?";
}

}  // namespace

bool operator==(const Spec& a, const Spec& b) {
  return fields(a) == fields(b) && same_program(a.mask, b.mask) && same_program(a.score, b.score);
}

std::size_t hash_of(const Spec& spec) {
  std::size_t h = 0xcbf29ce484222325ull;
  const auto mix = [&](std::size_t x) { h = (h ^ x) * 0x100000001b3ull; };
  std::apply([&](const auto&... f) { (mix(static_cast<std::size_t>(f)), ...); }, fields(spec));
  // Programs of one problem size rarely collide: their node counts are enough to spread the table.
  if (spec.mask) mix(spec.mask->nodes.size() * 31 + spec.mask->slots.size());
  if (spec.score) mix(spec.score->nodes.size() * 31 + spec.score->slots.size());
  return h;
}

std::string describe(const Spec& s) {
  std::string text = fmt::format("{} {} d{}", name_of(s.op), undivided::name_of(s.dtype), s.dqk);
  if (s.dv != s.dqk) text += fmt::format("/{}", s.dv);
  text += fmt::format(" group {}", s.group);
  text += s.rows == RowKind::ragged ? " ragged" : " dense";
  text += s.kv == KvKind::paged ? "/paged" : s.kv == KvKind::ragged ? "/ragged" : "/dense";
  if (s.mask) text += fmt::format(" mask '{}'", expr::print(*s.mask, false));
  if (s.score) text += fmt::format(" score '{}'", expr::print(*s.score, false));
  if (s.listed) text += " listed";
  if (s.sink) text += " sink";
  if (s.dropout) text += " dropout";
  if (s.partial) text += " partial";
  return text;
}

}  // namespace undivided
