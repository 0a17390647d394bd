// SPDX-License-Identifier: Apache-2.0
// The masks and scores that cases name.
#pragma once

#include <string>

#include "undivided/expr.hpp"

namespace undivided::check {

/// Positions are below these.
struct Extents {
  std::int64_t batch = 1, heads = 1, q = 1, k = 1;
};
Mask make_mask(const std::string& name, const Extents& extents, std::uint64_t seed);
Score make_score(const std::string& name, const Extents& extents, std::uint64_t seed);

}  // namespace undivided::check
