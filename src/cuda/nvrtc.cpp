// SPDX-License-Identifier: Apache-2.0
// Finds and opens libnvrtc, compiles to cubin, and reads the report of ptxas from the log.
#include "cuda/nvrtc.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>

#include "core/environment.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

namespace fs = std::filesystem;

using Status = int;     // nvrtcResult
using Program = void*;  // nvrtcProgram
constexpr Status compilation_failed = 6;
constexpr int oldest_major = 12;

struct Api {
  const char* (*error_string)(Status) = nullptr;
  Status (*version)(int*, int*) = nullptr;
  Status (*arch_count)(int*) = nullptr;
  Status (*archs)(int*) = nullptr;
  Status (*create)(
      Program*, const char*, const char*, int, const char* const*, const char* const*) = nullptr;
  Status (*destroy)(Program*) = nullptr;
  Status (*compile)(Program, int, const char* const*) = nullptr;
  Status (*cubin_size)(Program, std::size_t*) = nullptr;
  Status (*cubin)(Program, char*) = nullptr;
  Status (*log_size)(Program, std::size_t*) = nullptr;
  Status (*log)(Program, char*) = nullptr;
};

// Folders of the PyPI wheels: site-packages/nvidia/<part>/lib.
void add_wheels(const fs::path& site_packages, std::vector<std::string>& out) {
  std::error_code ignored;
  for (const auto& part : fs::directory_iterator(site_packages / "nvidia", ignored))
    for (const auto& file : fs::directory_iterator(part.path() / "lib", ignored)) {
      const std::string name = file.path().filename().string();
      if (name.rfind("libnvrtc.so.", 0) == 0) out.push_back(file.path().string());
    }
}

// A virtual environment beside the program or this library, or one that this library lies in.
void add_environments(const fs::path& start, std::vector<std::string>& out) {
  std::error_code ignored;
  fs::path folder = start.parent_path();
  for (int level = 0; level < 5 && folder.has_relative_path(); ++level) {
    for (const auto& python : fs::directory_iterator(folder / ".venv" / "lib", ignored))
      add_wheels(python.path() / "site-packages", out);
    if (folder.filename() == "site-packages") add_wheels(folder, out);
    folder = folder.parent_path();
  }
}

std::vector<std::string> candidates() {
  const std::string asked = environment::nvrtc();
  if (!asked.empty()) return {asked};
  std::vector<std::string> out{"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
  for (const char* folder : {"/usr/local/cuda/lib64", "/opt/cuda/lib64"})
    for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"})
      out.push_back(std::string(folder) + "/" + name);
  std::error_code ignored;
  add_environments(fs::read_symlink("/proc/self/exe", ignored), out);
  Dl_info self{};
  if (dladdr(reinterpret_cast<void*>(&compile_options), &self) && self.dli_fname)
    add_environments(fs::absolute(self.dli_fname, ignored), out);
  return out;
}

struct OpenedNvrtc {
  Api api;
  NvrtcAvailability availability;
  std::vector<int> targets;

  OpenedNvrtc() {
    std::string first_reason;
    for (const std::string& path : candidates()) {
      const std::string reason = try_open(path);
      if (availability.ok) return;
      if (first_reason.empty()) first_reason = reason;
    }
    availability.reason = fmt::format(
        "no NVRTC: {}; install the CUDA toolkit or the Python package nvidia-cuda-nvrtc, or set "
        "UNDIVIDED_NVRTC to libnvrtc's path",
        first_reason);
  }

  // Returns why not.
  std::string try_open(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* why = dlerror();
      return why ? why : path + " cannot be opened";
    }
    const char* missing = nullptr;
    const auto find = [&](auto& function, const char* name) {
      void* address = dlsym(library, name);
      if (!address) missing = name;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    find(api.error_string, "nvrtcGetErrorString");
    find(api.version, "nvrtcVersion");
    find(api.arch_count, "nvrtcGetNumSupportedArchs");
    find(api.archs, "nvrtcGetSupportedArchs");
    find(api.create, "nvrtcCreateProgram");
    find(api.destroy, "nvrtcDestroyProgram");
    find(api.compile, "nvrtcCompileProgram");
    find(api.cubin_size, "nvrtcGetCUBINSize");
    find(api.cubin, "nvrtcGetCUBIN");
    find(api.log_size, "nvrtcGetProgramLogSize");
    find(api.log, "nvrtcGetProgramLog");
    if (missing) return fmt::format("{} is not NVRTC 12 or newer: it lacks {}", path, missing);
    int major = 0, minor = 0, count = 0;
    api.version(&major, &minor);
    if (major < oldest_major)
      return fmt::format("{} is NVRTC {}.{}; 12.0 or newer is needed", path, major, minor);
    api.arch_count(&count);
    targets.resize(static_cast<std::size_t>(count));
    api.archs(targets.data());
    availability = {true, {}, fmt::format("{}.{}", major, minor), path};
    return {};
  }
};

const OpenedNvrtc& opened_nvrtc() {
  static const OpenedNvrtc& once =
      *new OpenedNvrtc;  // never destroyed: its threads may still run at exit
  return once;
}

const OpenedNvrtc& require_compiler() {
  const OpenedNvrtc& o = opened_nvrtc();
  if (!o.availability.ok) throw Error(Code::unsupported, Stage::plan, o.availability.reason);
  return o;
}

// The lines that help: the first errors, else the end of the log.
std::string first_errors(const std::string& log) {
  constexpr int most = 4;
  std::string out;
  int found = 0;
  for (std::size_t at = 0; at < log.size() && found < most;) {
    const std::size_t end = std::min(log.find('\n', at), log.size());
    const std::string_view line(log.data() + at, end - at);
    if (line.find("error") != std::string_view::npos ||
        line.find("fatal") != std::string_view::npos) {
      out += "\n  " + std::string(line);
      ++found;
    }
    at = end + 1;
  }
  if (out.empty()) out = "\n  " + log.substr(log.size() > 400 ? log.size() - 400 : 0);
  return out;
}

// The number that stands before `word`, anywhere in the log; the largest one counts.
int number_before(std::string_view log, std::string_view word) {
  int largest = 0;
  for (std::size_t at = log.find(word); at != std::string_view::npos; at = log.find(word, at + 1)) {
    std::size_t begin = at;
    while (begin > 0 && log[begin - 1] >= '0' && log[begin - 1] <= '9') --begin;
    int value = 0;
    std::from_chars(log.data() + begin, log.data() + at, value);
    largest = std::max(largest, value);
  }
  return largest;
}

struct ProgramOwner {
  const Api& api;
  Program program = nullptr;
  ~ProgramOwner() {
    if (program) api.destroy(&program);
  }
};

}  // namespace

