// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: both versions of differential attention on CUDA are those of the oracle,
// forward and backward, and their rows stay on the device.
#include <gtest/gtest.h>

#include <array>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "variants_support.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};

class GpuDifferential : public testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

std::uint64_t copies_and_waits() {
  return cuda::driver().calls(cuda::CallKind::copy) +
         cuda::driver().calls(cuda::CallKind::synchronise);
}

Tensor wide(const Tensor& t) { return converted(t, DType::f64); }
Tensor there(const Tensor& t) { return cuda::to_device(t, gpu); }

/// The largest difference beside the largest element that is wanted, or beside `floor`.
void expect_near(
    const Tensor& got, const Tensor& want, double limit, const char* what, double floor = 1e-3) {
  double largest = floor;
  for (std::int64_t i = 0; i < want.count(); ++i)
    largest = std::max(largest, std::abs(value(want, i)));
  const Tensor here = got.device == gpu ? cuda::to_host(got) : got;
  EXPECT_LT(largest_difference(here, want) / largest, limit) << what;
}

struct Shape {
  DType dtype = DType::bf16;
  std::int64_t k_heads = 4, v_heads = 2, d = 64, dv = 128, tokens = 200;
  bool packed = false;
};

/// Q has 8 heads. Dense rows are [2, heads, tokens, dim], packed ones [2 tokens, heads, dim].
struct Data {
  Tensor q, k, v, dout, offsets;

  explicit Data(const Shape& s) {
    const auto rows = [&](std::int64_t heads, std::int64_t dim, int c, double scale) {
      return s.packed ? noise(s.dtype, {2 * s.tokens, heads, dim}, c, scale)
                      : noise(s.dtype, {2, heads, s.tokens, dim}, c, scale);
    };
    q = rows(8, s.d, 0, 2);
    k = rows(s.k_heads, s.d, 1, 1);
    v = rows(s.v_heads, s.dv, 2, 1);
    dout = rows(4, s.dv, 3, .1);
    if (!s.packed) return;
    offsets = Tensor::empty(DType::i32, {3});
    const std::int64_t at[] = {0, s.tokens / 2, 2 * s.tokens};
    for (std::int64_t i = 0; i < 3; ++i) store_element(DType::i32, element(offsets, i), at[i]);
  }
  template <class F>
  Data each(F&& f) const {
    Data other = *this;
    for (Tensor* t : {&other.q, &other.k, &other.v, &other.dout}) *t = f(*t);
    return other;
  }
  Rows rows() const { return offsets ? ragged(q, offsets) : Rows(q); }
  Kv keys() const { return offsets ? ragged(k, v, offsets) : dense(k, v); }
};

void expect_parameters(const DifferentialGradients& got,
                       const DifferentialGradients& want,
                       const DifferentialV1& p,
                       double limit) {
  EXPECT_NEAR(got.lambda, want.lambda, limit * (1 + std::abs(want.lambda)));
  // Sums over all rows, of terms of both signs: they may be as small as they like.
  expect_near(got.q1, want.q1, limit, "q1", 1);
  expect_near(got.k2, want.k2, limit, "k2", 1);
  EXPECT_EQ(got.q1.device, p.q1.device);
  EXPECT_EQ(got.norm_weight.device, p.norm_weight.device);
  expect_near(got.norm_weight, want.norm_weight, limit, "norm weight", 1);
}
void expect_parameters(const DifferentialGradients& got,
                       const DifferentialGradients& want,
                       const DifferentialV2&,
                       double limit) {
  EXPECT_EQ(got.logits.device, gpu);
  expect_near(got.logits, want.logits, limit, "logits");
}

/// `p` on the host and `on_p` on the device hold the same. `waits`: the backward reads sums back.
template <class Parameters>
void compare(const Shape& shape, const Parameters& p, const Parameters& on_p, bool waits) {
  const Data here(shape), exact = here.each(wide);
  Data on = here.each(there);
  if (here.offsets) on.offsets = there(here.offsets);
  Options options;
  options.mask = causal();
  options.align = Align::start;
  const auto forward = [&] { return differential(on.rows(), on.keys(), on_p, options); };
  const auto backward = [&](const DifferentialForward& f) {
    return differential_backward(on.dout, on.rows(), on.keys(), on_p, f);
  };
  backward(forward());  // so that kernels are loaded
  const std::uint64_t before = copies_and_waits();
  const DifferentialForward f = forward();
  EXPECT_EQ(copies_and_waits(), before);
  const DifferentialGradients g = backward(f);
  if (!waits) EXPECT_EQ(copies_and_waits(), before);
  EXPECT_EQ(f.o.device, gpu);
  EXPECT_EQ(f.o.dtype, shape.dtype);
  for (const Tensor* t : {&g.q, &g.k, &g.v}) {
    EXPECT_EQ(t->device, gpu);
    EXPECT_EQ(t->dtype, shape.dtype);
  }

  const DifferentialForward want = differential(exact.rows(), exact.keys(), p, options);
  const DifferentialGradients h =
      differential_backward(exact.dout, exact.rows(), exact.keys(), p, want);
  // One map less the other, and normed: what is left is small, and 16 bits of each were rounded.
  const double ulp = shape.dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
  expect_near(f.o, want.o, 16 * ulp, "O");
  expect_near(g.q, h.q, 32 * ulp, "dQ");
  expect_near(g.k, h.k, 32 * ulp, "dK");
  expect_near(g.v, h.v, 32 * ulp, "dV");
  expect_parameters(g, h, on_p, 32 * ulp);
  // The same bits again.
  EXPECT_EQ(largest_difference(cuda::to_host(f.o), cuda::to_host(forward().o)), 0);
}

