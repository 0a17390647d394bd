// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs: what the processor has, unless UNDIVIDED_ISA forces one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cpu/kernels.hpp"

namespace undivided::cpu {

/// Names of the instruction sets that this processor can run, worst first.
std::vector<std::string> available_isas();
/// The table of an instruction set. Raises Error{plan} if it is unknown or the processor lacks it.
const Kernels& kernels_of(std::string_view isa);
/// The table in use: UNDIVIDED_ISA if set, else the best one.
const Kernels& chosen_kernels();

}  // namespace undivided::cpu
