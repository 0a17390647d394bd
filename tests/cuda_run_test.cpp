// SPDX-License-Identifier: Apache-2.0
// Claims about plans on CUDA that need no GPU: refusals, launches and parameters. The driver is a
// fake that remembers.
#include <gtest/gtest.h>

#include <filesystem>

#include "cuda/choose.hpp"
#include "cuda_run_support.hpp"

namespace undivided::cuda {
namespace {

TEST_F(CudaRun, ParametersSayWhatArgsSay) {
  Options options{.mask = window(100, 7), .score = softcap(20), .align = Align::end, .scale = 0.25};
  options.dropout = 0.25;
  options.seed = 77;
  const Problem p = problem(options, 200, 300);
  const auto plan = prepared(p);
  plan->run(p.args, nullptr, {});
  ASSERT_EQ(fake::state().launches.size(), 1u);
  const fake::Launch& l = launched(0);
  const Params& a = l.params;
  EXPECT_EQ(a.batch, 2);
  EXPECT_EQ(a.heads, 8);
  EXPECT_EQ(a.kv_heads, 2);
  EXPECT_EQ(a.group, 4);
  EXPECT_EQ(a.max_q_len, 200);
  EXPECT_EQ(a.max_k_len, 300);
  EXPECT_EQ(a.origin, origin_end);
  EXPECT_EQ(a.band_left, 100);
  EXPECT_EQ(a.band_right, 7);
  EXPECT_EQ(a.scale, 0.25f);
  EXPECT_EQ(a.dropout_threshold, 1u << 30);
  EXPECT_FLOAT_EQ(a.keep_scale, 4.0f / 3.0f);
  EXPECT_EQ(a.seed, 77u);
  EXPECT_EQ(a.q.data, reinterpret_cast<void*>(0x10000));
  EXPECT_EQ(a.q.head, 200 * 64);
  EXPECT_EQ(a.k.batch, 2 * 300 * 64);
  EXPECT_EQ(a.lse.head, 200);
  EXPECT_EQ(a.max_logit, nullptr);
  EXPECT_EQ(l.blocks, 2u * 8 * 4);  // 64 queries a block
  EXPECT_EQ(l.threads, 128u);
  EXPECT_GT(l.shared, 0u);
}

TEST_F(CudaRun, AnUnboundedBandHasFarBounds) {
  const Problem p = problem({.mask = causal()});
  prepared(p)->run(p.args, nullptr, {});
  EXPECT_EQ(launched(0).params.band_left, 1LL << 40);
  EXPECT_EQ(launched(0).params.band_right, 0);
}

TEST_F(CudaRun, AQueryReachesTheWidthOfItsWindowOrAllKeys) {
  const std::pair<Mask, int> cases[] = {
      {causal(), 300}, {causal() && window(40), 41}, {causal() && window(4000), 300}};
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    const Problem p = problem({.mask = cases[i].first});
    prepared(p)->run(p.args, nullptr, {});
    EXPECT_EQ(launched(i).params.reach, cases[i].second) << cases[i].first.text();
  }
}

TEST_F(CudaRun, ADecodeIsPackedAndSplit) {
  const Problem p = problem({}, 1, 8192);
  const auto plan = prepared(p);
  EXPECT_GT(plan->explanation.splits, 8);
  std::vector<std::byte> workspace(plan->workspace());
  EXPECT_GE(plan->workspace(), static_cast<std::size_t>(plan->explanation.splits) * 2 * 8 * 65 * 4);
  plan->run(p.args, workspace.data(), {});
  ASSERT_EQ(fake::state().launches.size(), 2u);
  const Params& a = launched(0).params;
  EXPECT_EQ(a.splits * a.split_keys >= 8192, true);
  EXPECT_EQ(a.split_keys % 64, 0);
  EXPECT_EQ(launched(0).blocks, static_cast<unsigned>(2 * 2 * a.splits));
  EXPECT_NE(plan->explanation.kernel.find("packed.split"), std::string::npos);
  // Both partial arrays lie inside the workspace.
  const auto* begin = reinterpret_cast<const float*>(workspace.data());
  EXPECT_EQ(a.partial_o, begin);
  EXPECT_LE(a.partial_lse + a.splits * 2 * 8, begin + workspace.size() / 4);
  // A shorter problem under the same plan takes fewer splits of the same size.
  Args shorter = p.args;
  shorter.kv.k.shape[2] = shorter.kv.v.shape[2] = a.split_keys + 1;
  plan->run(shorter, workspace.data(), {});
  EXPECT_EQ(launched(2).params.splits, 2);
  EXPECT_EQ(launched(2).params.split_keys, a.split_keys);
}

TEST_F(CudaRun, InvariantNeitherSplitsNorPacks) {
  const Problem p = problem({.determinism = Determinism::invariant}, 1, 8192);
  const auto plan = prepared(p);
  EXPECT_EQ(plan->explanation.splits, 1);
  EXPECT_EQ(plan->explanation.kernel.find("packed"), std::string::npos);
  EXPECT_NE(plan->explanation.determinism.find("invariant"), std::string::npos);
}

TEST_F(CudaRun, MoreRowsThanPlannedAreRefused) {
  const Problem p = problem({}, 1, 8192);
  const auto plan = prepared(p);
  Args larger = p.args;
  larger.q.data.shape[2] = 2;
  std::vector<std::byte> workspace(plan->workspace());
  EXPECT_THROW(plan->run(larger, workspace.data(), {}), Error);
  EXPECT_TRUE(fake::state().launches.empty());
}

TEST_F(CudaRun, UnalignedDataNeverReachesAnAlignedKernel) {
  const Problem p = problem({});
  const auto plan = prepared(p);
  Args odd = p.args;
  odd.o.data = reinterpret_cast<void*>(0x40002);
  try {
    plan->run(odd, nullptr, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).rfind("O (bf16 [2, 8, 300, 64])", 0), 0u) << e.what();
  }
  Problem other = p;
  other.spec.aligned = false;
  EXPECT_NO_THROW(prepared(other)->run(odd, nullptr, {}));
  EXPECT_EQ(fake::state().launches.size(), 1u);
}

