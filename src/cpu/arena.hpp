// SPDX-License-Identifier: Apache-2.0
// Cuts a workspace into arrays. With a null base it only counts, so one function says both how much
// is needed and where everything lies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace undivided::cpu {

class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    std::byte* at = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace undivided::cpu
