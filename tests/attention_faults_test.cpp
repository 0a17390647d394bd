// SPDX-License-Identifier: Apache-2.0
// Claims: every gate can fail. Errors of ten times the limit, and the mistakes that kernels really
// make, are caught.
#include <gtest/gtest.h>

#include <cmath>

#include "check/check.hpp"
#include "check/compare.hpp"
#include "check/inputs.hpp"
#include "check/programs.hpp"

namespace undivided::check {
namespace {

// ---- the comparison alone ----

std::vector<double> waves(std::size_t n) {
  std::vector<double> out;
  for (std::size_t i = 0; i < n; ++i) out.push_back(std::sin(0.37 * static_cast<double>(i)));
  return out;
}

class Gates : public testing::TestWithParam<std::tuple<DType, bool>> {};

TEST_P(Gates, LetHalfTheLimitPassAndCatchTenTimesTheLimit) {
  const auto [dtype, gradient] = GetParam();
  const Gate gate{dtype, gradient, false};
  const Reading oracle{"o", DType::f64, waves(500), 0};
  Reading twin{"o", dtype, oracle.values, 0};
  for (std::size_t i = 0; i < twin.values.size(); ++i) twin.values[i] += i % 2 ? 1e-3 : -1e-3;
  const double limit = compare({"o", dtype, oracle.values, 0}, oracle, {twin}, gate).limit;
  ASSERT_GT(limit, 0);
  Reading result{"o", dtype, oracle.values, 0};
  result.values[123] += 0.5 * limit;
  EXPECT_TRUE(compare(result, oracle, {twin}, gate).passed);
  result.values[123] = oracle.values[123] + 10 * limit;
  EXPECT_FALSE(compare(result, oracle, {twin}, gate).passed);
}
INSTANTIATE_TEST_SUITE_P(All,
                         Gates,
                         testing::Combine(testing::Values(DType::f32, DType::f16, DType::bf16),
                                          testing::Bool()));

TEST(Gate, FollowsTheTwinForSixteenBitsAndTheOracleForFloat) {
  const Reading oracle{"o", DType::f64, {1.0, -0.5, 0.25}, 0};
  const Reading twin{"o", DType::bf16, {1.01, -0.5, 0.25}, 0};
  const Reading exact{"o", DType::bf16, oracle.values, 0};
  const double one_ulp = 0x1p-7;
  EXPECT_NEAR(compare(exact, oracle, {twin}, {DType::bf16}).limit, 2 * 0.01 + one_ulp, 1e-12);
  EXPECT_NEAR(compare(exact, oracle, {twin}, {DType::bf16, true}).limit, 3 * 0.01 + one_ulp, 1e-12);
  EXPECT_NEAR(compare(exact, oracle, {twin}, {DType::f32}).limit, 1e-5, 1e-12);
  EXPECT_NEAR(compare(exact, oracle, {twin}, {DType::f32, true}).limit, 3e-5, 1e-12);
}

TEST(Gate, RelativeL1CatchesAnErrorThatIsSmallEverywhere) {
  const Reading oracle{"o", DType::f64, waves(1000), 0};
  Reading twin{"o", DType::bf16, oracle.values, 0}, result = twin;
  twin.values[7] += 0.02;  // one large error allows the maximum, not a drift
  for (double& x : result.values) x *= 1.02;
  const Comparison c = compare(result, oracle, {twin}, {DType::bf16});
  EXPECT_FALSE(c.passed);
  EXPECT_NEAR(c.gain, 1.02, 1e-9);
  EXPECT_NE(c.reason.find("relative L1"), std::string::npos) << c.reason;
}

TEST(Gate, NaNAndInfinityMustBeWhereTheOracleHasThem) {
  const Reading oracle{"lse", DType::f64, {1.0, -INFINITY, 2.0}, 0};
  EXPECT_TRUE(compare({"lse", DType::f32, {1.0, -INFINITY, 2.0}, 0}, oracle, {}, {}).passed);
  EXPECT_FALSE(compare({"lse", DType::f32, {1.0, INFINITY, 2.0}, 0}, oracle, {}, {}).passed);
  EXPECT_FALSE(compare({"lse", DType::f32, {1.0, -1e30, 2.0}, 0}, oracle, {}, {}).passed);
  EXPECT_FALSE(compare({"lse", DType::f32, {NAN, -INFINITY, 2.0}, 0}, oracle, {}, {}).passed);
  EXPECT_FALSE(compare({"lse", DType::f32, {1.0, -INFINITY}, 0}, oracle, {}, {}).passed);
}

TEST(Gate, UlpsAreThoseOfTheFormats) {
  EXPECT_EQ(ulp(DType::bf16, 1.0), 0x1p-7);
  EXPECT_EQ(ulp(DType::f16, 1.5), 0x1p-10);
  EXPECT_EQ(ulp(DType::f32, 4.0), 0x1p-21);
  EXPECT_EQ(ulp(DType::f16, 1e-9), 0x1p-24);
}

TEST(Buffers, NoticeAStrayWriteOfOneElement) {
  for (const char* layout : {"packed", "tokens", "padded", "unaligned"}) {
    const Buffer b(DType::f16, {2, 3, 5, 8}, layout);
    const View v = b.view();
    EXPECT_TRUE(b.untouched_outside());
    store_element(v.dtype, v.at({1, 2, 4, 7}), 1.0);
    EXPECT_TRUE(b.untouched_outside()) << layout;
    auto* last = static_cast<std::uint16_t*>(v.data) + (v.count() - 1);
    if (std::string(layout) == "packed") {
      last[1] = 0x3c00;
      EXPECT_FALSE(b.untouched_outside());
    } else if (std::string(layout) == "padded") {
      static_cast<std::uint16_t*>(v.at({0, 0, 0, 7}))[1] = 0x3c00;
      EXPECT_FALSE(b.untouched_outside());
    }
  }
}

// ---- whole cases: the backend gets spoiled inputs, the oracle the true ones ----

struct Mistake {
  const char* what;
  const char* axes;  // what the case must have for the mistake to matter
  Fault fault;
};

std::vector<Mistake> mistakes() {
  const auto and_mask = [](Inputs& in, Mask m) { in.options.mask = in.options.mask && m; };
  return {
      {"a dropped key",
       "",
       [=](Inputs& in) { and_mask(in, mask([](auto, auto, auto, auto k) { return k != 5; })); }},
      {"the last key left out",
       "",
       [=](Inputs& in) {
         and_mask(in, mask([](auto, auto, auto, auto k) { return k < k_len(k) - 1; }));
       }},
      {"a scale that is 10 % off", "", [](Inputs& in) { in.options.scale = 1.1 / 8; }},
      {"a causal mask off by one",
       ".mask=causal",
       [](Inputs& in) {
         in.options.mask = mask([](auto, auto, auto q, auto k) { return k < q; });
       }},
      {"the other alignment", ".mask=causal", [](Inputs& in) { in.options.align = Align::end; }},
      {"a window one key too wide",
       ".mask=window",
       [](Inputs& in) { in.options.mask = window(34, 0); }},
      {"a missing sink", ".sink=given", [](Inputs& in) { in.options.sink = {}; }},
      {"heads of the sink mixed up",
       ".sink=given",
       [](Inputs& in) {
         in.options.sink.data = static_cast<float*>(in.options.sink.data) + 1;
         in.options.sink.stride[0] = -1;
       }},
      {"a missing softcap", ".score=softcap", [](Inputs& in) { in.options.score = identity(); }},
      {"a softcap after the mask's neighbour",
       ".score=alibi",
       [](Inputs& in) { in.options.score = make_score("chain", {1, 2, 129, 257}, 1); }},
      {"another dropout seed", ".dropout=some", [](Inputs& in) { in.options.seed += 1; }},
      {"dropout that does not rescale",
       ".dropout=some",
       [](Inputs& in) { in.options.dropout = 0.2; }},
  };
}

class Faults : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(Faults, AreCaught) {
  const auto [op, dtype] = GetParam();
  std::string last;
  for (const Mistake& m : mistakes()) {
    const Case c = Case::parse(std::string(op) + "." + dtype + ".d64.q129.k257.h2x2.b1" + m.axes);
    if (c.name() != last) {  // mistakes in one case stand beside each other
      const Result good = run_case(c);
      EXPECT_TRUE(good.passed) << c.name() << ": " << good.reason;
    }
    last = c.name();
    const Result bad = run_case(c, Backend::cpu, m.fault);
    EXPECT_FALSE(bad.skipped) << bad.reason;
    EXPECT_FALSE(bad.passed) << m.what << " passes as " << c.name();
  }
}
INSTANTIATE_TEST_SUITE_P(Grid,
                         Faults,
                         testing::Combine(testing::Values("forward", "backward"),
                                          testing::Values("f32", "f16", "bf16")));

}  // namespace
}  // namespace undivided::check
