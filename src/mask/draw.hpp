// SPDX-License-Identifier: Apache-2.0
// Pictures of a mask plan: pixels for a file, characters for a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "undivided/mask_plan.hpp"

namespace undivided::masks {

struct Picture {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;  // rows from the top, three bytes a pixel
};

/// Queries downwards, keys to the right. Up to 512 x 512 it shows elements, coloured by the class
/// of their block; beyond that, blocks or squares of blocks. With a legend and the share of kept
/// pairs.
Picture draw(const MaskPlan& plan, const MaskPlan::Entry& entry);

/// At most `cells` x `cells` pairs of characters: "##" all kept, "+ " some, ". " none.
std::string ascii(const MaskPlan& plan, const MaskPlan::Entry& entry, int cells = 32);

/// "37.5 % of 262144 pairs kept; 12 blocks empty, 8 partial, 44 full".
std::string sentence(const MaskPlan::Entry& entry);

}  // namespace undivided::masks
