// SPDX-License-Identifier: Apache-2.0
// Claims: the layers of the Differential Transformer and of Fastformer give the values of
// independent float64 programs, their backwards are central differences, float follows double, they
// serve as the self-attention of an encoder layer, and their files come back by the authors' names.
#include <unistd.h>

#include <filesystem>

#include "nn_support.hpp"

namespace undivided::nn {
namespace {

namespace fs = std::filesystem;

DifferentialOptions first_version(std::int64_t kv_heads) {
  DifferentialOptions o;
  o.embed_dim = 16;
  o.heads = 2;
  o.kv_heads = kv_heads;
  o.depth = 1;
  return o;
}
DifferentialOptions second_version() {
  DifferentialOptions o;
  o.version = DifferentialOptions::Version::second;
  o.embed_dim = 16;
  o.heads = 2;
  o.kv_heads = 1;
  o.head_dim = 8;
  return o;
}
void fill(DifferentialAttention<double>& m) {
  int c = 4;
  for (Linear<double>* l : {&m.q_proj, &m.k_proj, &m.v_proj, &m.out})
    wave(l->weight.value, c++, .3);
  c = 9;
  for (Parameter<double>* p : {&m.q1, &m.k1, &m.q2, &m.k2}) wave(p->value, c++, .2);
  if (m.lambda_proj.weight.count() > 0) wave(m.lambda_proj.weight.value, 9, .3);
}

TEST(NnDifferential, GoldenLayersEveryDigit) {
  const Matrix<double> x = waves(10, 16, 8);
  Pass pass;
  DifferentialAttention<double> two(first_version(2)), one(first_version(1)),
      second(second_version());
  for (auto* m : {&two, &one, &second}) fill(*m);
  expect_four(
      two.self(x, two_of_five, true, pass), .1420524529, .1310996656, 4.1596955133, 4.2454910033);
  expect_four(
      one.self(x, two_of_five, true, pass), .5814706756, .6936606534, 6.0215036594, 6.8904942053);
  expect_four(second.self(x, two_of_five, true, pass),
              .4386139138,
              .1573897455,
              2.8408224913,
              2.8492397507);
}

void fill(Fastformer<double>& m) {
  wave(m.query.weight.value, 4, .3);
  wave(m.query.bias.value, 5, .1);
  wave(m.key.weight.value, 6, .3);
  wave(m.key.bias.value, 7, .1);
  wave(m.query_att.value, 9, .3);
  wave(m.query_att_bias.value, 10, .1);
  wave(m.key_att.value, 11, .3);
  wave(m.key_att_bias.value, 12, .1);
  wave(m.transform.weight.value, 13, .3);
  wave(m.transform.bias.value, 14, .1);
  wave(m.value.weight.value, 15, .3);
}

TEST(NnFastformer, GoldenLayersEveryDigit) {
  const Matrix<double> x = waves(10, 8, 8);
  const Extent padded{2, 5, {5, 3}};
  Pass pass;
  FastformerLayerOptions o;
  o.dim = 8;
  o.heads = 2;
  Fastformer<double> official(o);
  fill(official);
  expect_four(
      official.self(x, padded, false, pass), .4259350684, -.3497744982, 1.3371717353, 5.0138428834);
  o.scoring = FastformerScoring::paper;
  o.bias = o.share_qv = false;
  Fastformer<double> paper(o);
  fill(paper);
  expect_four(
      paper.self(x, padded, false, pass), .4266077403, -.3009051699, -.2668566139, 4.9148569472);
}

/// dx and all parameters of a module against central differences of dot(y, dy).
template <class Module, class Forward>
void expect_backward(Module& m, Matrix<double> x, Forward forward) {
  ParameterList<double> list;
  m.collect("", list);
  randomise(list, 5, .4);
  const Matrix<double> dy = random_matrix<double>(x.rows(), x.cols(), 99);
  typename Module::Saved saved;
  forward(x, &saved);
  const Matrix<double> dx = m.backward(saved, dy);
  const auto loss = [&] {
    return dot(forward(x, static_cast<typename Module::Saved*>(nullptr)), dy);
  };
  expect_slope("x", x.data(), dx.data(), x.count(), loss);
  expect_slopes(list, loss);
}

TEST(NnDifferential, BackwardsAreFiniteDifferences) {
  for (DifferentialOptions o : {first_version(2), first_version(1), second_version()})
    for (const bool causal : {false, true}) {
      o.rope.on = causal;
      o.rope.pairs = Rope::Pairs::interleaved;
      DifferentialAttention<double> m(o);
      const Extent extent{2, 3, causal ? std::vector<std::int32_t>{} : std::vector{3, 2}};
      expect_backward(m, random_matrix<double>(6, 16, 4), [&](const auto& x, auto* s) {
        Pass pass;
        return m.self(x, extent, causal, pass, s);
      });
    }
}

TEST(NnFastformer, BackwardsAreFiniteDifferences) {
  for (const FastformerScoring scoring : {FastformerScoring::official, FastformerScoring::paper})
    for (const FastformerCausal causal :
         {FastformerCausal::none, FastformerCausal::prefix, FastformerCausal::scan}) {
      if (scoring == FastformerScoring::official && causal == FastformerCausal::prefix) continue;
      FastformerLayerOptions o;
      o.dim = 6;
      o.heads = 2;
      o.scoring = scoring;
      o.causal = causal;
      o.share_qv = scoring == FastformerScoring::official;
      Fastformer<double> m(o);
      const bool looks_back = causal != FastformerCausal::none;
      expect_backward(m, random_matrix<double>(8, 6, 4), [&](const auto& x, auto* s) {
        Pass pass;
        return m.self(x, {2, 4, {4, 3}}, looks_back, pass, s);
      });
    }
}

template <class Self, class Options>
void expect_encoder_layer(const Options& options, std::int64_t features, bool causal) {
  LayerOptions layer;
  layer.attention.embed_dim = features;
  layer.hidden = 12;
  layer.activation = Activation::gelu;
  layer.norm = NormKind::rms;
  layer.norm_first = true;
  layer.causal = causal;
  EncoderLayer<double, Self> m(layer, Self(options));
  const Extent extent{2, 3, {}};
  const auto forward = [&](const Matrix<double>& x, typename EncoderLayer<double, Self>::Saved* s) {
    Pass pass;
    return m.forward(x, extent, pass, s);
  };
  expect_backward(m, random_matrix<double>(6, features, 7), forward);
  // A token changes nothing before it, or everything.
  Matrix<double> x = random_matrix<double>(6, features, 7);
  const Matrix<double> before = forward(x, nullptr);
  x.row(2)[0] += 1;
  const Matrix<double> after = forward(x, nullptr);
  double moved = 0;
  for (std::int64_t j = 0; j < features; ++j)
    moved = std::max(moved, std::abs(before.row(0)[j] - after.row(0)[j]));
  EXPECT_EQ(moved == 0, causal);
}

TEST(NnVariants, EachIsTheSelfAttentionOfAnEncoderLayer) {
  FastformerLayerOptions fast;
  fast.dim = 8;
  fast.heads = 2;
  expect_encoder_layer<Fastformer<double>>(fast, 8, false);
  fast.scoring = FastformerScoring::paper;
  fast.causal = FastformerCausal::prefix;
  expect_encoder_layer<Fastformer<double>>(fast, 8, true);
  for (const bool causal : {false, true}) {
    expect_encoder_layer<DifferentialAttention<double>>(first_version(1), 16, causal);
    expect_encoder_layer<DifferentialAttention<double>>(second_version(), 16, causal);
  }
}

template <class A, class B>
void copy_parameters(A& from, B& to) {
  ParameterList<double> a;
  ParameterList<float> b;
  from.collect("", a);
  to.collect("", b);
  ASSERT_EQ(a.size(), b.size());
  randomise(a, 3, .3);
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::int64_t j = 0; j < a[i].second->count(); ++j)
      b[i].second->value[j] = static_cast<float>(a[i].second->value[j]);
}
Matrix<float> rounded(const Matrix<double>& x) {
  Matrix<float> y(x.rows(), x.cols());
  for (std::int64_t i = 0; i < x.count(); ++i) y.data()[i] = static_cast<float>(x.data()[i]);
  return y;
}
Matrix<double> widened(const Matrix<float>& x) {
  Matrix<double> y(x.rows(), x.cols());
  for (std::int64_t i = 0; i < x.count(); ++i) y.data()[i] = x.data()[i];
  return y;
}
/// 90 tokens, so that the fused sweep runs.
template <template <class> class Module, class Options>
void expect_float_follows_double(const Options& options, std::int64_t features, bool causal) {
  Module<double> exact(options);
  Module<float> fast(options);
  copy_parameters(exact, fast);
  const Matrix<double> x = random_matrix<double>(180, features, 1),
                       dy = random_matrix<double>(180, features, 2);
  const Extent extent{2, 90, {90, 77}};
  Pass pass;
  typename Module<double>::Saved s;
  typename Module<float>::Saved t;
  const Matrix<double> y = exact.self(x, extent, causal, pass, &s);
  EXPECT_LT(distance(y, widened(fast.self(rounded(x), extent, causal, pass, &t))), 1e-4);
  EXPECT_LT(distance(exact.backward(s, dy), widened(fast.backward(t, rounded(dy)))), 2e-3);
}

TEST(NnVariants, FloatFollowsDouble) {
  expect_float_follows_double<DifferentialAttention>(first_version(1), 16, true);
  expect_float_follows_double<DifferentialAttention>(second_version(), 16, true);
  FastformerLayerOptions o;
  o.dim = 16;
  o.heads = 4;
  expect_float_follows_double<Fastformer>(o, 16, false);
}

template <class Module>
void expect_round_trip(Module m, Module other, const std::vector<std::string>& names) {
  ParameterList<float> a, b;
  m.collect("layer.", a);
  other.collect("layer.", b);
  randomise(a, 1);
  std::vector<std::string> have;
  for (const auto& named : a) have.push_back(named.first.substr(6));
  EXPECT_EQ(have, names);
  const fs::path file =
      fs::temp_directory_path() / ("undivided-variants-" + std::to_string(::getpid()));
  save_parameters(file.string(), a);
  load_parameters(file.string(), b);
  fs::remove(file);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].second->value, b[i].second->value);
}

