// SPDX-License-Identifier: Apache-2.0
// Environment variables: every one that undivided reads, read here and nowhere else.
#include "core/environment.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "undivided/error.hpp"

namespace undivided::environment {
namespace {

constexpr int max_threads = 1024;

constexpr std::array<Variable, 7> table{{
    {"UNDIVIDED_ISA",
     "scalar, avx2, avx512, avx512_bf16, amx",
     "instruction set of the CPU backend"},
    {"UNDIVIDED_THREADS", "1 to 1024", "threads of the default executor"},
    {"UNDIVIDED_CACHE", "a folder", "where compiled kernels are kept"},
    {"UNDIVIDED_KERNELS", "a folder", "kernels compiled ahead, read before the cache"},
    {"UNDIVIDED_NVRTC", "a path", "the NVRTC library to open"},
    {"UNDIVIDED_CUDA", "a path, or none", "the CUDA driver library to open"},
    {"UNDIVIDED_FAMILY", "sm90, portable", "forward kernels that a Hopper GPU prefers"},
}};

std::string_view read(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::string_view(value) : std::string_view();
}

[[noreturn]] void refuse(const Variable& variable, std::string_view value) {
  throw Error(Code::invalid_argument,
              Stage::plan,
              fmt::format("{}={} is not legal; allowed: {}", variable.name, value, variable.legal));
}

}  // namespace

std::span<const Variable> variables() { return table; }

std::string isa() {
  const std::string_view value = read("UNDIVIDED_ISA");
  for (std::string_view legal : {"", "scalar", "avx2", "avx512", "avx512_bf16", "amx"})
    if (value == legal) return std::string(value);
  refuse(table[0], value);
}

int threads() {
  const std::string_view value = read("UNDIVIDED_THREADS");
  if (value.empty()) return 0;
  int count = 0;
  const auto [end, failure] = std::from_chars(value.data(), value.data() + value.size(), count);
  const bool whole = failure == std::errc() && end == value.data() + value.size();
  if (!whole || count < 1 || count > max_threads) refuse(table[1], value);
  return count;
}

std::string cache_folder() {
  if (const auto value = read("UNDIVIDED_CACHE"); !value.empty()) return std::string(value);
  if (const auto value = read("XDG_CACHE_HOME"); !value.empty())
    return std::string(value) + "/undivided";
  if (const auto value = read("HOME"); !value.empty())
    return std::string(value) + "/.cache/undivided";
  return {};
}

std::string kernel_folder() { return std::string(read("UNDIVIDED_KERNELS")); }
std::string nvrtc() { return std::string(read("UNDIVIDED_NVRTC")); }
std::string cuda_family() {
  const std::string_view value = read("UNDIVIDED_FAMILY");
  for (std::string_view legal : {"", "sm90", "portable"})
    if (value == legal) return std::string(value);
  refuse(table[6], value);
}
std::string cuda_driver() { return std::string(read("UNDIVIDED_CUDA")); }

}  // namespace undivided::environment
