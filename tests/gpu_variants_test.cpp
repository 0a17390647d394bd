// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: sparse attention gives what the oracle gives under its mask, forward and
// backward.
#include <gtest/gtest.h>

#include <limits>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "sparse_support.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};
constexpr DType f16 = DType::f16;

class GpuVariants : public testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

Tensor back(const Tensor& t) { return t.device == gpu ? cuda::to_host(t) : t; }

void expect_near(const Tensor& got, const Tensor& want, const char* what) {
  EXPECT_LT(largest_difference(back(got), want), 2e-2) << what;
}

struct SparseCase {
  SparseForm form;
  bool buckets = false;
  std::uint64_t share = 0;  // of rows kept, in percent
  std::uint64_t most = 5;   // buckets
  bool flags_on_host = false, boolean = false;
  DType out = DType::f32;  // of O
  Score score{};
};

void expect_sparse(const SparseCase& s) {
  const SparseForm& c = s.form;
  const Tensor q = wave(c.dtype, {2, c.heads, c.nq, c.d}, 0, .5),
               k = wave(c.dtype, {2, c.kv_heads, c.nk, c.d}, 1, .5),
               v = wave(c.dtype, {2, c.kv_heads, c.nk, c.dv}, 2),
               dout = wave(c.dtype, {2, c.heads, c.nq, c.dv}, 3, .1);
  const Tensor on_q = numbers({2, c.heads, c.nq}, 7, s.most, s.share),
               on_k = numbers({2, c.kv_heads, c.nk}, 8, s.most, s.share);
  Options options;
  options.score = s.score;
  const MaskedAttention want = masked_attention(c, q, k, v, dout, on_q, on_k, s.buckets, options);
  const auto there = [&](const Tensor& t) { return cuda::to_device(t, gpu); };
  const auto flags = [&](const Tensor& t) {
    const Tensor as = s.boolean ? converted(t, DType::boolean) : t;
    return s.flags_on_host ? as : there(as);
  };
  const Tensor tq = there(q), tk = there(k), tv = there(v), td = there(converted(dout, s.out)),
               fq = flags(on_q), fk = flags(on_k);
  options.align = c.align;
  options.out_dtype = s.out;
  const SparseForward f = s.buckets
                              ? sparse_attention(tq, tk, tv, HashSparse{fq, fk, c.order}, options)
                              : sparse_attention(tq, tk, tv, QkSparse{fq, fk, c.order}, options);
  EXPECT_EQ(f.o.device, gpu);
  EXPECT_EQ(f.o.dtype, s.out);
  expect_near(f.o, want.f.o, "O");
  const Tensor lse = back(f.lse);
  for (std::int64_t i = 0; i < lse.count(); ++i) {
    const double x = value(want.f.lse, i), y = value(lse, i);
    if (x == -std::numeric_limits<double>::infinity())
      EXPECT_EQ(y, x) << i;
    else
      EXPECT_NEAR(y, x, 1e-2) << i;
  }
  const Gradients g = sparse_attention_backward(td, tq, tk, tv, f);
  expect_near(g.q, want.g.q, "dQ");
  expect_near(g.k, want.g.k, "dK");
  expect_near(g.v, want.g.v, "dV");
  const Tensor dq = back(g.q);
  for (std::int64_t row = 0; !s.buckets && row < on_q.count(); ++row)
    for (std::int64_t d = 0; d < c.d && on_q.ptr<std::int32_t>()[row] == 0; ++d)
      EXPECT_EQ(value(dq, row * c.d + d), 0) << row;
}

TEST_F(GpuVariants, SparseRowsAreAMask) {
  const auto form = [](std::int64_t heads,
                       std::int64_t kv_heads,
                       std::int64_t nq,
                       std::int64_t nk,
                       std::int64_t d,
                       std::int64_t dv,
                       Order order,
                       Align align = Align::start,
                       DType dtype = f16) {
    return SparseForm{heads, kv_heads, nq, nk, d, dv, order, align, dtype};
  };
  expect_sparse({form(4, 2, 700, 700, 64, 64, Order::causal), false, 50});
  expect_sparse(
      {form(2, 2, 130, 333, 128, 128, Order::causal, Align::end, DType::bf16), false, 30});
  expect_sparse({form(3, 1, 165, 165, 7, 9, Order::none), false, 80});
  expect_sparse({.form = form(2, 1, 140, 90, 24, 16, Order::strict),
                 .share = 100,
                 .flags_on_host = true,
                 .out = f16});
  expect_sparse({.form = form(2, 1, 520, 520, 64, 64, Order::causal, Align::start, DType::bf16),
                 .share = 20,
                 .boolean = true,
                 .score = softcap(2)});
}

TEST_F(GpuVariants, SparseBucketsAreAMask) {
  const auto form = [](std::int64_t heads,
                       std::int64_t kv_heads,
                       std::int64_t n,
                       std::int64_t d,
                       Order order,
                       DType dtype = f16) {
    return SparseForm{heads, kv_heads, n, n, d, d, order, Align::start, dtype};
  };
  expect_sparse({form(4, 2, 700, 64, Order::strict), true});
  expect_sparse({form(2, 2, 1300, 128, Order::strict, DType::bf16), true, 0, 3});
  expect_sparse({form(2, 1, 600, 40, Order::causal), true, 0, 1000000});
  expect_sparse({form(3, 1, 165, 96, Order::none), true, 0, 2});
}

TEST_F(GpuVariants, SparseAttentionWithoutRowsIsZero) {
  const Tensor x = cuda::to_device(wave(f16, {1, 2, 200, 64}, 0), gpu);
  const Tensor none = Tensor::zeros(DType::i32, {1, 2, 200});
  const SparseForward f = sparse_attention(x, x, x, QkSparse{none, none});
  const Gradients g = sparse_attention_backward(x, x, x, x, f);
  for (const Tensor& t : {f.o, g.q, g.k, g.v}) {
    const Tensor here = back(t);
    for (std::int64_t i = 0; i < here.count(); ++i) ASSERT_EQ(value(here, i), 0);
  }
}

TEST_F(GpuVariants, SparseAttentionDoesNotWait) {
  const Tensor x = cuda::to_device(wave(f16, {1, 2, 200, 64}, 0), gpu);
  const Tensor keep = cuda::to_device(numbers({1, 2, 200}, 7, 2, 50), gpu);
  const auto both = [&] {
    const SparseForward f = sparse_attention(x, x, x, QkSparse{keep, keep});
    sparse_attention_backward(x, x, x, x, f);
  };
  both();  // kernels are compiled and loaded
  const std::uint64_t waits = cuda::driver().calls(cuda::CallKind::synchronise),
                      copies = cuda::driver().calls(cuda::CallKind::copy);
  both();
  EXPECT_EQ(cuda::driver().calls(cuda::CallKind::synchronise), waits);
  EXPECT_EQ(cuda::driver().calls(cuda::CallKind::copy), copies);
}

}  // namespace
}  // namespace undivided
