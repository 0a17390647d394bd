// SPDX-License-Identifier: Apache-2.0
// Loads the peak kernel, runs it, times it.
#include "cuda/peak.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cuda/driver.hpp"
#include "cuda/emit.hpp"
#include "cuda/memory.hpp"
#include "cuda/tuning.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr unsigned block_threads = 256;
constexpr int launches = 300, warm_launches = 100;

/// What a block does in a turn, and how many turns make a launch of about a millisecond.
struct Shape {
  double flops;
  int turns, blocks;  // a multiprocessor
  unsigned shared;
};
constexpr Shape of_wgmma{2 * 4 * 2.0 * 64 * 256 * 16, 1500, 1, (2 * 64 + 256) * 128};
constexpr Shape of_mma{8 * 8 * 2.0 * 16 * 8 * 16, 8000, 2, 0};

bool hopper(int arch) { return arch == 90; }

struct Module {
  explicit Module(Driver& owner, const std::string& cubin) : driver(owner) {
    driver.cuModuleLoadData(&handle, cubin.data());
  }
  ~Module() { driver.cuModuleUnload.raw(handle); }
  Module(const Module&) = delete;
  Driver& driver;
  ModuleHandle handle = nullptr;
};

}  // namespace

KernelSource peak_source(DType dtype, int arch) {
  if (!is_float16(dtype))
    throw Error(Code::unsupported,
                Stage::plan,
                fmt::format("the peak of matrix instructions is measured for f16 and bf16, not {}",
                            name_of(dtype)));
  const char* element = dtype == DType::f16 ? "Half" : "BFloat16";
  KernelSource s;
  s.name = fmt::format("peak.sm{}{}.{}", arch, hopper(arch) ? "a" : "", name_of(dtype));
  s.arch = arch;
  s.specific = hopper(arch);
  s.text = expand_includes(
      fmt::format("// {}\n#include \"kernels/peak{}.cuh\"\n\nnamespace undivided::cuda {{\n\n{}"
                  "extern \"C\" __global__ void __launch_bounds__({}, {})\n"
                  "    {}(float* out, int turns) {{\n  peak<{}>(out, turns);\n}}\n\n"
                  "}}  // namespace undivided::cuda\n",
                  s.name,
                  hopper(arch) ? "_sm90" : "",
                  hopper(arch) ? wgmma_text(dtype, 256, false) : std::string(),
                  block_threads,
                  hopper(arch) ? of_wgmma.blocks : of_mma.blocks,
                  entry_name,
                  element));
  return s;
}

MmaPeak measured_mma_peak(int device, DType dtype) {
  Driver& d = driver();
  const DeviceInfo& card = d.device(device);
  const int arch = card.arch();
  const Shape shape = hopper(arch) ? of_wgmma : of_mma;
  // Hopper's instruction is in the code for Hopper alone, whatever older code it could run.
  const Kernel kernel = KernelCache::standard().get(
      [&](int target) { return peak_source(dtype, hopper(arch) ? arch : target); },
      arch,
      Compile::allowed);
  const DeviceScope scope(d, device);
  const Module module(d, kernel.cubin);
  FunctionHandle function = nullptr;
  d.cuModuleGetFunction(&function, module.handle, entry_name);
  const auto blocks = static_cast<unsigned>(card.multiprocessors * shape.blocks);
  const Tensor out = empty(DType::f32,
                           {static_cast<std::int64_t>(blocks) * block_threads},
                           {Device::Kind::cuda, device});
  void* data = out.data;
  int turns = shape.turns;
  void* arguments[] = {&data, &turns};
  std::vector<double> seconds = time_on_stream({Device::Kind::cuda, device}, {}, launches, [&] {
    d.cuLaunchKernel(
        function, blocks, 1, 1, block_threads, 1, 1, shape.shared, nullptr, arguments, nullptr);
  });
  seconds.erase(seconds.begin(), seconds.begin() + warm_launches);
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return {shape.flops * turns * blocks / *middle, hopper(arch) ? "wgmma" : "mma.sync"};
}

}  // namespace undivided::cuda
