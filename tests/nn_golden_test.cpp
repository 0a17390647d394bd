// SPDX-License-Identifier: Apache-2.0
// Claims: modules give the values that independent float64 programs gave.
#include "nn_support.hpp"

namespace undivided::nn {
namespace {

void fill(MultiHeadAttention<double>& a, int c) {
  wave(a.in_weight.value, c, .3);
  wave(a.in_bias.value, c + 1, .1);
  wave(a.out.weight.value, c + 2, .3);
  wave(a.out.bias.value, c + 3, .1);
}
void fill(FeedForward<double>& f) {
  wave(f.linear1.weight.value, 9, .3);
  wave(f.linear1.bias.value, 10, .1);
  wave(f.linear2.weight.value, 11, .3);
  wave(f.linear2.bias.value, 12, .1);
}
LayerOptions layer_options(bool norm_first) {
  LayerOptions o;
  o.attention.embed_dim = 8;
  o.attention.heads = 2;
  o.hidden = 16;
  o.norm_first = norm_first;
  return o;
}
TEST(NnGolden, MultiHeadAttention) {
  MultiHeadAttention<double> m(layer_options(false).attention);
  fill(m, 4);
  const Matrix<double> x = waves(10, 8, 8);
  Pass pass;
  expect_four(
      m.self(x, two_of_five, false, pass), .0481220513, .1416508340, -.7996895773, .7074508235);
  expect_four(
      m.self(x, {2, 5, {5, 3}}, false, pass), .0481220513, .0744970687, -.4994441754, .5909052137);
}

TEST(NnGolden, EncoderLayer) {
  const Matrix<double> x = waves(10, 8, 8);
  for (const bool first : {false, true}) {
    EncoderLayer<double> m(layer_options(first));
    fill(m.self_attn, 4);
    fill(m.feed);
    Pass pass;
    const Matrix<double> y = m.forward(x, two_of_five, pass);
    if (first)
      expect_four(y, 1.1362461193, .0486059803, -11.6965470065, 7.7814275285);
    else
      expect_four(y, 1.3225947907, .1627920545, 0, 8.9442349906);
  }
}

TEST(NnGolden, DecoderLayer) {
  DecoderLayer<double> m(layer_options(false));
  fill(m.self_attn, 4);
  fill(m.multihead_attn, 13);
  fill(m.feed);
  Pass pass;
  expect_four(m.forward(waves(8, 8, 17), {2, 4, {}}, waves(10, 8, 8), two_of_five, pass),
              -1.2163728729,
              -.7156770605,
              0,
              7.9999608291);
}

TEST(NnGolden, Positions) {
  const double paper[] = {
      .14112001, -.98999250, .29552021, .95533649, .02999550, .99955003, .00300000, .99999550};
  const double t2t[] = {
      .14112001, .13879810, .00646326, .00030000, -.98999250, .99032070, .99997911, .99999996};
  const auto a = sinusoidal_positions<double>(1, 8, Positions::paper, 3);
  const auto b = sinusoidal_positions<double>(4, 8, Positions::t2t);
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(a.row(0)[i], paper[i], 1e-8);
    EXPECT_NEAR(b.row(3)[i], t2t[i], 1e-8);
  }
}

TEST(NnGolden, LabelSmoothing) {
  Matrix<double> logits(1, 5);
  const double x[] = {.5, -1, 2, .3, -.2};
  std::copy_n(x, 5, logits.data());
  EXPECT_NEAR(cross_entropy(logits, {2}).mean, .4487824896, 1e-9);
  EXPECT_NEAR(cross_entropy(logits, {2}, .1).mean, .6167824896, 1e-9);
  EXPECT_NEAR(cross_entropy(logits, {2}, .1, Smoothing::others).mean, .1950700802, 1e-9);
  EXPECT_NEAR(
      cross_entropy(logits, {2}, .1, Smoothing::others_but_padding).mean, .2438382873, 1e-9);
}

TEST(NnGolden, NoamAndLengthPenalty) {
  const Noam rate;
  EXPECT_NEAR(rate.at(1), 1.746928e-07, 1e-13);
  EXPECT_NEAR(rate.at(4000), 6.987712e-04, 1e-10);
  EXPECT_NEAR(rate.at(100000), 1.397542e-04, 1e-10);
  EXPECT_NEAR(length_penalty(10, .6), 1.732862, 1e-6);
}

// Embedding table plus layers; the tiny model shows that a whole model is just that.
std::int64_t count(const TransformerOptions& o) {
  LayerOptions layer;
  layer.attention.embed_dim = o.features;
  layer.attention.heads = o.heads;
  layer.hidden = o.hidden;
  EncoderLayer<float> encoder(layer);
  DecoderLayer<float> decoder(layer);
  ParameterList<float> one, two;
  encoder.collect("", one);
  decoder.collect("", two);
  return o.vocabulary * o.features + o.encoder_layers * count_of(one) +
         o.decoder_layers * count_of(two);
}
TEST(NnGolden, ParameterCountsOfThePaper) {
  EXPECT_EQ(count(TransformerOptions::base()), 63082496);
  EXPECT_EQ(count(TransformerOptions::big()), 214245376);
  Seq2SeqTransformer<float> tiny(TransformerOptions::tiny(13));
  EXPECT_EQ(count_of(tiny.parameters()), count(TransformerOptions::tiny(13)));
}

}  // namespace
}  // namespace undivided::nn
