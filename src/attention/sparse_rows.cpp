// SPDX-License-Identifier: Apache-2.0
// Lists of rows on the host; those of a device are made there by src/cuda/row_lists.cpp.
#include "attention/sparse_rows.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "attention/execute.hpp"

namespace undivided {
namespace {

/// Flags or buckets of one head, in the order of time.
template <class T>
struct Column {
  const T* data;
  std::int64_t step;
  T operator[](std::int32_t token) const { return data[token * step]; }
};
template <class T>
Column<T> column_of(const View& v, std::int64_t row) {
  return {static_cast<const T*>(v.at({row / v.size(1), row % v.size(1), 0})), v.step(2)};
}

template <class T>
std::int32_t list_kept(const Column<T>& flags, std::int32_t tokens, std::int32_t* to) {
  std::int32_t kept = 0;
  for (std::int32_t i = 0; i < tokens; ++i) {  // without a branch that nothing could foresee
    to[kept] = i;
    kept += flags[i] != 0 ? 1 : 0;
  }
  return kept;
}

/// Sorts by bucket, stable: the lowest byte first, bytes that all buckets share left out.
void list_sorted(const Column<std::int32_t>& buckets, std::int32_t tokens, std::int32_t* to) {
  const auto key = [&](std::int32_t i) {
    return static_cast<std::uint32_t>(buckets[i]) ^ 0x80000000u;  // signed order
  };
  std::iota(to, to + tokens, 0);
  std::uint32_t differ = 0;
  for (std::int32_t i = 0; i < tokens; ++i) differ |= key(i) ^ key(0);
  std::vector<std::int32_t> before(static_cast<std::size_t>(tokens));
  for (int shift = 0; shift < 32; shift += 8) {
    if ((differ >> shift & 255) == 0) continue;
    std::array<std::int32_t, 257> place{};
    before.assign(to, to + tokens);
    for (const std::int32_t i : before) ++place[(key(i) >> shift & 255) + 1];
    std::partial_sum(place.begin(), place.end(), place.begin());
    for (const std::int32_t i : before) to[place[key(i) >> shift & 255]++] = i;
  }
}

void list_side(const View& flags, bool buckets, Tensor& rows, Tensor& lengths, Executor& executor) {
  const std::int64_t batch = flags.size(0), heads = flags.size(1), n = flags.size(2);
  const auto tokens = static_cast<std::int32_t>(n);
  rows = Tensor::empty(DType::i32, {batch, heads, n});
  lengths = Tensor::empty(DType::i32, {batch, heads});
  executor.parallel_for(batch * heads, [&](std::int64_t row, int) {
    std::int32_t* to = rows.ptr<std::int32_t>() + row * n;
    std::int32_t& length = lengths.ptr<std::int32_t>()[row];
    if (buckets) {
      list_sorted(column_of<std::int32_t>(flags, row), tokens, to);
      length = tokens;
    } else {
      length = flags.dtype == DType::boolean
                   ? list_kept(column_of<bool>(flags, row), tokens, to)
                   : list_kept(column_of<std::int32_t>(flags, row), tokens, to);
    }
  });
}

/// The keys that the rows of one head meet. Both sides are sorted by (bucket, time), so those of a
/// row lie together, and the ends of these stretches never go back from row to row.
void list_meetings(const SparseForward& f,
                   const SparseRule& rule,
                   std::int64_t origin,
                   std::int64_t head) {
  const std::int64_t kv_head = head / (rule.q.size(1) / rule.k.size(1));
  const auto list = [](const Tensor& t, std::int64_t row) {
    return t.ptr<std::int32_t>() + row * t.size(2);
  };
  const std::int32_t *q = list(f.q_rows, head), *k = list(f.k_rows, kv_head);
  std::int32_t *first = list(f.first, head), *end = list(f.end, head);
  const std::int32_t queries = f.q_lengths.ptr<std::int32_t>()[head],
                     keys = f.k_lengths.ptr<std::int32_t>()[kv_head];
  const auto on_q = column_of<std::int32_t>(rule.q, head),
             on_k = column_of<std::int32_t>(rule.k, kv_head);
  std::int32_t from = 0, to = 0;
  for (std::int32_t i = 0; i < queries; ++i) {
    const std::int64_t time = q[i] + origin - (rule.order == Order::strict ? 1 : 0);
    const auto meets = [&](std::int32_t j) {
      return (rule.order == Order::none || k[j] <= time) &&
             (!rule.buckets || on_k[k[j]] == on_q[q[i]]);
    };
    if (rule.buckets)
      while (from < keys && on_k[k[from]] < on_q[q[i]]) ++from;
    to = std::max(to, from);
    while (to < keys && meets(to)) ++to;
    first[i] = from;
    end[i] = to;
  }
}

}  // namespace

void list_rows(SparseForward& f,
               const SparseRule& rule,
               std::int64_t origin,
               const Context& context) {
  Executor& executor = executor_of(context);
  list_side(rule.q, rule.buckets, f.q_rows, f.q_lengths, executor);
  list_side(rule.k, rule.buckets, f.k_rows, f.k_lengths, executor);
  for (Tensor* t : {&f.first, &f.end})
    *t = Tensor::empty(DType::i32, {rule.q.size(0), rule.q.size(1), rule.q.size(2)});
  executor.parallel_for(rule.q.size(0) * rule.q.size(1),
                        [&](std::int64_t head, int) { list_meetings(f, rule, origin, head); });
}

}  // namespace undivided
