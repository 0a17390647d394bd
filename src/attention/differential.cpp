// SPDX-License-Identifier: Apache-2.0
// Differential attention: attention of each component with the same V, then an epilogue.
//
//   V1  O_h = (1 - lambda_init) RMSNorm(A_h1 - lambda A_h2)   (Ye et al. 2024, eq. 1 to 3)
//   V2  O_h = A_2h - sigmoid(logit) A_2h+1
//
// The gradient G of the difference goes back through each attention as G and -lambda G; the two
// gradients of V are summed.
#include "attention/differential.hpp"

#include <cmath>

#include "attention/execute.hpp"
#include "cuda/memory.hpp"

namespace undivided {
namespace {

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

struct LambdaVectors {
  std::vector<double> q1, k1, q2, k2;
  double e1 = 0, e2 = 0;
};

LambdaVectors lambda_vectors(const DifferentialData& data, const DifferentialV1& p) {
  LambdaVectors l{data.vector("lambda q1", p.q1),
                  data.vector("lambda k1", p.k1),
                  data.vector("lambda q2", p.q2),
                  data.vector("lambda k2", p.k2)};
  if (l.q1.size() != l.k1.size() || l.q2.size() != l.k2.size())
    refuse_differential(
        "lambda has q1 [{}], k1 [{}], q2 [{}], k2 [{}]; q and k of a pair must be equally long",
        l.q1.size(),
        l.k1.size(),
        l.q2.size(),
        l.k2.size());
  l.e1 = std::exp(dot(l.q1, l.k1));
  l.e2 = std::exp(dot(l.q2, l.k2));
  return l;
}

DifferenceNorm norm_of(const DifferentialData& data,
                       const DifferentialV1& p,
                       const LambdaVectors& l) {
  const std::int64_t dv = data.kv.v.size(-1);
  DifferenceNorm norm{l.e1 - l.e2 + p.lambda_init, 1 - p.lambda_init, p.norm_eps, {}};
  if (!std::isfinite(norm.lambda))
    refuse_differential("lambda is {}; exp(q1.k1) and exp(q2.k2) must be finite", norm.lambda);
  if (!(p.norm_eps >= 0))
    refuse_differential("norm_eps is {}; a number >= 0 is expected", p.norm_eps);
  if (!p.norm_weight) return norm;
  norm.weight = data.vector("norm_weight", p.norm_weight);
  if (static_cast<std::int64_t>(norm.weight.size()) != dv)
    refuse_differential(
        "norm_weight is {}; [{}] (V's head dim) is expected", p.norm_weight.describe(), dv);
  return norm;
}

/// The rows of one component, and the KV heads it reads.
DifferentialData::Branch component(const DifferentialData& d,
                                   DifferentialPairing pairing,
                                   std::int64_t c) {
  const std::int64_t hq = d.q.data.size(1) / 2, hkv = d.kv.k.size(1) / 2;
  const bool halves = pairing == DifferentialPairing::halves;
  DifferentialData::Branch x{d.q, d.kv};
  x.q.data = halves ? every_head(d.q.data, c * hq, 1, hq) : every_head(d.q.data, c, 2, hq);
  x.kv.k = halves ? every_head(d.kv.k, c * hkv, 1, hkv) : every_head(d.kv.k, c, 2, hkv);
  return x;
}

/// The same choice of rows for a gradient.
View component_of(const View& v, DifferentialPairing pairing, std::int64_t c) {
  const std::int64_t n = v.size(1) / 2;
  return pairing == DifferentialPairing::halves ? every_head(v, c * n, 1, n)
                                                : every_head(v, c, 2, n);
}

DifferentialData prepare_v1(const Rows& q,
                            const Kv& kv,
                            const DifferentialV1& p,
                            const Options& options,
                            const Context& context) {
  DifferentialData d(q, kv, options, context);
  const std::int64_t hq = d.q.data.size(1), hk = d.kv.k.size(1), hv = d.kv.v.size(1);
  if (hq % 2 != 0 || hk % 2 != 0)
    refuse_differential(
        "Q has {} heads and K has {}; both must be even: two components for each head", hq, hk);
  if (hv * 2 != hk)
    refuse_differential("K has {} heads and V has {}; {} are expected in V: one for each pair of K",
                        hk,
                        hv,
                        hk / 2);
  if (hv == 0 || (hq / 2) % hv != 0)
    refuse_differential(
        "Q has {} pairs of heads and V has {} heads; the first must be a multiple of the second",
        hq / 2,
        hv);
  if (p.pairing == DifferentialPairing::unilm_naive && hq / 2 != hv)
    refuse_differential(
        "pairing is unilm_naive with {} query heads per KV head; allowed: 1, because with more of "
        "them both components of a head read the same keys: use interleaved (or halves for "
        "DiffLlama weights)",
        hq / 2 / hv);
  return d;
}

DifferentialData prepare_v2(const Rows& q,
                            const Kv& kv,
                            const DifferentialV2& p,
                            const Options& options,
                            const Context& context) {
  DifferentialData d(q, kv, options, context);
  const std::int64_t hq = d.q.data.size(1), hk = d.kv.k.size(1);
  if (hq % 2 != 0)
    refuse_differential("Q has {} heads; an even number is expected: two for each output head", hq);
  if (hk == 0 || hq % hk != 0 || hq / hk % 2 != 0)
    refuse_differential(
        "Q has {} heads and K has {}; heads 2h and 2h + 1 must read one KV head, so {} KV heads or "
        "a divisor of that are allowed",
        hq,
        hk,
        hq / 2);
  const bool packed = static_cast<bool>(d.q.offsets);
  const View& l = p.logits;
  if (!l) refuse_differential("logits are not given");
  View logits = l.rank == 2 ? l.unsqueezed(0) : l;
  const std::int64_t batch = packed ? 1 : d.q.data.size(0),
                     tokens = packed ? d.q.data.size(0) : d.q.data.size(2);
  if ((logits.dtype != DType::f32 && logits.dtype != DType::f64) || logits.rank != 3 ||
      logits.size(0) != batch || logits.size(1) != hq / 2 || logits.size(2) != tokens)
    refuse_differential("logits are {}; f32 or f64 [{}, {}, {}] (batch, head, token) is expected",
                        l.describe(),
                        batch,
                        hq / 2,
                        tokens);
  return d;
}

/// Logits on the host, [batch, head, token].
Tensor host_logits(const View& logits, const Context& context) {
  Tensor t;
  if (logits.device.kind == Device::Kind::cpu)
    static_cast<View&>(t) = logits;
  else
    t = cuda::to_host(logits, context);
  if (t.rank == 2) static_cast<View&>(t) = t.unsqueezed(0);
  return t;
}

Tensor parameter_gradient(const std::vector<double>& values, double factor, DType dtype) {
  Tensor t = Tensor::empty(dtype, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i)
    store_element(dtype, t.at({static_cast<std::int64_t>(i)}), factor * values[i]);
  return t;
}

}  // namespace

double differential_lambda_init(int depth) {
  if (depth < 0) refuse_differential("depth is {}; layers are counted from 0", depth);
  return 0.8 - 0.6 * std::exp(-0.3 * depth);
}

DifferentialForward differential(const Rows& q,
                                 const Kv& kv,
                                 const DifferentialV1& p,
                                 const Options& options,
                                 const Context& context) {
  const DifferentialData d = prepare_v1(q, kv, p, options, context);
  const DifferenceNorm norm = norm_of(d, p, lambda_vectors(d, p));
  DifferentialForward f =
      d.forward({component(d, p.pairing, 0), component(d, p.pairing, 1)},
                [&](const View& o1, const View& o2, const View& o, const RowSpan& rows) {
                  difference_norm(norm, o1, o2, o, rows);
                });
  f.lambda = norm.lambda;
  return f;
}

DifferentialGradients differential_backward(const View& dout,
                                            const Rows& q,
                                            const Kv& kv,
                                            const DifferentialV1& p,
                                            const DifferentialForward& forward,
                                            const Context& context) {
  const DifferentialData d = prepare_v1(q, kv, p, forward.options, context);
  if (forward.branches.size() != 2)
    refuse_differential(
        "the forward has {} branches; 2 are expected: it is not of the first version",
        forward.branches.size());
  const LambdaVectors l = lambda_vectors(d, p);
  const DifferenceNorm norm = norm_of(d, p, l);
  const Tensor dy = d.host_gradient(dout, forward.o);
  const Tensor o1 = d.host_rows(forward.branches[0].o), o2 = d.host_rows(forward.branches[1].o);
  const Tensor d1 = Tensor::empty_like(o1, o1.dtype), d2 = Tensor::empty_like(o1, o1.dtype);
  const DifferenceNormGradient n =
      difference_norm_backward(norm, dy, o1, o2, d1, d2, executor_of(context));

  DifferentialGradients g;
  const Tensor dq = d.room(d.q.data), dk = d.room(d.kv.k), dv = d.room(d.kv.v),
               dv2 = d.room(d.kv.v);
  for (std::int64_t c = 0; c < 2; ++c) {
    const DifferentialData::Branch x = component(d, p.pairing, c);
    d.attend_backward(c == 0 ? d1 : d2,
                      x.q,
                      x.kv,
                      forward.branches[static_cast<std::size_t>(c)],
                      component_of(dq, p.pairing, c),
                      component_of(dk, p.pairing, c),
                      c == 0 ? dv : dv2);
  }
  g.q = d.gradient(dq, q.data);
  g.k = d.gradient(dk, kv.k);
  g.v = d.gradient_sum(dv, dv2, kv.v);
  const DType dtype = d.statistic();
  g.lambda = n.lambda;
  g.q1 = parameter_gradient(l.k1, n.lambda * l.e1, dtype);
  g.k1 = parameter_gradient(l.q1, n.lambda * l.e1, dtype);
  g.q2 = parameter_gradient(l.k2, -n.lambda * l.e2, dtype);
  g.k2 = parameter_gradient(l.q2, -n.lambda * l.e2, dtype);
  if (p.norm_weight) g.norm_weight = parameter_gradient(n.weight, 1, dtype);
  return g;
}

DifferentialForward differential(const Rows& q,
                                 const Kv& kv,
                                 const DifferentialV2& p,
                                 const Options& options,
                                 const Context& context) {
  const DifferentialData d = prepare_v2(q, kv, p, options, context);
  const Tensor logits = host_logits(p.logits, context);
  return d.forward({{d.q, d.kv}},
                   [&](const View& o1, const View& o2, const View& o, const RowSpan& rows) {
                     sigmoid_difference(logits, o1, o2, o, rows);
                   });
}

DifferentialGradients differential_backward(const View& dout,
                                            const Rows& q,
                                            const Kv& kv,
                                            const DifferentialV2& p,
                                            const DifferentialForward& forward,
                                            const Context& context) {
  const DifferentialData d = prepare_v2(q, kv, p, forward.options, context);
  if (forward.branches.size() != 1)
    refuse_differential(
        "the forward has {} branches; 1 is expected: it is not of the second version",
        forward.branches.size());
  const std::int64_t heads = d.q.data.size(1) / 2;
  const Tensor dy = d.host_gradient(dout, forward.o);
  const Tensor o = d.host_rows(forward.branches[0].o);
  const Tensor both = Tensor::empty_like(o, o.dtype);
  const Tensor logits = host_logits(p.logits, context);
  DifferentialGradients g;
  g.logits = Tensor::empty_like(logits, d.statistic());
  sigmoid_difference_backward(logits,
                              dy,
                              every_head(o, 1, 2, heads),
                              every_head(both, 0, 2, heads),
                              every_head(both, 1, 2, heads),
                              g.logits,
                              executor_of(context));
  if (p.logits.rank == 2) static_cast<View&>(g.logits) = g.logits.selected(0, 0);
  const Tensor dq = d.room(d.q.data), dk = d.room(d.kv.k), dv = d.room(d.kv.v);
  d.attend_backward(both, d.q, d.kv, forward.branches[0], dq, dk, dv);
  g.q = d.gradient(dq, q.data);
  g.k = d.gradient(dk, kv.k);
  g.v = d.gradient(dv, kv.v);
  return g;
}

}  // namespace undivided
