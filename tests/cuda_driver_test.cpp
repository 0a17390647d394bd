// SPDX-License-Identifier: Apache-2.0
// Claims about the driver table: why CUDA cannot be used, and what an error says.
#include <gtest/gtest.h>

#include <cstdlib>

#include "cuda/driver.hpp"
#include "cuda/nvrtc.hpp"
#include "cuda_fake.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

class CudaDriver : public testing::Test {
 protected:
  void SetUp() override { fake::state() = {}; }
  std::string reason() {
    try {
      const Driver d(fake::resolve);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::unsupported);
      EXPECT_EQ(e.stage(), Stage::plan);
      return e.what();
    }
    return "usable";
  }
};

TEST_F(CudaDriver, ReadsItsDevices) {
  const Driver d(fake::resolve);
  ASSERT_EQ(d.devices().size(), 1u);
  EXPECT_EQ(d.device(0).name, "Fake 9000");
  EXPECT_EQ(d.device(0).arch(), 90);
  EXPECT_NEAR(d.device(0).bandwidth, 3.35e12, 0.01e12);
  EXPECT_NEAR(d.device(0).tensor_flops, 1.07e15, 0.01e15);
  EXPECT_EQ(d.calls(CallKind::memory), 0u);
}

TEST_F(CudaDriver, AnOldDriverSaysWhichVersionIsNeeded) {
  fake::state().version = 11040;
  const std::string why = reason();
  EXPECT_NE(why.find("too old: it supports CUDA 11.4, and 12.0"), std::string::npos) << why;
}

TEST_F(CudaDriver, AMissingFunctionIsNamed) {
  fake::state().missing = "cuStreamIsCapturing";
  const std::string why = reason();
  EXPECT_NE(why.find("cuStreamIsCapturing"), std::string::npos) << why;
}

TEST_F(CudaDriver, NoDeviceIsSaid) {
  fake::state().init = 100;
  EXPECT_NE(reason().find("no CUDA device"), std::string::npos);
  fake::state() = {};
  fake::state().devices = 0;
  EXPECT_NE(reason().find("no CUDA device"), std::string::npos);
}

TEST_F(CudaDriver, AnUnknownDeviceIsRefusedWithTheLastLegalOne) {
  const Driver d(fake::resolve);
  try {
    d.device(3);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "there is no device cuda:3; the last one is cuda:0");
  }
}

TEST_F(CudaDriver, AFailedCallIsNamedAndMayBeOlder) {
  const Driver d(fake::resolve);
  try {
    d.check(700, "cuStreamSynchronize");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::driver);
    EXPECT_EQ(e.stage(), Stage::run);
    const std::string text = e.what();
    EXPECT_NE(text.find("cuStreamSynchronize failed: an illegal memory access"), std::string::npos);
    EXPECT_NE(text.find("earlier asynchronous launch"), std::string::npos);
  }
  try {
    d.check(2, "cuMemAlloc_v2");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::out_of_memory);
    EXPECT_EQ(std::string(e.what()).find("asynchronous"), std::string::npos);
  }
}

TEST_F(CudaDriver, CallsAreCountedByKind) {
  Driver d(fake::resolve);
  DevicePtr p = 0;
  d.cuMemAllocAsync(&p, 1, nullptr);
  d.cuMemFreeAsync(p, nullptr);
  EXPECT_EQ(d.calls(CallKind::memory), 2u);
  EXPECT_EQ(d.calls(CallKind::synchronise), 0u);
  d.cuCtxSynchronize();
  EXPECT_EQ(d.calls(CallKind::synchronise), 1u);
}

TEST(CudaHere, WithoutAGpuTheReasonIsOneClearLine) {
  const Availability here = availability();
  if (here.ok) {
    EXPECT_FALSE(driver().devices().empty());
    return;
  }
  EXPECT_FALSE(here.reason.empty());
  EXPECT_EQ(here.reason.find('\n'), std::string::npos);
  try {
    driver();
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_EQ(e.stage(), Stage::plan);
    EXPECT_EQ(e.what(), here.reason);
  }
}

// The libraries are opened once a process: each of these needs a process of its own.
using CudaDeathTest = testing::Test;

void print_driver_reason(const char* path) {
  setenv("UNDIVIDED_CUDA", path, 1);
  std::fprintf(stderr, "%s\n", availability().reason.c_str());
  std::exit(available() ? 1 : 0);
}
void print_nvrtc_reason(const char* path) {
  setenv("UNDIVIDED_NVRTC", path, 1);
  try {
    compile("any", "", 80);
    std::exit(1);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    std::exit(e.code() == Code::unsupported && e.stage() == Stage::plan ? 0 : 1);
  }
}

TEST(CudaDeathTest, SwitchedOffOrMissingDriver) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(print_driver_reason("none"), testing::ExitedWithCode(0), "UNDIVIDED_CUDA=none");
  EXPECT_EXIT(print_driver_reason("/nowhere/libcuda.so"),
              testing::ExitedWithCode(0),
              "no CUDA driver: /nowhere/libcuda.so");
  EXPECT_EXIT(print_driver_reason("libm.so.6"), testing::ExitedWithCode(0), "too old");
}

TEST(CudaDeathTest, MissingNvrtcSaysHowToGetIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(print_nvrtc_reason("/nowhere/libnvrtc.so"),
              testing::ExitedWithCode(0),
              "no NVRTC: /nowhere/libnvrtc.so.*nvidia-cuda-nvrtc");
  EXPECT_EXIT(print_nvrtc_reason("libm.so.6"), testing::ExitedWithCode(0), "it lacks nvrtc");
}

}  // namespace
}  // namespace undivided::cuda
