// SPDX-License-Identifier: Apache-2.0
// Results too small for a normal float become 0 while a FlushToZero lives.
//
// Weights of far keys fade through the denormals, and a product that ends there costs a hundred
// times as much as another.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace undivided::cpu {

class FlushToZero {
 public:
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;
#if defined(__x86_64__) || defined(_M_X64)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8000u); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushToZero() = default;
#endif
};

}  // namespace undivided::cpu
