// SPDX-License-Identifier: Apache-2.0
// A mask needs four positions; message: undivided::mask wants a callable of four positions
#include "undivided/undivided.hpp"

undivided::Mask good() {
  return undivided::mask([](auto, auto, auto q, auto k) { return k <= q; });
}
#ifdef UNDIVIDED_BAD
undivided::Mask bad() {
  return undivided::mask([](undivided::Expr q, undivided::Expr k) { return k <= q; });
}
#endif
