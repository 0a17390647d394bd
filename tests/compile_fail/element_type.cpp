// SPDX-License-Identifier: Apache-2.0
// Only number formats that exist here can be viewed; message: undivided has no dtype for this
// element type
#include "undivided/undivided.hpp"

undivided::View good(float* data) { return undivided::view(data, {2, 3}); }
#ifdef UNDIVIDED_BAD
undivided::View bad(unsigned long long* data) { return undivided::view(data, {2, 3}); }
#endif
