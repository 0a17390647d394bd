// SPDX-License-Identifier: Apache-2.0
// Reads cpuid and the state that the operating system saves, once.
#include "cpu/isa.hpp"

#include <fmt/format.h>

#include <fstream>

#include "core/environment.hpp"
#include "undivided/error.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace undivided::cpu {
namespace {

struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false, amd = false;
};

/// Linux gives a process tile registers when it asks.
[[maybe_unused]] bool tiles_permitted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features f;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool saves = c >> 27 & 1, fma = c >> 12 & 1, avx = c >> 28 & 1, half = c >> 29 & 1;
  if (!saves || !avx) return f;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6;
  f.avx2 = ymm && fma && half && (b >> 5 & 1);
  const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  f.avx512 = f.avx2 && zmm && (b & wanted) == wanted;
  const bool vnni = c >> 11 & 1;
  f.avx512_bf16 = f.avx512 && vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
  const bool state = (low & 0x60000) == 0x60000;
  f.amx = f.avx512_bf16 && state && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) &&
          (d >> 24 & 1) && (d >> 25 & 1) && tiles_permitted();
  __get_cpuid(0, &a, &b, &c, &d);
  f.amd = b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
#endif
  return f;
}

const Features& features() {
  static const Features found = detect();
  return found;
}

}  // namespace

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name"))
      if (const auto at = line.find(": "); at != std::string::npos) return line.substr(at + 2);
  return "unknown processor";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names{"scalar"};
  if (features().avx2) names.emplace_back("avx2");
  if (features().avx512) names.emplace_back("avx512");
  if (features().avx512_bf16) names.emplace_back("avx512_bf16");
  if (features().amx) names.emplace_back("amx");
  return names;
}

const Kernels& kernels_of(std::string_view isa) {
  if (isa == "scalar") return scalar::kernels;
#if defined(__x86_64__)
  if (isa == "avx2" && features().avx2) return avx2::kernels;
  if (isa == "avx512" && features().avx512) return avx512::kernels;
  if (isa == "avx512_bf16" && features().avx512_bf16) return avx512_bf16::kernels;
  if (isa == "amx" && features().amx) return amx::kernels;
#endif
  const bool known = isa == "avx2" || isa == "avx512" || isa == "avx512_bf16" || isa == "amx";
  throw Error(Code::unsupported,
              Stage::plan,
              fmt::format("instruction set '{}' {}; this processor can run: {}",
                          isa,
                          known ? "is not available here" : "is unknown",
                          fmt::join(available_isas(), ", ")));
}

const Kernels& chosen_kernels() {
  const std::string forced = environment::isa();
  return kernels_of(forced.empty() ? available_isas().back() : forced);
}

bool bf16_dot_pays() { return features().amd || environment::isa() == "avx512_bf16"; }
bool brings_more_lines() { return !features().amd; }

}  // namespace undivided::cpu
