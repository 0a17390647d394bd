// SPDX-License-Identifier: Apache-2.0
// A program with its contents: what Args carry after bind().
#pragma once

#include <memory>
#include <vector>

#include "expr/bytecode.hpp"
#include "expr/program.hpp"
#include "undivided/plan.hpp"

namespace undivided {

class BoundProgram {
 public:
  expr::ProgramPtr program;  // lifted
  expr::Bound bound;         // host (or device) pointers and parameter values, in program order
  Captures captures;         // keeps the arrays alive
  expr::Band band;           // with this binding's bounds (masks)
  bool on_device = false;    // arrays are CUDA memory
};

}  // namespace undivided
