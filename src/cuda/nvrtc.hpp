// SPDX-License-Identifier: Apache-2.0
// The run-time compiler, opened at run time: CUDA text in, cubin and its register report out.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace undivided::cuda {

/// What ptxas reports about the one kernel of a program.
struct PtxasReport {
  int registers = 0;
  int spill_bytes = 0;  // stores and loads
  int stack_bytes = 0;  // local memory: spills and arrays that are indexed at run time
  int static_shared = 0;
};
PtxasReport parse_ptxas(std::string_view log);

struct Compiled {
  std::string cubin;
  PtxasReport report;
  double seconds = 0;
  std::string log;
};

struct NvrtcAvailability {
  bool ok = false;
  std::string reason;   // what was tried, when not ok
  std::string version;  // "13.0"
  std::string path;
};
/// Never throws. Looks at UNDIVIDED_NVRTC alone when it is set, else at the loader's usual names,
/// the toolkit's folder and the Python packages beside this library or program.
const NvrtcAvailability& nvrtc_availability();

/// The newest target that this compiler knows and a device of `arch` (90 is sm_90) can run: the
/// same major version, at most the same minor. Raises Error{unsupported, plan} if there is none.
int target_for(int arch);

/// Options that do not depend on the target.
const std::vector<std::string>& compile_options();

/// Compiles one kernel. Raises Error{driver, plan} with the kernel's name and the first errors of
/// the log, or Error{unsupported, plan} when there is no compiler. Safe from many threads.
/// `specific`: with the instructions of this architecture alone, sm_90a.
Compiled compile(const std::string& name, const std::string& text, int arch, bool specific = false);

}  // namespace undivided::cuda
