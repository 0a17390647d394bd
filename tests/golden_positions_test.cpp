// SPDX-License-Identifier: Apache-2.0
// Claims: which key each query sees, written out by hand for every alignment, origin and library
// mask. V is the identity and all scores are equal, so a row of O shows its kept keys.
#include <gtest/gtest.h>

#include <limits>

#include "undivided/undivided.hpp"

namespace undivided {
namespace {

/// One string for each query: 'x' where the key is kept.
using Picture = std::vector<std::string>;

Picture picture(std::int64_t nq,
                std::int64_t nk,
                const Options& options,
                Backend backend,
                std::int64_t batch = 1,
                std::int64_t which = 0) {
  const Tensor q = Tensor::zeros(DType::f32, {batch, 1, nq, 8});
  const Tensor k = Tensor::zeros(DType::f32, {batch, 1, nk, 8});
  const Tensor v = Tensor::zeros(DType::f32, {batch, 1, nk, nk});
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t j = 0; j < nk; ++j) *static_cast<float*>(v.at({b, 0, j, j})) = 1;
  Context context;
  context.backend = backend;
  const Forward f = attention(q, k, v, options, context);
  Picture out;
  for (std::int64_t i = 0; i < nq; ++i) {
    std::string row;
    float sum = 0;
    for (std::int64_t j = 0; j < nk; ++j) {
      const float w = *static_cast<float*>(f.o.at({which, 0, i, j}));
      row += w > 0 ? 'x' : '.';
      sum += w;
    }
    EXPECT_TRUE(row.find('x') == std::string::npos ? sum == 0 : std::abs(sum - 1) < 1e-6) << row;
    if (row.find('x') == std::string::npos)
      EXPECT_EQ(*static_cast<float*>(f.lse.at({which, 0, i})),
                -std::numeric_limits<float>::infinity());
    out.push_back(row);
  }
  return out;
}

class Positions : public testing::TestWithParam<Backend> {
 protected:
  Picture see(std::int64_t nq, std::int64_t nk, const Options& o) const {
    return picture(nq, nk, o, GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(Backends,
                         Positions,
                         testing::Values(Backend::reference, Backend::cpu),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST_P(Positions, CausalAtTheStartIsTheUpperLeftTriangle) {
  EXPECT_EQ(see(3, 5, {.mask = causal(), .align = Align::start}),
            (Picture{"x....", "xx...", "xxx.."}));
  EXPECT_EQ(see(5, 3, {.mask = causal(), .align = Align::start}),
            (Picture{"x..", "xx.", "xxx", "xxx", "xxx"}));
}

TEST_P(Positions, CausalAtTheEndIsTheLowerRightTriangle) {
  EXPECT_EQ(see(3, 5, {.mask = causal(), .align = Align::end}),
            (Picture{"xxx..", "xxxx.", "xxxxx"}));
  EXPECT_EQ(see(5, 3, {.mask = causal(), .align = Align::end}),
            (Picture{"...", "...", "x..", "xx.", "xxx"}));
  EXPECT_EQ(see(1, 4, {.mask = causal(), .align = Align::end}), (Picture{"xxxx"}));
}

TEST_P(Positions, EqualLengthsNeedNoAlignment) {
  EXPECT_EQ(see(3, 3, {.mask = causal()}), (Picture{"x..", "xx.", "xxx"}));
}

TEST_P(Positions, ExplicitOriginsSayWhereEachSequenceIs) {
  std::vector<std::int32_t> q_origin{4}, k_origin{3};
  EXPECT_EQ(see(2,
                5,
                {.mask = causal(),
                 .q_origin = view(q_origin.data(), {1}),
                 .k_origin = view(k_origin.data(), {1})}),
            (Picture{"xx...", "xxx.."}));
  std::vector<std::int64_t> late{2};
  EXPECT_EQ(see(2, 5, {.mask = causal(), .q_origin = view(late.data(), {1})}),
            (Picture{"xxx..", "xxxx."}));
  // A shard of keys that begins at 3: query 2 has seen none of them.
  EXPECT_EQ(see(3,
                2,
                {.mask = causal(),
                 .q_origin = view(late.data(), {1}),
                 .k_origin = view(k_origin.data(), {1})}),
            (Picture{"..", "x.", "xx"}));
}

TEST_P(Positions, OriginsDifferBetweenSequences) {
  std::vector<std::int32_t> q_origin{0, 3};
  const Options o{.mask = causal(), .q_origin = view(q_origin.data(), {2})};
  EXPECT_EQ(picture(2, 4, o, GetParam(), 2, 0), (Picture{"x...", "xx.."}));
  EXPECT_EQ(picture(2, 4, o, GetParam(), 2, 1), (Picture{"xxxx", "xxxx"}));
}

TEST_P(Positions, WindowCountsKeysOnEachSide) {
  EXPECT_EQ(see(5, 5, {.mask = window(1, 0)}),
            (Picture{"x....", "xx...", ".xx..", "..xx.", "...xx"}));
  EXPECT_EQ(see(5, 5, {.mask = window(1, 2)}),
            (Picture{"xxx..", "xxxx.", ".xxxx", "..xxx", "...xx"}));
  EXPECT_EQ(see(4, 4, {.mask = window(1)}), (Picture{"xx..", "xxx.", ".xxx", "..xx"}));
  EXPECT_EQ(see(4, 4, {.mask = causal() && window(2)}), (Picture{"x...", "xx..", "xxx.", ".xxx"}));
  EXPECT_EQ(see(2, 5, {.mask = window(1, 0), .align = Align::end}), (Picture{"..xx.", "...xx"}));
}

TEST_P(Positions, PrefixSeesItsBeginningFromEverywhere) {
  EXPECT_EQ(see(5, 5, {.mask = prefix(2)}), (Picture{"xx...", "xx...", "xxx..", "xxxx.", "xxxxx"}));
  EXPECT_EQ(see(2, 5, {.mask = prefix(3), .align = Align::start}), (Picture{"xxx..", "xxx.."}));
}

TEST_P(Positions, DocumentsKeepToThemselves) {
  const Array id(std::vector<std::int32_t>{7, 7, 2, 2, 2});
  EXPECT_EQ(see(5, 5, {.mask = documents(id)}),
            (Picture{"xx...", "xx...", "..xxx", "..xxx", "..xxx"}));
  EXPECT_EQ(see(5, 5, {.mask = causal() && documents(id)}),
            (Picture{"x....", "xx...", "..x..", "..xx.", "..xxx"}));
  EXPECT_EQ(see(2, 5, {.mask = documents(id), .align = Align::end}), (Picture{"..xxx", "..xxx"}));
}

TEST_P(Positions, MasksCombineAsSets) {
  EXPECT_EQ(see(3, 3, {.mask = !causal()}), (Picture{".xx", "..x", "..."}));
  EXPECT_EQ(see(3, 3, {.mask = causal() || window(0, 1)}), (Picture{"xx.", "xxx", "xxx"}));
}

TEST_P(Positions, LengthsAreThoseOfTheSequence) {
  const Mask last = mask([](auto, auto, auto, auto k) { return k == k_len(k) - 1; });
  EXPECT_EQ(see(2, 4, {.mask = last, .align = Align::start}), (Picture{"...x", "...x"}));
  const Mask mirror = mask([](auto, auto, auto q, auto k) { return k == q_len(q) - 1 - q; });
  EXPECT_EQ(see(3, 3, {.mask = mirror}), (Picture{"..x", ".x.", "x.."}));
}

TEST_P(Positions, FloorDivisionAndModulusReachBelowZero) {
  // Aligned at the end, three queries and one key: positions -2, -1, 0.
  const Mask halves = mask([](auto, auto, auto q, auto) { return q / 2 == -1; });
  EXPECT_EQ(see(3, 1, {.mask = halves, .align = Align::end}), (Picture{"x", "x", "."}));
  const Mask odd = mask([](auto, auto, auto q, auto) { return q % 2 == 1; });
  EXPECT_EQ(see(3, 1, {.mask = odd, .align = Align::end}), (Picture{".", "x", "."}));
}

}  // namespace
}  // namespace undivided
