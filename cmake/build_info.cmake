# SPDX-License-Identifier: Apache-2.0
# Writes build_info.cpp: commit, compiler and build type; touches it only when something changed.
execute_process(COMMAND git -C ${ROOT} rev-parse --short=12 HEAD
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                RESULT_VARIABLE failed)
if(failed OR NOT commit)
  set(commit "unknown")
endif()
string(REPLACE "-" " " COMPILER "${COMPILER}")
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[
// Generated: what this library was built from.
#include "core/build_info.hpp"

namespace undivided {
const BuildInfo& build_info() {
  static const BuildInfo info{"@commit@", "@COMPILER@", "@BUILD_TYPE@"};
  return info;
}
}  // namespace undivided
]])
