// SPDX-License-Identifier: Apache-2.0
// Claims: differential attention gives the values of an independent float64 program, its gradients
// are finite differences, both layouts of heads agree, and what it cannot do it refuses by name.
#include <array>

#include "variants_support.hpp"

namespace undivided {
namespace {

/// The golden layer of the first version: 2 heads of 2 x 4, causal, no rotary embedding.
struct LayerV1 {
  LayerV1(DType t, std::int64_t kv_heads) {
    const Tensor x = wave(t, {2, 5, 16}, 8);
    xq = linear(x, wave(t, {16, 16}, 4, .3));
    xk = linear(x, wave(t, {8 * kv_heads, 16}, 5, .3));
    xv = linear(x, wave(t, {8 * kv_heads, 16}, 6, .3));
    q = split(xq, 4);
    k = split(xk, 2 * kv_heads);
    v = split(xv, kv_heads);
    const DType s = t == DType::f64 ? t : DType::f32;
    vectors = {
        wave(s, {4}, 9, .2), wave(s, {4}, 10, .2), wave(s, {4}, 11, .2), wave(s, {4}, 12, .2)};
    p.q1 = vectors[0];
    p.k1 = vectors[1];
    p.q2 = vectors[2];
    p.k2 = vectors[3];
    p.lambda_init = differential_lambda_init(1);
    p.norm_weight = weight = Tensor::empty(s, {8});
    for (int c = 0; c < 8; ++c) store_element(s, element(weight, c), 1);
    options.mask = causal();
  }
  DifferentialForward run() const { return differential(q, dense(k, v), p, options); }
  static Tensor project(const View& o) { return linear(join(o), wave(o.dtype, {16, 16}, 7, .3)); }

