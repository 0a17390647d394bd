// SPDX-License-Identifier: Apache-2.0
// From a Spec, its bounds and a device to kernel specs, splits and a workspace: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/spec.hpp"
#include "undivided/plan.hpp"

namespace undivided::cuda {

struct Choice {
  std::vector<KernelSpec> kernels;  // canonical, in launch order
  int split_keys = 0;               // 0: no splits
  int splits = 1;                   // at the bounds
  // Workspace: offsets in bytes, each a multiple of 256; -1: not needed.
  std::int64_t partial_o = -1, partial_lse = -1, delta = -1, lse = -1;
  std::int64_t counter = -1;    // sm90: the next query tile
  std::int64_t row_stats = -1;  // sm90: LSE and delta by query tiles
  std::int64_t dq_sum = -1;     // sm90: sums of dQ,
  std::int64_t dq_turns = -1;   // and where their order is kept
  std::int64_t dout = -1;       // sm90: a float32 dO in 16 bits
  KernelSpec whole_backward;    // sm90: the kernel that makes those sums
  std::int64_t sums = -1;       // ordered gradients of captured arrays, in fixed point,
  int term_bits = 0;            // and the bits of a term
  std::int64_t rows = 0;        // of query rows times heads at the bounds
  std::size_t workspace = 0;
  const char* not_sm90 = nullptr;  // why a preferred sm90 kernel was not taken
};

/// `preferred`: of forward and backward kernels, where device and spec allow it.
Choice choose(const Spec& spec,
              const Bounds& bounds,
              const DeviceInfo& device,
              Family preferred = Family::portable);

/// Query rows of all heads at the bounds.
std::int64_t query_rows(const Spec& spec, const Bounds& bounds);
/// Bits of a term in fixed point, at these bounds: below fewest_term_bits there is no room for the
/// terms. `invariant`: the same at all bounds.
int term_bits(const Spec& spec, const Bounds& bounds);
/// Query-key pairs at the bounds; a band is counted exactly.
double kept_pairs(const Spec& spec, const Bounds& bounds);
double flops(const Spec& spec, const Bounds& bounds);
double bytes_moved(const Spec& spec, const Bounds& bounds);

}  // namespace undivided::cuda
