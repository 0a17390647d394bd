// SPDX-License-Identifier: Apache-2.0
// Opens libcuda, finds every function of the table, and reads the devices once.
#include "cuda/driver.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include "core/environment.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr int oldest_version = 12000;
constexpr Result no_device = 100, stub_library = 34, mismatch = 803;

// The values of CUdevice_attribute that are read.
enum Attribute {
  clock_khz = 13,
  multiprocessors = 16,
  memory_clock_khz = 36,
  memory_bus_bits = 37,
  l2_cache = 38,
  capability_major = 75,
  capability_minor = 76,
  shared_memory_optin = 97,
  memory_pools = 115,
};

[[noreturn]] void unusable(const std::string& reason) {
  throw Error(Code::unsupported, Stage::plan, reason);
}

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Dense f16 products with f32 sums, per multiprocessor and clock.
double tensor_flops_per_clock(int arch) {
  if (arch >= 100 && arch < 120) return 8192;
  if (arch >= 90 && arch < 100) return 4096;
  if (arch == 80) return 2048;
  return 512;  // cards for graphics
}

// What can be said about a failure that belongs to earlier work.
bool asynchronous(Result result) { return result == 700 || (result >= 714 && result <= 719); }

}  // namespace

const char* name_of(CallKind kind) {
  constexpr const char* names[call_kinds] = {
      "query", "memory", "module", "synchronise", "copy", "launch", "other"};
  return names[static_cast<std::size_t>(kind)];
}

Entry::Entry(Driver& owner, const char* name, CallKind kind, bool required)
    : owner_(&owner), name_(name), kind_(kind), required_(required) {
  owner.entries_.push_back(this);
}

Driver::Driver(Resolve resolve) {
  std::string missing;
  for (Entry* entry : entries_) {
    entry->address_ = resolve(entry->name_);
    if (!entry->address_ && entry->required_) missing += std::string(" ") + entry->name_;
  }
  if (cuDriverGetVersion.found()) cuDriverGetVersion.raw(&version_);
  if (version_ < oldest_version)
    unusable(fmt::format(
        "the CUDA driver is too old: it supports CUDA {}, and {} or newer is needed; update the "
        "NVIDIA driver to 525 or newer",
        version_text(version_),
        version_text(oldest_version)));
  if (!missing.empty())
    unusable(fmt::format("the CUDA driver lacks functions:{}; update the NVIDIA driver", missing));
  const Result started = cuInit.raw(0);
  if (started == no_device) unusable("no CUDA device: the driver found no NVIDIA GPU");
  if (started == stub_library)
    unusable("the CUDA driver is a stub of the toolkit: install an NVIDIA driver");
  if (started == mismatch)
    unusable(
        "the CUDA driver's library and kernel module differ: reload it or restart the machine");
  if (started != 0) {
    const char* text = nullptr;
    cuGetErrorString.raw(started, &text);
    unusable(fmt::format("the CUDA driver does not start: cuInit: {}", text ? text : "unknown"));
  }
  read_devices();
  if (devices_.empty()) unusable("no CUDA device: the driver found no NVIDIA GPU");
}

void Driver::read_devices() {
  int count = 0;
  cuDeviceGetCount(&count);
  for (int i = 0; i < count; ++i) {
    DeviceInfo d;
    d.index = i;
    cuDeviceGet(&d.handle, i);
    std::array<char, 256> name{};
    cuDeviceGetName(name.data(), static_cast<int>(name.size()) - 1, d.handle);
    d.name = name.data();
    cuDeviceTotalMem(&d.memory, d.handle);
    const auto attribute = [&](Attribute which) {
      int value = 0;
      cuDeviceGetAttribute(&value, which, d.handle);
      return value;
    };
    // Newer drivers may not know the clocks: the floor is then not predicted.
    const auto optional = [&](Attribute which) {
      int value = 0;
      return cuDeviceGetAttribute.raw(&value, which, d.handle) == 0 ? value : 0;
    };
    d.major = attribute(capability_major);
    d.minor = attribute(capability_minor);
    d.multiprocessors = attribute(multiprocessors);
    d.shared_memory = attribute(shared_memory_optin);
    d.l2_bytes = attribute(l2_cache);
    d.memory_pools = attribute(memory_pools) != 0;
    d.bandwidth = 2.0 * 1e3 * optional(memory_clock_khz) * optional(memory_bus_bits) / 8;
    d.tensor_flops =
        1e3 * optional(clock_khz) * d.multiprocessors * tensor_flops_per_clock(d.arch());
    cuDevicePrimaryCtxRetain(&d.context, d.handle);
    if (d.memory_pools) {
      // Freed memory stays with the process: the next allocation is then cheap.
      MemoryPoolHandle pool = nullptr;
      cuDeviceGetDefaultMemPool(&pool, d.handle);
      constexpr int release_threshold = 4;
      std::uint64_t keep = ~std::uint64_t{0};
      cuMemPoolSetAttribute(pool, release_threshold, &keep);
    }
    devices_.push_back(std::move(d));
  }
}

