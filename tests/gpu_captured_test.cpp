// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: ordered gradients of captured arrays and parameters agree with the
// oracle, and keep their bits whatever else runs, in whatever order the batch lies.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention/execute.hpp"
#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "expr/program.hpp"
#include "undivided/undivided.hpp"
#include "variants_support.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};
constexpr std::int64_t heads = 8, tokens = 200;

/// By head dim: on Hopper 128 has the narrow kernel, the others the wide one.
class GpuCaptured : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.count() == b.count() && a.dtype == b.dtype &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.count()) * size_of(a.dtype)) == 0;
}

/// One element for a whole head, elements of few and of many pairs, and a parameter.
Score rich() {
  const Array slope(wave(DType::f32, {heads}, 11, .1), "slope");
  const Array table(wave(DType::f32, {heads, 32}, 12, .5), "table");
  const Array bias(wave(DType::f32, {tokens, tokens}, 13), "bias");
  const Param gain("gain", 0.5);
  return score([=](auto s, auto, auto h, auto q, auto k) {
    return s + slope[h] * (k - q) / 64 + Expr(gain) * table(h, clamp(q - k, 0, 31)) + bias(q, k);
  });
}

struct Data {
  Tensor q, k, v, dout;
  explicit Data(std::int64_t d, DType type = DType::bf16)
      : q(noise(type, {2, heads, tokens, d}, 0)),
        k(noise(type, {2, 2, tokens, d}, 1)),
        v(noise(type, {2, 2, tokens, d}, 2)),
        dout(noise(type, {2, heads, tokens, d}, 3)) {}
};

/// `forward`: how O and LSE are made; other kernels round O to 16 bits from other bits.
Gradients gradients(const Data& in,
                    Determinism determinism,
                    Determinism forward,
                    const Context& context = {}) {
  Options options{.mask = causal(), .score = rich(), .align = Align::start};
  options.determinism = forward;
  const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
               v = cuda::to_device(in.v, gpu);
  const Forward f = attention(q, k, v, options, context);
  options.determinism = determinism;
  Gradients g = attention_backward(
      cuda::to_device(in.dout, gpu), q, dense(k, v), f.o, f.lse, options, {}, context);
  for (auto& [name, t] : g.captured) t = cuda::to_host(t);
  g.q = cuda::to_host(g.q);
  return g;
}

Gradients gradients(const Data& in, Determinism determinism, const Context& context = {}) {
  return gradients(in, determinism, determinism, context);
}

const Tensor& captured(const Gradients& g, const std::string& name) {
  for (const auto& [of, gradient] : g.captured)
    if (of == name) return gradient;
  throw std::runtime_error("no gradient of " + name);
}

void expect_same(const Gradients& a, const Gradients& b) {
  ASSERT_EQ(a.captured.size(), 4u);
  ASSERT_EQ(b.captured.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_TRUE(same_bits(a.captured[i].second, b.captured[i].second)) << a.captured[i].first;
}

TEST_P(GpuCaptured, OrderedSumsAgreeWithTheOracleAndWithFast) {
  const Data in(GetParam());
  Options options{.mask = causal(), .score = rich(), .align = Align::start};
  const Gradients want = reference_backward(in.dout, in.q, dense(in.k, in.v), options);
  const Gradients fast = gradients(in, Determinism::fast);
  for (const Determinism d : {Determinism::reproducible, Determinism::invariant}) {
    const Gradients got = gradients(in, d), beside = gradients(in, d, Determinism::fast);
    ASSERT_EQ(got.captured.size(), want.captured.size());
    for (std::size_t i = 0; i < got.captured.size(); ++i) {
      const Tensor& truth = want.captured[i].second;
      double largest = 0;
      for (std::int64_t j = 0; j < truth.count(); ++j)
        largest = std::max(largest, std::abs(truth.ptr<double>()[j]));
      EXPECT_GT(largest, 0);
      // Sums of many terms of both signs, of bfloat16 inputs.
      EXPECT_LT(largest_difference(got.captured[i].second, truth), 0.1 * largest)
          << got.captured[i].first;
      EXPECT_LT(largest_difference(beside.captured[i].second, fast.captured[i].second),
                3e-5 * largest)
          << got.captured[i].first;
    }
    EXPECT_TRUE(same_bits(got.q, gradients(in, d).q));
  }
}

TEST_P(GpuCaptured, BitsRepeatWhileOtherKernelsTakeMultiprocessors) {
  const Data in(GetParam());
  const Gradients first = gradients(in, Determinism::reproducible);
  cuda::StreamHandle other = nullptr;
  {
    const cuda::DeviceScope scope(cuda::driver(), 0);
    cuda::driver().cuStreamCreate(&other, 1);
  }
  Context beside;
  beside.stream = other;
  const Tensor q = cuda::to_device(wave(DType::bf16, {1, 24, 2048, 128}, 5), gpu);
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i <= run; ++i) attention(q, q, q, {}, beside);
    expect_same(first, gradients(in, Determinism::reproducible));
  }
  cuda::synchronise(beside, gpu);
  cuda::driver().cuStreamDestroy.raw(other);
}