TEST(NnVariants, CheckpointsComeBackByTheAuthorsNames) {
  using Diff = DifferentialAttention<float>;
  expect_round_trip(Diff(first_version(1)),
                    Diff(first_version(1)),
                    {"q_proj.weight",
                     "k_proj.weight",
                     "v_proj.weight",
                     "out_proj.weight",
                     "lambda_q1",
                     "lambda_k1",
                     "lambda_q2",
                     "lambda_k2",
                     "subln.weight"});
  expect_round_trip(
      Diff(second_version()),
      Diff(second_version()),
      {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "lambda_proj.weight"});
  FastformerLayerOptions o;
  o.dim = 8;
  o.heads = 2;
  expect_round_trip(Fastformer<float>(o),
                    Fastformer<float>(o),
                    {"query.weight",
                     "query.bias",
                     "query_att.weight",
                     "query_att.bias",
                     "key.weight",
                     "key.bias",
                     "key_att.weight",
                     "key_att.bias",
                     "transform.weight",
                     "transform.bias"});
}

void expect_refused(const std::function<void()>& run, const std::string& part) {
  try {
    run();
    ADD_FAILURE() << "nothing was refused; expected '" << part << "'";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}
TEST(NnVariants, RefuseByName) {
  DifferentialOptions o = first_version(2);
  o.kv_heads = 3;
  expect_refused([&] { DifferentialAttention<float>{o}; }, "2 heads do not divide among 3");
  o = first_version(2);
  o.embed_dim = 18;
  expect_refused([&] { DifferentialAttention<float>{o}; }, "18 features");
  FastformerLayerOptions f;
  f.dim = 8;
  f.heads = 3;
  expect_refused([&] { Fastformer<float>{f}; }, "8 features do not divide into 3 heads");
  f.heads = 2;
  Fastformer<float> m(f);
  Pass pass;
  expect_refused([&] { m.self(Matrix<float>(4, 8), {1, 4, {}}, true, pass); }, "prefix");
  LayerOptions layer;
  layer.attention.embed_dim = 8;
  layer.attention.kv_heads = 1;
  expect_refused([&] { EncoderLayer<float, Fastformer<float>>(layer, m); },
                 "set heads, kv_heads, head_dim");
}

}  // namespace
}  // namespace undivided::nn