TEST_F(CudaRun, HostArraysAreRefusedByName) {
  const Array doc(std::vector<std::int32_t>(300, 1), "doc");
  const Problem p = problem({.mask = documents(doc), .align = Align::start});
  const auto plan = prepared(p);
  try {
    plan->run(p.args, nullptr, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::run);
    EXPECT_NE(std::string(e.what()).find("array doc of the mask is on the host"), std::string::npos)
        << e.what();
  }
}

TEST_F(CudaRun, CapturedArraysArriveInOrder) {
  const Array doc(std::vector<std::int32_t>(300, 5), "doc");
  Problem p = problem({.mask = documents(doc), .align = Align::start});
  auto moved = std::make_shared<BoundProgram>(*p.args.mask);
  moved->on_device = true;
  p.args.mask = moved;
  prepared(p)->run(p.args, nullptr, {});
  const ArrayRef& a = launched(0).params.mask.arrays[0];
  EXPECT_EQ(a.data, doc.view().data);
  EXPECT_EQ(a.shape[0], 300);
  EXPECT_EQ(a.stride[0], 1);
  EXPECT_EQ(a.low, 5);
  EXPECT_EQ(a.high, 5);
}

TEST_F(CudaRun, TheBackwardZeroesWhatItAddsTo) {
  const Array slope(std::vector<float>(8, 0.5f), "slope");
  Problem f = problem({.score = alibi(slope), .align = Align::start});
  Options options{.score = alibi(slope), .align = Align::start};
  const View o = f.args.o, lse = f.args.lse;
  Problem p = resolve_backward(
      Rows(there(DType::bf16, {2, 8, 300, 64}, 0x70000)), f.args.q, f.args.kv, o, lse, options, {});
  p.args.dq = there(DType::bf16, {2, 8, 300, 64}, 0x80000);
  p.args.dk = there(DType::bf16, {2, 2, 300, 64}, 0x90000);
  p.args.dv = there(DType::bf16, {2, 2, 300, 64}, 0xa0000);
  p.args.d_arrays = {there(DType::f32, {8}, 0xb0000)};
  auto moved = std::make_shared<BoundProgram>(*p.args.score);
  moved->on_device = true;
  p.args.score = moved;
  const auto plan = prepared(p);
  EXPECT_GE(plan->workspace(), 2u * 8 * 300 * 4);
  std::vector<std::byte> workspace(plan->workspace());
  plan->run(p.args, workspace.data(), {});
  ASSERT_EQ(fake::state().launches.size(), 3u);  // preprocess, dq, dk and dv
  ASSERT_EQ(fake::state().zeroed.size(), 1u);
  EXPECT_EQ(fake::state().zeroed[0], (std::pair<DevicePtr, std::size_t>{0xb0000, 32}));
  const Params& a = launched(1).params;
  EXPECT_EQ(a.dq.data, reinterpret_cast<void*>(0x80000));
  EXPECT_EQ(a.d_arrays[0].data, reinterpret_cast<void*>(0xb0000));
  EXPECT_EQ(a.d_arrays[0].shape[0], 8);
  EXPECT_EQ(a.delta, reinterpret_cast<float*>(workspace.data()));
  EXPECT_EQ(a.o_type, element_bf16);
}

