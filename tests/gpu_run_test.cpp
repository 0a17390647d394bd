// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: results against the oracle, graphs, streams, kernels that may not
// compile.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "cuda/peak.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};

// Uniform in [-1, 1), rounded to the type.
Tensor random(DType dtype, std::initializer_list<std::int64_t> shape, unsigned seed) {
  Tensor t = Tensor::empty(dtype, shape);
  std::uint64_t state = seed * 2654435761u + 1;
  for (std::int64_t i = 0; i < t.count(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    store_element(dtype,
                  static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(dtype),
                  static_cast<double>(state >> 40) * 0x1p-23 - 1.0);
  }
  return t;
}

// Largest difference over the largest oracle value; infinities and NaN must agree exactly.
double difference(const Tensor& got, const Tensor& want) {
  const Tensor a =
      converted(got.device.kind == Device::Kind::cuda ? cuda::to_host(got) : got, DType::f64);
  const Tensor b = converted(want, DType::f64);
  EXPECT_EQ(a.count(), b.count());
  double largest = 1e-6, worst = 0;
  for (std::int64_t i = 0; i < a.count(); ++i) {
    const double x = a.ptr<double>()[i], y = b.ptr<double>()[i];
    if (!std::isfinite(x) || !std::isfinite(y)) {
      if (!(x == y)) return INFINITY;
      continue;
    }
    largest = std::max(largest, std::abs(y));
    worst = std::max(worst, std::abs(x - y));
  }
  return worst / largest;
}

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

struct Inputs {
  Tensor q, k, v, dout;
};
Inputs inputs(DType dtype, std::int64_t nq, std::int64_t nk, std::int64_t d, std::int64_t dv) {
  return {random(dtype, {2, 8, nq, d}, 1),
          random(dtype, {2, 2, nk, d}, 2),
          random(dtype, {2, 2, nk, dv}, 3),
          random(dtype, {2, 8, nq, dv}, 4)};
}

struct Case {
  const char* name;
  Options options;
  std::int64_t nq = 130, nk = 130, d = 64, dv = 64;
  double limit = 0.02;
};

std::vector<Case> cases() {
  const Array doc(
      [] {
        std::vector<std::int32_t> id(512);
        for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::int32_t>(i / 37);
        return id;
      }(),
      "doc");
  const Array slope(
      [] {
        std::vector<float> m(8);
        for (std::size_t i = 0; i < m.size(); ++i) m[i] = std::exp2(-static_cast<float>(i) - 1);
        return m;
      }(),
      "m");
  std::vector<Case> list{
      {"full", {}},
      {"causal", {.mask = causal(), .align = Align::end}, 129, 257},
      {"window", {.mask = window(40, 3), .align = Align::start}, 200, 130},
      {"documents", {.mask = documents(doc) && causal(), .align = Align::start}, 300, 300},
      {"softcap", {.score = softcap(5)}, 65, 127},
      {"alibi", {.mask = causal(), .score = alibi(slope), .align = Align::end}, 63, 200},
      {"decode", {.mask = causal(), .align = Align::end}, 1, 4097},
      {"small head", {}, 70, 90, 8, 40},
      {"wide head", {.mask = causal(), .align = Align::start}, 100, 100, 192, 128},
      {"widest head", {}, 40, 70, 512, 512},
      {"no key", {.mask = window(-5, 5), .align = Align::start}, 64, 64},
  };
  Options dropout{.mask = causal(), .align = Align::start};
  dropout.dropout = 0.3;
  dropout.seed = 42;
  list.push_back({"dropout", dropout});
  return list;
}

TEST_F(Gpu, ForwardAgreesWithTheOracle) {
  for (const DType dtype : {DType::bf16, DType::f16})
    for (Case& c :
         [] {
           static auto list = cases();
           return std::ref(list);
         }()
             .get()) {
      SCOPED_TRACE(std::string(c.name) + " " + name_of(dtype));
      const Inputs in = inputs(dtype, c.nq, c.nk, c.d, c.dv);
      Options o = c.options;
      o.max_logit = o.key_mass = true;
      const Forward want = reference(in.q, dense(in.k, in.v), o);
      const Forward got = attention(
          cuda::to_device(in.q, gpu), cuda::to_device(in.k, gpu), cuda::to_device(in.v, gpu), o);
      EXPECT_LT(difference(got.o, want.o), c.limit);
      EXPECT_LT(difference(got.lse, want.lse), 1e-3);
      EXPECT_LT(difference(got.max_logit, want.max_logit), 1e-3);
      EXPECT_LT(difference(got.key_mass, want.key_mass), 2e-3);
    }
}

TEST_F(Gpu, BackwardAgreesWithTheOracle) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Inputs in = inputs(DType::bf16, c.nq, c.nk, c.d, c.dv);
    Options o = c.options;
    const Tensor sink = random(DType::f32, {8}, 9);
    o.sink = sink;
    const Gradients want = reference_backward(in.dout, in.q, dense(in.k, in.v), o);
    const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
                 v = cuda::to_device(in.v, gpu), there = cuda::to_device(sink, gpu);
    o.sink = there;
    const Forward f = attention(q, k, v, o);
    const Gradients got = attention_backward(cuda::to_device(in.dout, gpu), q, k, v, f);
    EXPECT_LT(difference(got.q, want.q), 0.03);
    EXPECT_LT(difference(got.k, want.k), 0.03);
    EXPECT_LT(difference(got.v, want.v), 0.03);
    EXPECT_LT(difference(got.sink, want.sink), 0.03);
    ASSERT_EQ(got.captured.size(), want.captured.size());
    for (std::size_t i = 0; i < got.captured.size(); ++i)
      EXPECT_LT(difference(got.captured[i].second, want.captured[i].second), 0.03)
          << got.captured[i].first;
  }
}

