// SPDX-License-Identifier: Apache-2.0
// What this core can do at best, measured: the denominators of every percentage.
#pragma once

#include <cstddef>
#include <string_view>

namespace undivided::cpu {

/// Fused multiply-adds on independent registers, one thread: GFLOP/s of an instruction set
/// ("" = the one in use). Takes about `seconds`.
double fma_peak_gflops(std::string_view isa = {}, double seconds = 0.1);
/// Dot products of bf16 pairs likewise; 0 where the instruction set has none.
double bf16_dot_peak_gflops(std::string_view isa = {}, double seconds = 0.1);
/// Linear reads of a buffer of `bytes`, one thread: GB/s, best of several passes.
double read_bandwidth(std::size_t bytes = std::size_t{1} << 28, double seconds = 0.2);

}  // namespace undivided::cpu
