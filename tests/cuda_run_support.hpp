// SPDX-License-Identifier: Apache-2.0
// Problems on a device that is not there, and plans for them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "cuda/backend.hpp"
#include "cuda_fake.hpp"
#include "problem/bound.hpp"
#include "undivided/undivided.hpp"

namespace undivided::cuda {

inline constexpr Device gpu{Device::Kind::cuda, 0};

// Addresses only: nothing reads them here.
inline View there(DType dtype, std::initializer_list<std::int64_t> shape, std::uintptr_t at) {
  return View::of(reinterpret_cast<void*>(at), dtype, shape, gpu);
}

inline Problem problem(const Options& options, std::int64_t q_len = 300, std::int64_t k_len = 300) {
  const Rows q(there(DType::bf16, {2, 8, q_len, 64}, 0x10000));
  const Kv kv = dense(there(DType::bf16, {2, 2, k_len, 64}, 0x20000),
                      there(DType::bf16, {2, 2, k_len, 64}, 0x30000));
  Problem p = resolve(q, kv, options);
  p.args.o = there(DType::bf16, {2, 8, q_len, 64}, 0x40000);
  p.args.lse = there(DType::f32, {2, 8, q_len}, 0x50000);
  return p;
}

/// Plans made with the fake driver; NVRTC and its cache are real.
class CudaRun : public testing::Test {
 protected:
  void SetUp() override {
    if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
    setenv("UNDIVIDED_FAMILY", "portable", 1);  // claims about the family that every card has
    fake::state() = {};
    open();
  }
  /// The driver as the fake's state now has it.
  void open() {
    modules_.reset();
    driver_ = std::make_unique<Driver>(fake::resolve);
    modules_ = std::make_unique<Modules>(
        *driver_, KernelCache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {}));
  }
  void TearDown() override { unsetenv("UNDIVIDED_FAMILY"); }
  std::unique_ptr<Prepared> prepared(const Problem& p) {
    return prepare_with(*modules_, p.spec, p.bounds, 0, Compile::allowed);
  }
  const fake::Launch& launched(std::size_t i) const { return fake::state().launches.at(i); }

  std::unique_ptr<Driver> driver_;
  std::unique_ptr<Modules> modules_;
};

}  // namespace undivided::cuda