TEST_F(Gpu, PagedAndRaggedAgreeWithTheOracle) {
  const Tensor pool_k = random(DType::bf16, {9, 2, 16, 64}, 5);
  const Tensor pool_v = random(DType::bf16, {9, 2, 16, 64}, 6);
  const Tensor q = random(DType::bf16, {2, 8, 3, 64}, 7);
  std::vector<std::int32_t> table{4, 1, 7, 0, 2, 8, -9, 999}, lengths{61, 17};
  const View pages = view(table.data(), {2, 4}), used = view(lengths.data(), {2});
  const Options o{.mask = causal(), .align = Align::end};
  const Forward want = reference(q, paged(pool_k, pool_v, pages, used), o);
  const Tensor dq = cuda::to_device(q, gpu), dk = cuda::to_device(pool_k, gpu),
               dv = cuda::to_device(pool_v, gpu);
  const Forward got = attention(dq, paged(dk, dv, pages, used), o);
  EXPECT_LT(difference(got.o, want.o), 0.02);
  EXPECT_LT(difference(got.lse, want.lse), 1e-3);

  const Tensor rows = random(DType::bf16, {150, 8, 64}, 1);
  const Tensor keys = random(DType::bf16, {150, 2, 64}, 2);
  const Tensor values = random(DType::bf16, {150, 2, 64}, 3);
  std::vector<std::int64_t> offsets{0, 70, 70, 71, 150};
  const View at = view(offsets.data(), {5});
  const Forward want_r = reference(ragged(rows, at), ragged(keys, values, at), o);
  const Forward got_r =
      attention(ragged(cuda::to_device(rows, gpu), at),
                ragged(cuda::to_device(keys, gpu), cuda::to_device(values, gpu), at),
                o);
  EXPECT_LT(difference(got_r.o, want_r.o), 0.02);
  EXPECT_LT(difference(got_r.lse, want_r.lse), 1e-3);
}

TEST_F(Gpu, MergingHalvesGivesTheWhole) {
  const Inputs in = inputs(DType::bf16, 50, 128, 64, 64);
  const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
               v = cuda::to_device(in.v, gpu);
  const Options partial{.partial = true};
  const auto half = [&](std::int64_t from, std::int64_t to) {
    const Forward f = attention(q, k.sliced(2, from, to), v.sliced(2, from, to), partial);
    return Partial{f.o, f.lse};
  };
  const Partial whole = merge(half(0, 70), half(70, 128));
  const Forward want = reference(in.q, dense(in.k, in.v));
  EXPECT_LT(difference(whole.o, want.o), 0.02);
  EXPECT_LT(difference(whole.lse, want.lse), 1e-3);
}

