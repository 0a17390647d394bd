// SPDX-License-Identifier: Apache-2.0
// Help for tests of core: what was refused.
#pragma once

#include <string>

#include "undivided/error.hpp"

namespace undivided {

template <class F>
std::string refusal(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was refused";
}

}  // namespace undivided
