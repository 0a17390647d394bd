// SPDX-License-Identifier: Apache-2.0
// A score gets the score first; message: undivided::score wants a callable of a score and four
// positions
#include "undivided/undivided.hpp"

undivided::Score good() {
  return undivided::score([](auto s, auto, auto, auto q, auto k) { return s + 0.5 * (k - q); });
}
#ifdef UNDIVIDED_BAD
undivided::Score bad() {
  return undivided::score(
      [](undivided::Expr s, undivided::Expr q, undivided::Expr k) { return s + 0.5 * (k - q); });
}
#endif
