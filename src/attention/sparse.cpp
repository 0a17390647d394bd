// SPDX-License-Identifier: Apache-2.0
// SCFA: gather kept rows, sorted; attend as one ragged sequence per (batch, KV head); scatter.
#include "undivided/sparse.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>

#include "attention/execute.hpp"
#include "expr/program.hpp"

namespace undivided {
namespace {

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(
      Code::invalid_argument, Stage::resolve, fmt::format(format, std::forward<T>(args)...));
}

struct Sizes {
  std::int64_t batch, heads, kv_heads, group, q_len, k_len;
  Sizes(const View& q, const View& k)
      : batch(q.size(0)),
        heads(q.size(1)),
        kv_heads(k.size(1)),
        group(heads / kv_heads),
        q_len(q.size(2)),
        k_len(k.size(2)) {}
  std::int64_t sequences() const { return batch * kv_heads; }
};

void check_inputs(const View& q, const View& k, const View& v) {
  for (const auto& [name, t] : {std::pair{"Q", &q}, {"K", &k}, {"V", &v}}) {
    if (t->rank != 4)
      refuse("sparse attention: {} is {}; dense [batch, head, token, dim] is expected",
             name,
             t->describe());
    if (t->device != cpu_device)
      refuse("sparse attention: {} is on {}; rows are gathered on the host only",
             name,
             to_string(t->device));
    if (t->dtype != DType::f32 && !is_float16(t->dtype))
      refuse("sparse attention: {} is {}; f32, f16 or bf16 is allowed", name, name_of(t->dtype));
    if (t->step(3) != 1)
      refuse("sparse attention: the last stride of {} is {}; 1 is needed", name, t->step(3));
  }
  for (int axis = 0; axis < 3; ++axis)
    if (k.size(axis) != v.size(axis) || (axis == 0 && k.size(axis) != q.size(axis)))
      refuse(
          "sparse attention: Q is {}, K {} and V {}; one batch, and K and V of the same heads and "
          "tokens are needed",
          q.describe(),
          k.describe(),
          v.describe());
  if (q.size(1) < 1 || k.size(1) < 1 || q.size(1) % k.size(1) != 0)
    refuse("sparse attention: {} query heads and {} KV heads; a multiple is needed",
           q.size(1),
           k.size(1));
}

/// What decides which rows meet: flags that keep rows, or the buckets of all rows.
struct Rule {
  View q, k;
  Order order;
  bool buckets;
};

void check_flags(const char* name, const View& v, const View& rows, bool booleans) {
  bool same = v.rank == 3 && (v.dtype == DType::i32 || (booleans && v.dtype == DType::boolean));
  for (int axis = 0; same && axis < 3; ++axis) same = v.size(axis) == rows.size(axis);
  if (!same)
    refuse("sparse attention: {} is {}; {}i32 [{}, {}, {}] is expected",
           name,
           v ? v.describe() : "not given",
           booleans ? "bool or " : "",
           rows.size(0),
           rows.size(1),
           rows.size(2));
  if (v.device != cpu_device)
    refuse("sparse attention: {} is on {}; it is read on the host", name, to_string(v.device));
}

void check_options(const Options& o, const Sizes& z, Order order) {
  const expr::Node& root = o.mask.program()->root();
  if (root.op != expr::Op::constant || root.integer != 1)
    refuse("sparse attention: a mask is given; dropped rows, buckets and the order are its mask");
  for (const expr::Op op : {expr::Op::batch, expr::Op::head, expr::Op::q, expr::Op::k})
    if (o.score.program()->reads(op))
      refuse(
          "sparse attention: the score reads {}; rows are reordered, so it may read the score only",
          expr::name_of(op));
  if (o.sink) refuse("sparse attention: a sink is given; it is not honoured here");
  if (o.dropout != 0) refuse("sparse attention: dropout is {}; 0 is allowed", o.dropout);
  if (o.q_origin || o.k_origin)
    refuse("sparse attention: origins are given; align says where the first query is");
  if (o.partial || o.max_logit || o.key_mass)
    refuse("sparse attention: {} is asked for; O and LSE are what there is",
           o.partial     ? "a partial result"
           : o.max_logit ? "max_logit"
                         : "key_mass");
  if (order != Order::none && !o.align && z.q_len != z.k_len)
    refuse("sparse attention: Q has {} tokens and K {}; align must say start or end",
           z.q_len,
           z.k_len);
}

/// One side of the compact problem: sequences of rows of [batch, head, token].
struct Side {
  Tensor rows, offsets;   // i32
  Tensor times, buckets;  // i32 [sequence, longest]
  std::int64_t total = 0, longest = 0;
};

/// The flags of one head, in time order.
void read_flags(const View& v, std::int64_t b, std::int64_t h, std::vector<std::int32_t>& to) {
  const std::int64_t n = v.size(2), step = v.step(2);
  to.resize(static_cast<std::size_t>(n));
  const auto read = [&](const auto* from) {
    for (std::int64_t i = 0; i < n; ++i) to[static_cast<std::size_t>(i)] = from[i * step];
  };
  const void* first = v.at({b, h, 0});
  v.dtype == DType::boolean ? read(static_cast<const bool*>(first))
                            : read(static_cast<const std::int32_t*>(first));
}

/// Rows of heads [h * group, (h + 1) * group) of a batch item, one head after the other: kept ones
/// in time order, or all in the order of their buckets.
Side collect(const View& flags, std::int64_t group, bool by_bucket, std::int64_t origin) {
  const std::int64_t heads = flags.size(1), n = flags.size(2), all = flags.size(0) * heads;
  if (all * n > std::numeric_limits<std::int32_t>::max())
    refuse("sparse attention: {} rows; at most {} are allowed",
           all * n,
           std::numeric_limits<std::int32_t>::max());
  Side side;
  const std::int64_t sequences = all / group;
  side.offsets = Tensor::zeros(DType::i32, {sequences + 1});
  std::int32_t* offsets = side.offsets.ptr<std::int32_t>();
  std::vector<std::int32_t> rows, buckets, flag;
  std::vector<std::uint64_t> order;  // bucket above, time below
  for (std::int64_t row = 0; row < all; ++row) {
    read_flags(flags, row / heads, row % heads, flag);
    order.clear();
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int32_t f = flag[static_cast<std::size_t>(i)];
      // Flipping the sign bit makes the unsigned order that of the signed buckets.
      const std::uint64_t key = by_bucket ? static_cast<std::uint32_t>(f) ^ 0x80000000u : 0;
      if (by_bucket || f != 0) order.push_back(key << 32 | static_cast<std::uint32_t>(i));
    }
    if (by_bucket) std::sort(order.begin(), order.end());
    for (const std::uint64_t key : order) {
      const auto i = static_cast<std::int32_t>(key & 0xffffffffu);
      rows.push_back(static_cast<std::int32_t>(row * n) + i);
      if (by_bucket) buckets.push_back(flag[static_cast<std::size_t>(i)]);
    }
    offsets[row / group + 1] = static_cast<std::int32_t>(rows.size());
  }
  for (std::int64_t s = 0; s < sequences; ++s)
    side.longest = std::max<std::int64_t>(side.longest, offsets[s + 1] - offsets[s]);
  side.total = std::ssize(rows);
  side.rows = Tensor::empty(DType::i32, {side.total});
  std::copy(rows.begin(), rows.end(), side.rows.ptr<std::int32_t>());
  side.times = Tensor::zeros(DType::i32, {sequences, side.longest});
  if (by_bucket) side.buckets = Tensor::zeros(DType::i32, {sequences, side.longest});
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::int32_t* times = side.times.ptr<std::int32_t>() + s * side.longest - offsets[s];
    for (std::int32_t i = offsets[s]; i < offsets[s + 1]; ++i)
      times[i] = static_cast<std::int32_t>(origin + rows[static_cast<std::size_t>(i)] % n);
    if (by_bucket)
      std::copy(buckets.begin() + offsets[s],
                buckets.begin() + offsets[s + 1],
                side.buckets.ptr<std::int32_t>() + s * side.longest);
  }
  return side;
}

