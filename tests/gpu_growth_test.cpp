// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: scores may grow from key to key as they like. The Hopper forward weighs
// keys against a reference that it rarely moves; rows whose weights outgrow it are done again.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "undivided/undivided.hpp"
#include "variants_support.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};
constexpr std::int64_t heads = 2, kv_heads = 1, tokens = 450;

class GpuGrowth : public testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

/// Queries near 1 in every dimension, so that the scores of key j lie near level(j).
struct Data {
  Tensor q, k, v;
  Data(DType dtype, std::int64_t d, std::int64_t q_len, double (*level)(std::int64_t j))
      : q(noise(dtype, {2, heads, q_len, d}, 1, .1)),
        k(noise(dtype, {2, kv_heads, tokens, d}, 2, .1)),
        v(noise(dtype, {2, kv_heads, tokens, d}, 3)) {
    const auto shift = [&](Tensor& t, auto&& by) {
      for (std::int64_t i = 0; i < t.count(); ++i)
        store_element(dtype, element(t, i), value(t, i) + by(i / d));
    };
    shift(q, [](std::int64_t) { return 1.0; });
    shift(k, [&](std::int64_t row) {
      return level(row % tokens) / std::sqrt(static_cast<double>(d));
    });
  }
};

// Keys are met in descending order.
double stairs(std::int64_t j) {  // 20 more than any weight holds, each 110 keys
  return 110.0 * static_cast<double>((tokens - j) / 110);
}
double gentle(std::int64_t j) {  // some powers of two a tile
  return static_cast<double>(tokens - j) / 30;
}
double peaks(std::int64_t j) { return j % 211 == 210 ? 250.0 : -40.0; }
double rising(std::int64_t j) { return static_cast<double>(j); }

void expect_same(const Tensor& on_device, const Tensor& want, double limit) {
  const Tensor got = cuda::to_host(on_device);
  double worst = 0;
  for (std::int64_t i = 0; i < want.count(); ++i) {
    const double x = value(got, i), y = value(want, i);
    if (x != y && !(std::isnan(x) && std::isnan(y)))
      worst = std::isfinite(x - y) ? std::max(worst, std::abs(x - y)) : INFINITY;
  }
  EXPECT_LT(worst, limit);
}

}  // namespace

TEST_F(GpuGrowth, ScoresThatOutgrowEveryWeightAgreeWithTheOracle) {
  const Array slope(std::vector<float>{.3F, -.5F}, "slope");
  const std::array<std::int32_t, 2> used{tokens, 290};
  const View lengths = view(used.data(), {2});
  int cases = 0;
  for (const auto level : {stairs, gentle, peaks, rising})
    for (const std::int64_t d : {64, 128, 256})
      for (const std::int64_t q_len : {tokens, std::int64_t{3}}) {
        const DType dtype = cases++ % 2 ? DType::f16 : DType::bf16;
        const Data data(dtype, d, q_len, level);
        const Tensor q = cuda::to_device(data.q, gpu), k = cuda::to_device(data.k, gpu),
                     v = cuda::to_device(data.v, gpu);
        std::vector<std::pair<const char*, Options>> all = {
            {"causal", {.mask = causal()}},
            {"full", {}},
            {"window", {.mask = causal() && window(250)}},
            {"plan", {.mask = causal() && mask([](auto, auto, auto i, auto j) {
                                return i / 250 == j / 250 || j % 3 == 0;
                              })}},
            {"alibi", {.mask = causal(), .score = score([=](auto s, auto, auto h, auto i, auto j) {
                                           return s + slope[h] * (j - i);
                                         })}}};
        if (d != 128) all.resize(1);
        for (auto [name, options] : all)
          for (const bool ragged : {false, true}) {
            SCOPED_TRACE(testing::Message()
                         << name << " d " << d << " queries " << q_len << " " << name_of(dtype)
                         << " case " << cases << (ragged ? " lengths" : ""));
            options.align = Align::end;
            Kv here = dense(data.k, data.v), there = dense(k, v);
            if (ragged) here.lengths = there.lengths = lengths;
            const Forward want = reference(data.q, here, options);
            const Forward got = attention(q, there, options);
            expect_same(got.o, want.o, .03);
            expect_same(got.lse, want.lse, 2e-3);
            // The same bits again: warps that were right the first time leave their rows alone.
            const Tensor once = cuda::to_host(got.o),
                         again = cuda::to_host(attention(q, there, options).o);
            EXPECT_EQ(
                std::memcmp(
                    once.data, again.data, static_cast<std::size_t>(once.count()) * size_of(dtype)),
                0);
          }
      }
}

TEST_F(GpuGrowth, NaNStaysInTheRowsThatSeeIt) {
  Data data(DType::bf16, 128, tokens, gentle);
  for (const std::int64_t j : {5, 300})  // of the first KV head: in the first tile, and later
    store_element(DType::bf16, element(data.k, j * 128 + 7), std::nan(""));
  const Options options{.mask = causal() && window(200), .align = Align::start};
  const Forward want = reference(data.q, dense(data.k, data.v), options);
  const Forward got = attention(cuda::to_device(data.q, gpu),
                                dense(cuda::to_device(data.k, gpu), cuda::to_device(data.v, gpu)),
                                options);
  expect_same(got.o, want.o, .03);
  EXPECT_TRUE(std::isnan(value(want.o, 310 * 128)));
  EXPECT_FALSE(std::isnan(value(want.o, 250 * 128)));
}

TEST_F(GpuGrowth, AScaleOfAnySignIsTheOracles) {
  const Data data(DType::f16, 64, tokens, gentle);
  for (const double scale : {-0.05, 0.0, 0.3})
    for (const bool capped : {false, true}) {
      SCOPED_TRACE(testing::Message() << scale << (capped ? " softcap" : ""));
      Options options{.mask = causal(), .align = Align::start};
      if (capped) options.score = softcap(5);
      options.scale = scale;
      const Forward want = reference(data.q, dense(data.k, data.v), options);
      const Tensor q = cuda::to_device(data.q, gpu), k = cuda::to_device(data.k, gpu),
                   v = cuda::to_device(data.v, gpu);
      const Forward got = attention(q, dense(k, v), options);
      expect_same(got.o, want.o, .03);
      expect_same(got.lse, want.lse, 2e-3);
      const Gradients g = attention_backward(q, q, k, v, got);
      const Gradients exact = attention_backward(
          converted(data.q, DType::f64),
          converted(data.q, DType::f64),
          converted(data.k, DType::f64),
          converted(data.v, DType::f64),
          reference(converted(data.q, DType::f64),
                    dense(converted(data.k, DType::f64), converted(data.v, DType::f64)),
                    options));
      for (const auto& [ours, theirs] : {std::pair{g.q, exact.q}, {g.k, exact.k}, {g.v, exact.v}}) {
        double largest = 1e-3;
        for (std::int64_t i = 0; i < theirs.count(); ++i)
          largest = std::max(largest, std::abs(value(theirs, i)));
        expect_same(ours, theirs, .02 * largest);
      }
    }
}

}  // namespace undivided
