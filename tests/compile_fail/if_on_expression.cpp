// SPDX-License-Identifier: Apache-2.0
// A traced condition has no truth value; message: deleted
#include "undivided/undivided.hpp"

undivided::Mask good() {
  return undivided::mask(
      [](auto, auto, auto q, auto k) { return undivided::select(q < 4, k < 4, k <= q); });
}
#ifdef UNDIVIDED_BAD
undivided::Mask bad() {
  return undivided::mask([](auto, auto, auto q, auto k) {
    if (q < 4) return k < 4;
    return k <= q;
  });
}
#endif