const DeviceInfo& Driver::device(int index) const {
  if (index < 0 || static_cast<std::size_t>(index) >= devices_.size())
    throw Error(
        Code::invalid_argument,
        Stage::plan,
        fmt::format(
            "there is no device cuda:{}; the last one is cuda:{}", index, devices_.size() - 1));
  return devices_[static_cast<std::size_t>(index)];
}

std::uint64_t Driver::calls(CallKind kind) const {
  std::uint64_t sum = 0;
  for (const Entry* entry : entries_)
    if (entry->kind_ == kind) sum += entry->calls();
  return sum;
}

std::map<std::string, std::uint64_t> Driver::calls() const {
  std::map<std::string, std::uint64_t> counts;
  for (const Entry* entry : entries_) counts[entry->name_] = entry->calls();
  return counts;
}

void Driver::check(Result result, const char* call) const {
  if (result == 0) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName.raw(result, &name);
  cuGetErrorString.raw(result, &text);
  std::string message = fmt::format("{} failed: {} ({})",
                                    call,
                                    text ? text : "unknown error",
                                    name ? name : fmt::format("{}", result).c_str());
  if (asynchronous(result))
    message += "; it may come from an earlier asynchronous launch, and the process must restart";
  throw Error(
      result == out_of_memory_result ? Code::out_of_memory : Code::driver, Stage::run, message);
}

bool Driver::capturing(StreamHandle stream) const {
  int status = 0;
  // The legacy stream answers with an error while another stream of the context captures.
  if (cuStreamIsCapturing.raw(stream, &status) != 0) return true;
  return status != 0;
}

namespace {

struct OpenedDriver {
  std::unique_ptr<Driver> driver;
  std::string reason;

  OpenedDriver() {
    try {
      open();
    } catch (const Error& error) {
      reason = error.what();
    }
  }

  void open() {
    const std::string asked = environment::cuda_driver();
    if (asked == "none") {
      reason = "CUDA is switched off: UNDIVIDED_CUDA=none";
      return;
    }
    const std::string path = asked.empty() ? "libcuda.so.1" : asked;
    // Never closed: threads of the driver outlive every object of ours.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* why = dlerror();
      reason = fmt::format("no CUDA driver: {}", why ? why : path.c_str());
      return;
    }
    driver = std::make_unique<Driver>([library](const char* name) { return dlsym(library, name); });
  }
};

const OpenedDriver& opened_driver() {
  // Never destroyed: objects of the caller may outlive statics and still free memory.
  static const OpenedDriver& once = *new OpenedDriver;
  return once;
}

}  // namespace

Availability availability() {
  const OpenedDriver& o = opened_driver();
  return {o.driver != nullptr, o.reason};
}

bool available() { return opened_driver().driver != nullptr; }

Driver& driver() {
  const OpenedDriver& o = opened_driver();
  if (!o.driver) unusable(o.reason);
  return *o.driver;
}

DeviceScope::DeviceScope(Driver& driver, int device) : driver_(driver) {
  ContextHandle current = nullptr, wanted = driver_.device(device).context;
  driver_.cuCtxGetCurrent(&current);
  pushed_ = current != wanted;
  if (pushed_) driver_.cuCtxPushCurrent(wanted);
}

DeviceScope::~DeviceScope() {
  if (!pushed_) return;
  ContextHandle popped = nullptr;
  driver_.cuCtxPopCurrent.raw(&popped);
}

}  // namespace undivided::cuda
