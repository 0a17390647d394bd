// SPDX-License-Identifier: Apache-2.0
// Fastformer (Wu et al. 2021, section 3): two softmax pools and two elementwise products.
//
//   g = pool(w_q . Q, Q),  P = g * K,  c = pool(w_k . P, P),  U = c * V
// Prefix form: with g_i the pool of rows 0..i, the logits of c_i are (w_k * g_i) . k_j, so
// c_i = g_i * A_i where A is ordinary causal attention of the queries w_k * g over K with values K.
#include <fmt/format.h>

#include <cmath>

#include "attention/execute.hpp"
#include "attention/fastformer_pool.hpp"

namespace undivided {
namespace {

template <class... T>
[[noreturn]] void refuse_fastformer(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument,
              Stage::resolve,
              "fastformer: " + fmt::format(format, std::forward<T>(args)...));
}

void want_rows(const char* name, const View& v, const View& q) {
  if (!v) refuse_fastformer("{} is not given", name);
  if (v.device.kind != Device::Kind::cpu)
    throw Error(Code::unsupported,
                Stage::resolve,
                fmt::format("fastformer: {} is on {}; it runs on the CPU: copy it to the host",
                            name,
                            to_string(v.device)));
  if (v.dtype != DType::f32 && v.dtype != DType::f64 && !is_float16(v.dtype))
    refuse_fastformer("{} has dtype {}; f32, f16, bf16 or f64 is allowed", name, name_of(v.dtype));
  bool same = v.rank == 4 && v.dtype == q.dtype;
  for (int axis = 0; same && axis < 4; ++axis) same = v.size(axis) == q.size(axis);
  if (!same)
    refuse_fastformer("{} is {}; {} is expected",
                      name,
                      v.describe(),
                      q.rank == 4 ? q.describe() + " like Q" : "[batch, head, token, d]");
}

void want_weights(const char* name, const View& w, const View& q, FastformerScoring scoring) {
  const std::int64_t width =
      scoring == FastformerScoring::official ? q.size(1) * q.size(3) : q.size(3);
  if (!w) refuse_fastformer("{} is not given", name);
  if (w.device.kind != Device::Kind::cpu || (w.dtype != DType::f32 && w.dtype != DType::f64) ||
      w.rank != 2 || w.size(0) != q.size(1) || w.size(1) != width)
    refuse_fastformer("{} is {}; f32 or f64 [{}, {}] on the host is expected for {} scoring",
                      name,
                      w.describe(),
                      q.size(1),
                      width,
                      scoring == FastformerScoring::official ? "official" : "paper");
}

/// A call in float64.
struct Call {
  Tensor q, k, v, w_query, w_key;
  Pooling pooling;
  Context context;
};

Call prepare(const View& q,
             const View& k,
             const View& v,
             const FastformerOptions& o,
             const Context& context) {
  want_rows("Q", q, q);
  want_rows("K", k, q);
  want_rows("V", v, q);
  if (q.size(3) < 1) refuse_fastformer("Q is {}; head dim 0 is not allowed", q.describe());
  want_weights("w_query", o.w_query, q, o.scoring);
  want_weights("w_key", o.w_key, q, o.scoring);
  if (o.keep && ((o.keep.dtype != DType::boolean && o.keep.dtype != DType::i32) ||
                 o.keep.rank != 2 || o.keep.size(0) != q.size(0) || o.keep.size(1) != q.size(2) ||
                 o.keep.device.kind != Device::Kind::cpu))
    refuse_fastformer("keep is {}; boolean or i32 [{}, {}] (batch, token) on the host is expected",
                      o.keep.describe(),
                      q.size(0),
                      q.size(2));
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  if (!std::isfinite(scale)) refuse_fastformer("scale is {}; a finite number is expected", scale);
  if (o.causal == FastformerCausal::prefix && o.scoring == FastformerScoring::official)
    throw Error(Code::unsupported,
                Stage::resolve,
                "fastformer: causal prefix with official scoring, whose logits read all heads; "
                "allowed: prefix with paper scoring, or scan (another function) with either");
  if (context.backend == Backend::cuda)
    throw Error(Code::unsupported,
                Stage::plan,
                "fastformer: backend cuda was asked for; it runs on the CPU");
  Executor& executor = context.executor ? *context.executor : default_executor();
  return {converted(q, DType::f64),
          converted(k, DType::f64),
          converted(v, DType::f64),
          converted(o.w_query, DType::f64),
          converted(o.w_key, DType::f64),
          {o.scoring, scale, o.keep, o.causal != FastformerCausal::none, &executor},
          context};
}

/// softmax weights of the pool of all rows.
Tensor weights_of(const Pooling& p, const Tensor& logits, const Tensor& lse) {
  Tensor w = Tensor::zeros(DType::f64, {logits.size(0), logits.size(1), logits.size(2)});
  for (std::int64_t b = 0; b < logits.size(0); ++b)
    for (std::int64_t h = 0; h < logits.size(1); ++h)
      for (std::int64_t i = 0; i < logits.size(2); ++i)
        if (p.kept(b, i))
          store_element(DType::f64,
                        w.at({b, h, i}),
                        std::exp(load_element(DType::f64, logits.at({b, h, i})) -
                                 load_element(DType::f64, lse.at({b, h, 0}))));
  return w;
}

/// w of each head as one row for all tokens: [batch, head, 1, d].
Tensor rows_of_weights(const Tensor& w, std::int64_t batch) {
  Tensor rows = Tensor::empty(DType::f64, {batch, w.size(0), 1, w.size(1)});
  for (std::int64_t b = 0; b < batch; ++b)
    copy(w.unsqueezed(0), rows.selected(2, 0).sliced(0, b, b + 1));
  return rows;
}

Options prefix_options(const Call& c) {
  Options o;
  o.scale = c.pooling.scale;
  o.mask = causal();
  if (!c.pooling.keep) return o;
  const Array keep(converted(c.pooling.keep, DType::i32), "keep");
  o.mask = mask([=](auto b, auto, auto q, auto k) { return k <= q && keep(b, k) != 0; });
  return o;
}

/// float32 unless the data is float64, which the oracle computes.
Forward attend(
    const Tensor& q, const Tensor& k, const Options& o, bool exact, const Context& context) {
  if (exact) return reference(q, dense(k, k), o);
  const Tensor key = converted(k, DType::f32);
  return attention(converted(q, DType::f32), key, key, o, context);
}

}  // namespace