TEST_F(CudaRun, OrderedCapturedGradientsTakeTwoPassesAndSumsInTheWorkspace) {
  const Array slope(std::vector<float>(8, 0.5f), "slope");
  const Array table(Tensor::zeros(DType::f32, {8, 32}), "table");
  const Param gain("gain", 0.5);
  const Score s = score([=](auto x, auto, auto h, auto q, auto k) {
    return x + slope[h] * k + Expr(gain) * table(h, clamp(q - k, 0, 31));
  });
  Options options{.score = s, .align = Align::start};
  options.determinism = Determinism::reproducible;
  const Problem f = problem(options);
  Problem p = resolve_backward(Rows(there(DType::bf16, {2, 8, 300, 64}, 0x70000)),
                               f.args.q,
                               f.args.kv,
                               f.args.o,
                               f.args.lse,
                               options,
                               {});
  EXPECT_EQ(p.bounds.captured, 8 + 8 * 32);
  p.args.dq = there(DType::bf16, {2, 8, 300, 64}, 0x80000);
  p.args.dk = there(DType::bf16, {2, 2, 300, 64}, 0x90000);
  p.args.dv = there(DType::bf16, {2, 2, 300, 64}, 0xa0000);
  View transposed = there(DType::f32, {32, 8}, 0xc0000);
  std::swap(transposed.shape[0], transposed.shape[1]);
  std::swap(transposed.stride[0], transposed.stride[1]);
  p.args.d_arrays = {there(DType::f32, {8}, 0xb0000), transposed};
  p.args.d_params =
      there(DType::f32, {static_cast<std::int64_t>(p.spec.score->params.size())}, 0xd0000);
  auto moved = std::make_shared<BoundProgram>(*p.args.score);
  moved->on_device = true;
  p.args.score = moved;
  const auto plan = prepared(p);
  const std::size_t sums = 8 + 8 * 32 + p.spec.score->params.size(), delta = 2 * 8 * 300 * 4;
  EXPECT_GE(plan->workspace(), delta + sums * 8);
  EXPECT_EQ(plan->explanation.determinism.rfind("reproducible", 0), 0u);
  std::vector<std::byte> workspace(plan->workspace());
  plan->run(p.args, workspace.data(), {});
  const auto& launches = fake::state().launches;
  ASSERT_EQ(launches.size(), 5u);  // preprocess, largest terms, dq, round, dk and dv
  const Params& a = launched(2).params;
  auto* base = static_cast<long long*>(a.d_sums[0].data);
  EXPECT_EQ(reinterpret_cast<std::byte*>(base), workspace.data() + (delta + 255) / 256 * 256);
  EXPECT_EQ(a.d_sums[1].data, base + 8);
  EXPECT_EQ(a.d_sums[1].stride[0], 32);  // dense, whatever the gradient's strides
  EXPECT_EQ(a.d_sums[1].stride[1], 1);
  EXPECT_EQ(a.d_sums[1].shape[2], 1);  // an index past the rank is clamped to 0
  EXPECT_EQ(a.d_arrays[1].stride[0], 1);
  EXPECT_EQ(a.d_arrays[1].stride[1], 8);
  EXPECT_EQ(a.d_param_sums, base + 8 + 256);
  EXPECT_EQ(a.sums, static_cast<long long>(sums));
  EXPECT_EQ(a.term_bits, 40);  // 2 * 8 * 300 * 300 pairs would leave 41
  EXPECT_EQ(launched(3).blocks, 2u);
  const auto& zeroed = fake::state().zeroed;
  EXPECT_EQ(zeroed.back(), (std::pair{reinterpret_cast<DevicePtr>(base), sums * 8}));
}

