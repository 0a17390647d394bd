// SPDX-License-Identifier: Apache-2.0
// What a warm call costs the thread that makes it, beside the kernels.
#pragma once

#include "cli/bench_rows.hpp"

namespace undivided::cli {

/// Seconds of one call of `row.step` for a warm problem: the median of rounds of calls. On CUDA a
/// round ends before the device's queue could be full, and the wait between rounds is not counted:
/// it is what the host needs to launch, and not what the device needs to run.
double overhead_seconds(const Row& row, const Context& context);

}  // namespace undivided::cli