TEST_F(GpuDifferential, DifferentialV1IsTheOracle) {
  const auto pairing = [](bool halves) {
    return halves ? DifferentialPairing::halves : DifferentialPairing::interleaved;
  };
  int n = 0;
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const std::int64_t v_heads : {1, 2, 4})
      for (const bool packed : {false, true}) {
        const std::int64_t d = n++ % 3 == 0 ? 128 : n % 3 == 1 ? 40 : 64, dv = 2 * d;
        SCOPED_TRACE(testing::Message() << name_of(dtype) << ", " << v_heads << " pairs of keys, d "
                                        << d << (packed ? ", packed" : ""));
        const std::array<Tensor, 4> vectors{wave(DType::f32, {d}, 9, .1),
                                            wave(DType::f32, {d}, 10, .1),
                                            wave(DType::f32, {d}, 11, .1),
                                            wave(DType::f32, {d}, 12, .1)};
        const Tensor weight = wave(DType::f32, {dv}, 13, .9), on_weight = there(weight);
        DifferentialV1 p;
        p.q1 = vectors[0];
        p.k1 = vectors[1];
        p.q2 = vectors[2];
        p.k2 = vectors[3];
        p.lambda_init = differential_lambda_init(3);
        p.norm_weight = weight;
        p.pairing = pairing(packed);
        DifferentialV1 on_p = p;
        on_p.norm_weight = on_weight;
        compare({dtype, 2 * v_heads, v_heads, d, dv, 200, packed}, p, on_p, true);
      }
}

TEST_F(GpuDifferential, DifferentialV1TakesItsVectorsFromEitherSide) {
  const Data here({}), on = here.each(there);
  const Tensor vector = wave(DType::f32, {64}, 9, .1), weight = wave(DType::f32, {128}, 13, .9),
               on_vector = there(vector);
  DifferentialV1 p;
  p.q1 = p.k1 = p.q2 = p.k2 = vector;
  p.norm_weight = weight;
  const DifferentialForward a = differential(on.rows(), on.keys(), p);
  const DifferentialGradients g = differential_backward(on.dout, on.rows(), on.keys(), p, a);
  p.q1 = on_vector;
  const DifferentialForward b = differential(on.rows(), on.keys(), p);
  const DifferentialGradients h = differential_backward(on.dout, on.rows(), on.keys(), p, b);
  EXPECT_EQ(largest_difference(cuda::to_host(a.o), cuda::to_host(b.o)), 0);
  EXPECT_EQ(h.q1.device, gpu);
  EXPECT_EQ(g.q1.device, cpu_device);
  EXPECT_EQ(largest_difference(g.q1, cuda::to_host(h.q1)), 0);
  EXPECT_EQ(g.norm_weight.device, cpu_device);
}

TEST_F(GpuDifferential, DifferentialV2IsTheOracle) {
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const std::int64_t heads : {1, 2, 4})
      for (const bool packed : {false, true}) {
        const Shape shape{dtype, heads, heads, 64, heads == 2 ? 128 : 64, 200, packed};
        SCOPED_TRACE(testing::Message() << name_of(dtype) << ", " << heads << " key heads"
                                        << (packed ? ", packed" : ""));
        const Tensor logits = packed ? wave(DType::f32, {4, 2 * shape.tokens}, 5)
                                     : wave(DType::f32, {2, 4, shape.tokens}, 5),
                     on_logits = there(logits);
        DifferentialV2 p, on_p;
        p.logits = logits;
        on_p.logits = on_logits;
        compare(shape, p, on_p, false);
      }
}

TEST_F(GpuDifferential, DifferentialRefusesByName) {
  const Data on = Data({DType::bf16, 2, 2}).each(there);
  const Tensor logits = wave(DType::f64, {2, 4, 200}, 5), on_logits = there(logits);
  DifferentialV2 p;
  p.logits = on_logits;
  expect_refused([&] { differential(on.rows(), on.keys(), p); },
                 {"logits is f64 [2, 4, 200] on cuda:0", "f32 on cuda:0"});
  p.logits = logits;  // from the host in any type
  const DifferentialForward f = differential(on.rows(), on.keys(), p);
  View turned = on.dout;
  std::swap(turned.stride[2], turned.stride[3]);
  expect_refused([&] { differential_backward(turned, on.rows(), on.keys(), p, f); },
                 {"last stride 128", "1 is expected"});
}

}  // namespace
}  // namespace undivided