TEST_F(CudaRun, AMergeTakesFloat32) {
  Spec s;
  s.op = Operation::merge;
  s.dtype = DType::f32;
  s.out_dtype = DType::f16;
  s.dv = 64;
  s.sink = true;
  const Bounds bounds{.batch = 2, .kv_heads = 8, .total_q = 600, .max_q_len = 300};
  ASSERT_TRUE(support_spec(s, bounds).ok);
  const auto plan = prepare_with(*modules_, s, bounds, 0, Compile::allowed);
  Args args;
  args.a_o = there(DType::f32, {2, 8, 300, 64}, 0x10000);
  args.a_lse = there(DType::f32, {2, 8, 300}, 0x20000);
  args.o = there(DType::f16, {2, 8, 300, 64}, 0x30000);
  args.lse = there(DType::f32, {2, 8, 300}, 0x40000);
  args.sink = there(DType::f32, {8}, 0x50000);
  plan->run(args, nullptr, {});
  ASSERT_EQ(fake::state().launches.size(), 1u);
  EXPECT_EQ(launched(0).params.b_o.data, nullptr);  // one alone, plus the sink: finish()
  EXPECT_EQ(launched(0).params.sink, reinterpret_cast<float*>(0x50000));
  EXPECT_EQ(launched(0).blocks, 2u * 8 * 300 / 4);
}

TEST_F(CudaRun, AnEmptyProblemLaunchesNothing) {
  Problem p = problem({}, 0, 300);
  prepared(p)->run(p.args, nullptr, {});
  EXPECT_TRUE(fake::state().launches.empty());
}

TEST_F(CudaRun, KernelsAreLoadedOnce) {
  const Problem p = problem({.mask = causal()});
  prepared(p);
  const int first = fake::state().modules;
  prepared(p);
  prepared(problem({.mask = window(5, 0)}));  // the same kernel: bounds are parameters
  EXPECT_EQ(fake::state().modules, first);
}

TEST_F(CudaRun, AModuleThatTheDriverCannotLoadSaysWhy) {
  fake::state().load = 200;
  try {
    prepared(problem({}));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::plan);
    EXPECT_NE(std::string(e.what()).find("supports CUDA 13.0"), std::string::npos) << e.what();
  }
}

TEST_F(CudaRun, TheExplanationIsComplete) {
  const auto plan = prepared(problem({.mask = causal()}));
  const Explanation& e = plan->explanation;
  EXPECT_EQ(e.backend, "cuda");
  EXPECT_EQ(e.kernel.rfind("fwd.sm90.bf16", 0), 0u) << e.kernel;
  EXPECT_EQ(e.tiles, "64x64");
  ASSERT_FALSE(e.notes.empty());
  EXPECT_EQ(e.notes[0].rfind("portable", 0), 0u);
  EXPECT_NE(e.notes[1].find("registers"), std::string::npos);
  EXPECT_DOUBLE_EQ(e.flops, 2.0 * 2 * 8 * (300 * 301 / 2) * (64 + 64));
  EXPECT_GT(e.floor_seconds, 0);
}

