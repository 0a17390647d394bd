// SPDX-License-Identifier: Apache-2.0
// The verbs: resolve, make room for results, execute.
#include "undivided/attention.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "attention/execute.hpp"
#include "expr/program.hpp"
#include "ref/reference.hpp"

namespace undivided {
namespace {

using Shape = std::vector<std::int64_t>;

/// Shape of a per-row result with the given last axis (0: none), for dense or ragged rows.
Shape row_shape(const Problem& p, std::int64_t dim) {
  const View& q = p.args.q.data;
  if (p.spec.rows == RowKind::ragged)
    return dim ? Shape{q.size(0), q.size(1), dim} : Shape{q.size(1), q.size(0)};
  return dim ? Shape{q.size(0), q.size(1), q.size(2), dim} : Shape{q.size(0), q.size(1), q.size(2)};
}

bool single_sequence(const Rows& q) { return q.data.rank == 3 && !q.offsets; }

/// Results of a forward in fresh memory; `oracle` keeps them all in float64.
Forward make_results(Problem& p, const Options& options, const Context& context, bool oracle) {
  Forward f;
  f.options = options;
  const DType statistic = oracle ? DType::f64 : DType::f32;
  f.o =
      allocate(context, p.device, oracle ? DType::f64 : p.spec.out_dtype, row_shape(p, p.spec.dv));
  f.lse = allocate(context, p.device, statistic, row_shape(p, 0));
  const std::int64_t heads = p.args.q.data.size(1);
  if (p.spec.max_logit)
    f.max_logit = allocate(context, p.device, statistic, {p.bounds.batch, heads});
  if (p.spec.key_mass)
    f.key_mass =
        allocate(context,
                 p.device,
                 statistic,
                 p.spec.kv == KvKind::ragged ? Shape{heads, p.bounds.total_k}
                                             : Shape{p.bounds.batch, heads, p.bounds.max_k_len});
  p.args.o = f.o;
  p.args.lse = f.lse;
  p.args.max_logit = f.max_logit;
  p.args.key_mass = f.key_mass;
  return f;
}

Forward finish_shapes(Forward f, bool single) {
  if (single)
    for (Tensor* t : {&f.o, &f.lse, &f.max_logit, &f.key_mass}) drop_batch(*t);
  return f;
}

/// Gradient buffers where none are given: Q, K, V like the inputs, float32 for sink and captures.
Gradients make_gradients(Problem& p, const Context& context, bool oracle) {
  Gradients g;
  const DType dtype = oracle ? DType::f64 : p.spec.out_dtype;
  const DType sum = oracle ? DType::f64 : DType::f32;
  Args& a = p.args;
  const auto place = [&](bool wanted, View& at, Tensor& to, const View& like) {
    if (wanted && !at) at = to = allocate(context, p.device, dtype, shape_of(like));
  };
  place(p.spec.want_dq, a.dq, g.q, a.q.data);
  place(p.spec.want_dk, a.dk, g.k, a.kv.k);
  place(p.spec.want_dv, a.dv, g.v, a.kv.v);
  if (p.spec.sink) a.dsink = g.sink = allocate(context, p.device, sum, {a.q.data.size(1)});
  if (!p.spec.captured) return g;
  const expr::Program& score = *p.spec.score;
  a.d_arrays.resize(score.slots.size());
  for (std::size_t i = 0; i < score.slots.size(); ++i) {
    if (score.slots[i].dtype != DType::f32) continue;
    const auto& array = a.score->bound.arrays[i];
    Tensor t = allocate(
        context, p.device, sum, {array.shape.begin(), array.shape.begin() + score.slots[i].rank});
    a.d_arrays[i] = t;
    g.captured.emplace_back(score.slots[i].name, t);
  }
  bool any = false;
  for (const auto& param : score.params) any |= param.type == expr::Type::f32 && !param.lifted;
  if (!any) return g;
  Tensor all = allocate(context, p.device, sum, {static_cast<std::int64_t>(score.params.size())});
  a.d_params = all;
  for (std::size_t i = 0; i < score.params.size(); ++i) {
    if (score.params[i].type != expr::Type::f32 || score.params[i].lifted) continue;
    Tensor one = all;
    const auto at = static_cast<std::int64_t>(i);
    static_cast<View&>(one) = all.sliced(0, at, at + 1);
    g.captured.emplace_back(score.params[i].name, one);
  }
  return g;
}

Gradients finish_shapes(Gradients g, const Rows& q, const Kv& kv) {
  if (single_sequence(q)) drop_batch(g.q);
  if (kv.kind == KvKind::dense && kv.k.rank == 3)
    for (Tensor* t : {&g.k, &g.v}) drop_batch(*t);
  return g;
}

void attach(Problem& p, const Known& known) {
  p.args.mask_plan = known.mask_plan;
  p.spec.mask_plan = known.mask_plan != nullptr;
  const RowLists& lists = known.lists;
  if (!lists.q) return;
  p.args.lists = lists;
  p.spec.listed = true;
  const auto longest = [](const View& lengths) {
    const auto* n = static_cast<const std::int32_t*>(lengths.data);
    return lengths.count() > 0 ? std::int64_t{*std::max_element(n, n + lengths.count())} : 0;
  };
  p.bounds.max_q_len = longest(lists.q_lengths);
  p.bounds.max_k_len = longest(lists.k_lengths);
  p.bounds.total_q = p.bounds.batch * p.bounds.max_q_len;
  p.bounds.total_k = p.bounds.batch * p.bounds.max_k_len;
}

Gradients gradients_of(Problem& p, const Rows& q, const Kv& kv, const Context& context) {
  Gradients g = make_gradients(p, context, false);
  execute(p, context);
  return finish_shapes(std::move(g), q, kv);
}

}  // namespace

Forward attention_with(const Known& known,
                       const Rows& q,
                       const Kv& kv,
                       const Options& options,
                       const Context& context) {
  Problem p = resolve(q, kv, options);
  attach(p, known);
  Forward f = make_results(p, options, context, false);
  execute(p, context);
  return finish_shapes(std::move(f), single_sequence(q));
}

Forward attention(const Rows& q, const Kv& kv, const Options& options, const Context& context) {
  return attention_with({}, q, kv, options, context);
}

Forward attention(
    const View& q, const View& k, const View& v, const Options& options, const Context& context) {
  return attention(Rows(q), dense(k, v), options, context);
}

void attention_into(const Outputs& out,
                    const Rows& q,
                    const Kv& kv,
                    const Options& options,
                    const Context& context) {
  Problem p = resolve(q, kv, options, out);
  Tensor room;
  if (!p.args.o)
    p.args.o = room = allocate(context, p.device, p.spec.out_dtype, row_shape(p, p.spec.dv));
  execute(p, context);
}

Gradients attention_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const View& o,
                             const View& lse,
                             const Options& forward_options,
                             const BackwardOptions& options,
                             const Context& context) {
  Problem p = resolve_backward(dout, q, kv, o, lse, forward_options, options);
  return gradients_of(p, q, kv, context);
}

