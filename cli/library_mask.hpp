// SPDX-License-Identifier: Apache-2.0
// Library masks by name, in call syntax: 'window(512, 0)'.
#pragma once

#include <string>
#include <vector>

#include "undivided/expr.hpp"

namespace undivided::cli {

struct LibraryMask {
  const char* call;     // "window(LEFT, RIGHT)"
  const char* meaning;  // its text
};
const std::vector<LibraryMask>& library_masks();

/// Raises Error{parse} that lists the calls. `documents(NAME)` reads the array of that name.
Mask library_mask(const std::string& call, const std::vector<Array>& arrays);

}  // namespace undivided::cli
