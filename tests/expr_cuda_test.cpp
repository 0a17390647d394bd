// SPDX-License-Identifier: Apache-2.0
// CUDA text: one statement a node, in the names that kernels provide.
#include <gtest/gtest.h>

#include "expr/internal.hpp"

namespace undivided {
namespace {

std::string cuda(const char* text, expr::Type type) {
  return expr::print_cuda(expr::parse(text, type, {}));
}

TEST(CudaText, Causal) {
  EXPECT_EQ(cuda("k <= q", expr::Type::boolean),
            "const int v0 = k;\n"
            "const int v1 = q;\n"
            "const bool v2 = v0 <= v1;\n"
            "out0 = v2;\n");
}

TEST(CudaText, ArraysParametersAndConversions) {
  EXPECT_EQ(cuda("array m: f32[2]; param c: f32 = 1.5; score + m[head, q / 2] * c * (k - q)",
                 expr::Type::f32),
            "const float v0 = score;\n"
            "const int v1 = k;\n"
            "const int v2 = q;\n"
            "const int v3 = v1 - v2;\n"
            "const float v4 = (float)(v3);\n"
            "const float v5 = env.p0;\n"
            "const int v6 = head;\n"
            "const int v7 = 2;\n"
            "const int v8 = floor_div(v2, v7);\n"
            "const float v9 = load_f32(env.a0, v6, v8);\n"
            "const float v10 = v5 * v9;\n"
            "const float v11 = v4 * v10;\n"
            "const float v12 = v0 + v11;\n"
            "out0 = v12;\n");
}

TEST(CudaText, LiteralsRoundTrip) {
  auto has = [](const char* text, const char* wanted) {
    const std::string out = cuda(text, expr::Type::f32);
    EXPECT_NE(out.find(wanted), std::string::npos) << out;
  };
  has("score * 0.1", "= 0.100000001f;");
  has("score * 30", "= 30.0f;");
  has("score * 1e-30", "= 1e-30f;");
  has("k <= q ? score : -inf", "= __int_as_float(0xff800000);");
  has("score + (q - -2147483648)", "= (-2147483647 - 1);");
  has("tanh(score) + exp(score)", "tanhf(v0)");
  // Scores may be fast; what masks compare stays exact.
  const auto fast = [](const char* text) {
    return expr::print_cuda(expr::parse(text, expr::Type::f32, {}), true);
  };
  EXPECT_NE(fast("tanh(score)").find("tanh_fast<Config::Element>(v0)"), std::string::npos);
  EXPECT_NE(fast("score / 20").find("(scale * inverse(20.0f)) * raw"), std::string::npos);
  EXPECT_NE(fast("score / score").find("__fdividef("), std::string::npos);
  has("score / score", "v0 / v0");
  has("log(score) + sqrt(score)", "sqrtf(v0)");
  has("score + trunc(score) % 3", "__float2int_rz(v0)");
  has("array b: bool[1]; b[q] ? score : 0.0", "load_b(env.a0, ");
}

TEST(CudaText, WhatAllPairsShareLeavesTheScore) {
  const auto split = [](const char* text) {
    const expr::CudaScore s = expr::cuda_score(expr::lift(expr::parse(text, expr::Type::f32, {})));
    return s.unit + " | " + s.value;
  };
  EXPECT_EQ(split("20 * tanh(score / 20)").substr(0, 10), "env.p0 | v");
  EXPECT_EQ(split("score * 2"), "env.p0 * scale | raw");
  EXPECT_EQ(split("score * 3 / 4"), "env.p0 * scale * inverse(env.p1) | raw");
  // A sum is in units of the scale, so that q.k needs no multiplication of its own.
  EXPECT_EQ(split("array slope: f32[1]; score + slope[head] * (k - q)").substr(0, 14),
            "scale | raw + ");
  const auto linear = [](const char* text) {
    return expr::cuda_score(expr::lift(expr::parse(text, expr::Type::f32, {}))).linear;
  };
  EXPECT_TRUE(linear("array slope: f32[1]; score - slope[head] * (q - k) * 0.5"));
  EXPECT_TRUE(linear("score * 2 + (k - q)"));
  EXPECT_FALSE(linear("array slope: f32[1]; score - slope[head] * abs(q - k)"));
  EXPECT_FALSE(linear("array slope: f32[1]; score - slope[head] * (q - k) * (q - k)"));
  EXPECT_FALSE(linear("array slope: f32[1]; score - slope[head] * (q - k) * score"));
  EXPECT_FALSE(linear("array slope: f32[1]; score - slope[q] * (q - k)"));
  EXPECT_FALSE(linear("array slope: f32[1]; score - slope[head] * (q - k) + slope[k]"));
  EXPECT_FALSE(linear("array slope: f32[1]; -score - slope[head] * (q - k)"));
  // The sign of a parameter is not known, and that of a negative literal is.
  EXPECT_EQ(split("param gain: f32 = 1; gain * score"), "scale | (v1) * raw");
  EXPECT_EQ(split("score * -2"), "scale | (v2) * raw");
  // Terms that all pairs share.
  EXPECT_EQ(split("score + 0.5"), "scale | raw + (env.p0 * inverse(scale))");
  EXPECT_EQ(split("array bias: f32[1]; score - bias[head]"), "scale | raw - (v2 * inverse(scale))");
  // Nothing to take out.
  EXPECT_EQ(split("k <= q ? score : -inf").substr(0, 8), "1.0f | v");
  EXPECT_EQ(split("2.5"), "1.0f | v0");
}

TEST(CudaText, AGradientWritesEveryRoot) {
  const auto g =
      expr::differentiate(expr::parse("array m: f32[1]; score * m[head]", expr::Type::f32, {}));
  const std::string text = expr::print_cuda(g.program);
  EXPECT_NE(text.find("out0 = "), std::string::npos);
  EXPECT_NE(text.find("out1 = "), std::string::npos);
  ASSERT_EQ(g.terms.size(), 1U);
  // The index of the term is a variable of the text.
  const std::string index = "const int v" + std::to_string(g.terms[0].index[0]) + " = head;";
  EXPECT_NE(text.find(index), std::string::npos);
}

}  // namespace
}  // namespace undivided
