// SPDX-License-Identifier: Apache-2.0
// Some tokens of a long problem: the oracle and what is compared with it may keep to them.
#pragma once

#include <cstdint>

namespace undivided {

/// Every step-th token, counted from a place that depends on sequence and head, and in every fourth
/// head the first and the last. Step 1: all.
struct Sample {
  std::int64_t step = 1;

  bool whole() const { return step == 1; }
  bool takes(std::int64_t sequence, std::int64_t head, std::int64_t i, std::int64_t length) const {
    if (step == 1) return true;
    if ((i == 0 || i == length - 1) && (sequence + head) % 4 == 0) return true;
    return static_cast<std::uint32_t>(i + 29 * head + 13 * sequence + 7) %
               static_cast<std::uint32_t>(step) ==
           0;
  }
};

}  // namespace undivided
