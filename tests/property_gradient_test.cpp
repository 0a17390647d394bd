// SPDX-License-Identifier: Apache-2.0
// Claims: gradients are the slopes of the oracle, and the CPU has the oracle's gradients under
// every way of splitting and sharing.
#include "property_support.hpp"

namespace undivided::property {
namespace {

/// sum(O * dO) + sum(LSE * dLSE), by the oracle.
double loss(const Rows& q, const Kv& kv, const Options& o, const Tensor& dout, const Tensor& dlse) {
  const Forward f = reference(q, kv, o);
  double sum = 0;
  for (std::int64_t i = 0; i < f.o.count(); ++i)
    sum += f.o.ptr<double>()[i] * dout.ptr<double>()[i];
  for (std::int64_t i = 0; i < f.lse.count(); ++i)
    if (std::isfinite(f.lse.ptr<double>()[i]))
      sum += f.lse.ptr<double>()[i] * static_cast<double>(dlse.ptr<float>()[i]);
  return sum;
}

/// Four-point central difference of `value` with respect to *x.
template <class T, class F>
double slope_of(T* x, double h, F&& value) {
  const T at = *x;
  const auto shifted = [&](double by) {
    *x = static_cast<T>(at + by);
    const double v = value();
    *x = at;
    return v;
  };
  return (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h);
}

Score any_score(const Array& table, const Array& slope) {
  switch (between(0, 3)) {
    case 0:
      return identity();
    case 1:
      return softcap(2);
    case 2:
      return softcap(3) | alibi(slope);
    default:
      return score([=](auto s, auto, auto head, auto q, auto k) {
        return tanh(s) + Expr(Param("gain", 0.75)) * table(head, clamp(q - k, -2, 2) + 2);
      });
  }
}

TEST(Gradient, IsTheSlopeOfTheOracle) {
  EXPECT_TRUE(rc::check([] {
    Shape s = Shape::any(6);
    s.d = between(1, 5);
    s.dv = between(1, 5);
    const Data p(s, DType::f64);
    const std::uint64_t seed = a_seed();
    const Tensor dout = random_tensor(DType::f64, {s.batch, s.heads, s.nq, s.dv}, seed),
                 dlse = random_tensor(DType::f32, {s.batch, s.heads, s.nq}, seed + 1),
                 sink = random_tensor(DType::f32, {s.heads}, seed + 2),
                 table = random_tensor(DType::f32, {s.heads, 5}, seed + 3),
                 m = random_tensor(DType::f32, {s.heads}, seed + 4);
    Options o{.mask = any_mask(),
              .score = any_score(Array(table, "table"), Array(m, "slope")),
              .align = any_align()};
    if (between(0, 1)) o.sink = sink;
    if (between(0, 1)) {
      o.dropout = 0.3;
      o.seed = seed;
    }
    const Kv kv = dense(p.k, p.v);
    const Gradients g = reference_backward(Rows(dout), Rows(p.q), kv, o, {.dlse = dlse});
    const auto value = [&] { return loss(Rows(p.q), kv, o, dout, dlse); };
    const auto agrees = [&](double gradient, double difference, double eps) {
      return std::fabs(gradient - difference) <= eps * (1 + std::fabs(difference));
    };
    for (const auto& [x, dx] : {std::pair{&p.q, &g.q}, {&p.k, &g.k}, {&p.v, &g.v}})
      for (int probe = 0; probe < 3; ++probe) {
        const auto at = between(0, static_cast<int>(x->count()) - 1);
        RC_ASSERT(
            agrees(dx->ptr<double>()[at], slope_of(x->ptr<double>() + at, 1e-3, value), 1e-7));
      }
    // float32 contents: the step is a power of two, so that it is exact.
    if (o.sink)
      RC_ASSERT(agrees(g.sink.ptr<double>()[0], slope_of(sink.ptr<float>(), 0x1p-7, value), 1e-4));
    for (const auto& [name, dx] : g.captured) {
      if (name == "gain") {
        const double with = [&] {
          Options up = o;
          Captures c = o.score.captures();
          const auto at = [&](double by) {
            for (auto& [n, v] : c.params)
              if (n == "gain") v = 0.75 + by;
            up.score = Score(o.score.program(), c);
            return loss(Rows(p.q), kv, up, dout, dlse);
          };
          return (at(0x1p-7) - at(-0x1p-7)) / 0x1p-6;
        }();
        RC_ASSERT(agrees(dx.ptr<double>()[0], with, 1e-3));
        continue;
      }
      const Tensor& x = name == "table" ? table : m;
      const auto at = between(0, static_cast<int>(x.count()) - 1);
      RC_ASSERT(agrees(dx.ptr<double>()[at], slope_of(x.ptr<float>() + at, 0x1p-7, value), 1e-4));
    }
  }));
}

double largest(const View& x) {
  const Tensor y = converted(x, DType::f64);
  double most = 0;
  for (std::int64_t i = 0; i < y.count(); ++i) most = std::max(most, std::fabs(y.ptr<double>()[i]));
  return most;
}

/// Within 1e-4 of the largest gradient, or a few float32 roundings of what was summed before it
/// cancelled: a row with one key has dS = dP - D = 0, from two sums that are not small. `summed` is
/// a size that the terms of one gradient reach together.
bool near(const View& got, const View& want, double summed) {
  return distance(got, want) <= std::max(1e-4 * largest(want), 0x1p-22 * summed);
}

/// What dS sums to over `terms` rows or keys, times an operand: |dP| is at most |dO| |V| sqrt(dv)
/// for random signs.
double score_terms(const Data& p, const View& dout, const View& operand, int terms) {
  return largest(dout) * largest(p.v) * std::sqrt(p.s.dv) * largest(operand) * std::sqrt(terms) /
         std::sqrt(p.s.d);
}
double key_terms(const Data& p, const View& dout) {
  return score_terms(p, dout, p.q, p.s.nq * p.s.heads / p.s.kv_heads);
}
double query_terms(const Data& p, const View& dout) { return score_terms(p, dout, p.k, p.s.nk); }
double value_terms(const Data& p, const View& dout) {
  return largest(dout) * std::sqrt(p.s.nq * p.s.heads / p.s.kv_heads);
}

TEST(Gradient, OfTheCpuIsThatOfTheOracle) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any(130));
    const Tensor dout = random_tensor(DType::f32, {p.s.batch, p.s.heads, p.s.nq, p.s.dv}, a_seed());
    const Options o{.mask = any_mask(), .align = any_align()};
    const Gradients want = reference_backward(Rows(dout), Rows(p.q), dense(p.k, p.v), o);
    const Gradients got = attention_backward(dout, p.q, p.k, p.v, attention(p.q, p.k, p.v, o));
    RC_ASSERT(near(got.q, want.q, query_terms(p, dout)));
    RC_ASSERT(near(got.k, want.k, key_terms(p, dout)));
    RC_ASSERT(near(got.v, want.v, value_terms(p, dout)));
  }));
}

