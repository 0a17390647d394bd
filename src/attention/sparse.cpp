// SPDX-License-Identifier: Apache-2.0
// SCFA: gather kept rows, sorted; attend as one ragged sequence per (batch, KV head); scatter.
#include "undivided/sparse.hpp"

#include <fmt/format.h>

#include <algorithm>
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
  if (q.size(1) < 1 || k.size(1) < 1 || q.size(1) % k.size(1) != 0)
    refuse("sparse attention: {} query heads and {} KV heads; a multiple is needed",
           q.size(1),
           k.size(1));
}

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

std::int32_t flag_at(const View& v, std::int64_t b, std::int64_t h, std::int64_t i) {
  const void* at = v.at({b, h, i});
  return v.dtype == DType::boolean ? *static_cast<const bool*>(at)
                                   : *static_cast<const std::int32_t*>(at);
}

/// Rows of heads [h * group, (h + 1) * group) of a batch item, one head after the other: kept ones
/// in time order, or all in the order of their buckets.
Side collect(const View& flags, std::int64_t group, bool by_bucket, std::int64_t origin) {
  const std::int64_t batch = flags.size(0), heads = flags.size(1), n = flags.size(2);
  if (batch * heads * n > std::numeric_limits<std::int32_t>::max())
    refuse("sparse attention: {} rows; at most {} are allowed",
           batch * heads * n,
           std::numeric_limits<std::int32_t>::max());
  Side side;
  std::vector<std::int32_t> rows, one;
  const std::int64_t sequences = batch * heads / group;
  side.offsets = Tensor::zeros(DType::i32, {sequences + 1});
  for (std::int64_t s = 0; s < sequences; ++s) {
    for (std::int64_t g = 0; g < group; ++g) {
      const std::int64_t row0 = (s * group + g) * n, b = row0 / n / heads, h = row0 / n % heads;
      one.clear();
      for (std::int64_t i = 0; i < n; ++i)
        if (by_bucket || flag_at(flags, b, h, i) != 0) one.push_back(static_cast<std::int32_t>(i));
      if (by_bucket)
        std::sort(one.begin(), one.end(), [&](std::int32_t x, std::int32_t y) {
          return std::pair{flag_at(flags, b, h, x), x} < std::pair{flag_at(flags, b, h, y), y};
        });
      for (const std::int32_t i : one) rows.push_back(static_cast<std::int32_t>(row0) + i);
    }
    const auto end = static_cast<std::int32_t>(rows.size());
    side.longest = std::max<std::int64_t>(side.longest, end - side.offsets.ptr<std::int32_t>()[s]);
    side.offsets.ptr<std::int32_t>()[s + 1] = end;
  }
  side.total = std::ssize(rows);
  side.rows = Tensor::empty(DType::i32, {side.total});
  std::copy(rows.begin(), rows.end(), side.rows.ptr<std::int32_t>());
  side.times = Tensor::zeros(DType::i32, {sequences, side.longest});
  if (by_bucket) side.buckets = Tensor::zeros(DType::i32, {sequences, side.longest});
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int32_t* offsets = side.offsets.ptr<std::int32_t>();
    for (std::int64_t i = offsets[s]; i < offsets[s + 1]; ++i) {
      const std::int64_t row = rows[static_cast<std::size_t>(i)];
      const std::int64_t at = s * side.longest + i - offsets[s];
      side.times.ptr<std::int32_t>()[at] = static_cast<std::int32_t>(origin + row % n);
      if (by_bucket)
        side.buckets.ptr<std::int32_t>()[at] =
            flag_at(flags, row / n / heads, row / n % heads, row % n);
    }
  }
  return side;
}

std::byte* row_at(const View& x, std::int64_t row) {  // of [batch, head, token, dim]
  const std::int64_t n = x.size(2), h = x.size(1);
  return static_cast<std::byte*>(x.at({row / n / h, row / n % h, row % n, 0}));
}

constexpr std::int64_t rows_of_task = 256;

template <class F>
void for_each_row(std::int64_t rows, const Context& context, F&& body) {
  Executor& executor = context.executor ? *context.executor : default_executor();
  executor.parallel_for((rows + rows_of_task - 1) / rows_of_task, [&](std::int64_t t, int) {
    for (std::int64_t i = t * rows_of_task; i < std::min(rows, (t + 1) * rows_of_task); ++i)
      body(i);
  });
}

