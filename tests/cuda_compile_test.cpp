// SPDX-License-Identifier: Apache-2.0
// Claims about kernel text: it compiles for every target of the family, and nothing spills.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>

#include "cuda/cache.hpp"
#include "cuda/nvrtc.hpp"
#include "cuda/peak.hpp"
#include "cuda_specs.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

TEST(CudaSpec, NamesParseBackToTheSameSpec) {
  std::set<std::string> names;
  for (const samples::Sample& s : samples::covering_set()) {
    EXPECT_EQ(KernelSpec::parse(s.spec.name()), s.spec) << s.spec.name();
    names.insert(s.spec.name());
  }
  EXPECT_GT(names.size(), 50u);
}

TEST(CudaSpec, AWrongNameSaysWhatIsLegal) {
  try {
    KernelSpec::parse("fwd.sm80.bf16.obf16.d129.v128.m64n64.band.identity.dense.dense");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("multiples of 8"), std::string::npos) << e.what();
  }
}

TEST(CudaText, TheWholeTextIsOnePiece) {
  const samples::Sample s = samples::covering_set().front();
  const std::string text = source_of(s.spec, s.policies, 80).text;
  EXPECT_EQ(text.find("\n#include"), std::string::npos);
  EXPECT_NE(text.find("#line 1 \"params.hpp\""), std::string::npos);
  // Each file once: a second copy would define everything twice.
  const std::string mark = "#line 1 \"kernels/sequence.cuh\"";
  EXPECT_EQ(text.find(mark), text.rfind(mark));
}

TEST(CudaText, AnUnknownIncludeIsRefusedByName) {
  try {
    expand_includes("#include <cuda_fp16.h>\n");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("cuda_fp16.h"), std::string::npos) << e.what();
  }
}

TEST(CudaText, ANewWindowIsTheSameKernel) {
  const auto text_of = [](const Mask& m) {
    Spec s;
    s.mask = samples::lifted((samples::rich_mask() && m).program());
    s.score = samples::lifted(identity().program());
    return policies_of(s).mask;
  };
  EXPECT_EQ(text_of(window(100, 0)), text_of(window(200, 0)));
  EXPECT_NE(text_of(window(100, 0)), text_of(prefix(100)));
}

// Compiled kernels are kept in the build folder by content: only what changed is compiled again.
TEST(CudaCompile, ACoveringSetCompilesWithoutSpills) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const KernelCache cache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {});
  const std::vector<samples::Sample> set = samples::covering_set();
  std::atomic<std::size_t> compiled{0};
  const auto begin = std::chrono::steady_clock::now();
  samples::on_two_threads(set.size(), [&](std::size_t number) {
    const samples::Sample& s = set[number];
    const Kernel k = cache.get([&](int arch) { return source_of(s.spec, s.policies, arch); },
                               s.spec.arch,
                               Compile::allowed);
    if (k.origin == "compiled") ++compiled;
    EXPECT_GT(k.report.registers, 0) << k.name;
    EXPECT_LE(k.report.registers, 255) << k.name;
    EXPECT_EQ(k.report.spill_bytes, 0) << k.name;
    EXPECT_EQ(k.report.stack_bytes, 0) << k.name;
  });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%zu kernels, %zu compiled now, %.1f s\n", set.size(), compiled.load(), seconds);
}

// Sums, products and what all pairs share are written in ways of their own.
TEST(CudaCompile, EveryFormOfAScoreCompiles) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const KernelCache cache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {});
  const Array bias(std::vector<float>(4, 0.5F), "bias");
  KernelSpec k;
  k.kind = KernelKind::backward_kv;
  k.dqk = k.dv = 8;
  k.score = true;
  for (const char* text : {"score + 0.5",
                           "score - bias[head]",
                           "2 - score",
                           "-score / 3",
                           "score * score",
                           "bias[head] * (score + 1) * -2",
                           "3 * score + bias[head] * (k - q) - bias[head] / 7",
                           "k <= q ? score : -inf",
                           "2.5"}) {
    SCOPED_TRACE(text);
    Spec s;
    s.op = Operation::backward;
    s.mask = samples::lifted(full().program());
    s.score = samples::lifted(Score::parse(text, {{bias}, {}}).program());
    const Policies policies = policies_of(s);
    EXPECT_NO_THROW(cache.get(
        [&](int arch) { return source_of(canonical(k), policies, arch); }, 90, Compile::allowed));
  }
}

TEST(CudaCompile, ThePeakKernelMultipliesInRegistersOnEveryTarget) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const KernelCache cache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {});
  for (const int arch : {80, 89, 90, 120})
    for (const DType dtype : {DType::f16, DType::bf16}) {
      const KernelSource source = peak_source(dtype, arch);
      const bool hopper = arch == 90;
      EXPECT_EQ(source.specific, hopper);
      EXPECT_EQ(source.text.find("wgmma.mma_async") != std::string::npos, hopper);
      const Kernel k = cache.get([&](int) { return source; }, arch, Compile::allowed);
      EXPECT_GT(k.report.registers, hopper ? 128 : 32) << k.name;  // the sums alone
      EXPECT_EQ(k.report.spill_bytes, 0) << k.name;
      EXPECT_EQ(k.report.stack_bytes, 0) << k.name;
    }
  try {
    peak_source(DType::f32, 90);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("f16 and bf16, not f32"), std::string::npos) << e.what();
  }
}

TEST(CudaCompile, SharedMemoryFitsTheSmallestCard) {
  for (const samples::Sample& s : samples::covering_set())
    EXPECT_LE(s.spec.shared_memory(), 99u * 1024) << s.spec.name();
}

TEST(CudaCompile, AnErrorNamesTheKernelAndTheLine) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  try {
    compile("broken", "extern \"C\" __global__ void f() { nonsense(1); }\n", 80);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::driver);
    EXPECT_EQ(e.stage(), Stage::plan);
    const std::string text = e.what();
    EXPECT_NE(text.find("kernel broken"), std::string::npos) << text;
    EXPECT_NE(text.find("nonsense"), std::string::npos) << text;
  }
}

TEST(CudaCompile, SpillsAreSeen) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  // 128 live values and 32 registers: this must spill, or the gate above could not fail.
  const std::string text = R"(
extern "C" __global__ void __launch_bounds__(1024, 2) f(float* x, int n) {
  float v[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) v[i] = x[i * n];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) x[i * n + 1] = v[127 - i] * v[i];
})";
  EXPECT_GT(compile("spilling", text, 80).report.spill_bytes, 0);
}

TEST(CudaCompile, AnOldOrUnknownTargetIsRefused) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  EXPECT_EQ(target_for(80), 80);
  EXPECT_EQ(target_for(90), 90);
  try {
    target_for(31);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("sm_31"), std::string::npos) << e.what();
  }
}

TEST(CudaCompile, TheReportIsReadFromTheLog) {
  const PtxasReport r = parse_ptxas(
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'undivided_kernel' for 'sm_80'\n"
      "ptxas info    : Function properties for undivided_kernel\n"
      "    24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads\n"
      "ptxas info    : Used 168 registers, used 1 barriers, 24 bytes cumulative stack size, 1024 "
      "bytes smem, 1280 bytes cmem[0]\n");
  EXPECT_EQ(r.registers, 168);
  EXPECT_EQ(r.spill_bytes, 28);
  EXPECT_EQ(r.stack_bytes, 24);
  EXPECT_EQ(r.static_shared, 1024);
}

}  // namespace
}  // namespace undivided::cuda
