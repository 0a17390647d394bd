// SPDX-License-Identifier: Apache-2.0
// Claims about randomness: the published Philox vectors, the dropout decision, seeded tensors.
#include <gtest/gtest.h>

#include <cmath>

#include "core/generator.hpp"
#include "core/philox.hpp"

namespace undivided {
namespace {

TEST(Philox, GivesThePublishedVectors) {
  EXPECT_EQ(philox::random4({0, 0, 0, 0}, {0, 0}),
            (philox::Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox::random4({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (philox::Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox::random4({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (philox::Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Dropout, CountsKeyQueryHeadBatchUnderTheSeed) {
  const std::uint64_t seed = 0x299f31d0a4093822;  // low word a4093822
  const std::int64_t k = 4ll * 0x243f6a88 + 1;
  // Positions count as uint32, so k >> 2 has 30 bits.
  EXPECT_EQ(philox::dropout_words(seed, 3, 2, 1, 7),
            philox::random4({1, 1, 2, 3}, {0xa4093822, 0x299f31d0}));
  EXPECT_EQ(philox::dropout_words(seed, 0, 0, 0, k),
            philox::random4({0x243f6a88 & 0x3fffffff, 0, 0, 0}, {0xa4093822, 0x299f31d0}));
}

TEST(Dropout, KeepsAWeightWhoseWordReachesTheThreshold) {
  const philox::Counter w = philox::dropout_words(5, 0, 0, 0, 0);
  for (std::uint32_t k = 0; k < 4; ++k) {
    EXPECT_TRUE(philox::keep(5, w[k], 0, 0, 0, k));
    EXPECT_FALSE(philox::keep(5, w[k] + 1, 0, 0, 0, k));
  }
  EXPECT_EQ(philox::dropout_threshold(0), 0u);
  EXPECT_EQ(philox::dropout_threshold(0.5), 0x80000000u);
  EXPECT_EQ(philox::dropout_threshold(0.1), 429496729u);
  EXPECT_EQ(philox::dropout_threshold(std::nextafter(1.0, 0.0)), 0xffffffffu);
}

TEST(Dropout, KeepsTheAskedShare) {
  int kept = 0;
  for (int q = 0; q < 200; ++q)
    for (int k = 0; k < 200; ++k)
      kept += philox::keep(1, philox::dropout_threshold(0.3), 0, 0, q, k);
  EXPECT_NEAR(kept / 40000.0, 0.7, 0.01);  // more than four standard deviations
}

TEST(Generator, IsNormalAndTheSameForEveryStrideAndType) {
  const Tensor t = random_normal(DType::f32, {2, 3, 50, 64}, 42);
  double sum = 0, squares = 0, fourth = 0;
  const float* x = t.ptr<float>();
  for (std::int64_t i = 0; i < t.count(); ++i) {
    sum += x[i];
    squares += x[i] * x[i];
    fourth += std::pow(x[i], 4);
  }
  const double n = static_cast<double>(t.count());
  EXPECT_NEAR(sum / n, 0, 0.03);
  EXPECT_NEAR(squares / n, 1, 0.05);
  EXPECT_NEAR(fourth / n, 3, 0.3);

  const Tensor storage = Tensor::zeros(DType::f64, {2, 50, 3, 64});
  const View swapped = storage.permuted({0, 2, 1, 3});
  fill_normal(swapped, 42);
  EXPECT_EQ(static_cast<float>(load_element(DType::f64, swapped.at({1, 2, 49, 63}))),
            x[t.count() - 1]);
}

// The first values are part of the promise: committed results depend on them.
TEST(Generator, GivesKnownValues) {
  const Tensor t = random_normal(DType::f64, {4}, 1);
  const philox::Counter w = philox::random4({0, 0, 1, 0}, {1, 0});
  for (int pair = 0; pair < 2; ++pair) {
    const double radius = std::sqrt(-2 * std::log((w[2 * pair] + 1.0) / 4294967296.0));
    const double angle = 2 * M_PI * w[2 * pair + 1] / 4294967296.0;
    EXPECT_NEAR(t.ptr<double>()[2 * pair], radius * std::cos(angle), 1e-14);
    EXPECT_NEAR(t.ptr<double>()[2 * pair + 1], radius * std::sin(angle), 1e-14);
  }
}

TEST(Generator, UniformStaysInItsRange) {
  const Tensor t = Tensor::empty(DType::i32, {1000});
  fill_uniform(t, 9, -2, 3);
  int seen[5] = {};
  for (int i = 0; i < 1000; ++i) {
    const int v = t.ptr<std::int32_t>()[i];
    ASSERT_GE(v, -2);
    ASSERT_LT(v, 3);
    ++seen[v + 2];
  }
  for (int count : seen) EXPECT_GT(count, 140);
}

}  // namespace
}  // namespace undivided
