// SPDX-License-Identifier: Apache-2.0
// Claims: Fastformer gives the values of an independent float64 program in both scorings, its
// prefix form is the published function of each prefix, scan is another one, gradients are
// differences.
#include <tuple>

#include "variants_support.hpp"

namespace undivided {
namespace {

using Scoring = FastformerScoring;
using Causal = FastformerCausal;

Tensor padding() {  // 5 tokens in batch item 0 and 3 in item 1
  const Tensor keep = Tensor::empty(DType::i32, {2, 5});
  for (int i = 0; i < 10; ++i) keep.ptr<std::int32_t>()[i] = i < 8;
  return keep;
}

void add(const View& x, const Tensor& y) {
  for (std::int64_t i = 0; i < y.count(); ++i) y.ptr<double>()[i] += value(x, i);
}

TEST(Fastformer, GoldenOfficialLayerEveryDigit) {
  const Tensor x = wave(f64, {2, 5, 8}, 8), keep = padding();
  const Tensor q = linear(x, wave(f64, {8, 8}, 4, .3), wave(f64, {8}, 5, .1)),
               k = linear(x, wave(f64, {8, 8}, 6, .3), wave(f64, {8}, 7, .1));
  const Tensor wq = wave(f64, {2, 8}, 9, .3), wk = wave(f64, {2, 8}, 11, .3);
  FastformerOptions o;
  o.w_query = wq;
  o.w_key = wk;
  o.keep = keep;
  const FastformerForward f = fastformer(split(q, 2), split(k, 2), split(q, 2), o);
  const Tensor y = linear(join(f.o), wave(f64, {8, 8}, 13, .3), wave(f64, {8}, 14, .1));
  add(q, y);
  expect_four(y, .4259350684, -.3497744982, 1.3371717353, 5.0138428834, 1e-9);
  expect_four(f.alpha, .2098246146, 0, 4, 1.0345873770, 1e-9);
  expect_four(f.beta, .1823072569, 0, 4, 1.0334357303, 1e-9);
}

TEST(Fastformer, GoldenPaperLayerEveryDigit) {
  const Tensor x = wave(f64, {2, 5, 8}, 8), keep = padding();
  const Tensor q = linear(x, wave(f64, {8, 8}, 4, .3)), k = linear(x, wave(f64, {8, 8}, 6, .3)),
               v = linear(x, wave(f64, {8, 8}, 15, .3));
  const Tensor wq = wave(f64, {2, 4}, 9, .3), wk = wave(f64, {2, 4}, 11, .3);
  FastformerOptions o;
  o.scoring = Scoring::paper;
  o.w_query = wq;
  o.w_key = wk;
  o.keep = keep;
  const Tensor y = linear(join(fastformer(split(q, 2), split(k, 2), split(v, 2), o).o),
                          wave(f64, {8, 8}, 13, .3));
  add(q, y);
  expect_four(y, .4266077403, -.3009051699, -.2668566139, 4.9148569472, 1e-9);
}

struct Case {
  Case(DType t, Scoring scoring, Causal causal, bool padded) {
    q = wave(t, {2, 2, 5, 4}, 0);
    k = wave(t, {2, 2, 5, 4}, 1);
    v = wave(t, {2, 2, 5, 4}, 2);
    dout = wave(t, {2, 2, 5, 4}, 3);
    const std::int64_t width = scoring == Scoring::official ? 8 : 4;
    const DType s = t == f64 ? t : DType::f32;
    wq = wave(s, {2, width}, 9, 1.5);
    wk = wave(s, {2, width}, 11, 1.5);
    o.scoring = scoring;
    o.causal = causal;
    o.w_query = wq;
    o.w_key = wk;
    if (padded) o.keep = keep = padding();
  }
  FastformerForward run() const { return fastformer(q, k, v, o); }
  Tensor q, k, v, dout, wq, wk, keep;
  FastformerOptions o;
};

class EveryForm : public testing::TestWithParam<std::tuple<Scoring, Causal, bool>> {
 protected:
  Case make(DType t) const {
    return {t, std::get<0>(GetParam()), std::get<1>(GetParam()), std::get<2>(GetParam())};
  }
};

TEST_P(EveryForm, GradientsAreFiniteDifferences) {
  const Case c = make(f64);
  const auto loss = [&] { return inner(c.dout, c.run().o); };
  const FastformerGradients g = fastformer_backward(c.dout, c.q, c.k, c.v, c.run());
  expect_gradient(c.q, g.q, loss, "Q");
  expect_gradient(c.k, g.k, loss, "K");
  expect_gradient(c.v, g.v, loss, "V");
  expect_gradient(c.wq, g.w_query, loss, "w_query");
  expect_gradient(c.wk, g.w_key, loss, "w_key");
}

TEST_P(EveryForm, FloatAgreesWithDouble) {
  const Case a = make(f64), b = make(DType::f32);
  EXPECT_LT(largest_difference(a.run().o, b.run().o), 2e-6);
  const FastformerGradients x = fastformer_backward(a.dout, a.q, a.k, a.v, a.run()),
                            y = fastformer_backward(b.dout, b.q, b.k, b.v, b.run());
  EXPECT_LT(largest_difference(x.q, y.q), 2e-5);
  EXPECT_LT(largest_difference(x.k, y.k), 2e-5);
  EXPECT_LT(largest_difference(x.w_key, y.w_key), 2e-5);
}

TEST_P(EveryForm, PaddingNeverReachesAKeptRow) {
  if (!std::get<2>(GetParam())) return;
  const Case c = make(f64);
  const Tensor before = c.run().o;
  for (const Tensor* t : {&c.q, &c.k, &c.v})
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 3; i < 5; ++i)
        for (std::int64_t d = 0; d < 4; ++d) store_element(f64, t->at({1, h, i, d}), 1e3);
  const Tensor after = c.run().o;
  EXPECT_EQ(largest_difference(before.selected(0, 0), after.selected(0, 0)), 0);
  EXPECT_EQ(largest_difference(before.sliced(0, 1, 2).sliced(2, 0, 3),
                               after.sliced(0, 1, 2).sliced(2, 0, 3)),
            0);
}

INSTANTIATE_TEST_SUITE_P(Fastformer,
                         EveryForm,
                         testing::Values(std::tuple{Scoring::official, Causal::none, true},
                                         std::tuple{Scoring::official, Causal::scan, true},
                                         std::tuple{Scoring::paper, Causal::none, false},
                                         std::tuple{Scoring::paper, Causal::none, true},
                                         std::tuple{Scoring::paper, Causal::prefix, false},
                                         std::tuple{Scoring::paper, Causal::prefix, true},
                                         std::tuple{Scoring::paper, Causal::scan, false}));

/// Row i of a causal form against the published function of tokens 0..i.
double largest_error_of_prefixes(Causal causal) {
  Case c(f64, Scoring::paper, causal, false);
  const Tensor all = c.run().o;
  FastformerOptions o = c.o;
  o.causal = Causal::none;
  double most = 0;
  for (std::int64_t i = 0; i < 5; ++i) {
    const Tensor one =
        fastformer(c.q.sliced(2, 0, i + 1), c.k.sliced(2, 0, i + 1), c.v.sliced(2, 0, i + 1), o).o;
    most = std::max(most, largest_difference(one.sliced(2, i, i + 1), all.sliced(2, i, i + 1)));
  }
  return most;
}

TEST(FastformerCausalForms, PrefixIsThePublishedFunctionOfEachPrefix) {
  EXPECT_LT(largest_error_of_prefixes(Causal::prefix), 1e-14);
}
TEST(FastformerCausalForms, ScanIsAnotherFunction) {
  EXPECT_GT(largest_error_of_prefixes(Causal::scan), 1e-2);
}

TEST(FastformerCausalForms, TheLastTokenMovesTheFirstOutputOnlyAsPublished) {
  for (const Causal causal : {Causal::none, Causal::prefix, Causal::scan}) {
    Case c(f64, Scoring::paper, causal, false);
    const Tensor before = c.run().o;
    for (std::int64_t d = 0; d < 4; ++d) store_element(f64, c.q.at({0, 0, 4, d}), 3);
    const double moved = largest_difference(before.sliced(2, 0, 1), c.run().o.sliced(2, 0, 1));
    if (causal == Causal::none)
      EXPECT_GT(moved, 1e-3);
    else
      EXPECT_EQ(moved, 0);
  }
}

TEST(Fastformer, LargeLogitsStayFinite) {
  Case c(DType::f32, Scoring::paper, Causal::scan, false);
  c.o.scale = 1e5;
  const FastformerForward f = c.run();
  const FastformerGradients g = fastformer_backward(c.dout, c.q, c.k, c.v, f);
  for (std::int64_t i = 0; i < g.q.count(); ++i) EXPECT_TRUE(std::isfinite(value(g.q, i)));
}

TEST(Fastformer, NoTokenGivesZero) {
  for (const Causal causal : {Causal::none, Causal::prefix, Causal::scan}) {
    Case c(DType::f32, Scoring::paper, causal, true);
    for (int i = 5; i < 10; ++i) c.keep.ptr<std::int32_t>()[i] = 0;
    const FastformerForward f = c.run();
    EXPECT_EQ(largest_difference(f.o.sliced(0, 1, 2), Tensor::zeros(f64, {1, 2, 5, 4})), 0);
    const FastformerGradients g = fastformer_backward(c.dout, c.q, c.k, c.v, f);
    EXPECT_EQ(largest_difference(g.v.sliced(0, 1, 2), Tensor::zeros(f64, {1, 2, 5, 4})), 0);
  }
}

TEST(Fastformer, RefusesByName) {
  Case c(DType::f32, Scoring::official, Causal::prefix, false);
  expect_refused([&] { c.run(); },
                 {"causal prefix with official scoring", "paper scoring", "scan"});
  c.o.causal = Causal::none;
  c.o.w_key = {};
  expect_refused([&] { c.run(); }, {"w_key is not given"});
  c.o.w_key = c.wk;
  c.o.scoring = Scoring::paper;
  expect_refused([&] { c.run(); }, {"w_query is f32 [2, 8]", "[2, 4]", "paper scoring"});
  c.o.scoring = Scoring::official;
  c.o.keep = c.wq;
  expect_refused([&] { c.run(); }, {"keep is f32 [2, 8]", "boolean or i32 [2, 5]"});
  c.o.keep = {};
  expect_refused([&] { fastformer(c.q, c.k.sliced(2, 0, 4), c.v, c.o); },
                 {"K is f32 [2, 2, 4, 4]", "[2, 2, 5, 4] like Q"});
  Context gpu;
  gpu.backend = Backend::cuda;
  expect_refused([&] { fastformer(c.q, c.k, c.v, c.o, gpu); }, {"backend cuda", "on the CPU"});
  expect_refused([&] { fastformer(c.q, c.k, elsewhere(c.v), c.o); },
                 {"V is on cuda:0", "copy it to the host"});
  c.o.w_key = elsewhere(c.wk);
  expect_refused([&] { c.run(); }, {"w_key is f32 [2, 8]", "on the host"});
}

}  // namespace
}  // namespace undivided
