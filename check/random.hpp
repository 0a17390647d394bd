// SPDX-License-Identifier: Apache-2.0
// Seeded numbers for tests: the same on every machine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/philox.hpp"

namespace undivided::check {

class Random {
 public:
  explicit Random(std::uint64_t seed) : key_(philox::key_of(seed)) {}

  std::uint32_t word() {
    if (used_ == 4) {
      words_ = philox::random4({counter_++, 0, 0, 0}, key_);
      used_ = 0;
    }
    return words_[used_++];
  }
  /// 0 <= result < n.
  std::uint32_t below(std::size_t n) {
    return static_cast<std::uint32_t>((static_cast<std::uint64_t>(word()) * n) >> 32);
  }
  double uniform(double low, double high) { return low + (high - low) * (word() / 4294967296.0); }
  /// Mean 0, variance 1: the sum of four uniform halves of words.
  double normal() {
    const std::uint32_t a = word(), b = word();
    const double sum = (a & 0xffffu) + (a >> 16) + (b & 0xffffu) + (b >> 16);
    return (sum / 65536.0 - 2.0) * 1.7320508075688772;
  }

 private:
  philox::Key key_;
  philox::Counter words_{};
  std::uint32_t counter_ = 0;
  std::size_t used_ = 4;
};

}  // namespace undivided::check