TEST_P(GpuCaptured, TheOrderOfTheBatchDoesNotMatter) {
  const Data in(GetParam());
  Data turned = in;
  for (Tensor* t : {&turned.q, &turned.k, &turned.v, &turned.dout}) {
    const Tensor from = *t;
    *t = Tensor::empty_like(from, from.dtype);
    copy(from.sliced(0, 0, 1), t->sliced(0, 1, 2));
    copy(from.sliced(0, 1, 2), t->sliced(0, 0, 1));
  }
  expect_same(gradients(in, Determinism::invariant), gradients(turned, Determinism::invariant));
}

// Each step is linear in dO and scales by powers of two exactly, so the sums must too.
TEST_P(GpuCaptured, SmallGradientsKeepTheirBits) {
  const Data in(GetParam());
  Data small = in;
  const double factor = 0x1p-40;
  small.dout = converted(in.dout, DType::f64);
  for (std::int64_t i = 0; i < small.dout.count(); ++i) small.dout.ptr<double>()[i] *= factor;
  small.dout = converted(small.dout, DType::bf16);
  const Gradients a = gradients(in, Determinism::reproducible);
  const Gradients b = gradients(small, Determinism::reproducible);
  for (std::size_t i = 0; i < 4; ++i)
    for (std::int64_t j = 0; j < a.captured[i].second.count(); ++j)
      ASSERT_EQ(a.captured[i].second.ptr<float>()[j] * factor, b.captured[i].second.ptr<float>()[j])
          << a.captured[i].first << " " << j;
}

TEST_P(GpuCaptured, ANanStaysInTheElementsThatItReaches) {
  const Data in(GetParam());
  Data broken = in;
  broken.dout = converted(in.dout, DType::bf16);
  broken.dout.ptr<std::uint16_t>()[(3 * tokens + 7) * GetParam()] = 0x7fc0;  // head 3, query 7
  const Gradients a = gradients(in, Determinism::reproducible);
  const Gradients b = gradients(broken, Determinism::reproducible);
  const float *slope = captured(a, "slope").ptr<float>(),
              *after = captured(b, "slope").ptr<float>();
  for (int h = 0; h < heads; ++h) {
    if (h == 3)
      EXPECT_TRUE(std::isnan(after[h]));
    else
      EXPECT_EQ(slope[h], after[h]);
  }
}

TEST_P(GpuCaptured, AGradientMayBeStrided) {
  const Data in(GetParam());
  Options options{.mask = causal(), .score = rich(), .align = Align::start};
  options.determinism = Determinism::reproducible;
  const Gradients whole = gradients(in, Determinism::reproducible);
  const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
               v = cuda::to_device(in.v, gpu), dout = cuda::to_device(in.dout, gpu);
  const Forward f = attention(q, k, v, options);
  BackwardOptions wanted;
  wanted.q = wanted.k = wanted.v = false;
  Problem p = resolve_backward(Rows(dout), q, dense(k, v), f.o, f.lse, options, wanted);
  // Only the table, transposed, with a gap after each row; the others are not wanted.
  const Tensor room = cuda::to_device(Tensor::zeros(DType::f32, {32, heads + 3}), gpu);
  const auto& slots = p.spec.score->slots;
  ASSERT_EQ(slots.size(), 3u);
  std::size_t table = 0;
  while (table < 2 && slots[table].name != "table") ++table;
  ASSERT_EQ(slots[table].name, "table");
  p.args.d_arrays.resize(3);
  View& at = p.args.d_arrays[table];
  at = room;
  at.shape[0] = heads;
  at.stride[0] = 1;
  at.shape[1] = 32;
  at.stride[1] = heads + 3;
  std::vector<Tensor> keep;
  move_to_device(p, {}, keep);
  const Plan made = plan(p.spec, p.bounds, gpu);
  const Tensor workspace =
      cuda::empty(DType::i8, {static_cast<std::int64_t>(made.workspace())}, gpu);
  made.run(p.args, workspace.data);
  const Tensor back = cuda::to_host(room);
  for (int h = 0; h < heads; ++h)
    for (int i = 0; i < 32; ++i)
      EXPECT_EQ(back.ptr<float>()[i * (heads + 3) + h],
                captured(whole, "table").ptr<float>()[h * 32 + i]);
  EXPECT_EQ(back.ptr<float>()[heads], 0.0f);
}

