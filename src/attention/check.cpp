// SPDX-License-Identifier: Apache-2.0
// Args::check: validates the contents that run() never reads on a device.
#include <fmt/format.h>

#include "attention/execute.hpp"
#include "problem/sequence.hpp"

namespace undivided {
namespace {

template <class... T>
[[noreturn]] void refuse_contents(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument, Stage::run, fmt::format(format, std::forward<T>(args)...));
}

void check_offsets(const char* name,
                   const View& offsets,
                   std::int64_t total,
                   std::int64_t longest) {
  for (std::int64_t i = 0; i + 1 < offsets.size(0); ++i) {
    const std::int64_t from = index_at(offsets, i), to = index_at(offsets, i + 1);
    if (from < 0 || to < from || to > total)
      refuse_contents("{}[{}..{}] is {}..{}; offsets must ascend within {} packed rows",
                      name,
                      i,
                      i + 1,
                      from,
                      to,
                      total);
    if (to - from > longest)
      refuse_contents(
          "{}[{}] gives {} tokens; this plan is for at most {}", name, i, to - from, longest);
  }
}

void check_lengths(const char* name, const View& lengths, std::int64_t most) {
  for (std::int64_t i = 0; i < lengths.size(0); ++i)
    if (index_at(lengths, i) < 0 || index_at(lengths, i) > most)
      refuse_contents("{}[{}] is {}; 0 to {} is allowed", name, i, index_at(lengths, i), most);
}

void check_arrays(const BoundProgram& bound, const char* what) {
  for (std::size_t i = 0; i < bound.program->slots.size(); ++i) {
    const auto& array = bound.bound.arrays[i];
    if (bound.program->slots[i].dtype != DType::i32) continue;
    std::int64_t index[4] = {0, 0, 0, 0};
    const std::int64_t count = array.shape[0] * array.shape[1] * array.shape[2] * array.shape[3];
    for (std::int64_t n = 0; n < count; ++n) {
      std::int64_t rest = n, at = 0;
      for (std::size_t axis = 4; axis-- > 0;) {
        index[axis] = rest % array.shape[axis];
        rest /= array.shape[axis];
        at += index[axis] * array.stride[axis];
      }
      const std::int32_t value = static_cast<const std::int32_t*>(array.data)[at];
      if (value < array.low || value > array.high)
        refuse_contents(
            "array '{}' of the {} holds {} at element {}; its declared range is [{}, {}]",
            bound.program->slots[i].name,
            what,
            value,
            n,
            array.low,
            array.high);
    }
  }
}

}  // namespace

void Args::check(const Spec& spec, const Bounds& bounds, const Context& context) const {
  std::vector<Tensor> keep;
  const Problem p = on_host({spec, bounds, *this, q.data.device}, context, keep);
  const Args& a = p.args;
  if (spec.rows == RowKind::ragged)
    check_offsets("Q offsets", a.q.offsets, a.q.data.size(0), bounds.max_q_len);
  if (spec.q_lengths) check_lengths("Q lengths", a.q.lengths, a.q.data.size(2));
  if (spec.kv == KvKind::ragged)
    check_offsets("K offsets", a.kv.offsets, a.kv.k.size(0), bounds.max_k_len);
  if (spec.k_lengths) check_lengths("K lengths", a.kv.lengths, a.kv.k.size(2));
  if (spec.kv == KvKind::paged) {
    const std::int64_t size = a.kv.k.size(2);
    check_lengths("K lengths", a.kv.lengths, std::min(bounds.max_k_len, page_slots(a.kv) * size));
    for (std::int64_t b = 0; b < batch_of(spec, a); ++b)
      for (std::int64_t i = 0; i * size < index_at(a.kv.lengths, b); ++i) {
        const std::int64_t page = page_of(a.kv, b, i);
        if (page < 0 || page >= a.kv.k.size(0))
          refuse_contents(
              "page_table[{}, {}] is {}; pages 0 to {} exist", b, i, page, a.kv.k.size(0) - 1);
      }
  }
  if (a.mask) check_arrays(*a.mask, "mask");
  if (a.score) check_arrays(*a.score, "score");
}

}  // namespace undivided