/// Rows of x, one after the other: [total, 1, dim].
Tensor gathered(const View& x, const View& rows, const Context& context) {
  Tensor to = allocate(context, cpu_device, x.dtype, {rows.size(0), 1, x.size(3)});
  const std::size_t bytes = static_cast<std::size_t>(x.size(3)) * size_of(x.dtype);
  const auto* index = static_cast<const std::int32_t*>(rows.data);
  for_each_row(rows.size(0), context, [&](std::int64_t i) {
    std::memcpy(to.at({i, 0, 0}), row_at(x, index[i]), bytes);
  });
  return to;
}

/// The inverse: rows that nobody names are zero.
Tensor scattered(const View& from,
                 const View& rows,
                 const View& like,
                 std::int64_t dim,
                 const Context& context) {
  Tensor to =
      allocate(context, cpu_device, from.dtype, {like.size(0), like.size(1), like.size(2), dim});
  const std::size_t bytes = static_cast<std::size_t>(dim) * size_of(from.dtype);
  std::memset(to.data, 0, static_cast<std::size_t>(to.count()) * size_of(to.dtype));
  const auto* index = static_cast<const std::int32_t*>(rows.data);
  for_each_row(rows.size(0), context, [&](std::int64_t i) {
    std::memcpy(row_at(to, index[i]), from.at({i, 0, 0}), bytes);
  });
  return to;
}

/// The compact problem sees times (and buckets) instead of positions.
Mask mask_of(const Side& q, const Side& k, Order order, bool by_bucket) {
  const Array q_time(q.times, "q_time"), k_time(k.times, "k_time");
  Mask out = order == Order::none ? full() : mask([=](Expr s, Expr, Expr i, Expr j) {
    return order == Order::causal ? k_time(s, j) <= q_time(s, i) : k_time(s, j) < q_time(s, i);
  });
  if (!by_bucket) return out;
  const Array q_bucket(q.buckets, "q_bucket"), k_bucket(k.buckets, "k_bucket");
  return mask([=](Expr s, Expr, Expr i, Expr j) { return q_bucket(s, i) == k_bucket(s, j); }) &&
         out;
}

SparseForward run(const View& q,
                  const View& k,
                  const View& v,
                  const View& q_flags,
                  const View& k_flags,
                  Order order,
                  bool by_bucket,
                  const Options& options,
                  const Context& context) {
  const Sizes z(q, k);
  check_options(options, z, order);
  const std::int64_t origin =
      options.align.value_or(Align::start) == Align::end ? z.k_len - z.q_len : 0;
  const Side queries = collect(q_flags, z.group, by_bucket, origin);
  const Side keys = collect(k_flags, 1, by_bucket, 0);
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
  if (queries.longest > 0 && keys.longest > 0)
    inner.mask = mask_of(queries, keys, order, by_bucket);
  f.compact =
      attention(ragged(gathered(q, f.q_rows, context), f.q_offsets),
                ragged(gathered(k, f.k_rows, context), gathered(v, f.k_rows, context), f.k_offsets),
                inner,
                context);
  f.o = scattered(f.compact.o, f.q_rows, q, v.size(3), context);
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
  check_inputs(q, k, v);
  check_flags("q_keep", sparse.q_keep, q, true);
  check_flags("k_keep", sparse.k_keep, k, true);
  return run(q, k, v, sparse.q_keep, sparse.k_keep, sparse.order, false, options, context);
}

SparseForward sparse_attention(const View& q,
                               const View& k,
                               const View& v,
                               const HashSparse& sparse,
                               const Options& options,
                               const Context& context) {
  check_inputs(q, k, v);
  check_flags("q_bucket", sparse.q_bucket, q, false);
  check_flags("k_bucket", sparse.k_bucket, k, false);
  return run(q, k, v, sparse.q_bucket, sparse.k_bucket, sparse.order, true, options, context);
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
  bool same = dout.rank == 4 && dout.device == cpu_device && dout.step(3) == 1;
  for (int axis = 0; same && axis < 4; ++axis) same = dout.size(axis) == f.o.size(axis);
  if (!same)
    refuse("sparse attention: dO is {}; the shape of O, {}, is expected",
           dout.describe(),
           f.o.describe());
  Gradients inner = attention_backward(
      ragged(gathered(dout, f.q_rows, context), f.q_offsets),
      ragged(gathered(q, f.q_rows, context), f.q_offsets),
      ragged(gathered(k, f.k_rows, context), gathered(v, f.k_rows, context), f.k_offsets),
      f.compact,
      {},
      context);
  inner.q = scattered(inner.q, f.q_rows, q, q.size(3), context);
  inner.k = scattered(inner.k, f.k_rows, k, k.size(3), context);
  inner.v = scattered(inner.v, f.k_rows, v, v.size(3), context);
  return inner;
}

}  // namespace undivided
