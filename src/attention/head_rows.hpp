// SPDX-License-Identifier: Apache-2.0
// Rows of [batch, head, token, dim] on the host, and a loop over heads: what epilogues share.
#pragma once

#include <cstdint>

#include "undivided/context.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// The last axis has stride 1.
template <class T>
T* row(const View& v, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<T*>(v.data) + b * v.stride[0] + h * v.stride[1] + i * v.stride[2];
}

/// fn(batch, head) for every head of every batch item.
template <class F>
void for_each_head(const View& v, Executor& executor, F&& fn) {
  const std::int64_t heads = v.size(1);
  executor.parallel_for(v.size(0) * heads, [&](std::int64_t n, int) { fn(n / heads, n % heads); });
}

}  // namespace undivided
