// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs: what the processor has, unless UNDIVIDED_ISA forces one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cpu/kernels.hpp"

namespace undivided::cpu {

/// What the operating system calls this processor; "unknown processor" if it does not say.
std::string processor_name();
/// Names of the instruction sets that this processor can run, worst first.
std::vector<std::string> available_isas();
/// The table of an instruction set. Raises Error{plan} if it is unknown or the processor lacks it.
const Kernels& kernels_of(std::string_view isa);
/// The table in use: UNDIVIDED_ISA if set, else the best one.
const Kernels& chosen_kernels();
/// Whether bf16 pairs are the fast way to compute bf16: Zen 4 and 5 start two such dots a cycle,
/// Intel's cores one in two cycles, a quarter of their FMAs. Forcing avx512_bf16 says yes.
bool bf16_dot_pays();
/// Whether two neighbouring lines that are asked for bring the two after them, as on Intel's cores.
bool brings_more_lines();

}  // namespace undivided::cpu