/// Addresses of the rows of [batch, head, token, dim] by their number.
class RowAddress {
 public:
  explicit RowAddress(const View& x)
      : data_(static_cast<std::byte*>(x.data)), heads_(x.size(1)), tokens_(x.size(2)) {
    const auto bytes = static_cast<std::int64_t>(size_of(x.dtype));
    for (int axis = 0; axis < 3; ++axis)
      step_[static_cast<std::size_t>(axis)] = x.step(axis) * bytes;
  }
  std::byte* operator()(std::int64_t row) const {
    const std::int64_t i = row % tokens_, head = row / tokens_;
    return data_ + head / heads_ * step_[0] + head % heads_ * step_[1] + i * step_[2];
  }

 private:
  std::byte* data_;
  std::int64_t heads_, tokens_;
  std::array<std::int64_t, 3> step_{};
};

constexpr std::int64_t rows_of_task = 256, rows_ahead = 8;

/// Calls body(i, address of row rows[i]); the row that comes soon is fetched early, because sorted
/// rows lie anywhere.
template <class F>
void for_each_row(const View& x, const View& rows, const Context& context, F&& body) {
  const RowAddress address(x);
  const auto* row = static_cast<const std::int32_t*>(rows.data);
  const std::int64_t n = rows.size(0),
                     bytes = x.size(3) * static_cast<std::int64_t>(size_of(x.dtype));
  Executor& executor = context.executor ? *context.executor : default_executor();
  executor.parallel_for((n + rows_of_task - 1) / rows_of_task, [&](std::int64_t t, int) {
    const std::int64_t end = std::min(n, (t + 1) * rows_of_task);
    for (std::int64_t i = t * rows_of_task; i < end; ++i) {
      const std::byte* soon = address(row[std::min(i + rows_ahead, end - 1)]);
      for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(soon + at);
      body(i, address(row[i]));
    }
  });
}

