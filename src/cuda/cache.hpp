// SPDX-License-Identifier: Apache-2.0
// Compiled kernels: read from folders of prebuilt ones, read from and published to a disk cache.
//
// An entry is a folder <name>.<hash>.nvrtc<version>/ with kernel.cubin, kernel.cu and kernel.json.
// It is written under another name and renamed, so nobody ever meets half of one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cuda/nvrtc.hpp"
#include "undivided/context.hpp"

namespace undivided::cuda {

/// What decides the machine code. The hash covers text, options and target, not the version of the
/// compiler, so that a machine without a compiler still finds what others have compiled.
struct KernelSource {
  std::string name;
  std::string text;
  int arch = 0;           // of the code: 80 for sm_80
  bool specific = false;  // sm_90a, which no later card runs
  std::string hash() const;
};

struct Kernel {
  std::string name;
  std::string cubin;
  PtxasReport report;
  double seconds = 0;  // of the compilation, whenever it was
  int arch = 0;
  std::string nvrtc;   // version that made it
  std::string origin;  // "compiled", or the folder that it came from
};

class KernelCache {
 public:
  /// `writable` may be empty: nothing is kept then.
  KernelCache(std::string writable, std::vector<std::string> prebuilt);
  /// Folders from the environment and the installation.
  static KernelCache standard();

  /// Looks in the prebuilt folders and the cache for code that a device of `device_arch` runs; if
  /// there is none, compiles and publishes. With Compile::never it refuses by name instead.
  /// `source_for(arch)` makes the text for a target. Raises Error{unsupported or driver, plan}.
  Kernel get(const std::function<KernelSource(int arch)>& source_for,
             int device_arch,
             Compile compile) const;

  /// Entry of exactly this source; true and the kernel, if it is there and whole.
  bool find(const KernelSource& source, Kernel& kernel) const;
  /// Never raises: a cache that cannot be written costs time only. Returns the entry's folder, or
  /// an empty string. If somebody else was first, theirs stays.
  std::string publish(const KernelSource& source, const Kernel& kernel) const;

  const std::string& writable() const { return writable_; }

 private:
  std::string writable_;
  std::vector<std::string> prebuilt_;
};

}  // namespace undivided::cuda