PtxasReport parse_ptxas(std::string_view log) {
  PtxasReport r;
  // "8 bytes stack frame, 16 bytes spill stores, 4 bytes spill loads"
  // "Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem"
  r.registers = number_before(log, " registers");
  r.spill_bytes =
      number_before(log, " bytes spill stores") + number_before(log, " bytes spill loads");
  r.stack_bytes = number_before(log, " bytes stack frame");
  r.static_shared = number_before(log, " bytes smem");
  return r;
}

const NvrtcAvailability& nvrtc_availability() { return opened_nvrtc().availability; }

int target_for(int arch) {
  const OpenedNvrtc& o = require_compiler();
  int best = 0;
  for (int target : o.targets)
    if (target / 10 == arch / 10 && target <= arch) best = std::max(best, target);
  if (best == 0)
    throw Error(
        Code::unsupported,
        Stage::plan,
        fmt::format("NVRTC {} cannot compile for sm_{}; it knows sm_{} to sm_{}: update it, "
                    "or set UNDIVIDED_KERNELS to kernels compiled ahead",
                    o.availability.version,
                    arch,
                    o.targets.empty() ? 0 : o.targets.front(),
                    o.targets.empty() ? 0 : o.targets.back()));
  return best;
}

const std::vector<std::string>& compile_options() {
  // One option of ptxas at a time: a list joined by commas is an error in 13.0.
  static const std::vector<std::string> options{
      "-std=c++20",
      "--device-as-default-execution-space",
      "--ptxas-options=-v",
      "--generate-line-info",
  };
  return options;
}

Compiled compile(const std::string& name, const std::string& text, int arch, bool specific) {
  const OpenedNvrtc& o = require_compiler();
  const auto begin = std::chrono::steady_clock::now();
  const auto check = [&](Status status, const char* call) {
    if (status != 0)
      throw Error(Code::driver,
                  Stage::plan,
                  fmt::format("kernel {}: {} failed: {}", name, call, o.api.error_string(status)));
  };
  ProgramOwner owner{o.api};
  const std::string file = name + ".cu";
  check(o.api.create(&owner.program, text.c_str(), file.c_str(), 0, nullptr, nullptr),
        "nvrtcCreateProgram");
  std::vector<std::string> options = compile_options();
  options.push_back(fmt::format("--gpu-architecture=sm_{}{}", arch, specific ? "a" : ""));
  std::vector<const char*> pointers;
  for (const std::string& option : options) pointers.push_back(option.c_str());
  const Status status =
      o.api.compile(owner.program, static_cast<int>(pointers.size()), pointers.data());

  Compiled result;
  std::size_t size = 0;
  if (o.api.log_size(owner.program, &size) == 0 && size > 1) {
    result.log.resize(size);
    o.api.log(owner.program, result.log.data());
    result.log.resize(size - 1);  // without the final NUL
  }
  if (status != 0)
    throw Error(Code::driver,
                Stage::plan,
                fmt::format("kernel {} does not compile for sm_{}: {}{}",
                            name,
                            arch,
                            o.api.error_string(status),
                            status == compilation_failed ? first_errors(result.log) : ""));
  check(o.api.cubin_size(owner.program, &size), "nvrtcGetCUBINSize");
  result.cubin.resize(size);
  check(o.api.cubin(owner.program, result.cubin.data()), "nvrtcGetCUBIN");
  result.report = parse_ptxas(result.log);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace undivided::cuda
