// SPDX-License-Identifier: Apache-2.0
// Environment variables: every one that undivided reads, read here and nowhere else.
#pragma once

#include <span>
#include <string>

namespace undivided::environment {

struct Variable {
  const char* name;
  const char* legal;
  const char* meaning;
};
std::span<const Variable> variables();  ///< for `undivided info` and the documentation

/// Each raises Error{invalid_argument, plan} for a value that is not legal.
std::string
isa();          ///< UNDIVIDED_ISA: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; "" if not set
int threads();  ///< UNDIVIDED_THREADS: 1..1024; 0 if not set
std::string cache_folder();   ///< UNDIVIDED_CACHE, or undivided/ in the user's cache; "" if unknown
std::string kernel_folder();  ///< UNDIVIDED_KERNELS: kernels compiled ahead; "" if not set
std::string nvrtc();          ///< UNDIVIDED_NVRTC: path of libnvrtc; "" if not set
std::string cuda_family();    ///< UNDIVIDED_FAMILY: "sm90", "portable"; "" if not set
std::string cuda_driver();    ///< UNDIVIDED_CUDA: path of libcuda, or "none"; "" if not set

}  // namespace undivided::environment
