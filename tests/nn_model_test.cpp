// SPDX-License-Identifier: Apache-2.0
// Claims about the whole model: causality, padding, caches, search, tying, names, checkpoints.
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "nn_support.hpp"
#include "undivided/error.hpp"

namespace undivided::nn {
namespace {

namespace fs = std::filesystem;

template <class T>
Seq2SeqTransformer<T> model(std::int64_t kv_heads = 0) {
  TransformerOptions o = TransformerOptions::tiny(11);
  o.kv_heads = kv_heads;
  return Seq2SeqTransformer<T>(o, 7);
}
const Tokens source = batch_of({{3, 4, 5, 6, 7}, {8, 9, 3}});
const Tokens target = batch_of({{1, 5, 4, 9, 3, 7}, {1, 3, 6, 6, 10, 4}});

TEST(NnModel, ALaterTargetTokenChangesNoEarlierLogit) {
  const auto m = model<float>();
  Pass pass;
  const auto before = m.forward(source, target, pass);
  Tokens changed = target;
  changed.ids[3] = 10;
  const auto after = m.forward(source, changed, pass);
  for (std::int64_t t = 0; t < 6; ++t) {
    double most = 0;
    for (std::int64_t j = 0; j < 11; ++j)
      most = std::max<double>(most, std::abs(before.row(t)[j] - after.row(t)[j]));
    if (t < 3)
      EXPECT_EQ(most, 0) << t;
    else
      EXPECT_GT(most, 1e-4) << t;
  }
}

TEST(NnModel, MorePaddingChangesNothing) {
  const auto m = model<double>();
  Pass pass;
  Tokens wide;
  wide.extent = {2, 9, source.extent.lengths};
  for (int b = 0; b < 2; ++b)
    for (int t = 0; t < 9; ++t) wide.ids.push_back(t < 5 ? source.ids[b * 5 + t] : 4);
  EXPECT_LT(distance(m.forward(source, target, pass), m.forward(wide, target, pass)), 1e-12);
}

template <class T>
void cached_is_full(std::int64_t kv_heads, double tolerance) {
  const auto m = model<T>(kv_heads);
  Pass pass;
  const Matrix<T> full = m.forward(source, target, pass);
  auto state = m.start(source, pass);
  const auto compare = [&](const Matrix<T>& got, std::int64_t from, std::int64_t n) {
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t t = 0; t < n; ++t)
        for (std::int64_t j = 0; j < 11; ++j)
          EXPECT_NEAR(got.row(b * n + t)[j], full.row(b * 6 + from + t)[j], tolerance);
  };
  compare(m.step({1, 1}, state, pass), 0, 1);
  compare(m.step({5, 4, 9, 3, 6, 6}, state, pass), 1, 3);  // several at once
  compare(m.step({3, 10}, state, pass), 4, 1);
  compare(m.step({7, 4}, state, pass), 5, 1);
}
TEST(NnModel, CachedDecodingEqualsFull) {
  cached_is_full<double>(0, 1e-12);
  cached_is_full<double>(1, 1e-12);
  cached_is_full<float>(2, 2e-4);
}

TEST(NnModel, RotaryCacheEqualsFull) {
  AttentionOptions o;
  o.embed_dim = 8;
  o.heads = 4;
  o.kv_heads = 2;
  o.rope.on = true;
  MultiHeadAttention<double> m(o);
  ParameterList<double> list;
  m.collect("", list);
  randomise(list, 3);
  const auto x = random_matrix<double>(5, 8, 1);
  Pass pass;
  const auto full = m.self(x, {1, 5, {}}, true, pass);
  KvCache<double> cache;
  for (std::int64_t t = 0; t < 5; ++t) {
    Matrix<double> one(1, 8), want(1, 8);
    std::copy_n(x.row(t), 8, one.data());
    std::copy_n(full.row(t), 8, want.data());
    EXPECT_LT(distance(m.step(one, 1, cache, pass), want), 1e-12);
  }
}

TEST(NnModel, AGroupedDecoderLayerStepByStepIsTheWhole) {
  LayerOptions o;
  o.attention.embed_dim = 8;
  o.attention.heads = 4;
  o.attention.kv_heads = 2;
  o.attention.rope.on = true;
  o.hidden = 12;
  DecoderLayer<double> m(o);
  ParameterList<double> list;
  m.collect("", list);
  randomise(list, 3);
  EXPECT_EQ(list.size(), 26u);  // two attentions of 8, feed-forward 4, three norms 6
  const auto x = random_matrix<double>(5, 8, 1), memory = random_matrix<double>(4, 8, 2);
  Pass pass;
  const auto full = m.forward(x, {1, 5, {}}, memory, {1, 4, {3}}, pass);
  DecoderLayer<double>::State state;
  state.memory = m.multihead_attn.remember(memory, {1, 4, {3}});
  EXPECT_EQ(state.memory.heads, 2);
  for (std::int64_t t = 0; t < 5; ++t) {
    Matrix<double> one(1, 8), want(1, 8);
    std::copy_n(x.row(t), 8, one.data());
    std::copy_n(full.row(t), 8, want.data());
    EXPECT_LT(distance(m.step(one, 1, state, {3}, pass), want), 1e-12);
  }
}

TEST(NnModel, OneBeamIsGreedyAndMoreBeamsAreNoWorse) {
  const auto m = model<double>();
  Pass pass;
  SearchOptions o;
  o.most_tokens = 12;
  o.alpha = 0;
  o.beams = 1;
  const auto greedy = greedy_search(m, source, o, pass), one = beam_search(m, source, o, pass);
  for (std::size_t b = 0; b < 2; ++b) {
    EXPECT_EQ(greedy[b].ids, one[b].ids);
    EXPECT_EQ(greedy[b].finished, one[b].finished);
    EXPECT_NEAR(greedy[b].score, one[b].score, 1e-12);
  }
  // With as many beams as tokens, two steps are searched exhaustively.
  o.beams = 10;
  o.most_tokens = 2;
  const auto found = beam_search(m, batch_of({{3, 4, 5}}), o, pass)[0];
  double best = -INFINITY;
  const Tokens alone = batch_of({{3, 4, 5}});
  const auto log_p = [&](const std::vector<std::int32_t>& in, std::int32_t next) {
    const auto logits = m.forward(alone, batch_of({in}), pass);
    Matrix<double> last(1, 11);
    std::copy_n(logits.row(logits.rows() - 1), 11, last.data());
    return -cross_entropy(last, {next}).mean;
  };
  best = log_p({1}, 2);
  for (std::int32_t a = 0; a < 11; ++a)
    if (a != 2) best = std::max(best, log_p({1}, a) + log_p({1, a}, 2));
  ASSERT_TRUE(found.finished);
  EXPECT_NEAR(found.score, best, 1e-9);
}

TEST(NnModel, ATiedTableIsOneParameterWithThreeUses) {
  TransformerOptions o = TransformerOptions::tiny(11);
  Seq2SeqTransformer<double> tied(o, 1);
  o.tie = false;
  Seq2SeqTransformer<double> apart(o, 2);
  const auto from = tied.parameters();
  for (auto& [name, p] : apart.parameters()) {
    const bool table = name == "embed_target.weight" || name == "generator.weight";
    for (const auto& [other, q] : from)
      if (other == (table ? "embed.weight" : name)) p->value = q->value;
  }
  Pass pass;
  for (auto* m : {&tied, &apart}) {
    Seq2SeqTransformer<double>::Saved saved;
    m->backward(saved,
                random_matrix<double>(12, 11, (m->forward(source, target, pass, &saved), 5)));
  }
  for (std::size_t i = 0; i < tied.embed.weight.grad.size(); ++i)
    EXPECT_NEAR(tied.embed.weight.grad[i],
                apart.embed.weight.grad[i] + apart.embed_target.weight.grad[i] +
                    apart.generator.weight.grad[i],
                1e-10);
  EXPECT_EQ(from.size(), 1u + 2 * 12 + 2 * 18);
}

TEST(NnModel, DropoutKeepsTheMeanAndIsOffOutsideTraining) {
  Matrix<float> ones(100, 100);
  for (std::int64_t i = 0; i < ones.count(); ++i) ones.data()[i] = 1;
  dropout(ones, .25, 9);
  double sum = 0;
  for (std::int64_t i = 0; i < ones.count(); ++i) {
    EXPECT_TRUE(ones.data()[i] == 0 || std::abs(ones.data()[i] - 4. / 3) < 1e-6);
    sum += ones.data()[i];
  }
  EXPECT_NEAR(sum / 1e4, 1, .03);
}

TEST(NnModel, LoadingIsStrictAndNamesWhatDiffers) {
  const fs::path path =
      fs::temp_directory_path() / ("undivided-nn-" + std::to_string(::getpid()) + ".safetensors");
  auto a = model<float>(), b = model<float>();
  randomise(a.parameters(), 1);
  save_parameters(path.string(), a.parameters(), {{"task", "none"}});
  EXPECT_EQ(load_parameters(path.string(), b.parameters()).at("task"), "none");
  Pass pass;
  EXPECT_EQ(distance(a.forward(source, target, pass), b.forward(source, target, pass)), 0);
  auto grouped = model<float>(2);
  try {
    load_parameters(path.string(), grouped.parameters());
    FAIL() << "loaded";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("missing encoder.layers.0.self_attn.q_proj.weight"));
    EXPECT_THAT(e.what(),
                testing::HasSubstr("unexpected encoder.layers.0.self_attn.in_proj_weight"));
  }
  fs::remove(path);
}

TEST(NnModel, WrongRequestsAreRefused) {
  AttentionOptions o;
  o.embed_dim = 8;
  o.heads = 3;
  EXPECT_THROW(MultiHeadAttention<float>{o}, Error);
  const auto m = model<float>();
  Pass pass;
  EXPECT_THROW(m.forward(batch_of({{3, 11}}), batch_of({{1}}), pass), Error);
  EXPECT_THROW(make_task("revers"), Error);
  EXPECT_THROW(make_task("reverse")->encode("abc"), Error);
  EXPECT_THROW(sinusoidal_positions<float>(3, 7), Error);
}

}  // namespace
}  // namespace undivided::nn