TEST(CudaSupport, RefusesByNameWithTheNearestLegalChoice) {
  const auto refused = [](auto change) {
    Problem p = problem({});
    change(p.spec, p.bounds);
    const Support s = support_spec(p.spec, p.bounds);
    return s.ok ? std::string("supported") : s.reason + " | " + s.limit + " | " + s.got;
  };
  EXPECT_EQ(refused([](Spec&, Bounds&) {}), "supported");
  EXPECT_EQ(refused([](Spec& s, Bounds&) { s.dtype = DType::f32; }),
            "CUDA kernels multiply 16-bit inputs | f16, bf16; the nearest is bf16 | f32");
  EXPECT_EQ(refused([](Spec& s, Bounds&) { s.dqk = 37; }),
            "head dim Dqk is not one that CUDA kernels take | multiples of 8 from 8 to 512; the "
            "nearest is 40 | 37");
  EXPECT_NE(refused([](Spec& s, Bounds&) { s.dv = 520; }).find("the nearest is 512 | 520"),
            std::string::npos);
  EXPECT_NE(refused([](Spec& s, Bounds&) { s.out_dtype = DType::f16; }).find("bf16, f32 | f16"),
            std::string::npos);
  EXPECT_NE(refused([](Spec& s, Bounds&) {
              s.op = Operation::fastformer;
            }).find("forward, backward, merge"),
            std::string::npos);
  EXPECT_NE(refused([](Spec& s, Bounds&) {
              s.precision = {DType::e4m3, DType::e4m3, false};
            }).find("qk e4m3"),
            std::string::npos);
  const auto captured = [](Determinism d, std::int64_t length) {
    return [=](Spec& s, Bounds& b) {
      s.op = Operation::backward;
      s.captured = true;
      s.determinism = d;
      b.max_q_len = b.max_k_len = length;
    };
  };
  EXPECT_EQ(refused(captured(Determinism::invariant, 1 << 18)), "supported");  // 2^40 pairs
  EXPECT_EQ(refused(captured(Determinism::reproducible, 1 << 19)),
            "too many pairs for ordered gradients of captured arrays | 2^40 pairs at the bounds; "
            "the nearest is determinism fast | 8388608 query rows of all heads, 524288 keys");
  EXPECT_EQ(refused(captured(Determinism::fast, 1 << 19)), "supported");
  EXPECT_NE(refused([](Spec&, Bounds& b) { b.batch = std::int64_t{1} << 31; }).find("too large"),
            std::string::npos);
}

TEST(CudaSupport, TooManyArraysAreCounted) {
  Problem p = problem({});
  const Mask many = mask([](auto, auto, auto q, auto k) {
    auto keep = k <= q + 1;
    for (int i = 0; i < 9; ++i)
      keep = keep && Array(std::vector<std::int32_t>(300, i), "a" + std::to_string(i))[q] >= 0;
    return keep;
  });
  p.spec.mask = many.program();
  const Support s = support_spec(p.spec, p.bounds);
  EXPECT_FALSE(s.ok);
  EXPECT_EQ(s.limit, "8 arrays");
  EXPECT_EQ(s.got, "9");
}

TEST(CudaSupport, WithoutADeviceTheReasonIsTheMachine) {
  if (available()) GTEST_SKIP() << "no GPU is what this test needs";
  const Problem p = problem({});
  const Support s = support(p.spec, p.bounds, {});
  EXPECT_FALSE(s.ok);
  EXPECT_EQ(s.reason, availability().reason);
}

}  // namespace
}  // namespace undivided::cuda
