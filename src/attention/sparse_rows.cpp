// SPDX-License-Identifier: Apache-2.0
// Lists of rows on the host; those of a device are made there by src/cuda/row_lists.cpp.
#include "attention/sparse_rows.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "attention/execute.hpp"
#include "cuda/row_lists.hpp"

namespace undivided {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// One head of one side.
struct HeadRows {
  std::vector<std::int32_t> flags;  // of all tokens
  std::vector<std::int32_t> order;  // tokens that take part, sorted
};

void read_flags(const View& v, std::int64_t row, std::vector<std::int32_t>& to) {
  const std::int64_t n = v.size(2), step = v.step(2);
  to.resize(at(n));
  const auto read = [&](const auto* from) {
    for (std::int64_t i = 0; i < n; ++i) to[at(i)] = from[i * step];
  };
  const void* first = v.at({row / v.size(1), row % v.size(1), 0});
  v.dtype == DType::boolean ? read(static_cast<const bool*>(first))
                            : read(static_cast<const std::int32_t*>(first));
}

/// Sorts by bucket, stable: the lowest byte first, bytes that all buckets share left out.
void sort_by_bucket(const std::vector<std::int32_t>& buckets, std::vector<std::int32_t>& order) {
  const auto key = [&](std::int32_t i) {
    return static_cast<std::uint32_t>(buckets[at(i)]) ^ 0x80000000u;  // signed order
  };
  std::uint32_t differ = 0;
  for (const std::int32_t i : order) differ |= key(i) ^ key(order[0]);
  std::vector<std::int32_t> sorted(order.size());
  for (int shift = 0; shift < 32; shift += 8) {
    if ((differ >> shift & 255) == 0) continue;
    std::array<std::int32_t, 257> place{};
    for (const std::int32_t i : order) ++place[(key(i) >> shift & 255) + 1];
    std::partial_sum(place.begin(), place.end(), place.begin());
    for (const std::int32_t i : order) sorted[at(place[key(i) >> shift & 255]++)] = i;
    order.swap(sorted);
  }
}

HeadRows read_head(const View& flags, std::int64_t row, bool buckets) {
  HeadRows head;
  read_flags(flags, row, head.flags);
  const auto n = static_cast<std::int32_t>(flags.size(2));
  head.order.resize(at(n));
  std::size_t kept = 0;
  for (std::int32_t i = 0; i < n; ++i) {  // without a branch that nothing could foresee
    head.order[kept] = i;
    kept += static_cast<std::size_t>(buckets || head.flags[at(i)] != 0);
  }
  head.order.resize(kept);
  if (buckets && n > 0) sort_by_bucket(head.flags, head.order);
  return head;
}

struct Side {
  std::vector<HeadRows> heads;
  std::int64_t longest = 1;  // a place that nobody takes is simpler than none
};

Side read_side(const View& flags, bool buckets, const Context& context) {
  Side side;
  side.heads.resize(at(flags.size(0) * flags.size(1)));
  executor_of(context).parallel_for(std::ssize(side.heads), [&](std::int64_t row, int) {
    side.heads[at(row)] = read_head(flags, row, buckets);
  });
  for (const HeadRows& h : side.heads) side.longest = std::max(side.longest, std::ssize(h.order));
  return side;
}

/// Both directions of the list: tokens of rows, and rows of tokens.
void write_lists(const Side& side, const View& flags, Tensor& rows, Tensor& places) {
  const std::int64_t batch = flags.size(0), heads = flags.size(1), n = flags.size(2);
  rows = Tensor::empty(DType::i32, {batch, heads, side.longest});
  places = Tensor::empty(DType::i32, {batch, heads, n});
  std::fill_n(places.ptr<std::int32_t>(), places.count(), -1);
  for (std::int64_t row = 0; row < batch * heads; ++row) {
    const std::vector<std::int32_t>& order = side.heads[at(row)].order;
    std::int32_t* to = rows.ptr<std::int32_t>() + row * side.longest;
    std::int32_t* place = places.ptr<std::int32_t>() + row * n;
    std::fill(std::copy(order.begin(), order.end(), to), to + side.longest, -1);
    for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<std::int32_t>(i);
  }
}

/// Both sides are sorted by (bucket, time), so the queries that see a key lie together, and the
/// ends of these stretches never go back from key to key.
void write_meetings(const HeadRows& q,
                    const HeadRows& k,
                    const SparseRule& rule,
                    std::int64_t origin,
                    std::int32_t* first,
                    std::int32_t* end) {
  const std::size_t count = q.order.size();
  std::size_t from = 0, to = 0;
  for (std::size_t j = 0; j < k.order.size(); ++j) {
    const std::int64_t time = k.order[j] + (rule.order == Order::strict ? 1 : 0);
    const auto later = [&](std::size_t i) {
      return rule.order == Order::none || q.order[i] + origin >= time;
    };
    if (rule.buckets) {
      const std::int32_t bucket = k.flags[at(k.order[j])];
      const auto bucket_at = [&](std::size_t i) { return q.flags[at(q.order[i])]; };
      while (to < count && bucket_at(to) <= bucket) ++to;
      while (from < to && (bucket_at(from) < bucket || !later(from))) ++from;
    } else {
      to = count;
      while (from < to && !later(from)) ++from;
    }
    first[j] = static_cast<std::int32_t>(from);
    end[j] = static_cast<std::int32_t>(to);
  }
}

void list_here(SparseForward& f,
               const SparseRule& rule,
               std::int64_t origin,
               const Context& context) {
  const Side q = read_side(rule.q, rule.buckets, context),
             k = read_side(rule.k, rule.buckets, context);
  write_lists(q, rule.q, f.q_rows, f.q_places);
  write_lists(k, rule.k, f.k_rows, f.k_places);
  const std::int64_t heads = rule.q.size(1), kv_heads = rule.k.size(1), group = heads / kv_heads,
                     all = rule.q.size(0) * heads;
  // Keys that are nobody's are met by no query.
  f.first = Tensor::zeros(DType::i32, {all / group, group, k.longest});
  f.end = Tensor::zeros(DType::i32, {all / group, group, k.longest});
  executor_of(context).parallel_for(all, [&](std::int64_t row, int) {
    write_meetings(q.heads[at(row)],
                   k.heads[at(row / group)],
                   rule,
                   origin,
                   f.first.ptr<std::int32_t>() + row * k.longest,
                   f.end.ptr<std::int32_t>() + row * k.longest);
  });
}

}  // namespace

