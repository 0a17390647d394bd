// SPDX-License-Identifier: Apache-2.0
// Projections around the verb `fastformer`, and the residual to Q.
#include "undivided/nn/fastformer.hpp"

#include <fmt/format.h>

#include "nn/heads.hpp"

namespace undivided::nn {

template <class T>
Fastformer<T>::Fastformer(const FastformerLayerOptions& options) : options_(options) {
  const FastformerLayerOptions& o = options_;
  require(o.dim > 0 && o.heads > 0 && o.dim % o.heads == 0,
          fmt::format("fastformer: {} features do not divide into {} heads", o.dim, o.heads));
  query = Linear<T>(o.dim, o.dim, o.bias);
  key = Linear<T>(o.dim, o.dim, o.bias);
  if (!o.share_qv) value = Linear<T>(o.dim, o.dim, o.bias);
  transform = Linear<T>(o.dim, o.dim, o.bias);
  const std::int64_t width = o.scoring == FastformerScoring::official ? o.dim : o.dim / o.heads;
  query_att = key_att = Parameter<T>({o.heads, width});
  if (o.bias) query_att_bias = key_att_bias = Parameter<T>({o.heads});
}

template <class T>
View Fastformer<T>::rows(const Matrix<T>& m, const Saved& s) const {
  return heads_of(m, s.extent, 0, options_.heads, options_.dim / options_.heads);
}

template <class T>
Matrix<T> Fastformer<T>::self(
    const Matrix<T>& x, const Extent& extent, bool causally, Pass& pass, Saved* saved) const {
  check_extent(extent, x.rows());
  const FastformerLayerOptions& o = options_;
  require(!causally || o.causal != FastformerCausal::none,
          "fastformer: as published every output depends on every token; for causal use choose "
          "causal prefix (exact, paper scoring) or scan (another function)");
  Saved local;
  Saved& s = saved ? *saved : local;
  s.extent = extent;
  s.q = query.forward(x, pass.context);
  s.k = key.forward(x, pass.context);
  if (!o.share_qv) s.v = value.forward(x, pass.context);
  FastformerOptions options;
  options.scoring = o.scoring;
  options.causal = o.causal;
  options.w_query = view(query_att.value.data(), {query_att.shape[0], query_att.shape[1]});
  options.w_key = view(key_att.value.data(), {key_att.shape[0], key_att.shape[1]});
  if (!extent.lengths.empty()) {
    s.keep.assign(static_cast<std::size_t>(extent.rows()), 0);
    for (std::size_t b = 0; b < extent.lengths.size(); ++b)
      std::fill_n(
          s.keep.begin() + static_cast<std::ptrdiff_t>(b) * extent.tokens, extent.lengths[b], 1);
    options.keep = view(s.keep.data(), {extent.batch, extent.tokens});
  }
  s.forward = fastformer(
      rows(s.q, s), rows(s.k, s), rows(o.share_qv ? s.q : s.v, s), options, pass.context);
  s.u = Matrix<T>(x.rows(), o.dim);
  copy(s.forward.o, rows(s.u, s));
  Matrix<T> y = transform.forward(s.u, pass.context);
  y += s.q;
  if (saved) s.x = x;
  return y;
}

template <class T>
Matrix<T> Fastformer<T>::backward(const Saved& s, const Matrix<T>& dy, const Context& context) {
  const FastformerLayerOptions& o = options_;
  const Matrix<T> du = transform.backward(s.u, dy, context);
  const FastformerGradients g = fastformer_backward(
      rows(du, s), rows(s.q, s), rows(s.k, s), rows(o.share_qv ? s.q : s.v, s), s.forward, context);
  const auto matrix = [&](const Tensor& t) {
    Matrix<T> m(s.q.rows(), s.q.cols());
    copy(t, rows(m, s));
    return m;
  };
  Matrix<T> dq = matrix(g.q);
  dq += dy;
  if (o.share_qv) dq += matrix(g.v);
  Matrix<T> dx = query.backward(s.x, dq, context);
  dx += key.backward(s.x, matrix(g.k), context);
  if (!o.share_qv) dx += value.backward(s.x, matrix(g.v), context);
  for (std::size_t i = 0; i < query_att.grad.size(); ++i) {
    query_att.grad[i] += g.w_query.ptr<T>()[i];
    key_att.grad[i] += g.w_key.ptr<T>()[i];
  }
  return dx;
}

template <class T>
void Fastformer<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  query.collect(prefix + "query.", list);
  list.emplace_back(prefix + "query_att.weight", &query_att);
  if (options_.bias) list.emplace_back(prefix + "query_att.bias", &query_att_bias);
  key.collect(prefix + "key.", list);
  list.emplace_back(prefix + "key_att.weight", &key_att);
  if (options_.bias) list.emplace_back(prefix + "key_att.bias", &key_att_bias);
  if (!options_.share_qv) value.collect(prefix + "value.", list);
  transform.collect(prefix + "transform.", list);
}

template class Fastformer<float>;
template class Fastformer<double>;

}  // namespace undivided::nn