/// Rows of several tensors, one after the other, in memory that the next call uses again.
class Gathered {
 public:
  struct Request {
    const View* from;
    const View* rows;
  };
  Gathered(std::initializer_list<Request> requests, const Context& context)
      : room_(library_of(context), bytes(requests), cpu_device, context) {
    auto* to = static_cast<std::byte*>(room_.data());
    for (const Request& r : requests) {
      const View& x = *r.from;
      const View dense = View::of(to, x.dtype, {r.rows->size(0), 1, x.size(3)});
      const std::size_t row_bytes = static_cast<std::size_t>(x.size(3)) * size_of(x.dtype);
      for_each_row(x, *r.rows, context, [&](std::int64_t i, const std::byte* from) {
        std::memcpy(to + static_cast<std::size_t>(i) * row_bytes, from, row_bytes);
      });
      views_.push_back(dense);
      to += aligned(dense);
    }
  }
  const View& operator[](std::size_t i) const { return views_[i]; }

 private:
  static std::size_t aligned(const View& v) {
    return (static_cast<std::size_t>(v.count()) * size_of(v.dtype) + 255) / 256 * 256;
  }
  static std::size_t bytes(std::initializer_list<Request> requests) {
    std::size_t sum = 0;
    for (const Request& r : requests)
      sum += aligned(View::of(nullptr, r.from->dtype, {r.rows->size(0), 1, r.from->size(3)}));
    return sum;
  }
  Library::Workspace room_;
  std::vector<View> views_;
};

/// The inverse, of [total, 1, dim]: rows that nobody names are zero.
Tensor scattered(const View& from, const View& rows, const View& like, const Context& context) {
  Tensor to = allocate(
      context, cpu_device, from.dtype, {like.size(0), like.size(1), like.size(2), from.size(2)});
  const std::size_t bytes = static_cast<std::size_t>(from.size(2)) * size_of(from.dtype);
  if (rows.size(0) < like.size(0) * like.size(1) * like.size(2))
    std::memset(to.data, 0, static_cast<std::size_t>(to.count()) * size_of(to.dtype));
  const auto* data = static_cast<const std::byte*>(from.data);
  for_each_row(to, rows, context, [&](std::int64_t i, std::byte* at) {
    std::memcpy(at, data + static_cast<std::size_t>(i) * bytes, bytes);
  });
  return to;
}

/// The compact problem sees times (and buckets) instead of positions.
Mask mask_of(const Side& q, const Side& k, const Rule& rule) {
  const Order order = rule.order;
  const Array q_time(q.times, "q_time"), k_time(k.times, "k_time");
  Mask out = order == Order::none ? full() : mask([=](Expr s, Expr, Expr i, Expr j) {
    return order == Order::causal ? k_time(s, j) <= q_time(s, i) : k_time(s, j) < q_time(s, i);
  });
  if (!rule.buckets) return out;
  const Array q_bucket(q.buckets, "q_bucket"), k_bucket(k.buckets, "k_bucket");
  return mask([=](Expr s, Expr, Expr i, Expr j) { return q_bucket(s, i) == k_bucket(s, j); }) &&
         out;
}

