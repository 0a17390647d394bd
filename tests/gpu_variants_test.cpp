// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: both versions of differential attention on CUDA give what the CPU gives,
// forward and backward.
#include <gtest/gtest.h>

#include <array>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "variants_support.hpp"

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

struct Data {
  Tensor q = wave(f16, {2, 8, 70, 64}, 0, .5), k, v, dout, on_q, on_k, on_v, on_dout;
  Data(std::int64_t k_heads, std::int64_t v_heads, std::int64_t dv)
      : k(wave(f16, {2, k_heads, 70, 64}, 1, .5)),
        v(wave(f16, {2, v_heads, 70, dv}, 2)),
        dout(wave(f16, {2, 4, 70, dv}, 3, .1)),
        on_q(cuda::to_device(q, gpu)),
        on_k(cuda::to_device(k, gpu)),
        on_v(cuda::to_device(v, gpu)),
        on_dout(cuda::to_device(dout, gpu)) {}

  template <class Parameters>
  void compare(const Parameters& p) const {
    Options options;
    options.mask = causal();
    const DifferentialForward here = differential(q, dense(k, v), p, options);
    const DifferentialForward there = differential(on_q, dense(on_k, on_v), p, options);
    EXPECT_EQ(there.o.device, gpu);
    expect_near(there.o, here.o, "O");
    const DifferentialGradients a = differential_backward(dout, q, dense(k, v), p, here);
    const DifferentialGradients b =
        differential_backward(on_dout, on_q, dense(on_k, on_v), p, there);
    expect_near(b.q, a.q, "dQ");
    expect_near(b.k, a.k, "dK");
    expect_near(b.v, a.v, "dV");
    if (a.logits) expect_near(b.logits, a.logits, "logits");
    EXPECT_NEAR(a.lambda, b.lambda, 2e-2 * (1 + std::abs(a.lambda)));
  }
};

TEST_F(GpuVariants, DifferentialV1EqualsTheCpu) {
  const std::array<Tensor, 4> vectors{wave(DType::f32, {64}, 9, .1),
                                      wave(DType::f32, {64}, 10, .1),
                                      wave(DType::f32, {64}, 11, .1),
                                      wave(DType::f32, {64}, 12, .1)};
  DifferentialV1 p;
  p.q1 = vectors[0];
  p.k1 = vectors[1];
  p.q2 = vectors[2];
  p.k2 = vectors[3];
  p.lambda_init = differential_lambda_init(3);
  Data(4, 2, 128).compare(p);
}

TEST_F(GpuVariants, DifferentialV2EqualsTheCpu) {
  const Tensor logits = wave(DType::f32, {2, 4, 70}, 5);
  DifferentialV2 p;
  p.logits = logits;
  Data(2, 2, 64).compare(p);
}

}  // namespace
}  // namespace undivided
