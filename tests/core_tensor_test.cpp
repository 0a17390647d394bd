// SPDX-License-Identifier: Apache-2.0
// Claims about views and tensors: addresses, slices, copies, and what is refused.
#include <gtest/gtest.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

#include "core_support.hpp"
#include "undivided/error.hpp"
#include "undivided/tensor.hpp"

namespace undivided {
namespace {

TEST(View, WalksByStrides) {
  float data[2 * 3 * 4];
  const View v = view(data, {2, 3, 4});
  EXPECT_EQ(v.describe(), "f32 [2, 3, 4]");
  EXPECT_EQ(v.count(), 24);
  EXPECT_TRUE(v.contiguous());
  EXPECT_EQ(v.at({1, 2, 3}), data + 23);
  const View p = v.permuted({1, 0, 2});
  EXPECT_EQ(p.at({2, 1, 3}), data + 23);
  EXPECT_FALSE(p.contiguous());
  EXPECT_EQ(v.sliced(1, 1, 3).at({1, 1, 0}), data + 20);
  EXPECT_EQ(v.selected(0, 1).at({2, 3}), data + 23);
  EXPECT_EQ(v.selected(0, 1).rank, 2);
  EXPECT_EQ(v.unsqueezed(0).at({0, 1, 2, 3}), data + 23);
  EXPECT_EQ(v.unsqueezed(-1).at({1, 2, 3, 0}), data + 23);
  EXPECT_EQ(v.size(-1), 4);
  EXPECT_EQ(v.step(0), 12);
  EXPECT_FALSE(View());
  EXPECT_EQ(View().describe(), "not given");
}

TEST(View, CountsBeyondThirtyTwoBits) {
  char* base = nullptr;
  const View v = View::of(base, DType::f16, {1 << 20, 8, 1024, 64});
  const auto at = reinterpret_cast<std::uintptr_t>(v.at({(1 << 20) - 1, 7, 1023, 63}));
  EXPECT_EQ(at, 2u * ((1ull << 39) - 1));
}

TEST(View, RefusesByName) {
  float data[24];
  const View v = view(data, {2, 3, 4});
  EXPECT_EQ(refusal([&] { v.sliced(1, 0, 4); }),
            "sliced: range 0..4 of axis 1 of f32 [2, 3, 4]; allowed: within 0..3");
  EXPECT_EQ(refusal([&] { v.permuted({0, 0, 1}); }),
            "permuted: f32 [2, 3, 4] needs each axis 0 to 2 once");
  EXPECT_EQ(refusal([&] { v.selected(3, 0); }),
            "selected: axis 3 of f32 [2, 3, 4]; allowed: 0 to 2");
  EXPECT_EQ(refusal([&] { view(data, {1, 1, 1, 1, 24}); }), "a view has at most 4 axes, got 5");
  EXPECT_EQ(refusal([&] { Tensor::empty(DType::f32, {-1, 2}); }),
            "shape [-1, 2] has a negative size; sizes are 0 or more");
  EXPECT_EQ(refusal([&] { Tensor::empty(DType::f32, {1ll << 40, 1ll << 40}); }),
            "shape [1099511627776, 1099511627776] has more elements than memory can hold");
}

TEST(Tensor, ReportsWhenMemoryIsGone) {
  try {
    Tensor::empty(DType::f64, {1ll << 50});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::out_of_memory);
  }
}

TEST(Tensor, IsAlignedSharedAndMayBeEmpty) {
  const Tensor t = Tensor::zeros(DType::f32, {3, 5});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data) % 64, 0u);
  const Tensor same = t;
  same.ptr<float>()[7] = 2;
  EXPECT_EQ(t.ptr<float>()[7], 2);
  EXPECT_EQ(Tensor::zeros(DType::i8, {0, 4}).count(), 0);
}

#ifdef __linux__
/// Do the flags of the mapping that holds `address` ask for huge pages?
bool asks_for_huge_pages(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2)
      inside = begin <= reinterpret_cast<std::uintptr_t>(address) &&
               reinterpret_cast<std::uintptr_t>(address) < end;
    else if (inside && line.starts_with("VmFlags:"))
      return line.find(" hg") != std::string::npos;
  }
  return false;
}

TEST(Tensor, AsksForHugePagesFromOneMebibyteOn) {
  constexpr std::int64_t huge = 2 << 20;
  const Tensor small = Tensor::empty(DType::i8, {huge / 4}),
               half = Tensor::empty(DType::i8, {huge / 2}),
               large = Tensor::empty(DType::i8, {2 * huge});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small.data) % 256, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(half.data) % huge, 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.data) % huge, 0u);
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"))
    GTEST_SKIP() << "this kernel has no huge pages to ask for";
  EXPECT_TRUE(asks_for_huge_pages(half.data));
  EXPECT_TRUE(asks_for_huge_pages(large.data));
  EXPECT_TRUE(asks_for_huge_pages(large.ptr<std::int8_t>() + 2 * huge - 1));
  const int local = 0;
  EXPECT_FALSE(asks_for_huge_pages(&local));
}
#endif

TEST(Copy, ConvertsAndFollowsStrides) {
  const Tensor from = Tensor::empty(DType::f32, {2, 3});
  for (int i = 0; i < 6; ++i) from.ptr<float>()[i] = static_cast<float>(i) + 0.5f;
  const Tensor to = converted(from.permuted({1, 0}), DType::bf16);
  EXPECT_EQ(to.describe(), "bf16 [3, 2]");
  EXPECT_EQ(load_element(DType::bf16, to.at({2, 1})), 5.5);
  EXPECT_EQ(load_element(DType::bf16, to.at({1, 0})), 1.5);
  const Tensor big = Tensor::empty(DType::i64, {1});
  *big.ptr<std::int64_t>() = std::numeric_limits<std::int64_t>::max() - 1;
  EXPECT_EQ(*converted(big, DType::i64).ptr<std::int64_t>(), *big.ptr<std::int64_t>());
  EXPECT_EQ(refusal([&] { copy(from, to); }),
            "copy: shapes differ: from f32 [2, 3] to bf16 [3, 2]");
  View cuda = from;
  cuda.device = {Device::Kind::cuda, 1};
  EXPECT_EQ(refusal([&] { copy(cuda, from); }),
            "copy: from cuda:1 to cpu; only host views are copied here");
}

TEST(Error, KnowsItsNames) {
  const Error e(Code::io, Stage::parse, "x");
  EXPECT_STREQ(name_of(e.code()), "io");
  EXPECT_STREQ(name_of(e.stage()), "parse");
}

}  // namespace
}  // namespace undivided
