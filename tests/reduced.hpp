// SPDX-License-Identifier: Apache-2.0
// Sanitizer runs set UNDIVIDED_TEST_GRID=reduced: every path is walked, at fewer points.
#pragma once

#include <cstdlib>
#include <string_view>

namespace undivided {

inline bool reduced_grid() {
  const char* grid = std::getenv("UNDIVIDED_TEST_GRID");
  return grid && std::string_view(grid) == "reduced";
}

/// Is point `number` of a grid taken? All are, or one of `of` in a reduced grid.
inline bool taken(int number, int of) { return !reduced_grid() || number % of == 0; }

}  // namespace undivided