struct Stream {
  cuda::StreamHandle handle = nullptr;
  Stream() {
    const cuda::DeviceScope scope(cuda::driver(), 0);
    cuda::driver().cuStreamCreate(&handle, 1);  // does not wait for the legacy stream
  }
  ~Stream() { cuda::driver().cuStreamDestroy.raw(handle); }
};

struct Prepared {
  Tensor q, k, v, o, lse, workspace;
  Problem problem;
  Plan plan;
};
Prepared prepare(const Inputs& in, const Options& options) {
  const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
               v = cuda::to_device(in.v, gpu);
  Tensor o = cuda::empty(in.dout.dtype, {2, 8, in.q.size(2), in.v.size(3)}, gpu);
  Tensor lse = cuda::empty(DType::f32, {2, 8, in.q.size(2)}, gpu);
  Problem p =
      resolve(q, dense(k, v), options, {.o = o, .lse = lse, .max_logit = {}, .key_mass = {}});
  p.args.o = o;
  p.args.lse = lse;
  Plan made = plan(p.spec, p.bounds, gpu);
  Tensor workspace = cuda::empty(DType::i8, {static_cast<std::int64_t>(made.workspace()) + 1}, gpu);
  return {q, k, v, o, lse, workspace, p, made};
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = cuda::to_host(a), y = cuda::to_host(b);
  return std::memcmp(x.data, y.data, static_cast<std::size_t>(x.count()) * size_of(x.dtype)) == 0;
}

TEST_F(Gpu, AGraphReplaysWithNewInputs) {
  cuda::Driver& d = cuda::driver();
  const Inputs in = inputs(DType::bf16, 1, 4096, 128, 128);
  const Prepared p = prepare(in, {});
  EXPECT_GT(p.plan.explanation().splits, 1);
  Stream stream;
  Context context;
  context.stream = stream.handle;
  p.plan.run(p.problem.args, p.workspace.data, context);
  cuda::synchronise(context, gpu);

  const cuda::DeviceScope scope(d, 0);
  constexpr int thread_local_mode = 1;
  d.cuStreamBeginCapture(stream.handle, thread_local_mode);
  p.plan.run(p.problem.args, p.workspace.data, context);
  EXPECT_TRUE(cuda::capturing(context, gpu));
  EXPECT_THROW(cuda::copy_to_host(p.o, Tensor::empty_like(p.o, p.o.dtype), stream.handle), Error);
  cuda::GraphHandle graph = nullptr;
  d.cuStreamEndCapture(stream.handle, &graph);
  cuda::GraphExecHandle ready = nullptr;
  d.cuGraphInstantiate(&ready, graph, 0);

  const Tensor other = random(DType::bf16, {2, 8, 1, 128}, 99);
  cuda::copy_to_device(other, p.q, stream.handle);
  d.cuGraphLaunch(ready, stream.handle);
  cuda::synchronise(context, gpu);
  const Forward want = reference(other, dense(in.k, in.v));
  EXPECT_LT(difference(p.o, want.o), 0.02);
  d.cuGraphExecDestroy(ready);
  d.cuGraphDestroy(graph);
}

TEST_F(Gpu, TwoStreamsGiveTheSameBits) {
  const Inputs in = inputs(DType::bf16, 300, 300, 64, 64);
  const Options options{.mask = causal(), .align = Align::start};
  const Prepared a = prepare(in, options), b = prepare(in, options);
  Stream first, second;
  Context one, two;
  one.stream = first.handle;
  two.stream = second.handle;
  for (int i = 0; i < 20; ++i) {
    a.plan.run(a.problem.args, a.workspace.data, one);
    b.plan.run(b.problem.args, b.workspace.data, two);
  }
  cuda::synchronise(one, gpu);
  cuda::synchronise(two, gpu);
  EXPECT_TRUE(same_bits(a.o, b.o));
  EXPECT_TRUE(same_bits(a.lse, b.lse));
}

