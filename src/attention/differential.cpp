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

Epilogue norm_of(const DifferentialData& data, const DifferentialV1& p, const LambdaVectors& l) {
  const std::int64_t dv = data.kv.v.size(-1);
  Epilogue norm{l.e1 - l.e2 + p.lambda_init, 1 - p.lambda_init, p.norm_eps, {}, {}};
  if (!std::isfinite(norm.lambda))
    refuse_differential("lambda is {}; exp(q1.k1) and exp(q2.k2) must be finite", norm.lambda);
  if (!(p.norm_eps >= 0))
    refuse_differential("norm_eps is {}; a number >= 0 is expected", p.norm_eps);
  const View& w = p.norm_weight;
  if (!w) return norm;
  data.check_parameter("norm_weight", w);
  const bool here = w.device.kind == Device::Kind::cpu;
  if (here) norm.weight = data.vector("norm_weight", w);
  if (w.rank != 1 || w.size(0) != dv || (!here && w.step(0) != 1))
    refuse_differential("norm_weight is {}; [{}] (V's head dim) is expected", w.describe(), dv);
  norm.weight_view = w;
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
  d.check_parameter("the tensor of logits", l);
  return d;
}

Epilogue gate_of(const DifferentialV2& p) {
  Epilogue gate;
  gate.logits = p.logits.rank == 2 ? p.logits.unsqueezed(0) : p.logits;
  return gate;
}

/// factor * values, where the parameter is.
Tensor parameter_gradient(const std::vector<double>& values,
                          double factor,
                          DType dtype,
                          const View& parameter,
                          const Context& context) {
  Tensor t = Tensor::empty(dtype, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i)
    store_element(dtype, t.at({static_cast<std::int64_t>(i)}), factor * values[i]);
  return parameter.device.kind == Device::Kind::cpu ? t
                                                    : cuda::to_device(t, parameter.device, context);
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
  const Epilogue norm = norm_of(d, p, lambda_vectors(d, p));
  DifferentialForward f = d.forward({component(d, p.pairing, 0), component(d, p.pairing, 1)}, norm);
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
  const DifferentialData::Back back = d.backward(dout, forward, norm_of(d, p, l));

  DifferentialGradients g;
  // The two gradients of V are rounded once, after their sum.
  const DType dtype = d.statistic();
  const Tensor dq = d.room(d.q.data, dtype), dk = d.room(d.kv.k, dtype), dv = d.room(d.kv.v, dtype),
               dv2 = d.room(d.kv.v, dtype);
  for (std::int64_t c = 0; c < 2; ++c) {
    const DifferentialData::Branch x = component(d, p.pairing, c);
    const auto branch = static_cast<std::size_t>(c);
    d.attend_backward(back.dout[branch],
                      x.q,
                      x.kv,
                      forward.branches[branch],
                      component_of(dq, p.pairing, c),
                      component_of(dk, p.pairing, c),
                      c == 0 ? dv : dv2);
  }
  g.q = d.gradient(dq, {}, q.data);
  g.k = d.gradient(dk, {}, kv.k);
  g.v = d.gradient(dv, dv2, kv.v);
  const auto of = [&](const View& parameter, const std::vector<double>& values, double factor) {
    return parameter_gradient(values, factor, dtype, parameter, context);
  };
  const EpilogueGradient& n = back.sums;
  g.lambda = n.lambda;
  g.q1 = of(p.q1, l.k1, n.lambda * l.e1);
  g.k1 = of(p.k1, l.q1, n.lambda * l.e1);
  g.q2 = of(p.q2, l.k2, -n.lambda * l.e2);
  g.k2 = of(p.k2, l.q2, -n.lambda * l.e2);
  if (p.norm_weight) g.norm_weight = of(p.norm_weight, n.weight, 1);
  return g;
}

DifferentialForward differential(const Rows& q,
                                 const Kv& kv,
                                 const DifferentialV2& p,
                                 const Options& options,
                                 const Context& context) {
  const DifferentialData d = prepare_v2(q, kv, p, options, context);
  return d.forward({{d.q, d.kv}}, gate_of(p));
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
  const DifferentialData::Back back = d.backward(dout, forward, gate_of(p));
  DifferentialGradients g;
  g.logits = back.logits;
  if (p.logits.rank == 2) static_cast<View&>(g.logits) = g.logits.selected(0, 0);
  const DType dtype = d.q.data.dtype;
  g.q = d.room(d.q.data, dtype);
  g.k = d.room(d.kv.k, dtype);
  g.v = d.room(d.kv.v, dtype);
  d.attend_backward(back.dout[0], d.q, d.kv, forward.branches[0], g.q, g.k, g.v);
  g.q = d.gradient(g.q, {}, q.data);
  g.k = d.gradient(g.k, {}, kv.k);
  g.v = d.gradient(g.v, {}, kv.v);
  return g;
}

}  // namespace undivided
