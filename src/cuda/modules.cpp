// SPDX-License-Identifier: Apache-2.0
// Loads kernels once per device and content.
#include "cuda/modules.hpp"

#include <fmt/format.h>

#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr int attribute_registers = 4, attribute_dynamic_shared = 8;
constexpr Result invalid_image = 200, no_binary = 209;

}  // namespace

Modules::Modules(Driver& driver, KernelCache cache) : driver_(driver), cache_(std::move(cache)) {}

LoadedKernel::~LoadedKernel() {
  if (!module) return;
  try {
    const DeviceScope scope(driver, device);
    driver.cuModuleUnload.raw(module);
  } catch (const Error&) {
    // The driver has shut down before us: its modules are gone already.
  }
}

std::shared_ptr<const LoadedKernel> Modules::get(KernelSpec spec,
                                                 const Policies& policies,
                                                 int device,
                                                 Compile compile) {
  spec = canonical(spec);
  const std::string key =
      fmt::format("{} {}\n{}\n{}", device, spec.name(), policies.mask, policies.score);
  std::shared_ptr<Slot> slot;
  {
    const std::lock_guard lock(lock_);
    std::shared_ptr<Slot>& place = slots_[key];
    if (!place) place = std::make_shared<Slot>();
    slot = place;
  }
  const std::lock_guard loading(slot->loading);
  if (!slot->kernel) slot->kernel = load(spec, policies, device, compile);
  return slot->kernel;
}

std::shared_ptr<const LoadedKernel> Modules::load(const KernelSpec& spec,
                                                  const Policies& policies,
                                                  int device,
                                                  Compile compile) {
  const DeviceInfo& target = driver_.device(device);
  auto kernel = std::make_shared<LoadedKernel>(driver_);
  kernel->info =
      cache_.get([&](int arch) { return source_of(spec, policies, arch); }, target.arch(), compile);
  kernel->spec = spec;
  kernel->spec.arch = kernel->info.arch;
  kernel->device = device;
  kernel->threads = static_cast<unsigned>(spec.threads());
  kernel->shared_memory = static_cast<unsigned>(spec.shared_memory());

  const DeviceScope scope(driver_, device);
  const Result loaded = driver_.cuModuleLoadData.raw(&kernel->module, kernel->info.cubin.data());
  if (loaded == invalid_image || loaded == no_binary)
    throw Error(Code::driver,
                Stage::plan,
                fmt::format("kernel {} was made by NVRTC {} and the driver, which supports CUDA "
                            "{}.{}, cannot load it: update the NVIDIA driver, or set "
                            "UNDIVIDED_NVRTC to an NVRTC of that version",
                            kernel->info.name,
                            kernel->info.nvrtc,
                            driver_.version() / 1000,
                            driver_.version() % 1000 / 10));
  driver_.check(loaded, "cuModuleLoadData");
  driver_.cuModuleGetFunction(&kernel->function, kernel->module, entry_name);
  driver_.cuFuncSetAttribute(
      kernel->function, attribute_dynamic_shared, static_cast<int>(kernel->shared_memory));
  // Reading an attribute makes a lazily loaded module complete: not during a graph capture.
  driver_.cuFuncGetAttribute(&kernel->info.report.registers, attribute_registers, kernel->function);
  kernel->info.cubin.clear();
  kernel->info.cubin.shrink_to_fit();
  return kernel;
}

std::size_t Modules::size() const {
  const std::lock_guard lock(lock_);
  return slots_.size();
}

}  // namespace undivided::cuda
