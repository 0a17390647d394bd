// SPDX-License-Identifier: Apache-2.0
// unilm's and DiffLlama's layouts hold the same Differential Transformer.
#include "convert_support.hpp"
#include "undivided/nn/nn.hpp"
#include "undivided/variants.hpp"

namespace undivided::nn {
namespace {

struct Sizes {
  std::int64_t pairs, kv_pairs, dim, features;
};

Tensor waves_of(std::initializer_list<std::int64_t> shape, int c, double s) {
  Tensor t = Tensor::empty(DType::f64, shape);
  for (std::int64_t i = 0; i < t.count(); ++i)
    t.ptr<double>()[i] = s * std::sin(.1 * (c + 1) * double(i) + c);
  return t;
}

// Weights of unilm's layer with the golden values' waves.
Named unilm_layer(const Sizes& z, bool gain) {
  Named all = {{"attn.q_proj.weight", waves_of({2 * z.pairs * z.dim, z.features}, 4, .3)},
               {"attn.k_proj.weight", waves_of({2 * z.kv_pairs * z.dim, z.features}, 5, .3)},
               {"attn.v_proj.weight", waves_of({2 * z.kv_pairs * z.dim, z.features}, 6, .3)},
               {"attn.out_proj.weight", waves_of({z.features, 2 * z.pairs * z.dim}, 7, .3)},
               {"attn.lambda_q1", waves_of({z.dim}, 9, .2)},
               {"attn.lambda_k1", waves_of({z.dim}, 10, .2)},
               {"attn.lambda_q2", waves_of({z.dim}, 11, .2)},
               {"attn.lambda_k2", waves_of({z.dim}, 12, .2)},
               {"attn.subln.weight", waves_of({2 * z.dim}, 13, .5)}};
  if (!gain)
    for (std::int64_t i = 0; i < 2 * z.dim; ++i) all.back().second.ptr<double>()[i] = 1;
  all.emplace_back("ffn.weight", waves_of({3}, 1, 1));
  return all;
}

// The layer on x as its own library computes it: causal, with rotary positions when asked for.
Grid run(const std::string& path, const Sizes& z, bool unilm, bool rotary) {
  const Safetensors file = Safetensors::open(path);
  const Grid x = Grid::of(waves_of({10, z.features}, 8, 1));  // two sequences of five tokens
  const auto linear = [&](const Grid& in, const std::string& name) {
    return Weights::linear(in, Grid::of(file.read("attn." + name + ".weight")), {});
  };
  const auto projected = [&](const std::string& name, std::int64_t heads, bool turn) {
    const Grid g = linear(x, name);
    Matrix<double> m(g.rows, g.cols);
    std::copy(g.v.begin(), g.v.end(), m.data());
    Rope rope;
    rope.on = turn;
    rope.pairs = unilm ? Rope::Pairs::interleaved : Rope::Pairs::halves;
    rotate(m, Extent{2, 5, {}}, 0, heads, z.dim, rope);
    return m;
  };
  const Matrix<double> q = projected("q_proj", 2 * z.pairs, rotary),
                       k = projected("k_proj", 2 * z.kv_pairs, rotary),
                       v = projected("v_proj", 2 * z.kv_pairs, false);
  const auto heads_of = [&](const Matrix<double>& m, std::int64_t heads, std::int64_t dim) {
    View view = undivided::view(const_cast<double*>(m.data()), {2, heads, 5, dim});
    view.stride = {5 * m.cols(), dim, m.cols(), 1};
    return view;
  };
  // DiffLlama joins V from the two halves of the heads.
  Tensor joined = Tensor::empty(DType::f64, {2, z.kv_pairs, 5, 2 * z.dim});
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t g = 0; g < z.kv_pairs; ++g)
      for (std::int64_t t = 0; t < 5; ++t)
        for (std::int64_t c = 0; c < 2; ++c)
          for (std::int64_t i = 0; i < z.dim; ++i)
            *static_cast<double*>(joined.at({b, g, t, c * z.dim + i})) =
                v.row(b * 5 + t)[(unilm ? 2 * g + c : g + c * z.kv_pairs) * z.dim + i];
  DifferentialV1 p;
  const Tensor q1 = file.read("attn.lambda_q1"), k1 = file.read("attn.lambda_k1"),
               q2 = file.read("attn.lambda_q2"), k2 = file.read("attn.lambda_k2");
  p.q1 = q1;
  p.k1 = k1;
  p.q2 = q2;
  p.k2 = k2;
  p.lambda_init = differential_lambda_init(1);
  Tensor gain;
  if (unilm) p.norm_weight = gain = file.read("attn.subln.weight");
  p.pairing = unilm ? DifferentialPairing::interleaved : DifferentialPairing::halves;
  Options o;
  o.mask = causal();
  o.align = Align::start;
  const DifferentialForward f = differential(Rows(heads_of(q, 2 * z.pairs, z.dim)),
                                             dense(heads_of(k, 2 * z.kv_pairs, z.dim), joined),
                                             p,
                                             o);
  Grid rows(10, z.pairs * 2 * z.dim);
  for (std::int64_t r = 0; r < 10; ++r)
    for (std::int64_t c = 0; c < rows.cols; ++c)
      rows.at(r, c) =
          *static_cast<const double*>(f.o.at({r / 5, c / (2 * z.dim), r % 5, c % (2 * z.dim)}));
  return linear(rows, unilm ? "out_proj" : "o_proj");
}

TEST(ConvertDifferential, TheGoldenLayerInDiffLlamasLayoutEveryDigit) {
  const double want[2][4] = {{.5814706756, .6936606534, 6.0215036594, 6.8904942053},
                             {.1420524529, .1310996656, 4.1596955133, 4.2454910033}};
  for (const std::int64_t kv : {1, 2}) {
    Folder f;
    const Sizes z{2, kv, 4, 16};
    save(f / "unilm.safetensors", unilm_layer(z, false));
    const ConvertReport r =
        convert_differential(f / "unilm.safetensors", f / "hf.safetensors", "diffllama");
    EXPECT_EQ(r.heads, 4);
    EXPECT_EQ(r.to, 2 * kv);
    const Grid y = run(f / "hf.safetensors", z, false, false);
    double sum = 0, squares = 0;
    for (const double value : y.v) {
      sum += value;
      squares += value * value;
    }
    EXPECT_NEAR(y.v.front(), want[kv - 1][0], 1e-9);
    EXPECT_NEAR(y.v.back(), want[kv - 1][1], 1e-9);
    EXPECT_NEAR(sum, want[kv - 1][2], 1e-9);
    EXPECT_NEAR(std::sqrt(squares), want[kv - 1][3], 1e-9);
  }
}

TEST(ConvertDifferential, BothLayoutsGiveTheSameOutputs) {
  for (const std::int64_t kv : {1, 2, 4})
    for (const bool rotary : {false, true}) {
      Folder f;
      const Sizes z{4, kv, 6, 20};
      save(f / "unilm.safetensors", unilm_layer(z, true));
      convert_differential(f / "unilm.safetensors", f / "hf.safetensors", "diffllama");
      convert_differential(f / "hf.safetensors", f / "again.safetensors", "unilm");
      const Grid a = run(f / "unilm.safetensors", z, true, rotary);
      EXPECT_LT(distance(a, run(f / "hf.safetensors", z, false, rotary)), 1e-12);
      EXPECT_LT(distance(a, run(f / "again.safetensors", z, true, rotary)), 1e-12);
      // Q, K and V come back bit for bit; the gain stays in the output projection.
      for (const char* same : {"attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"})
        EXPECT_EQ(distance(Grid::of(Safetensors::open(f / "again.safetensors").read(same)),
                           Grid::of(Safetensors::open(f / "unilm.safetensors").read(same))),
                  0);
    }
}

TEST(ConvertDifferential, TheConfigCountsHeadsAsTheTargetDoes) {
  Folder f;
  std::filesystem::create_directory(f / "hf");
  save(f / "unilm.safetensors", unilm_layer({4, 2, 6, 20}, true));
  convert_differential(f / "unilm.safetensors", f / "hf/model.safetensors", "diffllama");
  write_text(f / "hf/config.json", R"({"model_type": "diffllama", "num_attention_heads": 8})");
  convert_differential(f / "hf", f / "out", "unilm");
  const std::string config = text_of(f / "out/config.json");
  EXPECT_NE(config.find("\"num_attention_heads\": 4"), std::string::npos) << config;
  EXPECT_NE(config.find("\"num_key_value_heads\": 2"), std::string::npos) << config;
  EXPECT_NE(config.find("unilm-diff-transformer"), std::string::npos) << config;
}

TEST(ConvertDifferential, RefusesWithReasons) {
  Folder f;
  const auto expect =
      [&](const Named& tensors, const std::string& to, const std::vector<std::string>& words) {
        save(f / "in.safetensors", tensors);
        expect_refusal(
            [&] { convert_differential(f / "in.safetensors", f / "out.safetensors", to); }, words);
        EXPECT_EQ(f.names(), (std::vector<std::string>{"in.safetensors"}));
      };
  const Sizes z{4, 2, 6, 20};
  Named layer = unilm_layer(z, true);
  expect(layer, "hf", {"'hf'", "unilm, diffllama"});
  expect(layer, "unilm", {"out_proj", "already"});
  expect({layer.back()}, "unilm", {"no Differential Transformer", "lambda_q1"});
  Named missing = layer;
  missing.erase(missing.begin() + 6);
  expect(missing, "diffllama", {"has no attn.lambda_q2"});
  missing = layer;
  missing.erase(missing.begin() + 2);
  expect(missing, "diffllama", {"has no attn.v_proj.weight"});
  layer[1].second = waves_of({18, 20}, 1, 1);
  expect(layer, "diffllama", {"k_proj.weight", "pairs of heads of 6"});
}

}  // namespace
}  // namespace undivided::nn
