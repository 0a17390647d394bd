// SPDX-License-Identifier: Apache-2.0
// Merging into views that the caller owns: what merge(), finish() and the C door share.
#pragma once

#include "undivided/attention.hpp"

namespace undivided {

/// Like Partial, over borrowed memory.
struct PartialView {
  View o, lse;
  bool ragged = false;
};

/// (a, b) -> out, or (a, sink) -> out without b; out.o may be float32 or 16-bit. Raises
/// Error{resolve} when shapes, types or devices differ.
void combine(const PartialView& out,
             const PartialView& a,
             const PartialView* b,
             const View& sink,
             const Context& context);

}  // namespace undivided