FastformerForward fastformer(const View& q,
                             const View& k,
                             const View& v,
                             const FastformerOptions& options,
                             const Context& context) {
  const Call c = prepare(q, k, v, options, context);
  const Pooling& p = c.pooling;
  FastformerForward f;
  f.options = options;
  const Tensor a = pool_logits(p, c.q, c.w_query);
  const Pooled query = pool(p, c.q, a);
  f.query = query.g;
  f.query_lse = query.lse;
  if (options.causal == FastformerCausal::prefix) {
    const Tensor asked =
        broadcast_product(rows_of_weights(c.w_key, q.size(0)), query.g, *p.executor);
    f.attention = attend(asked, c.k, prefix_options(c), q.dtype == DType::f64, context);
    f.key = broadcast_product(query.g, converted(f.attention.o, DType::f64), *p.executor);
  } else {
    const Tensor mixed = broadcast_product(query.g, c.k, *p.executor);
    const Tensor b = pool_logits(p, mixed, c.w_key);
    const Pooled key = pool(p, mixed, b);
    f.key = key.g;
    f.pool_lse = key.lse;
    if (options.causal == FastformerCausal::none) {
      f.alpha = weights_of(p, a, query.lse);
      f.beta = weights_of(p, b, key.lse);
    }
  }
  f.o = converted(broadcast_product(f.key, c.v, *p.executor), q.dtype);
  return f;
}

FastformerGradients fastformer_backward(const View& dout,
                                        const View& q,
                                        const View& k,
                                        const View& v,
                                        const FastformerForward& forward,
                                        const Context& context) {
  const FastformerOptions& options = forward.options;
  const Call c = prepare(q, k, v, options, context);
  const Pooling& p = c.pooling;
  want_rows("the gradient of O", dout, q);
  const Tensor d = converted(dout, DType::f64);
  const auto zeros_like = [](const Tensor& t) {
    return Tensor::zeros(DType::f64, {t.size(0), t.size(1), t.size(2), t.size(3)});
  };
  Tensor dq = zeros_like(c.q), dk = zeros_like(c.k), dv = zeros_like(c.v);
  Tensor dw_query = Tensor::zeros(DType::f64, {c.w_query.size(0), c.w_query.size(1)});
  Tensor dw_key = Tensor::zeros(DType::f64, {c.w_key.size(0), c.w_key.size(1)});
  Tensor dkey = zeros_like(forward.key), dquery = zeros_like(forward.query);
  broadcast_product_backward(d, forward.key, c.v, dkey, dv, *p.executor);

  if (options.causal == FastformerCausal::prefix) {
    const bool exact = q.dtype == DType::f64;
    const Tensor o = converted(forward.attention.o, DType::f64);
    Tensor d_o = zeros_like(o);
    broadcast_product_backward(dkey, forward.query, o, dquery, d_o, *p.executor);
    const Tensor w = rows_of_weights(c.w_key, q.size(0));
    const Tensor asked = broadcast_product(w, forward.query, *p.executor);
    Gradients g;
    if (exact) {
      g = reference_backward(d_o, asked, dense(c.k, c.k), forward.attention.options);
    } else {
      const Tensor key = converted(c.k, DType::f32);
      g = attention_backward(converted(d_o, DType::f32),
                             converted(asked, DType::f32),
                             key,
                             key,
                             forward.attention,
                             {},
                             context);
    }
    const Tensor dasked = converted(g.q, DType::f64), from_k = converted(g.k, DType::f64),
                 from_v = converted(g.v, DType::f64);
    for (std::int64_t i = 0; i < dk.count(); ++i)
      dk.ptr<double>()[i] += from_k.ptr<double>()[i] + from_v.ptr<double>()[i];
    Tensor dw = zeros_like(w);
    broadcast_product_backward(dasked, w, forward.query, dw, dquery, *p.executor);
    for (std::int64_t b = 0, n = dw_key.count(); b < q.size(0); ++b)
      for (std::int64_t i = 0; i < n; ++i) dw_key.ptr<double>()[i] += dw.ptr<double>()[b * n + i];
  } else {
    const Tensor mixed = broadcast_product(forward.query, c.k, *p.executor);
    const Tensor b = pool_logits(p, mixed, c.w_key);
    Tensor dmixed = zeros_like(mixed);
    const Tensor db = pool_backward(p, dkey, mixed, b, {forward.key, forward.pool_lse}, dmixed);
    pool_logits_backward(p, db, mixed, c.w_key, dmixed, dw_key);
    broadcast_product_backward(dmixed, forward.query, c.k, dquery, dk, *p.executor);
  }
  const Tensor a = pool_logits(p, c.q, c.w_query);
  const Tensor da = pool_backward(p, dquery, c.q, a, {forward.query, forward.query_lse}, dq);
  pool_logits_backward(p, da, c.q, c.w_query, dq, dw_query);
  return {converted(dq, q.dtype),
          converted(dk, q.dtype),
          converted(dv, q.dtype),
          converted(dw_query, options.w_query.dtype),
          converted(dw_key, options.w_key.dtype)};
}

}  // namespace undivided