TEST(Gradient, OfChunksOfQueriesAddsUp) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any(130));
    const Tensor dout = random_tensor(DType::f32, {p.s.batch, p.s.heads, p.s.nq, p.s.dv}, a_seed());
    const Options o{.mask = causal(), .align = Align::start};
    const Gradients whole = attention_backward(dout, p.q, p.k, p.v, attention(p.q, p.k, p.v, o));
    const int cut = between(0, p.s.nq);
    const Tensor dk = Tensor::zeros(DType::f32, {p.s.batch, p.s.kv_heads, p.s.nk, p.s.d});
    for (const auto& [begin, end] : {std::pair{0, cut}, {cut, p.s.nq}}) {
      std::vector<std::int32_t> origin(static_cast<std::size_t>(p.s.batch), begin);
      const Options part{.mask = causal(), .q_origin = view(origin.data(), {p.s.batch})};
      const View q = p.q.sliced(2, begin, end), d = dout.sliced(2, begin, end);
      const Gradients g = attention_backward(d, q, p.k, p.v, attention(q, p.k, p.v, part));
      RC_ASSERT(near(g.q, whole.q.sliced(2, begin, end), query_terms(p, dout)));
      for (std::int64_t i = 0; i < dk.count(); ++i) dk.ptr<float>()[i] += g.k.ptr<float>()[i];
    }
    RC_ASSERT(near(dk, whole.k, key_terms(p, dout)));
  }));
}

TEST(Gradient, OfSharedHeadsIsTheSumOverTheGroup) {
  EXPECT_TRUE(rc::check([] {
    const Data p(Shape::any(100));
    const int group = p.s.heads / p.s.kv_heads;
    const Tensor dout = random_tensor(DType::f32, {p.s.batch, p.s.heads, p.s.nq, p.s.dv}, a_seed());
    const Options o{.mask = any_mask(), .align = any_align()};
    const Gradients shared = attention_backward(dout, p.q, p.k, p.v, attention(p.q, p.k, p.v, o));
    const Tensor k = Tensor::empty(DType::f32, {p.s.batch, p.s.heads, p.s.nk, p.s.d}),
                 v = Tensor::empty(DType::f32, {p.s.batch, p.s.heads, p.s.nk, p.s.dv});
    for (int h = 0; h < p.s.heads; ++h) {
      copy(p.k.sliced(1, h / group, h / group + 1), k.sliced(1, h, h + 1));
      copy(p.v.sliced(1, h / group, h / group + 1), v.sliced(1, h, h + 1));
    }
    const bool head_free = o.mask.program() && o.mask.text().find("head") == std::string::npos;
    RC_PRE(head_free);
    const Gradients apart = attention_backward(dout, p.q, k, v, attention(p.q, k, v, o));
    const Tensor sum = Tensor::zeros(DType::f32, {p.s.batch, p.s.kv_heads, p.s.nk, p.s.d});
    for (int b = 0; b < p.s.batch; ++b)
      for (int h = 0; h < p.s.heads; ++h)
        for (int j = 0; j < p.s.nk; ++j)
          for (int d = 0; d < p.s.d; ++d)
            *static_cast<float*>(sum.at({b, h / group, j, d})) +=
                *static_cast<float*>(apart.k.at({b, h, j, d}));
    RC_ASSERT(near(sum, shared.k, key_terms(p, dout)));
    RC_ASSERT(near(apart.q, shared.q, query_terms(p, dout)));
  }));
}

}  // namespace
}  // namespace undivided::property
