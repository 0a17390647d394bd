// SPDX-License-Identifier: Apache-2.0
// The disk cache of compiled kernels: look-up, verification, and publication by rename.
#include "cuda/cache.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "core/environment.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

namespace fs = std::filesystem;

// FNV-1a over 64 bits, started from two bases: 128 bits together.
struct Hash {
  std::uint64_t a = 0xcbf29ce484222325u, b = 0x84222325cbf29ce4u;
  void add(std::string_view bytes) {
    for (const char c : bytes) {
      a = (a ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
      b = (b ^ static_cast<unsigned char>(c)) * 0x9e3779b97f4a7c15u;
      b ^= b >> 29;
    }
    add_end();
  }
  void add_end() { a = (a ^ 0xffu) * 0x100000001b3u; }  // "ab","c" is not "a","bc"
  std::string text() const { return fmt::format("{:016x}{:016x}", a, b); }
};

std::string hash_of_bytes(std::string_view bytes) {
  Hash h;
  h.add(bytes);
  return h.text();
}

std::optional<std::string> read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::ostringstream out;
  out << in.rdbuf();
  return std::move(out).str();
}

// Written and flushed to the disk, so that a rename never shows an empty file after a crash.
bool write_file(const fs::path& path, std::string_view bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return false;
  bool good = true;
  for (std::size_t at = 0; good && at < bytes.size();) {
    const auto n = ::write(file, bytes.data() + at, bytes.size() - at);
    if (n <= 0)
      good = false;
    else
      at += static_cast<std::size_t>(n);
  }
  good = ::fsync(file) == 0 && good;
  return ::close(file) == 0 && good;
}

std::string prefix_of(const KernelSource& source) {
  return fmt::format("{}.{}.nvrtc", source.name, source.hash());
}

bool load_entry(const fs::path& folder, Kernel& kernel) {
  const auto description = read_file(folder / "kernel.json");
  auto cubin = read_file(folder / "kernel.cubin");
  if (!description || !cubin) return false;
  const auto json = nlohmann::json::parse(*description, nullptr, false);
  if (json.is_discarded() || !json.is_object()) return false;
  try {
    if (json.at("cubin_hash").get<std::string>() != hash_of_bytes(*cubin)) return false;
    kernel.name = json.at("name").get<std::string>();
    kernel.arch = json.at("arch").get<int>();
    kernel.nvrtc = json.at("nvrtc").get<std::string>();
    kernel.seconds = json.at("seconds").get<double>();
    kernel.report.registers = json.at("registers").get<int>();
    kernel.report.spill_bytes = json.at("spill_bytes").get<int>();
    kernel.report.stack_bytes = json.at("stack_bytes").get<int>();
    kernel.report.static_shared = json.at("static_shared").get<int>();
  } catch (const nlohmann::json::exception&) {
    return false;
  }
  kernel.cubin = std::move(*cubin);
  kernel.origin = folder.string();
  return true;
}

// Any version of the compiler serves; `wanted` first, if one is named.
bool find_in(const std::string& folder,
             const KernelSource& source,
             const std::string& wanted,
             bool only_wanted,
             Kernel& kernel) {
  if (folder.empty()) return false;
  const std::string prefix = prefix_of(source);
  if (!wanted.empty() && load_entry(fs::path(folder) / (prefix + wanted), kernel)) return true;
  if (only_wanted) return false;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename().string().rfind(prefix, 0) == 0 && load_entry(entry.path(), kernel))
      return true;
  return false;
}

// share/undivided/kernels of the installation that this library belongs to.
std::string installed_folder() {
  Dl_info self{};
  std::error_code ignored;
  if (!dladdr(reinterpret_cast<void*>(&installed_folder), &self) || !self.dli_fname) return {};
  fs::path file = fs::canonical(self.dli_fname, ignored);
  for (int level = 0; level < 3 && file.has_relative_path(); ++level) {
    file = file.parent_path();
    const fs::path kernels = file / "share" / "undivided" / "kernels";
    if (fs::is_directory(kernels, ignored)) return kernels.string();
  }
  return {};
}

}  // namespace

std::string KernelSource::hash() const {
  Hash h;
  h.add(text);
  for (const std::string& option : compile_options()) h.add(option);
  h.add(fmt::format("{}{}", arch, specific ? "a" : ""));
  return h.text();
}

KernelCache::KernelCache(std::string writable, std::vector<std::string> prebuilt)
    : writable_(std::move(writable)), prebuilt_(std::move(prebuilt)) {}

