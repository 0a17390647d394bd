// SPDX-License-Identifier: Apache-2.0
// Converted checkpoints give what the mathematics says, under the names of every library.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "convert_support.hpp"
#include "undivided/nn/nn.hpp"

namespace undivided::nn {
namespace {

constexpr std::int64_t heads = 4, d = 6;

const std::vector<Naming>& namings() {
  static const std::vector<std::pair<std::string, std::string>> four = {
      {"q_proj.", "q"}, {"k_proj.", "k"}, {"v_proj.", "v"}, {"o_proj.", "o"}};
  static const std::vector<std::pair<std::string, std::string>> bart = {
      {"q_proj.", "q"}, {"k_proj.", "k"}, {"v_proj.", "v"}, {"out_proj.", "o"}};
  static const std::vector<std::pair<std::string, std::string>> t5 = {
      {"q.", "q"}, {"k.", "k"}, {"v.", "v"}, {"o.", "o"}};
  static const std::vector<std::pair<std::string, std::string>> torch = {{"in_proj_", "qkv"},
                                                                         {"out_proj.", "o"}};
  static const std::vector<Naming> all = {
      {"Llama", "llama", "model.layers.0.self_attn.", false, four},
      {"Qwen2", "llama", "model.layers.0.self_attn.", true, four},
      {"BartSelf", "bart", "model.decoder.layers.0.self_attn.", true, bart},
      {"MarianCross", "bart", "model.decoder.layers.0.encoder_attn.", true, bart},
      {"T5Encoder", "t5", "encoder.block.0.layer.0.SelfAttention.", false, t5},
      {"T5Cross", "t5", "decoder.block.0.layer.1.EncDecAttention.", false, t5},
      {"Torch", "torch", "decoder.layers.0.multihead_attn.", true, torch, false, four},
      {"TorchNoBias", "torch", "", false, torch, false, four},
      {"FlashSelf", "flash", "layers.0.mixer.", true, {{"Wqkv.", "qkv"}, {"out_proj.", "o"}}},
      {"FlashCross",
       "flash",
       "decoder.layers.0.cross_attn.",
       true,
       {{"Wq.", "q"}, {"Wkv.", "kv"}, {"out_proj.", "o"}}},
      {"Gpt2", "gpt2", "h.0.attn.", true, {{"c_attn.", "qkv"}, {"c_proj.", "o"}}, true},
      {"Gpt2Cross",
       "gpt2",
       "h.0.crossattention.",
       true,
       {{"c_attn.", "kv"}, {"q_attn.", "q"}, {"c_proj.", "o"}},
       true},
  };
  return all;
}

Grid mean_of(const Grid& k, std::int64_t to) {
  const std::int64_t r = heads / to;
  Grid g(k.rows / r, k.cols);
  for (std::int64_t row = 0; row < g.rows; ++row)
    for (std::int64_t c = 0; c < k.cols; ++c)
      for (std::int64_t j = 0; j < r; ++j)
        g.at(row, c) += k.at((row / d * r + j) * d + row % d, c) / r;
  return g;
}

class EveryNaming : public testing::TestWithParam<Naming> {
 protected:
  Weights convert(const Weights& w, std::int64_t to, std::optional<HeadMethod> method = {}) {
    std::map<std::string, std::string> metadata;
    if (n.layout == std::string("torch")) metadata["kv_heads"] = "0";  // as our training writes
    save(folder / "in.safetensors", with_others(named(n, w)), metadata);
    return again("in.safetensors", "out.safetensors", to, method);
  }
  Weights again(const std::string& in,
                const std::string& out,
                std::int64_t to,
                std::optional<HeadMethod> method = {}) {
    ConvertOptions o;
    o.heads = heads;
    o.kv_heads = to;
    o.method = method;
    report = convert_heads(folder / in, folder / out, o);
    EXPECT_EQ(report.layout, n.layout);
    EXPECT_EQ(report.converted, 1);
    return loaded(n, folder / out, heads, to, d, 2);
  }
  // Tensors that have nothing to do with attention, one of a type and rank that no view has.
  static Named with_others(Named all) {
    all.emplace_back("mlp.c_proj.weight", random_normal(DType::bf16, {3, 5}, 9));
    all.emplace_back("steps", Tensor::zeros(DType::i64, {2}));
    return all;
  }
  const Naming& n = GetParam();
  const Grid x = Grid::random(5, heads* d + 2, 20);
  Folder folder;
  ConvertReport report;
};

TEST_P(EveryNaming, MeanPoolsKAndVAndNothingElse) {
  const Weights w = Weights::random(heads, heads, d, n.bias);
  for (const std::int64_t to : {1, 2}) {
    const Weights c = convert(w, to);
    EXPECT_LT(distance(c.k, mean_of(w.k, to)), 1e-15);
    EXPECT_LT(distance(c.v, mean_of(w.v, to)), 1e-15);
    EXPECT_EQ(distance(c.q, w.q), 0);
    EXPECT_EQ(distance(c.o, w.o), 0);
    if (n.bias) {
      EXPECT_LT(distance(c.bk, mean_of(w.bk, to)), 1e-15);
      EXPECT_LT(distance(c.bv, mean_of(w.bv, to)), 1e-15);
      EXPECT_EQ(distance(c.bq, w.bq), 0);
      EXPECT_EQ(distance(c.bo, w.bo), 0);
    }
    // Pooling weights is pooling the keys that they make.
    EXPECT_LT(distance(Weights::linear(x, c.k, c.bk).turned(),
                       mean_of(Weights::linear(x, w.k, w.bk).turned(), to)),
              1e-14);
    EXPECT_EQ(report.parameters - report.parameters_after,
              (heads - to) * d * 2 * (w.k.cols + (n.bias ? 1 : 0)));
  }
}

TEST_P(EveryNaming, FirstKeepsTheFirstHeadOfEachGroup) {
  const Weights w = Weights::random(heads, heads, d, n.bias), c = convert(w, 2, HeadMethod::first);
  EXPECT_EQ(distance(c.k, w.k.part(0, d).over(w.k.part(2 * d, d))), 0);
  EXPECT_EQ(distance(c.v, w.v.part(0, d).over(w.v.part(2 * d, d))), 0);
}

TEST_P(EveryNaming, RandomDrawsHeadsOfTheSameDeviation) {
  const Weights w = Weights::random(heads, heads, d, n.bias), c = convert(w, 2, HeadMethod::random);
  EXPECT_GT(distance(c.k, mean_of(w.k, 2)), .1);
  const auto deviation = [](const Grid& g) {
    double sum = 0;
    for (const double value : g.v) sum += value * value;
    return std::sqrt(sum / g.v.size());
  };
  EXPECT_NEAR(deviation(c.k) / deviation(w.k), 1, .2);
  EXPECT_NEAR(deviation(c.v) / deviation(w.v), 1, .2);
  EXPECT_GT(distance(c.k, c.v), .1);
  if (n.bias) EXPECT_EQ(deviation(c.bk), 0);
  EXPECT_EQ(distance(convert(w, 2, HeadMethod::random).k, c.k), 0);  // the seed decides
}

TEST_P(EveryNaming, ExpandingBackGivesTheSameAttention) {
  const Weights c = convert(Weights::random(heads, heads, d, n.bias), 2),
                back = again("out.safetensors", "back.safetensors", heads);
  EXPECT_LT(distance(back.attend(x), c.attend(x)), 1e-14);
  // And converting what was expanded gives the grouped weights back, bit for bit.
  const Weights round = again("back.safetensors", "round.safetensors", 2);
  EXPECT_EQ(distance(round.k, c.k), 0);
  EXPECT_EQ(distance(round.bv, c.bv), 0);
  EXPECT_EQ(text_of(folder / "round.safetensors"), text_of(folder / "out.safetensors"));
  // A grouped model shrinks further.
  EXPECT_LT(distance(again("out.safetensors", "one.safetensors", 1).k, mean_of(back.k, 1)), 1e-15);
}

TEST_P(EveryNaming, EqualHeadsOfAGroupLoseNothing) {
  Weights w = Weights::random(heads, heads, d, n.bias);
  for (Grid* g : {&w.k, &w.v, &w.bk, &w.bv})
    if (!g->v.empty())
      for (const std::int64_t from : {0, 2})
        *g = from == 0 ? g->part(0, d).over(g->part(0, d)).over(g->part(2 * d, 2 * d))
                       : g->part(0, 2 * d).over(g->part(2 * d, d)).over(g->part(2 * d, d));
  EXPECT_LT(distance(convert(w, 2).attend(x), w.attend(x)), 1e-14);
}

TEST_P(EveryNaming, OtherTensorsPassThrough) {
  convert(Weights::random(heads, heads, d, n.bias), 2);
  const Safetensors before = Safetensors::open(folder / "in.safetensors"),
                    after = Safetensors::open(folder / "out.safetensors");
  const Tensor a = before.read("mlp.c_proj.weight"), b = after.read("mlp.c_proj.weight");
  EXPECT_EQ(b.describe(), a.describe());
  EXPECT_EQ(std::memcmp(a.data, b.data, 30), 0);
}

INSTANTIATE_TEST_SUITE_P(Convert, EveryNaming, testing::ValuesIn(namings()), [](const auto& i) {
  return i.param.title;
});

TEST(RegroupHeads, AsManyHeadsAreTheIdentity) {
  const Tensor w = random_normal(DType::bf16, {12, 5}, 1);
  for (const HeadMethod m : {HeadMethod::mean, HeadMethod::first, HeadMethod::random})
    EXPECT_EQ(std::memcmp(regroup_heads(w, 4, 4, m).data, w.data, 120), 0);
}

TEST(RegroupHeads, AMeanIsRoundedOnce) {
  for (const DType t : {DType::f16, DType::bf16, DType::f32}) {
    const Tensor w = random_normal(t, {6, 7}, 3), wide = converted(w, DType::f64),
                 c = regroup_heads(w, 3, 1);
    ASSERT_EQ(c.dtype, t);
    for (std::int64_t i = 0; i < 14; ++i) {
      const double mean =
          (wide.ptr<double>()[i] + wide.ptr<double>()[i + 14] + wide.ptr<double>()[i + 28]) / 3;
      unsigned char want[8] = {};
      store_element(t, want, mean);
      EXPECT_EQ(std::memcmp(c.at({i / 7, i % 7}), want, size_of(t)), 0);
    }
  }
}

TEST(RegroupHeads, TheOrderInAGroupMattersExceptForTheMean) {
  const Grid w = Grid::random(8, 3, 1),
             swapped = w.part(2, 2).over(w.part(0, 2)).over(w.part(4, 4));
  const auto change = [&](HeadMethod m) {
    return distance(Grid::of(regroup_heads(w.tensor(), 4, 2, m)),
                    Grid::of(regroup_heads(swapped.tensor(), 4, 2, m)));
  };
  EXPECT_LT(change(HeadMethod::mean), 1e-15);
  EXPECT_GT(change(HeadMethod::first), .01);
}

TEST(RegroupHeads, RefusesWhatDoesNotDivide) {
  const Tensor w = random_normal(DType::f32, {12, 5}, 1);
  expect_refusal([&] { regroup_heads(w, 5, 1); }, {"f32 [12, 5]", "5 heads"});
  expect_refusal([&] { regroup_heads(w, 4, 3); }, {"4 heads do not become 3", "1, 2, 4"});
  expect_refusal([&] { regroup_heads(w, 4, 2, HeadMethod::mean, 0, 2); }, {"axis 2"});
  expect_refusal([&] { regroup_heads(Tensor::zeros(DType::i8, {4}), 4, 2); }, {"i8", "bf16"});
}

// ---- folders, shards and configurations ----

const Naming& llama() { return namings()[0]; }

Named two_layers() {
  Named all = named(llama(), Weights::random(heads, heads, d, false));
  for (const auto& [name, tensor] : named(llama(), Weights::random(heads, heads, d, false)))
    all.emplace_back("model.layers.1" + name.substr(14), tensor);
  return all;
}

TEST(ConvertFolders, ShardsBecomeOneFileAndTheConfigSaysSo) {
  Folder f;
  const std::string in = f / "in";
  std::filesystem::create_directory(in);
  nlohmann::json index;
  Named first, second;
  for (const auto& t : two_layers()) {
    const bool one = first.size() < 5;
    (one ? first : second).push_back(t);
    index["weight_map"][t.first] = one ? "a.safetensors" : "b.safetensors";
  }
  save(in + "/a.safetensors", first, {{"format", "pt"}});
  save(in + "/b.safetensors", second);
  write_text(in + "/model.safetensors.index.json", index.dump());
  write_text(in + "/config.json", R"({"zeta": 1, "num_attention_heads": 4, "alpha": 2})");
  ConvertOptions o;
  o.kv_heads = 2;
  const ConvertReport r = convert_heads(in, f / "out/", o);
  EXPECT_EQ(r.converted, 2);
  EXPECT_EQ(r.heads, heads);
  const Safetensors file = Safetensors::open(f / "out/model.safetensors");
  EXPECT_EQ(file.entries().size(), 8);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.read("model.layers.1.self_attn.v_proj.weight").size(0), 2 * d);
  // Keys keep their order.
  EXPECT_THAT(text_of(f / "out/config.json"),
              testing::MatchesRegex("[^a-z]*zeta.*alpha[^n]*num_key_value_heads\": 2[^,]*"));
  EXPECT_EQ(f.names(), (std::vector<std::string>{"in", "out"}));