/// The kernel that a plan names, and its gradients, dQ, dK and dV among them.
struct Made {
  std::string kernel;
  Gradients gradients;
};
Made made(const Data& on_device, const Forward& f, const Context& context) {
  const auto& [q, k, v, dout] = on_device;
  const Problem p = resolve_backward(Rows(dout), q, dense(k, v), f.o, f.lse, f.options, {});
  Made out{plan(p.spec, p.bounds, gpu, context).explanation().kernel,
           attention_backward(dout, q, k, v, f, {}, context)};
  Gradients& g = out.gradients;
  for (auto& [name, t] : g.captured) t = cuda::to_host(t);
  for (Tensor* t : {&g.q, &g.k, &g.v}) *t = converted(cuda::to_host(*t), DType::f64);
  return out;
}

TEST_P(GpuCaptured, TheHopperKernelsAgreeWithThePortableOnes) {
  if (cuda::driver().device(0).arch() != 90) GTEST_SKIP() << "no Hopper";
  const Mask scattered =
      mask([](auto, auto h, auto q, auto k) { return k <= q && (q * 7 + k * 3 + h) % 5 != 0; });
  struct Case {
    const char* name;
    Mask mask;
    DType type;
    double dropout;
    Determinism determinism;
  };
  const Case cases[] = {{"full", full(), DType::bf16, 0, Determinism::fast},
                        {"causal", causal(), DType::bf16, 0, Determinism::reproducible},
                        {"window", window(40, 10), DType::f16, 0.25, Determinism::fast},
                        {"plan", scattered, DType::bf16, 0, Determinism::fast},
                        {"plan", scattered, DType::f16, 0.25, Determinism::reproducible}};
  for (const auto& [name, mask, type, dropout, determinism] : cases) {
    SCOPED_TRACE(testing::Message() << name << " dropout " << dropout);
    Data in(GetParam(), type);
    for (Tensor* t : {&in.q, &in.k, &in.v, &in.dout}) *t = cuda::to_device(*t, gpu);
    Options options{.mask = mask, .score = rich(), .align = Align::start};
    options.determinism = determinism;
    options.dropout = dropout;
    options.seed = 7;
    Context context;
    const auto first = make_library(), second = make_library();
    context.library = first.get();
    const Forward f = attention(in.q, in.k, in.v, options, context);
    const Made hopper = made(in, f, context);
    EXPECT_NE(hopper.kernel.find(".sm90a."), std::string::npos) << hopper.kernel;
    EXPECT_NE(hopper.kernel.find(".captured"), std::string::npos) << hopper.kernel;
    setenv("UNDIVIDED_FAMILY", "portable", 1);
    context.library = second.get();
    const Made portable = made(in, f, context);
    unsetenv("UNDIVIDED_FAMILY");
    EXPECT_EQ(portable.kernel.find(".sm90a."), std::string::npos) << portable.kernel;
    const auto agree = [](const Tensor& a, const Tensor& b, double share, const char* what) {
      ASSERT_EQ(a.count(), b.count());
      double largest = 0;
      for (std::int64_t i = 0; i < b.count(); ++i)
        largest = std::max(largest, std::abs(value(b, i)));
      EXPECT_GT(largest, 0) << what;
      EXPECT_LT(largest_difference(a, converted(b, DType::f64)), share * largest) << what;
    };
    const Gradients &a = hopper.gradients, &b = portable.gradients;
    ASSERT_EQ(a.captured.size(), b.captured.size());
    for (std::size_t i = 0; i < a.captured.size(); ++i)
      agree(a.captured[i].second, b.captured[i].second, 1e-3, a.captured[i].first.c_str());
    agree(a.q, b.q, 0.02, "dQ");
    agree(a.k, b.k, 0.02, "dK");
    agree(a.v, b.v, 0.02, "dV");
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, GpuCaptured, testing::Values(64, 128, 256));

}  // namespace
}  // namespace undivided