KernelCache KernelCache::standard() {
  std::vector<std::string> prebuilt;
  for (const std::string& folder : {environment::kernel_folder(), installed_folder()})
    if (!folder.empty()) prebuilt.push_back(folder);
  const std::string cache = environment::cache_folder();
  return {cache.empty() ? cache : cache + "/kernels", std::move(prebuilt)};
}

bool KernelCache::find(const KernelSource& source, Kernel& kernel) const {
  for (const std::string& folder : prebuilt_)
    if (find_in(folder, source, {}, false, kernel)) return true;
  // With a compiler at hand its own version must match: an update takes effect.
  const NvrtcAvailability& nvrtc = nvrtc_availability();
  return find_in(writable_, source, nvrtc.version, nvrtc.ok, kernel);
}

Kernel KernelCache::get(const std::function<KernelSource(int)>& source_for,
                        int device_arch,
                        Compile compile_mode) const {
  Kernel kernel;
  // Code for sm_80 runs on sm_86 and sm_89, not on sm_90: the same major version, any minor below.
  std::vector<KernelSource> sources;
  for (int arch = device_arch; arch >= device_arch / 10 * 10; --arch)
    sources.push_back(source_for(arch));
  for (const KernelSource& source : sources)
    for (const std::string& folder : prebuilt_)
      if (find_in(folder, source, {}, false, kernel)) return kernel;
  const NvrtcAvailability& nvrtc = nvrtc_availability();
  const bool may_compile = compile_mode == Compile::allowed && nvrtc.ok;
  for (const KernelSource& source : sources)
    if (find_in(writable_, source, nvrtc.version, may_compile, kernel)) return kernel;
  if (compile_mode == Compile::never)
    throw Error(Code::unsupported,
                Stage::plan,
                fmt::format("kernel {} is not compiled, and compile = never; run it once with "
                            "compile = allowed, or set UNDIVIDED_KERNELS to a folder that holds it",
                            sources.front().name));
  if (!nvrtc.ok)
    throw Error(
        Code::unsupported,
        Stage::plan,
        fmt::format(
            "kernel {} is not compiled, and there is {}", sources.front().name, nvrtc.reason));
  const KernelSource source = source_for(target_for(device_arch));
  Compiled made = compile(source.name, source.text, source.arch, source.specific);
  kernel = {source.name,
            std::move(made.cubin),
            made.report,
            made.seconds,
            source.arch,
            nvrtc.version,
            "compiled"};
  publish(source, kernel);
  return kernel;
}

std::string KernelCache::publish(const KernelSource& source, const Kernel& kernel) const {
  if (writable_.empty()) return {};
  static std::atomic<std::uint64_t> serial{0};
  std::error_code failed;
  fs::create_directories(writable_, failed);
  const fs::path target = fs::path(writable_) / (prefix_of(source) + kernel.nvrtc);
  const fs::path making =
      fs::path(writable_) / fmt::format(".making-{}-{}", ::getpid(), serial.fetch_add(1));
  if (failed || !fs::create_directory(making, failed)) return {};

  const nlohmann::json json = {{"name", kernel.name},
                               {"arch", source.arch},
                               {"nvrtc", kernel.nvrtc},
                               {"options", compile_options()},
                               {"registers", kernel.report.registers},
                               {"spill_bytes", kernel.report.spill_bytes},
                               {"stack_bytes", kernel.report.stack_bytes},
                               {"static_shared", kernel.report.static_shared},
                               {"seconds", kernel.seconds},
                               {"cubin_hash", hash_of_bytes(kernel.cubin)}};
  const bool written = write_file(making / "kernel.cubin", kernel.cubin) &&
                       write_file(making / "kernel.cu", source.text) &&
                       write_file(making / "kernel.json", json.dump(1) + "\n");
  std::string result;
  if (written) {
    fs::rename(making, target, failed);
    if (failed) {
      // Somebody was first. Theirs stays if it is whole; a damaged one makes room.
      Kernel theirs;
      if (load_entry(target, theirs)) {
        result = target.string();
      } else {
        const fs::path aside = making.string() + ".damaged";
        fs::rename(target, aside, failed);
        fs::rename(making, target, failed);
        if (!failed) result = target.string();
        std::error_code ignored;
        fs::remove_all(aside, ignored);
      }
    } else {
      result = target.string();
    }
  }
  std::error_code ignored;
  fs::remove_all(making, ignored);
  return result;
}

}  // namespace undivided::cuda
