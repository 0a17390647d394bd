// SPDX-License-Identifier: Apache-2.0
// Loaded kernels, by device and content: compiled or read once, kept for the life of the library.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "cuda/cache.hpp"
#include "cuda/driver.hpp"
#include "cuda/emit.hpp"
#include "cuda/spec.hpp"

namespace undivided::cuda {

/// A kernel that can be launched on one device. Owns its module: plans outlive libraries.
struct LoadedKernel {
  explicit LoadedKernel(Driver& owner) : driver(owner) {}
  ~LoadedKernel();
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  Driver& driver;
  KernelSpec spec;
  Kernel info;  // without the code
  int device = 0;
  ModuleHandle module = nullptr;
  FunctionHandle function = nullptr;
  unsigned threads = 0, shared_memory = 0;
};

/// Part of the process state: one per Library. Safe from many threads; compilations of different
/// kernels run side by side.
class Modules {
 public:
  Modules(Driver& driver, KernelCache cache);
  Modules(const Modules&) = delete;
  Modules& operator=(const Modules&) = delete;

  /// Finds, compiles, loads. Raises Error{unsupported or driver, plan}.
  std::shared_ptr<const LoadedKernel> get(KernelSpec spec,
                                          const Policies& policies,
                                          int device,
                                          Compile compile);
  Driver& driver() const { return driver_; }
  const KernelCache& cache() const { return cache_; }
  std::size_t size() const;

 private:
  struct Slot {
    std::mutex loading;
    std::shared_ptr<const LoadedKernel> kernel;
  };
  std::shared_ptr<const LoadedKernel> load(const KernelSpec& spec,
                                           const Policies& policies,
                                           int device,
                                           Compile compile);
  Driver& driver_;
  KernelCache cache_;
  mutable std::mutex lock_;
  std::unordered_map<std::string, std::shared_ptr<Slot>> slots_;
};

}  // namespace undivided::cuda
