// SPDX-License-Identifier: Apache-2.0
// The one table of backends, in order of preference.
#pragma once

#include <span>

#include "problem/backend.hpp"

namespace undivided {

std::span<const BackendRow> backends();

}  // namespace undivided
