// SPDX-License-Identifier: Apache-2.0
// SCFA: list kept rows, sorted; attend by these lists, on a device to gathered rows, a sequence per
// (batch, KV head), whose results are scattered.
#include "undivided/sparse.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "attention/execute.hpp"
#include "attention/sparse_rows.hpp"
#include "cuda/memory.hpp"
#include "cuda/row_lists.hpp"
#include "expr/program.hpp"

namespace undivided {
namespace {

void check_inputs(const View& q, const View& k, const View& v) {
  for (const auto& [name, t] : {std::pair{"Q", &q}, {"K", &k}, {"V", &v}}) {
    if (t->rank != 4)
      refuse("sparse attention: {} is {}; dense [batch, head, token, dim] is expected",
             name,
             t->describe());
    if (t->device != q.device)
      refuse("sparse attention: {} is on {} and Q on {}; one device is needed",
             name,
             to_string(t->device),
             to_string(q.device));
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
  if (v.device != cpu_device && v.device != rows.device)
    refuse("sparse attention: {} is on {} and Q on {}; the host or the device of Q is allowed",
           name,
           to_string(v.device),
           to_string(rows.device));
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 4096;
  if (rows.size(2) > most)
    refuse("sparse attention: {} has {} tokens; at most {} are allowed", name, rows.size(2), most);
}

void check_options(const Options& o, const View& q, const View& k, Order order) {
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
  if (order != Order::none && !o.align && q.size(2) != k.size(2))
    refuse("sparse attention: Q has {} tokens and K {}; align must say start or end",
           q.size(2),
           k.size(2));
  if (o.inside == Inside::bits && q.device != cpu_device)
    refuse(
        "sparse attention: inside is bits; on {} the lists are made on the device and the program "
        "decides single pairs: automatic or program is allowed",
        to_string(q.device));
}

/// CUDA kernels take head dims in steps of 8; columns past the own ones are zero.
std::int64_t compact_dim(const View& x) {
  return x.device == cpu_device ? x.size(3) : (x.size(3) + 7) / 8 * 8;
}

/// Rows of several tensors [batch, head, token, dim] by their lists, as [batch * KV heads, heads of
/// each, row, dim], in memory that the next call uses again; or only room for as many.
class Gathered {
 public:
  struct Request {
    const View* from;
    const View* index;
    bool fill = true;
  };
  Gathered(std::int64_t kv_heads, std::initializer_list<Request> requests, const Context& context)
      : room_(library_of(context), bytes(requests), requests.begin()->from->device, context) {
    auto* to = static_cast<std::byte*>(room_.data());
    for (const Request& r : requests) {
      View dense = compact(r);
      dense.data = to;
      if (r.fill) cuda::take_rows(dense, *r.from, *r.index, 0, context);
      to += aligned(dense);
      const std::int64_t group = dense.size(1) / kv_heads;
      views_.push_back(View::of(dense.data,
                                dense.dtype,
                                {dense.size(0) * kv_heads, group, dense.size(2), dense.size(3)},
                                dense.device));
    }
  }
  const View& operator[](std::size_t i) const { return views_[i]; }

 private:
  static View compact(const Request& r) {
    const View& x = *r.from;
    return View::of(
        nullptr, x.dtype, {x.size(0), x.size(1), r.index->size(2), compact_dim(x)}, x.device);
  }
  static std::size_t aligned(const View& v) {
    return (static_cast<std::size_t>(v.count()) * size_of(v.dtype) + 255) / 256 * 256;
  }
  static std::size_t bytes(std::initializer_list<Request> requests) {
    std::size_t sum = 0;
    for (const Request& r : requests) sum += aligned(compact(r));
    return sum;
  }
  Library::Workspace room_;
  std::vector<View> views_;
};

/// The inverse, of [batch * KV heads, heads of each, row, dim]: [batch, head, token, dim] of a
/// list of places.
Tensor scattered(
    const View& from, const View& places, std::int64_t dim, float empty, const Context& context) {
  const std::int64_t batch = places.size(0), heads = places.size(1), room = from.size(2);
  Tensor to = allocate(context, from.device, from.dtype, {batch, heads, places.size(2), dim});
  View rows = View::of(from.data, from.dtype, {batch, heads, room, dim}, from.device);
  rows.stride = {heads * room * from.size(3), room * from.size(3), from.size(3), 1};
  cuda::take_rows(to, rows, places, empty, context);
  return to;
}

/// Lists with room for all tokens, so that nothing waits for a count, and the mask of the compact
/// problem: a program by key columns over them, with its plan.
Mask list_there(SparseForward& f,
                const SparseRule& rule,
                std::int64_t origin,
                const Context& context) {
  cuda::RowLists lists = cuda::list_rows(
      {rule.q, rule.k, rule.buckets, static_cast<int>(rule.order), origin}, context);
  f.q_rows = std::move(lists.q_rows);
  f.k_rows = std::move(lists.k_rows);
  f.q_places = std::move(lists.q_places);
  f.k_places = std::move(lists.k_places);
  f.first = std::move(lists.first);
  f.end = std::move(lists.end);
  const std::pair<std::int64_t, std::int64_t> range{0, f.q_rows.size(2)};
  const Array first(f.first, "first", range), end(f.end, "end", range);
  const Mask out =
      mask([=](Expr s, Expr h, Expr i, Expr j) { return first(s, h, j) <= i && i < end(s, h, j); });
  for (const Array& a : out.captures().arrays) lists.plan->versions.push_back(a.version());
  f.plan = std::move(lists.plan);
  return out;
}

Known known(const SparseForward& f) {
  if (f.q_rows.device.kind != Device::Kind::cpu) return {f.plan, {}};
  return {nullptr, {f.q_rows, f.k_rows, f.q_lengths, f.k_lengths, f.first, f.end}};
}

View on_device(const View& flags, const View& q, Tensor& keep, const Context& context) {
  if (flags.device == q.device) return flags;
  keep = cuda::to_device(flags, q.device, context);
  return keep;
}

SparseForward run(const View& q,
                  const View& k,
                  const View& v,
                  SparseRule rule,
                  const Options& options,
                  const Context& context) {
  check_inputs(q, k, v);
  check_flags(rule.buckets ? "q_bucket" : "q_keep", rule.q, q, !rule.buckets);
  check_flags(rule.buckets ? "k_bucket" : "k_keep", rule.k, k, !rule.buckets);
  check_options(options, q, k, rule.order);
  Tensor keep[2];
  rule.q = on_device(rule.q, q, keep[0], context);
  rule.k = on_device(rule.k, q, keep[1], context);
  const std::int64_t origin =
      options.align.value_or(Align::start) == Align::end ? k.size(2) - q.size(2) : 0;
  SparseForward f;
  f.options = options;
  Options inner = options;
  inner.align = Align::start;
  if (q.device == cpu_device) {
    list_rows(f, rule, origin, context);
    f.compact = attention_with(known(f), q, dense(k, v), inner, context);
    f.o = f.compact.o;
    f.lse = f.compact.lse;
    return f;
  }
  inner.mask = list_there(f, rule, origin, context);
  if (!inner.scale) inner.scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const Gathered rows(k.size(1), {{&q, &f.q_rows}, {&k, &f.k_rows}, {&v, &f.k_rows}}, context);
  f.compact = attention_with(known(f), rows[0], dense(rows[1], rows[2]), inner, context);
  f.o = scattered(f.compact.o, f.q_places, v.size(3), 0, context);
  View lse = f.compact.lse;
  lse.rank = 4;
  lse.shape[3] = lse.stride[3] = 1;
  f.lse = scattered(lse, f.q_places, 1, -std::numeric_limits<float>::infinity(), context);
  static_cast<View&>(f.lse) =
      View::of(f.lse.data, DType::f32, {q.size(0), q.size(1), q.size(2)}, q.device);
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
  const auto as_listed = [](const View& x, const View& rows) {
    bool same = rows.rank == 3 && rows.device == x.device;
    for (int axis = 0; same && axis < 3; ++axis) same = x.size(axis) == rows.size(axis);
    return same;
  };
  for (const auto& [name, x, rows] : {std::tuple{"Q", &q, &f.q_rows}, {"K", &k, &f.k_rows}})
    if (!as_listed(*x, *rows))
      refuse("sparse attention: {} is {} on {}; the forward listed rows of {} on {}",
             name,
             x->describe(),
             to_string(x->device),
             rows->describe(),
             to_string(rows->device));
  bool same = dout.rank == 4 && dout.device == q.device && dout.step(3) == 1;
  for (int axis = 0; same && axis < 4; ++axis) same = dout.size(axis) == f.o.size(axis);
  if (!same)
    refuse("sparse attention: dO is {} on {}; the shape of O, {} on {}, is expected",
           dout.describe(),
           to_string(dout.device),
           f.o.describe(),
           to_string(q.device));
  if (q.device == cpu_device)
    return attention_backward_with(known(f), dout, q, dense(k, v), f.compact, {}, context);
  const Gathered rows(k.size(1),
                      {{&q, &f.q_rows},
                       {&k, &f.k_rows},
                       {&v, &f.k_rows},
                       {&dout, &f.q_rows},
                       {&q, &f.q_rows, false},
                       {&k, &f.k_rows, false},
                       {&v, &f.k_rows, false}},
                      context);
  Gradients inner = attention_backward_with(known(f),
                                            rows[3],
                                            rows[0],
                                            dense(rows[1], rows[2]),
                                            f.compact,
                                            {rows[4], rows[5], rows[6]},
                                            context);
  inner.q = scattered(rows[4], f.q_places, q.size(3), 0, context);
  inner.k = scattered(rows[5], f.k_places, k.size(3), 0, context);
  inner.v = scattered(rows[6], f.k_places, v.size(3), 0, context);
  return inner;
}

}  // namespace undivided
