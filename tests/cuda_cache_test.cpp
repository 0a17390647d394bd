// SPDX-License-Identifier: Apache-2.0
// Claims about the kernel cache: whole entries only, the right ones, refusals by name.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cuda/cache.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

namespace fs = std::filesystem;

class CudaCache : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/undivided-cache-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static KernelSource source(const std::string& text = "text", int arch = 80) {
    return {"fwd.sm" + std::to_string(arch), text, arch};
  }
  // Large enough that writing takes many steps.
  static Kernel kernel(char fill = 'a') {
    Kernel k;
    k.name = "fwd.sm80";
    k.cubin = std::string(300000, fill);
    k.report = {168, 0, 0, 16};
    k.seconds = 1.5;
    k.arch = 80;
    k.nvrtc = nvrtc_availability().ok ? nvrtc_availability().version : "13.0";
    return k;
  }
  std::size_t files_in(const std::string& path) const {
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& e : fs::directory_iterator(path)) ++n;
    return n;
  }
  std::string folder_;
};

TEST_F(CudaCache, KeepsWhatWasPublished) {
  const KernelCache cache(folder_, {});
  Kernel found;
  EXPECT_FALSE(cache.find(source(), found));
  const std::string at = cache.publish(source(), kernel());
  ASSERT_FALSE(at.empty());
  ASSERT_TRUE(cache.find(source(), found));
  EXPECT_EQ(found.cubin, kernel().cubin);
  EXPECT_EQ(found.report.registers, 168);
  EXPECT_EQ(found.seconds, 1.5);
  EXPECT_EQ(found.origin, at);
  EXPECT_TRUE(fs::exists(at + "/kernel.cu"));  // for people
  EXPECT_EQ(files_in(folder_), 1u);
}

TEST_F(CudaCache, TextOptionsAndTargetAreTheKey) {
  EXPECT_EQ(source().hash(), source().hash());
  EXPECT_NE(source("text").hash(), source("text ").hash());
  EXPECT_NE(source("text", 80).hash(), source("text", 90).hash());
  EXPECT_EQ(source().hash().size(), 32u);
}

TEST_F(CudaCache, ADamagedEntryIsNotUsedAndIsReplaced) {
  const KernelCache cache(folder_, {});
  const std::string at = cache.publish(source(), kernel());
  for (const char* file : {"kernel.cubin", "kernel.json"}) {
    fs::resize_file(at + "/" + file, 100);
    Kernel found;
    EXPECT_FALSE(cache.find(source(), found)) << file;
    EXPECT_EQ(cache.publish(source(), kernel('b')), at);
    ASSERT_TRUE(cache.find(source(), found)) << file;
    EXPECT_EQ(found.cubin[0], 'b');
  }
  EXPECT_EQ(files_in(folder_), 1u);
}

TEST_F(CudaCache, TheFirstPublicationStays) {
  const KernelCache cache(folder_, {});
  cache.publish(source(), kernel('a'));
  EXPECT_FALSE(cache.publish(source(), kernel('b')).empty());
  Kernel found;
  ASSERT_TRUE(cache.find(source(), found));
  EXPECT_EQ(found.cubin[0], 'a');
}

TEST_F(CudaCache, AFolderThatCannotBeWrittenCostsOnlyTime) {
  EXPECT_EQ(KernelCache("", {}).publish(source(), kernel()), "");
  EXPECT_EQ(KernelCache("/proc/undivided", {}).publish(source(), kernel()), "");
}

// Readers in threads and writers in processes: what is found is always whole.
TEST_F(CudaCache, NobodyMeetsHalfAnEntry) {
  std::vector<pid_t> writers;
  for (int w = 0; w < 2; ++w) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const KernelCache cache(folder_, {});
      for (int i = 0; i < 60; ++i)
        cache.publish(source("text " + std::to_string(i)), kernel(static_cast<char>('a' + w)));
      _exit(0);
    }
    writers.push_back(child);
  }
  std::atomic<bool> done{false};
  std::atomic<int> seen{0}, bad{0};
  const auto read = [&] {
    const KernelCache cache(folder_, {});
    while (!done)
      for (int i = 0; i < 60; ++i) {
        Kernel found;
        if (!cache.find(source("text " + std::to_string(i)), found)) continue;
        ++seen;
        const std::string& c = found.cubin;
        if (c.size() != 300000 || c.find_first_not_of(c[0]) != std::string::npos) ++bad;
      }
  };
  std::thread reader(read);
  for (const pid_t child : writers) {
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  done = true;
  reader.join();
  EXPECT_EQ(bad, 0);
  EXPECT_GT(seen, 0);
  EXPECT_EQ(files_in(folder_), 60u);  // no remains of the losers
}

TEST_F(CudaCache, CompileNeverRefusesByName) {
  const KernelCache cache(folder_, {});
  try {
    cache.get([](int arch) { return source("text", arch); }, 90, Compile::never);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_EQ(e.stage(), Stage::plan);
    const std::string text = e.what();
    EXPECT_NE(text.find("fwd.sm90"), std::string::npos) << text;
    EXPECT_NE(text.find("compile = never"), std::string::npos) << text;
  }
}

TEST_F(CudaCache, CompileNeverTakesWhatIsThere) {
  const KernelCache writer(folder_, {});
  Kernel old = kernel();
  old.nvrtc = "12.1";  // not the compiler at hand
  writer.publish(source(), old);
  const auto make = [](int arch) { return source("text", arch); };
  EXPECT_EQ(writer.get(make, 80, Compile::never).nvrtc, "12.1");
  // As a folder of prebuilt kernels it also serves later cards of the same major version.
  const KernelCache installed("", {folder_});
  EXPECT_EQ(installed.get(make, 80, Compile::allowed).nvrtc, "12.1");
  EXPECT_EQ(installed.get(make, 89, Compile::never).arch, 80);
  EXPECT_THROW(installed.get(make, 90, Compile::never), Error);
}

TEST_F(CudaCache, ANewCompilerCompilesAgain) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const KernelCache cache(folder_, {});
  const auto make = [](int arch) {
    return source("extern \"C\" __global__ void undivided_kernel() {}\n", arch);
  };
  Kernel old = kernel();
  old.nvrtc = "12.1";
  cache.publish(make(80), old);
  EXPECT_EQ(cache.get(make, 80, Compile::allowed).origin, "compiled");
  const Kernel again = cache.get(make, 80, Compile::allowed);
  EXPECT_NE(again.origin, "compiled");
  EXPECT_EQ(again.nvrtc, nvrtc_availability().version);
}

}  // namespace
}  // namespace undivided::cuda
