// SPDX-License-Identifier: Apache-2.0
// Claims: the loop orders of FlashAttention 1 and 2 compute attention, and move exactly the
// elements of the closed forms; traffic of the first falls as 1 / M, and with the share of kept
// blocks.
#include <array>

#include "lab/loop_orders.hpp"
#include "variants_support.hpp"

namespace undivided::lab {
namespace {

Matrix wave_matrix(std::int64_t rows, std::int64_t columns, int c) {
  Matrix m(rows, columns);
  for (std::size_t i = 0; i < m.data.size(); ++i)
    m.data[i] = std::sin(.1 * (c + 1) * static_cast<double>(i) + c);
  return m;
}
View as_view(const Matrix& m) {
  return view(const_cast<double*>(m.data.data()), {1, 1, m.rows, m.columns});
}
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

class Loops : public testing::TestWithParam<std::array<std::int64_t, 3>> {
 protected:
  const std::int64_t n = GetParam()[0], d = 4;
  const Blocks blocks{GetParam()[1], GetParam()[2]};
  const std::int64_t tr = ceil_div(n, blocks.q), tc = ceil_div(n, blocks.k), nd = n * d;
  const Matrix q = wave_matrix(n, d, 0), k = wave_matrix(n, d, 1), v = wave_matrix(n, d, 2),
               dout = wave_matrix(n, d, 3);
};

TEST_P(Loops, ForwardEqualsTheOracle) {
  const Forward f = reference(as_view(q), dense(as_view(k), as_view(v)));
  for (const Result& r :
       {standard(q, k, v, .5), flash1(q, k, v, .5, blocks), flash2(q, k, v, .5, blocks)}) {
    EXPECT_LT(largest_difference(f.o, as_view(r.o)), 1e-13);
    for (std::int64_t i = 0; i < n; ++i) EXPECT_NEAR(r.lse[i], value(f.lse, i), 1e-13);
  }
}

TEST_P(Loops, BackwardEqualsTheOracle) {
  const Gradients g = reference_backward(as_view(dout), as_view(q), dense(as_view(k), as_view(v)));
  for (const ResultBackward& r :
       {flash1_backward(q, k, v, flash1(q, k, v, .5, blocks), dout, .5, blocks),
        flash2_backward(q, k, v, flash2(q, k, v, .5, blocks), dout, .5, blocks)}) {
    EXPECT_LT(largest_difference(g.q, as_view(r.dq)), 1e-13);
    EXPECT_LT(largest_difference(g.k, as_view(r.dk)), 1e-13);
    EXPECT_LT(largest_difference(g.v, as_view(r.dv)), 1e-13);
  }
}

TEST_P(Loops, TrafficIsThatOfTheClosedForms) {
  EXPECT_EQ(standard(q, k, v, .5).traffic.total(), 4 * nd + 4 * n * n);
  const Result one = flash1(q, k, v, .5, blocks), two = flash2(q, k, v, .5, blocks);
  EXPECT_EQ(one.traffic.total(), 2 * nd + tc * (3 * nd + 4 * n));
  EXPECT_EQ(one.traffic.stores, tc * (nd + 2 * n));
  EXPECT_EQ(two.traffic.total(), 2 * nd + n + tr * 2 * nd);
  EXPECT_EQ(two.traffic.stores, nd + n);
  EXPECT_EQ(flash1_backward(q, k, v, one, dout, .5, blocks).traffic.total(),
            4 * nd + tc * (5 * nd + n));
  EXPECT_EQ(flash2_backward(q, k, v, two, dout, .5, blocks).traffic.total(),
            6 * nd + n + tc * (4 * nd + 2 * n));
}

INSTANTIATE_TEST_SUITE_P(Sizes,
                         Loops,
                         testing::Values(std::array<std::int64_t, 3>{16, 4, 8},
                                         std::array<std::int64_t, 3>{17, 4, 5},
                                         std::array<std::int64_t, 3>{9, 16, 2},
                                         std::array<std::int64_t, 3>{1, 1, 1}));

TEST(Traffic, FallsAsOneOverFastMemory) {
  const std::int64_t n = 512, d = 8;
  const Matrix q = wave_matrix(n, d, 0), k = wave_matrix(n, d, 1), v = wave_matrix(n, d, 2);
  const auto traffic = [&](std::int64_t m) {
    return static_cast<double>(flash1(q, k, v, .3, blocks_for(m, d)).traffic.total() - 2 * n * d);
  };
  for (std::int64_t m = 4 * d; m <= 64 * d; m *= 2)
    EXPECT_NEAR(std::log2(traffic(2 * m) / traffic(m)), -1, 1e-9) << m;
}

TEST(Traffic, ScalesWithTheKeptBlocks) {
  const std::int64_t n = 64, d = 4, nd = n * d;
  const Matrix q = wave_matrix(n, d, 0), k = wave_matrix(n, d, 1), v = wave_matrix(n, d, 2);
  const Blocks all{8, 8};
  Blocks half = all;
  half.keep = [](std::int64_t i, std::int64_t j) { return (i + j) % 2 == 0; };
  const auto inner = [&](const Blocks& b) {
    return flash1(q, k, v, .5, b).traffic.total() - 2 * nd;
  };
  EXPECT_EQ(2 * inner(half), inner(all));
  Options options;
  options.mask = mask([](auto, auto, auto i, auto j) { return (i / 8 + j / 8) % 2 == 0; });
  const Tensor o = reference(as_view(q), dense(as_view(k), as_view(v)), options).o;
  EXPECT_LT(largest_difference(o, as_view(flash1(q, k, v, .5, half).o)), 1e-13);
  EXPECT_LT(largest_difference(o, as_view(flash2(q, k, v, .5, half).o)), 1e-13);
}

TEST(Traffic, BlocksFollowThePaper) {
  EXPECT_EQ(blocks_for(1024, 8).k, 32);
  EXPECT_EQ(blocks_for(1024, 8).q, 8);
  EXPECT_EQ(blocks_for(33, 8).k, 2);
}

}  // namespace
}  // namespace undivided::lab
