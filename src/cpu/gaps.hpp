// SPDX-License-Identifier: Apache-2.0
// Rows by lists, as they are written: those that no list names become 0.
#pragma once

#include <algorithm>
#include <atomic>

#include "cpu/problem.hpp"

namespace undivided::cpu {

/// Rows of lists lie apart, so that the lines of each would be read before they are written.
inline Write row_write(const Spec& spec) {
  return spec.listed && spec.out_dtype == DType::f32 ? Write::past : Write::over;
}

/// Rows of a head of O or of a gradient, between rows of a list that leaves some out and therefore
/// ascends. Their lines go past the caches, some at a time if there is work to hide them.
class Gaps {
 public:
  Gaps() = default;
  /// Those up to the list's rows [begin, end) and between them; after them too where the list of
  /// `n` rows ends.
  Gaps(const Kernels& kernels,
       const View& v,
       std::int64_t b,
       std::int64_t h,
       const std::int32_t* list,
       std::int64_t n,
       std::int64_t begin,
       std::int64_t end) {
    if (!v || !list) return;
    fence_ = true;
    if (n == v.size(2)) return;
    const auto size = static_cast<std::int64_t>(size_of(v.dtype));
    clear_ = kernels.clear;
    first_ = static_cast<std::byte*>(v.at({b, h, 0, 0}));
    bytes_ = v.size(3) * size;
    step_ = v.stride[2] * size;
    listed_ = list + begin;
    last_ = list + end;
    at_ = begin == 0 ? 0 : list[begin - 1] + 1;
    end_ = end == n ? v.size(2) : list[end - 1] + 1;
  }
  /// In how many parts they are cleared.
  void spread(std::int64_t steps) { share_ = (end_ - at_ + steps - 1) / steps; }
  void clear_some() { clear(std::min(end_, at_ + share_)); }
  /// Those up to the next row of the list, which is to be written now: one stream of lines.
  void clear_next() {
    if (at_ < end_) clear(at_ + 1);
  }
  /// The last, and the fence for all that went past the caches, rows of the list too.
  void clear_rest() {
    clear(end_);
    if (fence_) std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  void clear(std::int64_t end) {
    while (at_ < end) {
      const std::int64_t next = listed_ < last_ ? *listed_++ : end_;
      if (step_ == bytes_)
        clear_(first_ + at_ * step_, (next - at_) * bytes_);
      else
        for (; at_ < next; ++at_) clear_(first_ + at_ * step_, bytes_);
      at_ = next + 1;
    }
  }
  void (*clear_)(std::byte*, std::int64_t) = nullptr;
  bool fence_ = false;
  std::byte* first_ = nullptr;
  std::int64_t bytes_ = 0, step_ = 0, at_ = 0, end_ = 0, share_ = 0;
  const std::int32_t *listed_ = nullptr, *last_ = nullptr;  // rows not yet passed
};

}  // namespace undivided::cpu
