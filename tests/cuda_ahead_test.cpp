// SPDX-License-Identifier: Apache-2.0
// Claims: the kernels compiled ahead are those that usual calls ask for, each once, and a call
// finds them without a compiler.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "cuda/ahead.hpp"
#include "cuda/choose.hpp"
#include "cuda/nvrtc.hpp"
#include "cuda_specs.hpp"

namespace undivided::cuda {
namespace {

namespace fs = std::filesystem;

std::set<std::string> hashes(int arch) {
  std::set<std::string> out;
  for (const AheadKernel& k : usual_kernels(arch))
    out.insert(source_of(k.spec, k.policies, arch).hash());
  return out;
}

/// What a causal call of that score would compile on a card of that generation.
std::vector<std::string> wanted(int arch, const Score& score, std::int64_t queries) {
  Spec s;
  s.dtype = s.out_dtype = DType::bf16;
  s.dqk = s.dv = 128;
  s.origin = Origin::end;
  s.mask = samples::lifted(causal().program());
  s.score = samples::lifted(score.program());
  DeviceInfo card;
  card.major = arch / 10;
  card.minor = arch % 10;
  card.multiprocessors = 78;
  std::vector<std::string> out;
  for (const KernelSpec& k :
       choose(s, {1, 16, queries, 2048, queries, 2048, 0}, card, Family::sm90).kernels)
    out.push_back(source_of(k, policies_of(s), arch).hash());
  return out;
}

TEST(CudaAhead, EachKernelOnce) {
  for (const int arch : {80, 90}) {
    const std::vector<AheadKernel> kernels = usual_kernels(arch);
    EXPECT_EQ(hashes(arch).size(), kernels.size());
    EXPECT_GE(kernels.size(), 48u);
  }
}

TEST(CudaAhead, UsualCallsAreAmongThem) {
  for (const int arch : {80, 90}) {
    const std::set<std::string> there = hashes(arch);
    for (const std::int64_t queries : {1024, 1})
      for (const Score& score : {identity(), softcap(30), softcap(50)})
        for (const std::string& hash : wanted(arch, score, queries))
          EXPECT_TRUE(there.count(hash)) << "sm_" << arch << ", " << queries << " queries";
    for (const std::string& hash : wanted(arch, samples::rich_score(), 1024))
      EXPECT_FALSE(there.count(hash));
  }
}

TEST(CudaAhead, ACallFindsThemWithoutACompiler) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const fs::path folder =
      fs::temp_directory_path() / ("undivided-ahead-" + std::to_string(::getpid()));
  const std::vector<AheadKernel> kernels = usual_kernels(80);
  const auto small = std::find_if(kernels.begin(), kernels.end(), [](const AheadKernel& k) {
    return k.spec.kind == KernelKind::combine;
  });
  ASSERT_NE(small, kernels.end());
  const auto source = [&](int arch) { return source_of(small->spec, small->policies, arch); };
  EXPECT_EQ(KernelCache(folder.string(), {}).get(source, 80, Compile::allowed).origin, "compiled");
  const Kernel found = KernelCache({}, {folder.string()}).get(source, 80, Compile::never);
  EXPECT_NE(found.origin.find(folder.string()), std::string::npos);
  EXPECT_FALSE(found.cubin.empty());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace undivided::cuda
