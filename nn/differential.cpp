// SPDX-License-Identifier: Apache-2.0
// Projections around the verb `differential`.
#include "undivided/nn/differential.hpp"

#include <fmt/format.h>

#include "core/generator.hpp"
#include "nn/heads.hpp"

namespace undivided::nn {

template <class T>
DifferentialAttention<T>::DifferentialAttention(const DifferentialOptions& options)
    : options_(options) {
  DifferentialOptions& o = options_;
  require(o.embed_dim > 0 && o.heads > 0,
          "differential attention wants embed_dim and heads above 0");
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  require(o.kv_heads > 0 && o.heads % o.kv_heads == 0,
          fmt::format("{} heads do not divide among {} key heads", o.heads, o.kv_heads));
  if (o.head_dim == 0) {
    require(o.embed_dim % (2 * o.heads) == 0,
            fmt::format("{} features do not divide into 2 x {} query heads; give head_dim",
                        o.embed_dim,
                        o.heads));
    o.head_dim = o.embed_dim / (2 * o.heads);
  }
  const std::int64_t d = o.head_dim;
  q_proj = Linear<T>(o.embed_dim, 2 * o.heads * d, false);
  k_proj = Linear<T>(o.embed_dim, key_heads() * d, false);
  v_proj = Linear<T>(o.embed_dim, o.kv_heads * value_dim(), false);
  out = Linear<T>(o.heads * value_dim(), o.embed_dim, false);
  if (!first()) {
    lambda_proj = Linear<T>(o.embed_dim, o.heads, false);
    return;
  }
  std::uint64_t seed = 4 * static_cast<std::uint64_t>(o.depth);
  for (Parameter<T>* p : {&q1, &k1, &q2, &k2}) {
    *p = Parameter<T>({d});
    fill_normal(view(p->value.data(), {d}), ++seed, 0, .1);
  }
  norm_weight = Parameter<T>({value_dim()}, T(1));
}

template <class T>
DifferentialV1 DifferentialAttention<T>::first_parameters() const {
  const auto seen = [](const Parameter<T>& p) { return view(p.value.data(), {p.count()}); };
  DifferentialV1 p;
  p.q1 = seen(q1);
  p.k1 = seen(k1);
  p.q2 = seen(q2);
  p.k2 = seen(k2);
  p.norm_weight = seen(norm_weight);
  p.lambda_init = differential_lambda_init(options_.depth);
  p.norm_eps = options_.eps;
  return p;
}

template <class T>
DifferentialV2 DifferentialAttention<T>::second_parameters(const Saved& s) const {
  DifferentialV2 p;
  p.logits = heads_of(s.logits, s.extent, 0, options_.heads, 1).selected(3, 0);
  return p;
}

template <class T>
Rows DifferentialAttention<T>::queries(const Saved& s) const {
  return Rows(heads_of(s.q, s.extent, 0, 2 * options_.heads, options_.head_dim));
}
template <class T>
Kv DifferentialAttention<T>::keys(const Saved& s) const {
  Kv kv = dense(heads_of(s.k, s.extent, 0, key_heads(), options_.head_dim),
                heads_of(s.v, s.extent, 0, options_.kv_heads, value_dim()));
  kv.lengths = lengths_of(s.extent.lengths);
  return kv;
}

template <class T>
Matrix<T> DifferentialAttention<T>::self(
    const Matrix<T>& x, const Extent& extent, bool causally, Pass& pass, Saved* saved) const {
  check_extent(extent, x.rows());
  const DifferentialOptions& o = options_;
  Saved local;
  Saved& s = saved ? *saved : local;
  s.extent = extent;
  s.q = q_proj.forward(x, pass.context);
  s.k = k_proj.forward(x, pass.context);
  s.v = v_proj.forward(x, pass.context);
  rotate(s.q, extent, 0, 2 * o.heads, o.head_dim, o.rope);
  rotate(s.k, extent, 0, key_heads(), o.head_dim, o.rope);
  const Options options = options_of(causally, Align::start, 0, 0);
  if (first()) {
    s.forward = differential(queries(s), keys(s), first_parameters(), options, pass.context);
  } else {
    s.logits = lambda_proj.forward(x, pass.context);
    s.forward = differential(queries(s), keys(s), second_parameters(s), options, pass.context);
  }
  s.out = Matrix<T>(x.rows(), o.heads * value_dim());
  copy(s.forward.o, heads_of(s.out, extent, 0, o.heads, value_dim()));
  if (saved) s.x = x;
  return out.forward(s.out, pass.context);
}

template <class T>
Matrix<T> DifferentialAttention<T>::backward(const Saved& s,
                                             const Matrix<T>& dy,
                                             const Context& context) {
  const DifferentialOptions& o = options_;
  const Matrix<T> dout = out.backward(s.out, dy, context);
  const View d = heads_of(dout, s.extent, 0, o.heads, value_dim());
  const DifferentialGradients g =
      first()
          ? differential_backward(d, queries(s), keys(s), first_parameters(), s.forward, context)
          : differential_backward(d, queries(s), keys(s), second_parameters(s), s.forward, context);
  Matrix<T> dq(s.q.rows(), s.q.cols()), dk(s.k.rows(), s.k.cols()), dv(s.v.rows(), s.v.cols());
  copy(g.q, heads_of(dq, s.extent, 0, 2 * o.heads, o.head_dim));
  copy(g.k, heads_of(dk, s.extent, 0, key_heads(), o.head_dim));
  copy(g.v, heads_of(dv, s.extent, 0, o.kv_heads, value_dim()));
  rotate(dq, s.extent, 0, 2 * o.heads, o.head_dim, o.rope, 0, true);
  rotate(dk, s.extent, 0, key_heads(), o.head_dim, o.rope, 0, true);
  Matrix<T> dx = q_proj.backward(s.x, dq, context);
  dx += k_proj.backward(s.x, dk, context);
  dx += v_proj.backward(s.x, dv, context);
  if (first()) {
    const auto add = [](Parameter<T>& p, const Tensor& from) {
      for (std::int64_t i = 0; i < p.count(); ++i)
        p.grad[static_cast<std::size_t>(i)] += from.ptr<T>()[i];
    };
    add(q1, g.q1);
    add(k1, g.k1);
    add(q2, g.q2);
    add(k2, g.k2);
    add(norm_weight, g.norm_weight);
  } else {
    Matrix<T> dlogits(s.logits.rows(), s.logits.cols());
    copy(g.logits, heads_of(dlogits, s.extent, 0, o.heads, 1).selected(3, 0));
    dx += lambda_proj.backward(s.x, dlogits, context);
  }
  return dx;
}

template <class T>
void DifferentialAttention<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  q_proj.collect(prefix + "q_proj.", list);
  k_proj.collect(prefix + "k_proj.", list);
  v_proj.collect(prefix + "v_proj.", list);
  out.collect(prefix + (first() ? "out_proj." : "o_proj."), list);
  if (!first()) {
    lambda_proj.collect(prefix + "lambda_proj.", list);
    return;
  }
  list.emplace_back(prefix + "lambda_q1", &q1);
  list.emplace_back(prefix + "lambda_k1", &k1);
  list.emplace_back(prefix + "lambda_q2", &q2);
  list.emplace_back(prefix + "lambda_k2", &k2);
  list.emplace_back(prefix + "subln.weight", &norm_weight);
}

template class DifferentialAttention<float>;
template class DifferentialAttention<double>;

}  // namespace undivided::nn
