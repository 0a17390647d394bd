// SPDX-License-Identifier: Apache-2.0
// Where a sequence's tokens lie in the page pool: filled on the host, asked in kernels. Nothing
// else on CUDA knows how a page table is made. (Read by NVRTC: no headers.)
#pragma once

namespace undivided::cuda {

struct PageMap {
  const void* table;
  long long batch, step;  // strides of its rows and slots
  int wide;               // i64?
  int slots;              // of one sequence, prefix included
  int size, pages;        // tokens of a page, pages of the pool
  const void* prefix;     // the pages that begin every sequence
  long long prefix_step;
  int prefix_wide, prefix_slots;

  /// The page of a slot, clamped to the pool: garbage in a table reads garbage, never other memory.
  long long page(int b, unsigned slot) const {
    const int inside = static_cast<int>(slot) < slots ? static_cast<int>(slot) : slots - 1;
    if (inside < prefix_slots) return clamp(read(prefix, inside * prefix_step, prefix_wide));
    return clamp(read(table, b * batch + (inside - prefix_slots) * step, wide));
  }
  static long long read(const void* data, long long at, int is_wide) {
    return is_wide ? static_cast<const long long*>(data)[at] : static_cast<const int*>(data)[at];
  }
  long long clamp(long long page) const { return page < 0 ? 0 : page < pages ? page : pages - 1; }
};

/// The map of paged keys (undivided::Kv).
template <class Kv>
PageMap page_map(const Kv& kv) {
  const auto &t = kv.page_table, &prefix = kv.prefix_table;
  using Index = decltype(t.dtype);
  const int shared = prefix ? static_cast<int>(prefix.size(0)) : 0;
  return {t.data,
          t.stride[0],
          t.stride[1],
          t.dtype == Index::i64,
          shared + static_cast<int>(t.size(1)),
          static_cast<int>(kv.k.size(2)),
          static_cast<int>(kv.k.size(0)),
          prefix.data,
          prefix.stride[0],
          prefix.dtype == Index::i64,
          shared};
}

}  // namespace undivided::cuda