Gradients attention_backward_with(const Known& known,
                                  const Rows& dout,
                                  const Rows& q,
                                  const Kv& kv,
                                  const Forward& forward,
                                  const std::array<View, 3>& into,
                                  const Context& context) {
  Problem p = resolve_backward(dout, q, kv, forward.o, forward.lse, forward.options, {});
  attach(p, known);
  p.args.dq = into[0];
  p.args.dk = into[1];
  p.args.dv = into[2];
  return gradients_of(p, q, kv, context);
}

Gradients attention_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const Forward& forward,
                             const BackwardOptions& options,
                             const Context& context) {
  return attention_backward(dout, q, kv, forward.o, forward.lse, forward.options, options, context);
}

Gradients attention_backward(const View& dout,
                             const View& q,
                             const View& k,
                             const View& v,
                             const Forward& forward,
                             const BackwardOptions& options,
                             const Context& context) {
  return attention_backward(Rows(dout), Rows(q), dense(k, v), forward, options, context);
}

std::shared_ptr<const MaskPlan> mask_plan(const Rows& q,
                                          const Kv& kv,
                                          const Options& options,
                                          const Context& context) {
  std::vector<Tensor> keep;
  return plan_of_mask(on_host(resolve(q, kv, options), context, keep), context);
}

Forward reference(const Rows& q, const Kv& kv, const Options& options) {
  Problem p = resolve(q, kv, options);
  Forward f = make_results(p, options, {}, true);
  ref::forward(p.spec, p.args);
  return finish_shapes(std::move(f), single_sequence(q));
}

Gradients reference_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const Options& options,
                             const BackwardOptions& backward) {
  Options plain = options;
  plain.max_logit = plain.key_mass = false;
  const Forward f = reference(q, kv, plain);
  Problem p = resolve_backward(dout, q, kv, f.o, f.lse, options, backward);
  Gradients g = make_gradients(p, {}, true);
  ref::backward(p.spec, p.args);
  return finish_shapes(std::move(g), q, kv);
}

}  // namespace undivided