  index["weight_map"]["model.norm.weight"] = "a.safetensors";
  write_text(in + "/model.safetensors.index.json", index.dump());
  expect_refusal([&] { convert_heads(in, f / "x", o); }, {"a.safetensors", "model.norm.weight"});
  index["weight_map"]["model.norm.weight"] = "../a.safetensors";
  write_text(in + "/model.safetensors.index.json", index.dump());
  expect_refusal([&] { convert_heads(in, f / "x", o); }, {"same folder"});
  EXPECT_EQ(f.names(), (std::vector<std::string>{"in", "out"}));
}

TEST(ConvertFolders, SomeLayersAreListedByAttention) {
  Folder f;
  std::filesystem::create_directory(f / "in");
  save(f / "in/model.safetensors", two_layers());
  write_text(f / "in/config.json", R"({"num_attention_heads": 4, "num_key_value_heads": 4})");
  ConvertOptions o;
  o.kv_heads = 1;
  o.layers = {1};
  const ConvertReport r = convert_heads(f / "in", f / "out", o);
  EXPECT_EQ(r.attentions, 2);
  EXPECT_EQ(r.converted, 1);
  const auto config = nlohmann::json::parse(text_of(f / "out/config.json"));
  EXPECT_FALSE(config.contains("num_key_value_heads"));
  EXPECT_EQ(config["undivided_kv_heads"]["model.layers.0.self_attn"], 4);
  EXPECT_EQ(config["undivided_kv_heads"]["model.layers.1.self_attn"], 1);
  o.layers = {1, 7};
  expect_refusal([&] { convert_heads(f / "in", f / "x", o); }, {"no layer 7", "0 to 1"});
}

TEST(ConvertFolders, NothingIsLeftWhenSomethingIsWrong) {
  Folder f;
  std::filesystem::create_directory(f / "in");
  ConvertOptions o;
  o.kv_heads = 2;
  expect_refusal([&] { convert_heads(f / "in", f / "out", o); }, {"no weights"});
  write_text(f / "in/pytorch_model.bin", "x");
  expect_refusal([&] { convert_heads(f / "in", f / "out", o); }, {"pickled", "safetensors first"});
  save(f / "in/model.safetensors", two_layers());
  expect_refusal([&] { convert_heads(f / "in", f / "out", o); }, {"config.json", "--heads"});
  o.heads = 4;
  expect_refusal([&] { convert_heads(f / "in", f / "in", o); }, {"is the input"});
  expect_refusal([&] { convert_heads(f / "in", f / "x.safetensors", o); }, {"is a folder"});
  expect_refusal([&] { convert_heads(f / "in/model.safetensors", f / "x", o); },
                 {"does not end with .safetensors"});
  expect_refusal([&] { convert_heads(f / "in", f / "no/such/place", o); }, {"cannot be made"});
  std::filesystem::create_directory(f / "full");
  write_text(f / "full/something", "x");
  expect_refusal([&] { convert_heads(f / "in", f / "full", o); }, {"not empty"});
  std::string bytes = text_of(f / "in/model.safetensors");
  bytes.resize(bytes.size() - 100);
  write_text(f / "in/model.safetensors", bytes);
  expect_refusal([&] { convert_heads(f / "in", f / "out", o); }, {"truncated"});
  EXPECT_EQ(f.names(), (std::vector<std::string>{"full", "in"}));
  EXPECT_EQ(text_of(f / "full/something"), "x");
}

// ---- refusals with reasons ----

class ConvertRefuses : public testing::Test {
 protected:
  void expect(const Named& tensors, const std::vector<std::string>& words) {
    save(folder / "in.safetensors", tensors);
    expect_refusal([&] { convert_heads(folder / "in.safetensors", folder / "out.safetensors", o); },
                   words);
    EXPECT_EQ(folder.names(), (std::vector<std::string>{"in.safetensors"}));
  }
  static Named llama_with(std::int64_t kv) {
    return named(llama(), Weights::random(heads, kv, d, false));
  }
  void SetUp() override {
    o.heads = heads;
    o.kv_heads = 2;
  }
  Folder folder;
  ConvertOptions o;
};

TEST_F(ConvertRefuses, HeadsThatDoNotGoTogether) {
  o.kv_heads = 3;
  expect(llama_with(4), {"4 query heads cannot share 3", "1, 2, 4"});
  o.kv_heads = 8;
  expect(llama_with(4), {"4 query heads cannot share 8"});
  o.kv_heads = 0;
  expect(llama_with(4), {"kv_heads is 0"});
  o.kv_heads = 2;
  o.heads = 7;
  expect(llama_with(4), {"24 rows", "7 heads"});
  o.heads = 24;
  o.kv_heads = 5;
  expect(llama_with(4), {"24 query heads cannot share 5"});
}

TEST_F(ConvertRefuses, WhatIsGroupedAlready) {
  expect(llama_with(2), {"nothing to convert", "2 KV heads already"});
  Named six = named(llama(), Weights::random(12, 6, d, false));
  o.heads = 12;
  o.kv_heads = 4;
  expect(six, {"6 KV heads are grouped already", "expand them to 12"});
  o.kv_heads = 12;
  o.method = HeadMethod::first;
  expect(six, {"repeating", "a method is for fewer heads"});
}

TEST_F(ConvertRefuses, NamesItDoesNotKnow) {
  expect({{"blocks.0.mixer.weight", random_normal(DType::f32, {4, 4}, 1)}},
         {"no attention", "llama", "gpt2", "blocks.0.mixer.weight"});
  o.layout = "lama";
  expect(llama_with(4), {"no layout 'lama'", "auto, llama"});
  o.layout = "t5";
  expect(llama_with(4), {"layout t5"});
  o.layout = "auto";
  Named both = llama_with(4);
  for (const auto& t : named(namings()[2], Weights::random(heads, heads, d, true)))
    both.push_back(t);
  expect(both, {"several layouts", "llama, bart"});
  o.layout = "llama";  // says which; the other passes through
  EXPECT_EQ(convert_heads(folder / "in.safetensors", folder / "out.safetensors", o).attentions, 1);
}

TEST_F(ConvertRefuses, MissingAndStrangeTensors) {
  for (const std::size_t gone : {0, 2, 3}) {
    Named all = llama_with(4);
    const std::string part(1, all[gone].first[25]);
    all.erase(all.begin() + gone);
    expect(all, {"model.layers.0.self_attn.", "no weight of the " + part + " projection"});
  }
  Named all = llama_with(4);
  all[2].second = random_normal(DType::f64, {22, 26}, 1);
  expect(all, {"v_proj.weight", "22"});
  all = llama_with(4);
  all[1].second = Tensor::zeros(DType::i8, {24, 26});
  expect(all, {"k_proj.weight is I8", "quantised"});
  all = llama_with(4);
  all.emplace_back("model.layers.0.self_attn.lambda_q1", Tensor::zeros(DType::f32, {6}));
  expect(all, {"Differential Transformer", "--to unilm"});
  all = named(namings()[6], Weights::random(heads, heads, d, true));
  all.emplace_back("decoder.layers.0.multihead_attn.bias_k", Tensor::zeros(DType::f32, {26}));
  expect(all, {"bias_k", "no token"});
}

TEST(ConvertNotes, SayWhatTheReaderMustKnow) {
  Folder f;
  ConvertOptions o;
  o.heads = heads;
  o.kv_heads = 2;
  const auto notes = [&](const Named& tensors) {
    save(f / "in.safetensors", tensors);
    std::string all;
    for (const auto& n : convert_heads(f / "in.safetensors", f / "out.safetensors", o).notes)
      all += n + "\n";
    return all;
  };
  EXPECT_THAT(notes(named(namings()[4], Weights::random(heads, heads, d, false))),
              testing::AllOf(testing::HasSubstr("relative_attention_bias"),
                             testing::HasSubstr("T5 classes"),
                             testing::HasSubstr("num_key_value_heads = 2")));
  // Norms after the key projection: one for all heads stays, one a head is pooled.
  Named qwen3 = named(llama(), Weights::random(heads, heads, d, false));
  qwen3.emplace_back("model.layers.0.self_attn.k_norm.weight", random_normal(DType::f32, {d}, 1));
  EXPECT_THAT(notes(qwen3), testing::HasSubstr("k_norm"));
  EXPECT_EQ(Safetensors::open(f / "out.safetensors")
                .read("model.layers.0.self_attn.k_norm.weight")
                .size(0),
            d);
  const Tensor norm = random_normal(DType::f64, {heads, d}, 1);
  qwen3.back().second = norm;
  notes(qwen3);
  EXPECT_LT(distance(Grid::of(Safetensors::open(f / "out.safetensors")
                                  .read("model.layers.0.self_attn.k_norm.weight")),
                     Grid::of(regroup_heads(norm, heads, 2))),
            1e-15);
}

// ---- our own models ----

TEST(ConvertModel, ATrainedModelIsConvertedLoadedAndExpanded) {
  Folder f;
  TrainOptions options;
  options.steps = 2;
  Trainer trainer(options);
  trainer.step();
  trainer.save_model(f / "mha.safetensors");
  ConvertOptions o;
  o.kv_heads = 1;
  o.encoder = false;  // as in the paper
  EXPECT_EQ(convert_heads(f / "mha.safetensors", f / "mqa.safetensors", o).converted, 4);
  Seq2SeqTransformer<float> model(trainer.model().options()), back(trainer.model().options());
  adopt_heads(model, f / "mqa.safetensors");
  EXPECT_EQ(model.decoder[1].multihead_attn.options().kv_heads, 1);
  EXPECT_EQ(model.encoder[1].self_attn.options().kv_heads, 4);
  load_parameters(f / "mqa.safetensors", model.parameters());
  o.kv_heads = 4;
  EXPECT_EQ(convert_heads(f / "mqa.safetensors", f / "back.safetensors", o).converted, 4);
  load_parameters(f / "back.safetensors", back.parameters());
  const Lesson lesson = lesson_of(trainer.task(), {{"3141592653", "3562951413"}});
  Pass pass;
  const auto a = model.forward(lesson.source, lesson.input, pass),
             b = back.forward(lesson.source, lesson.input, pass),
             c = trainer.model().forward(lesson.source, lesson.input, pass);
  double grouped = 0, original = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    grouped = std::max<double>(grouped, std::abs(a.data()[i] - b.data()[i]));
    original = std::max<double>(original, std::abs(a.data()[i] - c.data()[i]));
  }
  EXPECT_LT(grouped, 1e-5);
  EXPECT_GT(original, 1e-3);
  EXPECT_NO_THROW(Translator(f / "mqa.safetensors").translate("31", {}));
}

}  // namespace
}  // namespace undivided::nn
