// SPDX-License-Identifier: Apache-2.0
// Claims: every explicit backward of nn equals central differences in float64.
#include "nn_support.hpp"

namespace undivided::nn {
namespace {

/// One input, one output: checks dx and all parameters against differences of dot(y, weights).
template <class Module, class Saved, class Forward, class Backward>
void check(Module& module, Matrix<double> x, std::int64_t out, Forward forward, Backward backward) {
  ParameterList<double> list;
  module.collect("", list);
  randomise(list, 5);
  const Matrix<double> dy = random_matrix<double>(x.rows(), out, 99);
  Saved saved;
  forward(x, &saved);
  const Matrix<double> dx = backward(saved, dy);
  const auto loss = [&] { return dot(forward(x, static_cast<Saved*>(nullptr)), dy); };
  expect_slope("x", x.data(), dx.data(), x.count(), loss);
  expect_slopes(list, loss);
}

TEST(NnGradient, Linear) {
  Linear<double> m(5, 3);
  check<Linear<double>, Matrix<double>>(
      m,
      random_matrix<double>(4, 5, 1),
      3,
      [&](const auto& x, Matrix<double>* s) {
        if (s) *s = x;
        return m.forward(x);
      },
      [&](const auto& s, const auto& dy) { return m.backward(s, dy); });
}

TEST(NnGradient, LayerNormAndRmsNorm) {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    Norm<double> m(6, kind, 1e-5);
    check<Norm<double>, Norm<double>::Saved>(
        m,
        random_matrix<double>(4, 6, 2),
        6,
        [&](const auto& x, auto* s) { return m.forward(x, s); },
        [&](const auto& s, const auto& dy) { return m.backward(s, dy); });
  }
}

TEST(NnGradient, FeedForwardWithEachActivationAndDropout) {
  for (const Activation a : {Activation::relu, Activation::gelu, Activation::swiglu})
    for (const double p : {0., .4}) {
      FeedForward<double> m(4, 7, a, true, p);
      check<FeedForward<double>, FeedForward<double>::Saved>(
          m,
          random_matrix<double>(3, 4, 3),
          4,
          [&](const auto& x, auto* s) {
            Pass pass;
            pass.training = true;
            pass.seed = 11;
            return m.forward(x, pass, s);
          },
          [&](const auto& s, const auto& dy) { return m.backward(s, dy); });
    }
}

struct AttentionCase {
  std::int64_t heads, kv_heads;
  bool causal, rope;
  double dropout;
};
TEST(NnGradient, SelfAttentionInEveryForm) {
  for (const AttentionCase& c : {AttentionCase{2, 0, false, false, 0},
                                 {2, 0, true, true, 0},
                                 {4, 2, true, false, 0},
                                 {4, 1, false, true, .3}}) {
    AttentionOptions o;
    o.embed_dim = 8;
    o.heads = c.heads;
    o.kv_heads = c.kv_heads;
    o.dropout = c.dropout;
    o.rope.on = c.rope;
    if (c.heads == 4) o.rope.pairs = Rope::Pairs::interleaved;
    MultiHeadAttention<double> m(o);
    const Extent extent{2, 4, {4, 3}};
    check<MultiHeadAttention<double>, MultiHeadAttention<double>::Saved>(
        m,
        random_matrix<double>(8, 8, 4),
        8,
        [&](const auto& x, auto* s) {
          Pass pass;
          pass.training = true;
          pass.seed = 3;
          return m.self(x, extent, c.causal, pass, s);
        },
        [&](const auto& s, const auto& dy) { return m.backward(s, dy); });
  }
}

TEST(NnGradient, CrossAttentionReachesTheMemory) {
  for (const std::int64_t kv_heads : {0, 1}) {
    AttentionOptions o;
    o.embed_dim = 8;
    o.heads = 2;
    o.kv_heads = kv_heads;
    MultiHeadAttention<double> m(o);
    Matrix<double> memory = random_matrix<double>(10, 8, 6);
    const Extent queries{2, 3, {}}, keys{2, 5, {5, 2}};
    Matrix<double> dmemory(10, 8);
    const auto forward = [&](const Matrix<double>& x, MultiHeadAttention<double>::Saved* s) {
      Pass pass;
      return m.cross(x, queries, memory, keys, pass, s);
    };
    Matrix<double> x = random_matrix<double>(6, 8, 5);
    check<MultiHeadAttention<double>, MultiHeadAttention<double>::Saved>(
        m, x, 8, forward, [&](const auto& s, const auto& dy) {
          return m.backward(s, dy, {}, &dmemory);
        });
    const Matrix<double> dy = random_matrix<double>(6, 8, 99);
    expect_slope("memory", memory.data(), dmemory.data(), memory.count(), [&] {
      return dot(forward(x, nullptr), dy);
    });
  }
}

TEST(NnGradient, EncoderLayerPostAndPreNorm) {
  for (const bool first : {false, true}) {
    LayerOptions o;
    o.attention.embed_dim = 8;
    o.attention.heads = 2;
    o.hidden = 12;
    o.norm_first = first;
    o.norm = first ? NormKind::rms : NormKind::layer;
    o.activation = Activation::gelu;
    o.dropout = .2;
    EncoderLayer<double> m(o);
    check<EncoderLayer<double>, EncoderLayer<double>::Saved>(
        m,
        random_matrix<double>(6, 8, 7),
        8,
        [&](const auto& x, auto* s) {
          Pass pass;
          pass.training = true;
          pass.seed = 8;
          return m.forward(x, {2, 3, {3, 2}}, pass, s);
        },
        [&](const auto& s, const auto& dy) { return m.backward(s, dy); });
  }
}

struct DecoderCase {
  std::int64_t kv_heads;
  bool norm_first, rope;
  double attention_dropout;
};
TEST(NnGradient, DecoderLayerWithOwnGroupedAndSharedKeys) {
  for (const DecoderCase& c :
       {DecoderCase{0, false, false, 0}, {2, true, true, 0}, {1, false, true, .3}}) {
    SCOPED_TRACE(c.kv_heads);
    LayerOptions o;
    o.attention.embed_dim = 8;
    o.attention.heads = 4;
    o.attention.kv_heads = c.kv_heads;
    o.attention.head_dim = 4;
    o.attention.bias = c.kv_heads != 1;
    o.attention.dropout = c.attention_dropout;
    o.attention.rope.on = c.rope;
    o.hidden = 6;
    o.norm_first = c.norm_first;
    o.norm = c.norm_first ? NormKind::rms : NormKind::layer;
    o.activation = Activation::swiglu;
    o.dropout = o.hidden_dropout = .2;
    DecoderLayer<double> m(o);
    EXPECT_EQ(m.self_attn.fused(), c.kv_heads == 0);
    EXPECT_EQ(m.multihead_attn.options().kv_heads, m.self_attn.options().kv_heads);
    Matrix<double> memory = random_matrix<double>(10, 8, 6), dmemory(10, 8);
    const Extent queries{2, 3, {3, 2}}, keys{2, 5, {5, 2}};
    const auto forward = [&](const Matrix<double>& x, DecoderLayer<double>::Saved* s) {
      Pass pass;
      pass.training = true;
      pass.seed = 8;
      return m.forward(x, queries, memory, keys, pass, s);
    };
    Matrix<double> x = random_matrix<double>(6, 8, 7);
    check<DecoderLayer<double>, DecoderLayer<double>::Saved>(
        m, x, 8, forward, [&](const auto& s, const auto& dy) {
          return m.backward(s, dy, dmemory);
        });
    const Matrix<double> dy = random_matrix<double>(6, 8, 99);
    expect_slope("memory", memory.data(), dmemory.data(), memory.count(), [&] {
      return dot(forward(x, nullptr), dy);
    });
  }
}

TEST(NnGradient, LossOfEachSmoothing) {
  for (const Smoothing form :
       {Smoothing::uniform, Smoothing::others, Smoothing::others_but_padding}) {
    Matrix<double> logits = random_matrix<double>(3, 5, 9);
    const std::vector<std::int32_t> targets = {2, -1, 4};
    const auto loss = cross_entropy(logits, targets, .1, form);
    expect_slope("logits", logits.data(), loss.gradient.data(), logits.count(), [&] {
      return cross_entropy(logits, targets, .1, form).mean;
    });
  }
}

TEST(NnGradient, WholeModelTiedAndNot) {
  for (const bool tie : {true, false}) {
    TransformerOptions o = TransformerOptions::tiny(7);
    o.features = 8;
    o.hidden = 12;
    o.heads = 2;
    o.encoder_layers = o.decoder_layers = 1;
    o.activation = Activation::gelu;
    o.tie = tie;
    o.kv_heads = tie ? 0 : 1;
    o.positions = tie ? Positions::paper : Positions::t2t;
    o.norm_first = o.final_norm = !tie;
    o.dropout = .1;
    Seq2SeqTransformer<double> m(o, 3);
    const Tokens source = batch_of({{3, 4, 5}, {6, 3}}), target = batch_of({{1, 5, 4}, {1, 3}});
    const std::vector<std::int32_t> wanted = {5, 4, 2, 3, 2, -1};
    const auto run = [&](Seq2SeqTransformer<double>::Saved* s) {
      Pass pass;
      pass.training = true;
      pass.seed = 21;
      return m.forward(source, target, pass, s);
    };
    Seq2SeqTransformer<double>::Saved saved;
    const Matrix<double> logits = run(&saved);
    m.backward(saved, cross_entropy(logits, wanted, .1).gradient);
    expect_slopes(m.parameters(), [&] { return cross_entropy(run(nullptr), wanted, .1).mean; });
  }
}

}  // namespace
}  // namespace undivided::nn