SparseForward run(const View& q,
                  const View& k,
                  const View& v,
                  const Rule& rule,
                  const Options& options,
                  const Context& context) {
  check_inputs(q, k, v);
  check_flags(rule.buckets ? "q_bucket" : "q_keep", rule.q, q, !rule.buckets);
  check_flags(rule.buckets ? "k_bucket" : "k_keep", rule.k, k, !rule.buckets);
  const Sizes z(q, k);
  check_options(options, z, rule.order);
  const std::int64_t origin =
      options.align.value_or(Align::start) == Align::end ? z.k_len - z.q_len : 0;
  const Side queries = collect(rule.q, z.group, rule.buckets, origin);
  const Side keys = collect(rule.k, 1, rule.buckets, 0);
  SparseForward f;
  f.options = options;
  f.q_rows = queries.rows;
  f.k_rows = keys.rows;
  f.q_offsets = queries.offsets;
  f.k_offsets = keys.offsets;
  f.lse = allocate(context, cpu_device, DType::f32, {z.batch, z.heads, z.q_len});
  std::fill_n(f.lse.ptr<float>(), f.lse.count(), -std::numeric_limits<float>::infinity());
  Options inner = options;
  inner.align = Align::start;
  if (queries.longest > 0 && keys.longest > 0) inner.mask = mask_of(queries, keys, rule);
  const Gathered rows({{&q, &f.q_rows}, {&k, &f.k_rows}, {&v, &f.k_rows}}, context);
  f.compact = attention(
      ragged(rows[0], f.q_offsets), ragged(rows[1], rows[2], f.k_offsets), inner, context);
  f.o = scattered(f.compact.o, f.q_rows, q, context);
  const auto* index = f.q_rows.ptr<std::int32_t>();
  const auto* lse = f.compact.lse.ptr<float>();
  for (std::int64_t i = 0; i < queries.total; ++i) f.lse.ptr<float>()[index[i]] = lse[i];
  return f;
}

}  // namespace

SparseForward sparse_attention(const View& q,
                               const View& k,
                               const View& v,
                               const QkSparse& sparse,
                               const Options& options,
                               const Context& context) {
  return run(q, k, v, {sparse.q_keep, sparse.k_keep, sparse.order, false}, options, context);
}

SparseForward sparse_attention(const View& q,
                               const View& k,
                               const View& v,
                               const HashSparse& sparse,
                               const Options& options,
                               const Context& context) {
  return run(q, k, v, {sparse.q_bucket, sparse.k_bucket, sparse.order, true}, options, context);
}

Gradients sparse_attention_backward(const View& dout,
                                    const View& q,
                                    const View& k,
                                    const View& v,
                                    const SparseForward& f,
                                    const Context& context) {
  check_inputs(q, k, v);
  if (!f.o || f.o.size(0) != q.size(0) || f.o.size(1) != q.size(1) || f.o.size(2) != q.size(2))
    refuse("sparse attention: the forward is of O {}; Q is {}", f.o.describe(), q.describe());
  // Rows are numbered over [batch, head, token]: those of other keys would lie elsewhere.
  const auto* key_rows = f.k_rows.ptr<std::int32_t>();
  for (std::int64_t i = 0; i < f.k_rows.size(0); ++i)
    if (key_rows[i] >= k.size(0) * k.size(1) * k.size(2))
      refuse("sparse attention: the forward met row {} of K, which is {} now",
             key_rows[i],
             k.describe());
  bool same = dout.rank == 4 && dout.device == cpu_device && dout.step(3) == 1;
  for (int axis = 0; same && axis < 4; ++axis) same = dout.size(axis) == f.o.size(axis);
  if (!same)
    refuse("sparse attention: dO is {}; the shape of O, {}, is expected",
           dout.describe(),
           f.o.describe());
  const Gathered rows({{&q, &f.q_rows}, {&k, &f.k_rows}, {&v, &f.k_rows}, {&dout, &f.q_rows}},
                      context);
  Gradients inner = attention_backward(ragged(rows[3], f.q_offsets),
                                       ragged(rows[0], f.q_offsets),
                                       ragged(rows[1], rows[2], f.k_offsets),
                                       f.compact,
                                       {},
                                       context);
  inner.q = scattered(inner.q, f.q_rows, q, context);
  inner.k = scattered(inner.k, f.k_rows, k, context);
  inner.v = scattered(inner.v, f.k_rows, v, context);
  return inner;
}

}  // namespace undivided
