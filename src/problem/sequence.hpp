// SPDX-License-Identifier: Apache-2.0
// Lengths, origins and row addresses of one sequence, read from host Args after normalisation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "undivided/plan.hpp"

namespace undivided {

/// The element of an i32 or i64 host view that lies `offset` elements after its first.
inline std::int64_t index_beyond(const View& v, std::int64_t offset) {
  return v.dtype == DType::i32 ? static_cast<const std::int32_t*>(v.data)[offset]
                               : static_cast<const std::int64_t*>(v.data)[offset];
}
/// Reads element i of an i32 or i64 host view of rank 1.
inline std::int64_t index_at(const View& v, std::int64_t i) {
  return index_beyond(v, i * v.step(0));
}

/// Every index array that Args may carry: lengths, offsets, tables, origins.
template <class A, class F>
void for_each_index(A& a, F&& visit) {
  for (const auto& [name, v] : {std::pair{"q offsets", &a.q.offsets},
                                std::pair{"q lengths", &a.q.lengths},
                                std::pair{"k offsets", &a.kv.offsets},
                                std::pair{"k lengths", &a.kv.lengths},
                                std::pair{"the page table", &a.kv.page_table},
                                std::pair{"the prefix table", &a.kv.prefix_table},
                                std::pair{"q_origin", &a.q_origin},
                                std::pair{"k_origin", &a.k_origin}})
    if (*v) visit(name, *v);
}

struct Sequence {
  std::int64_t q_len = 0, k_len = 0;
  std::int64_t q_first = 0, k_first = 0;    // first packed row (ragged), else 0
  std::int64_t q_origin = 0, k_origin = 0;  // position of local index 0
  // Of one head, with lists only: which rows these are, and the keys that each row keeps.
  const std::int32_t *q_rows = nullptr, *k_rows = nullptr, *first = nullptr, *end = nullptr;
};

inline std::int64_t batch_of(const Spec& spec, const Args& a) {
  return spec.rows == RowKind::ragged ? a.q.offsets.size(0) - 1 : a.q.data.size(0);
}
inline std::int64_t query_heads(const Args& a) { return a.q.data.size(1); }
inline std::int64_t kv_heads(const Args& a) { return a.kv.k.size(1); }

/// With lists each query head is a sequence of its own.
inline Sequence listed_sequence(const Spec& spec,
                                const RowLists& lists,
                                std::int64_t b,
                                std::int64_t head) {
  const auto at = [&](const View& v, std::int64_t h) {
    const std::int64_t row = b * v.size(1) + h;
    return static_cast<const std::int32_t*>(v.data) + row * (v.rank == 3 ? v.size(2) : 1);
  };
  Sequence s;
  s.q_len = *at(lists.q_lengths, head);
  s.k_len = *at(lists.k_lengths, head / spec.group);
  s.q_rows = at(lists.q, head);
  s.k_rows = at(lists.k, head / spec.group);
  s.first = at(lists.first, head);
  s.end = at(lists.end, head);
  return s;
}

inline Sequence sequence(const Spec& spec, const Args& a, std::int64_t b, std::int64_t head = 0) {
  if (spec.listed) return listed_sequence(spec, a.lists, b, head);
  Sequence s;
  if (spec.rows == RowKind::ragged) {
    s.q_first = index_at(a.q.offsets, b);
    s.q_len = index_at(a.q.offsets, b + 1) - s.q_first;
  } else {
    s.q_len = spec.q_lengths ? index_at(a.q.lengths, b) : a.q.data.size(2);
  }
  if (spec.kv == KvKind::ragged) {
    s.k_first = index_at(a.kv.offsets, b);
    s.k_len = index_at(a.kv.offsets, b + 1) - s.k_first;
  } else if (spec.kv == KvKind::paged || spec.k_lengths) {
    s.k_len = index_at(a.kv.lengths, b);
  } else {
    s.k_len = a.kv.k.size(2);
  }
  if (spec.origin == Origin::end) s.q_origin = s.k_len - s.q_len;
  if (spec.origin == Origin::given) {
    s.q_origin = a.q_origin ? index_at(a.q_origin, b) : 0;
    s.k_origin = a.k_origin ? index_at(a.k_origin, b) : 0;
  }
  return s;
}

/// Which row of the caller's row i is.
inline std::int64_t row_of(const Sequence& s, std::int64_t i) { return s.q_rows ? s.q_rows[i] : i; }

/// Address of a row of Q, O, dO or dQ (`v` normalised to 4-D dense or 3-D ragged).
inline std::byte* row_address(const Spec& spec,
                              const View& v,
                              const Sequence& s,
                              std::int64_t b,
                              std::int64_t h,
                              std::int64_t i) {
  const std::int64_t at = spec.rows == RowKind::ragged
                              ? (s.q_first + i) * v.stride[0] + h * v.stride[1]
                              : b * v.stride[0] + h * v.stride[1] + row_of(s, i) * v.stride[2];
  return static_cast<std::byte*>(v.data) + at * static_cast<std::int64_t>(size_of(v.dtype));
}

/// The page of a sequence's slot: tokens [slot * size, (slot + 1) * size). Every reading of a page
/// table on the host goes through here.
inline std::int64_t prefix_slots(const Kv& kv) {
  return kv.prefix_table ? kv.prefix_table.size(0) : 0;
}
inline std::int64_t page_slots(const Kv& kv) { return prefix_slots(kv) + kv.page_table.size(1); }
inline std::int64_t page_of(const Kv& kv, std::int64_t b, std::int64_t slot) {
  const std::int64_t prefix = prefix_slots(kv);
  if (slot < prefix) return index_at(kv.prefix_table, slot);
  const View& table = kv.page_table;
  return index_beyond(table, b * table.stride[0] + (slot - prefix) * table.stride[1]);
}

/// Where token j lies in K as in V, and how many tokens from there on follow one another.
struct KeyPlace {
  std::int64_t outer = 0, token = 0;  // on the first axis, and on that of tokens
  std::int64_t count = 0;
};
inline KeyPlace key_place(
    const Spec& spec, const Kv& kv, const Sequence& s, std::int64_t b, std::int64_t j) {
  if (spec.kv == KvKind::ragged) return {0, s.k_first + j, s.k_len - j};
  if (s.k_rows) return {b, s.k_rows[j], 1};
  if (spec.kv == KvKind::dense) return {b, j, s.k_len - j};
  const std::int64_t size = kv.k.size(2), slot = j / size, in_page = j - slot * size;
  return {page_of(kv, b, slot), in_page, std::min(size - in_page, s.k_len - j)};
}

/// Address of a row of K, V, dK or dV, and how many following tokens share its token stride.
struct KeyRun {
  std::byte* data = nullptr;
  std::int64_t stride = 0;  // bytes between tokens
  std::int64_t count = 0;   // tokens from here that lie at this stride
};
inline KeyRun key_run(const Spec& spec, const View& v, const KeyPlace& place, std::int64_t h) {
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  const bool ragged = spec.kv == KvKind::ragged;
  const std::int64_t step = v.stride[ragged ? 0 : 2];
  const std::int64_t outer = ragged ? 0 : place.outer * v.stride[0];
  auto* base = static_cast<std::byte*>(v.data);
  return {base + (outer + h * v.stride[1] + place.token * step) * bytes, step * bytes, place.count};
}
inline KeyRun key_run(const Spec& spec,
                      const Kv& kv,
                      const View& v,
                      const Sequence& s,
                      std::int64_t b,
                      std::int64_t h,
                      std::int64_t j) {
  return key_run(spec, v, key_place(spec, kv, s, b, j), h);
}

/// Where number i of head h is: dense [batch, head, number], packed [head, total] from `first` on.
inline std::byte* scalar_at(const View& v,
                            bool packed,
                            std::int64_t first,
                            std::int64_t b,
                            std::int64_t h,
                            std::int64_t i) {
  const std::int64_t at = packed ? h * v.stride[0] + (first + i) * v.stride[1]
                                 : b * v.stride[0] + h * v.stride[1] + i * v.stride[2];
  return static_cast<std::byte*>(v.data) + at * static_cast<std::int64_t>(size_of(v.dtype));
}
/// Of row i of a problem.
inline std::byte* scalar_address(const Spec& spec,
                                 const View& v,
                                 const Sequence& s,
                                 std::int64_t b,
                                 std::int64_t h,
                                 std::int64_t i) {
  return scalar_at(v, spec.rows == RowKind::ragged, s.q_first, b, h, i);
}
/// The same of the caller's row: LSE, max, dLSE.
inline std::byte* row_scalar_address(const Spec& spec,
                                     const View& v,
                                     const Sequence& s,
                                     std::int64_t b,
                                     std::int64_t h,
                                     std::int64_t i) {
  return scalar_address(spec, v, s, b, h, row_of(s, i));
}
inline float* row_scalar(const Spec& spec,
                         const View& v,
                         const Sequence& s,
                         std::int64_t b,
                         std::int64_t h,
                         std::int64_t i) {
  return reinterpret_cast<float*>(row_scalar_address(spec, v, s, b, h, i));
}

/// Where key_mass of key j is: dense or paged [batch, head, k], ragged [head, total_k].
inline std::byte* key_scalar_address(const Spec& spec,
                                     const View& v,
                                     const Sequence& s,
                                     std::int64_t b,
                                     std::int64_t h,
                                     std::int64_t j) {
  return scalar_at(v, spec.kv == KvKind::ragged, s.k_first, b, h, j);
}

}  // namespace undivided
