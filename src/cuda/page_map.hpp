// SPDX-License-Identifier: Apache-2.0
// Where a sequence's tokens lie in the page pool: filled on the host, asked in kernels. Nothing
// else on CUDA knows how a page table is made. (Read by NVRTC: no headers.)
#pragma once

namespace undivided::cuda {

struct PageMap {
  const void* table;
  long long batch, step;  // strides of its rows and slots
  int wide;               // i64?
  int slots;              // of one sequence
  int size, pages;        // tokens of a page, pages of the pool

  /// The page of a slot, clamped to the pool: garbage in a table reads garbage, never other memory.
  long long page(int b, unsigned slot) const {
    const long long last = slots - 1;
    const long long at = b * batch + (slot < last ? slot : last) * step;
    return clamp(wide ? static_cast<const long long*>(table)[at]
                      : static_cast<const int*>(table)[at]);
  }
  long long clamp(long long page) const { return page < 0 ? 0 : page < pages ? page : pages - 1; }
};

/// The map of paged keys (undivided::Kv).
template <class Kv>
PageMap page_map(const Kv& kv) {
  const auto& t = kv.page_table;
  return {t.data,
          t.stride[0],
          t.stride[1],
          t.dtype == decltype(t.dtype)::i64,
          static_cast<int>(t.size(1)),
          static_cast<int>(kv.k.size(2)),
          static_cast<int>(kv.k.size(0))};
}

}  // namespace undivided::cuda