  Tensor xq, xk, xv, weight;
  std::array<Tensor, 4> vectors;
  View q, k, v;
  DifferentialV1 p;
  Options options;
};

TEST(DifferentialV1, LambdaOfALayerIsThatOfThePaper) {
  EXPECT_NEAR(differential_lambda_init(0), .2, 1e-12);
  EXPECT_NEAR(differential_lambda_init(1), .355509, 1e-6);
  EXPECT_NEAR(differential_lambda_init(5), .666122, 1e-6);
  EXPECT_NEAR(differential_lambda_init(23), .799395, 1e-6);
  expect_refused([] { differential_lambda_init(-1); }, {"depth is -1", "from 0"});
}

TEST(DifferentialV1, GoldenLayerEveryDigit) {
  const DifferentialForward f = LayerV1(DType::f64, 2).run();
  EXPECT_NEAR(f.lambda, .3361825627, 1e-9);
  expect_four(LayerV1::project(f.o), .1420524529, .1310996656, 4.1596955133, 4.2454910033, 1e-9);
}

TEST(DifferentialV1, GoldenLayerWithOneKvHeadUsesTheFlashPairing) {
  const DifferentialForward f = LayerV1(DType::f64, 1).run();
  expect_four(LayerV1::project(f.o), .5814706756, .6936606534, 6.0215036594, 6.8904942053, 1e-9);
}

TEST(DifferentialV1, NaivePairingIsAnotherFunctionAndIsRefused) {
  LayerV1 layer(DType::f64, 1);
  layer.p.pairing = DifferentialPairing::unilm_naive;
  expect_refused([&] { layer.run(); }, {"unilm_naive", "2 query heads per KV head", "interleaved"});
  // What it would give: row j of Q meets row j / 2 of K, so component c of head h reads row h.
  Tensor parts[2];
  for (int c = 0; c < 2; ++c) {
    View q = layer.q;
    q.data = static_cast<double*>(q.data) + c * q.step(1);
    q.shape[1] = 2;
    q.stride[1] *= 2;
    View v = layer.v;
    v.shape[1] = 2;
    v.stride[1] = 0;
    parts[c] = reference(q, dense(layer.k, v), layer.options).o;
  }
  const Tensor o = Tensor::empty_like(parts[0], DType::f64);
  const double lambda = .3361825627;
  for (std::int64_t row = 0; row < o.count() / 8; ++row) {
    double squares = 0;
    for (std::int64_t c = row * 8; c < row * 8 + 8; ++c) {
      o.ptr<double>()[c] = value(parts[0], c) - lambda * value(parts[1], c);
      squares += value(o, c) * value(o, c);
    }
    for (std::int64_t c = row * 8; c < row * 8 + 8; ++c)
      o.ptr<double>()[c] *= (1 - layer.p.lambda_init) / std::sqrt(squares / 8 + 1e-5);
  }
  expect_four(LayerV1::project(o), .5814706756, .6971178741, 5.8204805884, 6.8479512357, 1e-9);
}

TEST(DifferentialV1, FloatAgreesWithDouble) {
  for (const std::int64_t kv_heads : {1, 2}) {
    const LayerV1 exact(DType::f64, kv_heads), fast(DType::f32, kv_heads);
    EXPECT_LT(largest_difference(exact.run().o, fast.run().o), 2e-6);
    const DifferentialForward a = exact.run(), b = fast.run();
    const DifferentialGradients x = differential_backward(
        wave(DType::f64, {2, 2, 5, 8}, 3), exact.q, dense(exact.k, exact.v), exact.p, a);
    const DifferentialGradients y = differential_backward(
        wave(DType::f32, {2, 2, 5, 8}, 3), fast.q, dense(fast.k, fast.v), fast.p, b);
    EXPECT_LT(largest_difference(x.q, y.q), 1e-5);
    EXPECT_LT(largest_difference(x.k, y.k), 1e-5);
    EXPECT_LT(largest_difference(x.v, y.v), 1e-5);
    EXPECT_LT(largest_difference(x.q1, y.q1), 1e-5);
    EXPECT_LT(largest_difference(x.k2, y.k2), 1e-5);
    EXPECT_LT(largest_difference(x.norm_weight, y.norm_weight), 2e-5);
  }
}

TEST(DifferentialV1, HalfPrecisionStaysNearAndKeepsItsType) {
  const LayerV1 exact(DType::f64, 1), half(DType::f16, 1);
  const DifferentialForward f = half.run();
  EXPECT_EQ(f.o.dtype, DType::f16);
  EXPECT_LT(largest_difference(exact.run().o, f.o), 1e-2);
  const DifferentialGradients g = differential_backward(
      wave(DType::f16, {2, 2, 5, 8}, 3), half.q, dense(half.k, half.v), half.p, f);
  EXPECT_EQ(g.q.dtype, DType::f16);
  EXPECT_EQ(g.k1.dtype, DType::f32);
}

TEST(DifferentialV1, GradientsAreFiniteDifferences) {
  for (const std::int64_t kv_heads : {1, 2}) {
    const DType t = DType::f64;
    const Tensor q = wave(t, {1, 4, 3, 4}, 0), k = wave(t, {1, 2 * kv_heads, 5, 4}, 1),
                 v = wave(t, {1, kv_heads, 5, 6}, 2), dout = wave(t, {1, 2, 3, 6}, 3);
    const Tensor weight = wave(t, {6}, 20, .9);
    LayerV1 layer(t, 2);
    layer.p.norm_weight = weight;
    Options options;
    options.mask = causal();
    options.align = Align::end;
    options.score = softcap(3);
    const auto run = [&] { return differential(q, dense(k, v), layer.p, options); };
    const auto loss = [&] { return inner(dout, run().o); };
    const DifferentialGradients g = differential_backward(dout, q, dense(k, v), layer.p, run());
    expect_gradient(q, g.q, loss, "Q");
    expect_gradient(k, g.k, loss, "K");
    expect_gradient(v, g.v, loss, "V");
    expect_gradient(weight, g.norm_weight, loss, "norm weight");
    expect_gradient(layer.vectors[0], g.q1, loss, "q1");
    expect_gradient(layer.vectors[1], g.k1, loss, "k1");
    expect_gradient(layer.vectors[2], g.q2, loss, "q2");
    expect_gradient(layer.vectors[3], g.k2, loss, "k2");
  }
}

TEST(DifferentialV1, HalvesAreInterleavedRowsInAnotherOrder) {
  LayerV1 layer(DType::f32, 1);
  const DifferentialForward f = layer.run();
  const Tensor q = Tensor::empty(DType::f32, {2, 4, 5, 4}),
               dout = wave(DType::f32, {2, 2, 5, 8}, 3);
  const std::int64_t order[] = {0, 2, 1, 3};
  for (std::int64_t h = 0; h < 4; ++h)
    copy(layer.q.sliced(1, order[h], order[h] + 1), q.sliced(1, h, h + 1));
  DifferentialV1 p = layer.p;
  p.pairing = DifferentialPairing::halves;  // K has one pair: the same order either way
  const DifferentialForward other = differential(q, dense(layer.k, layer.v), p, layer.options);
  EXPECT_EQ(largest_difference(f.o, other.o), 0);
  const DifferentialGradients a =
      differential_backward(dout, layer.q, dense(layer.k, layer.v), layer.p, f);
  const DifferentialGradients b = differential_backward(dout, q, dense(layer.k, layer.v), p, other);
  for (std::int64_t h = 0; h < 4; ++h)
    EXPECT_EQ(largest_difference(a.q.sliced(1, order[h], order[h] + 1), b.q.sliced(1, h, h + 1)),
              0);
}

TEST(DifferentialV1, PackedRowsAreTheSequencesOneByOne) {
  const Tensor q = wave(DType::f32, {7, 4, 4}, 0), k = wave(DType::f32, {9, 2, 4}, 1),
               v = wave(DType::f32, {9, 1, 8}, 2), dout = wave(DType::f32, {7, 2, 8}, 3);
  const std::int32_t q_at[] = {0, 3, 7}, k_at[] = {0, 5, 9};
  LayerV1 layer(DType::f32, 1);
  layer.options.align = Align::end;
  const Rows rows = ragged(q, view(const_cast<std::int32_t*>(q_at), {3}));
  const Kv kv = ragged(k, v, view(const_cast<std::int32_t*>(k_at), {3}));
  const DifferentialForward f = differential(rows, kv, layer.p, layer.options);
  const DifferentialGradients g = differential_backward(dout, rows, kv, layer.p, f);
  for (int b = 0; b < 2; ++b) {
    const auto heads_first = [](const View& v4, std::int64_t from, std::int64_t to) {
      return converted(v4.sliced(0, from, to).permuted({1, 0, 2}), DType::f32);
    };
    const Tensor qb = heads_first(q, q_at[b], q_at[b + 1]),
                 kb = heads_first(k, k_at[b], k_at[b + 1]),
                 vb = heads_first(v, k_at[b], k_at[b + 1]),
                 gb = heads_first(dout, q_at[b], q_at[b + 1]);
    const DifferentialForward one = differential(qb, dense(kb, vb), layer.p, layer.options);
    EXPECT_EQ(one.o.rank, 3);
    EXPECT_LT(largest_difference(one.o, heads_first(f.o, q_at[b], q_at[b + 1])), 1e-6);
    const DifferentialGradients og = differential_backward(gb, qb, dense(kb, vb), layer.p, one);
    EXPECT_LT(largest_difference(og.q, heads_first(g.q, q_at[b], q_at[b + 1])), 1e-5);
    EXPECT_LT(largest_difference(og.k, heads_first(g.k, k_at[b], k_at[b + 1])), 1e-5);
    EXPECT_LT(largest_difference(og.v, heads_first(g.v, k_at[b], k_at[b + 1])), 1e-5);
  }
}

TEST(DifferentialV1, PackedRowsPastTheLastSequenceBelongToNobody) {
  const Tensor q = wave(DType::f32, {9, 4, 4}, 0), k = wave(DType::f32, {9, 2, 4}, 1),
               v = wave(DType::f32, {9, 1, 8}, 2), dout = wave(DType::f32, {9, 2, 8}, 3);
  const std::int32_t at[] = {0, 3, 7};
  LayerV1 layer(DType::f32, 1);
  const Kv kv = ragged(k, v, view(const_cast<std::int32_t*>(at), {3}));
  const auto gradients = [&](std::int64_t rows) {
    const Rows some = ragged(q.sliced(0, 0, rows), view(const_cast<std::int32_t*>(at), {3}));
    DifferentialForward f = differential(some, kv, layer.p, layer.options);
    for (Forward& branch : f.branches)
      for (std::int64_t i = 7 * 2 * 8; i < branch.o.count(); ++i) branch.o.ptr<float>()[i] = NAN;
    return differential_backward(dout.sliced(0, 0, rows), some, kv, layer.p, f);
  };
  const DifferentialGradients a = gradients(7), b = gradients(9);
  EXPECT_EQ(a.lambda, b.lambda);
  EXPECT_EQ(largest_difference(a.q1, b.q1), 0);
  EXPECT_EQ(largest_difference(a.k, b.k), 0);
  EXPECT_EQ(largest_difference(a.q, b.q.sliced(0, 0, 7)), 0);
}

TEST(DifferentialV1, RowsWithoutKeysAreZero) {
  LayerV1 layer(DType::f32, 2);
  layer.p.norm_eps = 0;
  layer.options.mask = mask([](auto, auto, auto q, auto k) { return k <= q && q > 1; });
  const DifferentialForward f = layer.run();
  EXPECT_EQ(value(f.o, 0), 0);
  const DifferentialGradients g = differential_backward(
      wave(DType::f32, {2, 2, 5, 8}, 3), layer.q, dense(layer.k, layer.v), layer.p, f);
  EXPECT_EQ(load_element(DType::f32, g.q.at({0, 0, 1, 2})), 0);
  EXPECT_TRUE(std::isfinite(g.lambda));
}

TEST(DifferentialV1, DevicesAreRefusedByName) {
  const LayerV1 layer(DType::f64, 2), single(DType::f32, 2), half(DType::f16, 2);
  for (const LayerV1* l : {&layer, &single})
    expect_refused(
        [&] {
          differential(elsewhere(l->q), dense(elsewhere(l->k), elsewhere(l->v)), l->p, l->options);
        },
        {name_of(l->q.dtype), "on cuda:0", "f16 or bf16"});
  DifferentialV1 p = half.p;
  const Tensor weight = wave(DType::f64, {8}, 0);
  p.norm_weight = elsewhere(weight);
  expect_refused([&] { differential(half.q, dense(half.k, half.v), p, half.options); },
                 {"norm_weight is f64 [8] on cuda:0", "on the host"});
  expect_refused(
      [&] {
        differential(
            elsewhere(half.q), dense(elsewhere(half.k), elsewhere(half.v)), p, half.options);
      },
      {"norm_weight is f64 [8] on cuda:0", "f32 on cuda:0"});
  Context cpu;
  cpu.backend = Backend::cpu;
  expect_refused([&] { differential(layer.q, dense(layer.k, layer.v), layer.p, {}, cpu); },
                 {"backend cpu", "f64", "reference"});
}

TEST(DifferentialV1, RefusesByName) {
  LayerV1 layer(DType::f32, 2);
  const Kv kv = dense(layer.k, layer.v);
  const auto with = [&](auto change) {
    return [&, change] {
      LayerV1 other = layer;
      change(other);
      differential(other.q, dense(other.k, other.v), other.p, other.options);
    };
  };
  const Tensor sink = wave(DType::f32, {2}, 0), five = wave(DType::f32, {5}, 0);
  expect_refused(with([&](LayerV1& l) { l.options.sink = sink; }), {"does not take sink"});
  expect_refused(with([&](LayerV1& l) { l.options.dropout = .1; }), {"does not take dropout"});
  expect_refused(with([&](LayerV1& l) { l.options.partial = true; }), {"does not take partial"});
  expect_refused(with([&](LayerV1& l) { l.options.max_logit = true; }), {"max_logit"});
  expect_refused(with([&](LayerV1& l) { l.options.key_mass = true; }), {"key_mass"});
  expect_refused(with([&](LayerV1& l) { l.options.out_dtype = DType::bf16; }),
                 {"out_dtype is bf16", "f32 or f32"});
  expect_refused(with([&](LayerV1& l) { l.q = l.q.sliced(1, 0, 3); }), {"Q has 3 heads", "even"});
  expect_refused(with([&](LayerV1& l) { l.v = l.v.sliced(1, 0, 1); }),
                 {"V has 1", "2 are expected"});
  expect_refused(with([&](LayerV1& l) { l.p.norm_weight = five; }), {"norm_weight", "[8]"});
  expect_refused(with([&](LayerV1& l) { l.p.q1 = five; }), {"q1 [5], k1 [4]"});
  expect_refused(with([&](LayerV1& l) { l.p.k2 = {}; }), {"lambda k2 is not given"});
  const DifferentialForward f = layer.run();
  expect_refused(
      [&] { differential_backward(wave(DType::f32, {2, 2, 4, 8}, 3), layer.q, kv, layer.p, f); },
      {"gradient of O is f32 [2, 2, 4, 8]", "[2, 2, 5, 8]"});
}

// ---- the second version ----

struct LayerV2 {
  explicit LayerV2(DType t) {
    const Tensor x = wave(t, {2, 5, 16}, 8);
    xq = linear(x, wave(t, {32, 16}, 4, .3));
    xk = linear(x, wave(t, {8, 16}, 5, .3));
    xv = linear(x, wave(t, {8, 16}, 6, .3));
    xl = linear(x, wave(t, {2, 16}, 9, .3));
    p.logits = xl.permuted({0, 2, 1});
    options.mask = causal();
  }
  Tensor xq, xk, xv, xl;
  DifferentialV2 p;
  Options options;
  DifferentialForward run() const {
    return differential(split(xq, 4), dense(split(xk, 1), split(xv, 1)), p, options);
  }
};

TEST(DifferentialV2, GoldenLayerEveryDigit) {
  const Tensor o = LayerV2(DType::f64).run().o;
  expect_four(linear(join(o), wave(DType::f64, {16, 16}, 7, .3)),
              .4386139138,
              .1573897455,
              2.8408224913,
              2.8492397507,
              1e-9);
}

TEST(DifferentialV2, FloatAgreesWithDouble) {
  EXPECT_LT(largest_difference(LayerV2(DType::f64).run().o, LayerV2(DType::f32).run().o), 2e-6);
}

TEST(DifferentialV2, GradientsAreFiniteDifferences) {
  const DType t = DType::f64;
  const Tensor q = wave(t, {2, 4, 3, 4}, 0), k = wave(t, {2, 2, 5, 4}, 1),
               v = wave(t, {2, 2, 5, 6}, 2), dout = wave(t, {2, 2, 3, 6}, 3),
               logits = wave(t, {2, 2, 3}, 5);
  DifferentialV2 p;
  p.logits = logits;
  const auto run = [&] { return differential(q, dense(k, v), p); };
  const auto loss = [&] { return inner(dout, run().o); };
  const DifferentialGradients g = differential_backward(dout, q, dense(k, v), p, run());
  expect_gradient(q, g.q, loss, "Q");
  expect_gradient(k, g.k, loss, "K");
  expect_gradient(v, g.v, loss, "V");
  expect_gradient(logits, g.logits, loss, "logits");

  const auto f32 = [](const Tensor& x) { return converted(x, DType::f32); };
  const Tensor qf = f32(q), kf = f32(k), vf = f32(v), lf = f32(logits);
  p.logits = lf;
  const DifferentialForward f = differential(qf, dense(kf, vf), p);
  const DifferentialGradients h = differential_backward(f32(dout), qf, dense(kf, vf), p, f);
  EXPECT_LT(largest_difference(g.q, h.q), 1e-5);
  EXPECT_LT(largest_difference(g.k, h.k), 1e-5);
  EXPECT_LT(largest_difference(g.v, h.v), 1e-5);
  EXPECT_LT(largest_difference(g.logits, h.logits), 1e-5);
}

TEST(DifferentialV2, APairThatWouldReadTwoKvHeadsIsRefused) {
  LayerV2 layer(DType::f32);
  const Tensor k = wave(DType::f32, {2, 4, 5, 8}, 1);
  expect_refused([&] { differential(split(layer.xq, 4), dense(k, k), layer.p, layer.options); },
                 {"Q has 4 heads and K has 4", "must read one KV head", "2 KV heads"});
  layer.p.logits = {};
  expect_refused([&] { layer.run(); }, {"logits are not given"});
  const Tensor wrong = wave(DType::f32, {2, 5, 2}, 0);
  layer.p.logits = wrong;
  expect_refused([&] { layer.run(); }, {"logits are f32 [2, 5, 2]", "[2, 2, 5]"});
  layer.p.logits = elsewhere(layer.xl.permuted({0, 2, 1}));
  expect_refused([&] { layer.run(); }, {"logits is f32 [2, 2, 5] on cuda:0", "on the host"});
}

}  // namespace
}  // namespace undivided