Mask list_rows(SparseForward& f,
               const SparseRule& rule,
               std::int64_t origin,
               const Context& context) {
  std::shared_ptr<MaskPlan> plan;
  if (rule.q.device.kind != Device::Kind::cpu) {
    cuda::RowLists lists = cuda::list_rows(
        {rule.q, rule.k, rule.buckets, static_cast<int>(rule.order), origin}, context);
    f.q_rows = std::move(lists.q_rows);
    f.k_rows = std::move(lists.k_rows);
    f.q_places = std::move(lists.q_places);
    f.k_places = std::move(lists.k_places);
    f.first = std::move(lists.first);
    f.end = std::move(lists.end);
    plan = std::move(lists.plan);
  } else {
    list_here(f, rule, origin, context);
  }
  const std::pair<std::int64_t, std::int64_t> range{0, f.q_rows.size(2)};
  const Array first(f.first, "first", range), end(f.end, "end", range);
  const Mask out =
      mask([=](Expr s, Expr h, Expr i, Expr j) { return first(s, h, j) <= i && i < end(s, h, j); });
  if (plan)
    for (const Array& a : out.captures().arrays) plan->versions.push_back(a.version());
  f.plan = std::move(plan);
  return out;
}

void take_rows(
    const View& to, const View& from, const View& index, float empty, const Context& context) {
  if (to.device.kind != Device::Kind::cpu) return cuda::take_rows(to, from, index, empty, context);
  constexpr std::int64_t rows_of_task = 256, rows_ahead = 8;
  const std::int64_t heads = to.size(1), n = to.size(2),
                     tasks = (n + rows_of_task - 1) / rows_of_task;
  const std::size_t bytes = at(from.size(3)) * size_of(from.dtype),
                    room = at(to.size(3)) * size_of(to.dtype);
  const auto step = from.step(2) * static_cast<std::int64_t>(size_of(from.dtype)),
             to_step = to.step(2) * static_cast<std::int64_t>(size_of(to.dtype));
  const auto clear = [&](void* row, std::size_t skip) {
    std::byte* begin = static_cast<std::byte*>(row) + skip;
    if (empty == 0)
      std::memset(begin, 0, room - skip);
    else
      std::fill(
          reinterpret_cast<float*>(begin), reinterpret_cast<float*>(begin + room - skip), empty);
  };
  executor_of(context).parallel_for(to.size(0) * heads * tasks, [&](std::int64_t task, int) {
    const std::int64_t b = task / tasks / heads, h = task / tasks % heads,
                       begin = task % tasks * rows_of_task, end = std::min(n, begin + rows_of_task);
    const auto* list = static_cast<const std::int32_t*>(index.at({b, h, 0}));
    const auto* rows = static_cast<const std::byte*>(from.at({b, h, 0, 0}));
    auto* row = static_cast<std::byte*>(to.at({b, h, begin, 0}));
    for (std::int64_t i = begin; i < end; ++i, row += to_step) {
      if (list[i] < 0) {
        clear(row, 0);
        continue;
      }
      // Sorted rows lie anywhere: the one that comes soon is fetched early.
      if (const std::int32_t soon = list[std::min(i + rows_ahead, end - 1)]; soon >= 0) {
        const std::byte* ahead = rows + soon * step;
        for (std::size_t x = 0; x < bytes; x += 64) __builtin_prefetch(ahead + x);
      }
      std::memcpy(row, rows + list[i] * step, bytes);
      if (bytes < room) clear(row, bytes);
    }
  });
}

}  // namespace undivided