TEST_F(Gpu, ARunMakesNoCallThatAllocatesOrWaits) {
  cuda::Driver& d = cuda::driver();
  const Prepared p = prepare(inputs(DType::bf16, 1, 4096, 64, 64), {});
  p.plan.run(p.problem.args, p.workspace.data, {});
  const auto counted = [&] {
    return d.calls(cuda::CallKind::memory) + d.calls(cuda::CallKind::module) +
           d.calls(cuda::CallKind::synchronise) + d.calls(cuda::CallKind::copy);
  };
  const std::uint64_t before = counted();
  for (int i = 0; i < 1000; ++i) p.plan.run(p.problem.args, p.workspace.data, {});
  EXPECT_EQ(counted(), before);
  cuda::synchronise({}, gpu);
}

TEST_F(Gpu, CompileNeverRunsFromAFilledCache) {
  const Inputs in = inputs(DType::bf16, 64, 64, 64, 64);
  const Tensor q = cuda::to_device(in.q, gpu), k = cuda::to_device(in.k, gpu),
               v = cuda::to_device(in.v, gpu);
  attention(q, k, v);  // fills the cache
  const std::shared_ptr<Library> fresh = make_library();
  Context never;
  never.compile = Compile::never;
  never.library = fresh.get();
  EXPECT_NO_THROW(attention(q, k, v, {}, never));
  // A number that stays literal makes a kernel that nobody has compiled yet.
  const auto now = static_cast<std::int32_t>(std::time(nullptr) % 1000000) + 7;
  try {
    attention(q,
              k,
              v,
              {.mask = mask([now](auto, auto, auto a, auto b) { return (a + b) % now < 40; }),
               .align = Align::start},
              never);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("compile = never"), std::string::npos) << e.what();
  }
}

TEST_F(Gpu, TheMeasuredPeakIsBelowTheClocksAndAboveEveryKernel) {
  const cuda::DeviceInfo& card = cuda::driver().device(0);
  const cuda::MmaPeak peak = cuda::measured_mma_peak(0, DType::bf16);
  EXPECT_EQ(peak.instruction, card.arch() == 90 ? "wgmma" : "mma.sync");
  EXPECT_LT(peak.flops, 1.05 * card.tensor_flops);
  const Tensor q = cuda::to_device(random(DType::bf16, {2, 16, 4096, 128}, 1), gpu);
  const std::vector<double> times =
      cuda::time_on_stream(gpu, {}, 5, [&] { static_cast<void>(attention(q, q, q)); });
  const double flops = 2.0 * 2 * 16 * 4096 * 4096 * (128 + 128);
  EXPECT_GT(peak.flops, flops / *std::min_element(times.begin(), times.end()));
}

TEST_F(Gpu, StridedViewsTravelBothWays) {
  const Tensor host = random(DType::f32, {4, 6, 10}, 3);
  const Tensor there = cuda::to_device(host.permuted({1, 0, 2}), gpu);
  EXPECT_EQ(there.size(0), 6);
  const Tensor back = cuda::to_host(there);
  EXPECT_EQ(difference(back, converted(host.permuted({1, 0, 2}), DType::f32)), 0);
  // Into every other row of a larger device tensor; the rows between keep their bits.
  const Tensor big = cuda::to_device(Tensor::zeros(DType::f32, {4, 12, 10}), gpu);
  View rows = big;
  rows.shape[1] = 6;
  rows.stride[1] = 20;
  cuda::copy_to_device(host, rows);
  const Tensor all = cuda::to_host(big);
  EXPECT_EQ(all.ptr<float>()[0], host.ptr<float>()[0]);
  EXPECT_EQ(all.ptr<float>()[10], 0.0f);
  EXPECT_EQ(all.ptr<float>()[20], host.ptr<float>()[10]);
  const std::vector<double> times = cuda::time_on_stream(gpu, {}, 3, [&] { cuda::zero(big); });
  EXPECT_EQ(times.size(), 3u);
  EXPECT_EQ(cuda::to_host(big).ptr<float>()[20], 0.0f);
}

}  // namespace
}  // namespace undivided
