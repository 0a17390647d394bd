// SPDX-License-Identifier: Apache-2.0
// Claims about the number formats: exact round trips, one rounding to nearest even, NaN kept.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/half.hpp"
#include "undivided/error.hpp"
#include "undivided/tensor.hpp"

namespace undivided {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

TEST(Half, EveryPatternSurvivesTheTripThroughFloat) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float x = to_float(half);
    const std::uint16_t back = to_half(x).bits, direct = f16_from_double(x);
    if (std::isnan(x)) {
      EXPECT_EQ(back & 0x7c00, 0x7c00);
      EXPECT_NE(back & 0x3ff, 0);
      EXPECT_EQ(back & 0x8000, bits & 0x8000);
      EXPECT_TRUE(std::isnan(to_float(Half{direct})));
    } else {
      ASSERT_EQ(back, bits);
      ASSERT_EQ(direct, bits);
    }
  }
}

TEST(BFloat16, EveryPatternSurvivesTheTripThroughFloat) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float x = to_float(BFloat16{static_cast<std::uint16_t>(bits)});
    const std::uint16_t back = to_bfloat16(x).bits;
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(to_float(BFloat16{back})));
      EXPECT_TRUE(std::isnan(to_float(BFloat16{bf16_from_double(x)})));
    } else {
      ASSERT_EQ(back, bits);
      ASSERT_EQ(bf16_from_double(x), bits);
    }
  }
}

TEST(Float8, EveryPatternSurvivesTheTripThroughDouble) {
  for (int bits = 0; bits < 256; ++bits) {
    const auto b = static_cast<std::uint8_t>(bits);
    const double e4 = load_element(DType::e4m3, &b), e5 = load_element(DType::e5m2, &b);
    if (!std::isnan(e4)) EXPECT_EQ(e4m3_from_double(e4), bits);
    if (!std::isnan(e5)) EXPECT_EQ(e5m2_from_double(e5), bits);
    EXPECT_EQ(std::isnan(e4), (bits & 0x7f) == 0x7f);
    EXPECT_EQ(std::isnan(e5), (bits & 0x7f) > 0x7c);
  }
}

// Between two neighbours lies one midpoint: it goes to the even one, its neighbours to theirs.
TEST(Half, RoundsToNearestEvenBetweenAllNeighbours) {
  for (std::uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const double low = to_float(Half{bits});
    const double high = to_float(Half{static_cast<std::uint16_t>(bits + 1)});
    const double middle = (low + high) / 2;  // exact in float too
    const std::uint16_t even = bits & 1 ? bits + 1 : bits;
    ASSERT_EQ(to_half(static_cast<float>(middle)).bits, even);
    ASSERT_EQ(f16_from_double(middle), even);
    ASSERT_EQ(f16_from_double(std::nextafter(middle, 0.0)), bits);
    ASSERT_EQ(f16_from_double(std::nextafter(middle, 1e9)), bits + 1);
    ASSERT_EQ(to_half(std::nextafter(static_cast<float>(middle), 0.0f)).bits, bits);
    ASSERT_EQ(to_half(std::nextafter(static_cast<float>(middle), infinity)).bits, bits + 1);
  }
}

TEST(BFloat16, RoundsToNearestEvenBetweenAllNeighbours) {
  for (std::uint16_t bits = 0; bits < 0x7f7f; ++bits) {
    const double low = to_float(BFloat16{bits});
    const double high = to_float(BFloat16{static_cast<std::uint16_t>(bits + 1)});
    const double middle = (low + high) / 2;
    const std::uint16_t even = bits & 1 ? bits + 1 : bits;
    ASSERT_EQ(to_bfloat16(static_cast<float>(middle)).bits, even);
    ASSERT_EQ(bf16_from_double(middle), even);
    ASSERT_EQ(bf16_from_double(std::nextafter(middle, 1e300)), bits + 1);
  }
}

TEST(Half, LargeValuesBecomeInfinityOnlyAboveTheLastMidpoint) {
  EXPECT_EQ(to_half(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_half(65519.99f).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_half(-infinity).bits, 0xfc00);
  EXPECT_EQ(f16_from_double(65519.999999999), 0x7bff);
  EXPECT_EQ(f16_from_double(1e300), 0x7c00);
  EXPECT_EQ(f16_from_double(-0.0), 0x8000);
  EXPECT_EQ(f16_from_double(5e-324), 0);
}

// 1 + 2^-11 + 2^-30 is above the midpoint; through float it would become the midpoint.
TEST(Half, FromDoubleRoundsOnce) { EXPECT_EQ(f16_from_double(1 + 0x1p-11 + 0x1p-30), 0x3c01); }

TEST(Float8, E4m3SaturatesAndE5m2Overflows) {
  EXPECT_EQ(e4m3_from_double(448), 0x7e);
  EXPECT_EQ(e4m3_from_double(1e9), 0x7e);
  EXPECT_EQ(e4m3_from_double(-infinity), 0xfe);
  EXPECT_EQ(e4m3_from_double(NAN) & 0x7f, 0x7f);
  EXPECT_EQ(e4m3_from_double(0x1p-9), 1);   // smallest subnormal
  EXPECT_EQ(e4m3_from_double(0x1p-10), 0);  // a tie, to even
  EXPECT_EQ(e5m2_from_double(57344), 0x7b);
  EXPECT_EQ(e5m2_from_double(1e9), 0x7c);
  EXPECT_TRUE(std::isnan(float_from_e5m2(e5m2_from_double(NAN))));
}

TEST(Elements, IntegersSaturateAndRound) {
  std::int8_t i8 = 0;
  store_element(DType::i8, &i8, 127.6);
  EXPECT_EQ(i8, 127);
  store_element(DType::i8, &i8, -1000);
  EXPECT_EQ(i8, -128);
  store_element(DType::i8, &i8, 2.5);
  EXPECT_EQ(i8, 2);
  std::int32_t i32 = 7;
  store_element(DType::i32, &i32, NAN);
  EXPECT_EQ(i32, 0);
  std::int64_t i64 = 0;
  store_element(DType::i64, &i64, 1e30);
  EXPECT_EQ(i64, std::numeric_limits<std::int64_t>::max());
}

TEST(Elements, NamesAndSizesAgree) {
  for (int i = 0; i < 10; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
    EXPECT_GE(size_of(dtype), 1u);
  }
  try {
    dtype_from_name("float16");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::invalid_argument);
    EXPECT_STREQ(e.what(),
                 "'float16' is not an element type; allowed: f64, f32, f16, bf16, i8, e4m3, e5m2, "
                 "i32, i64, bool");
  }
}

}  // namespace
}  // namespace undivided
