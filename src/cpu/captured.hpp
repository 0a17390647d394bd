// SPDX-License-Identifier: Apache-2.0
// Gradients of captured arrays and parameters: adds each pair's term to the element it came from.
// Tasks are gathered in groups, by the bounds alone. A group adds in a fixed order to sums of its
// own, which are added in order at the end; arrays too large for that have one group. So the sums
// repeat bit for bit, with any number of workers.
#pragma once

#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

class CapturedSums {
 public:
  static constexpr std::int64_t most_elements = 1 << 16;  // of all arrays, in sums of a group

  /// Scratch and sums of one group.
  struct Memory {
    Memory() = default;
    Memory(Arena& arena, const Setup& setup, bool arrays);
    float *value = nullptr, *index[4] = {}, *arrays = nullptr;
    double* params = nullptr;
  };
  struct Groups {
    Groups() = default;
    Groups(Arena& arena, const Setup& setup, std::int64_t count);
    std::byte* base = nullptr;
    std::size_t bytes = 0;
    std::int64_t count = 0;
  };
  struct Place {
    const CapturedSums* sums;
    std::int64_t group;
  };
  CapturedSums(const Run& run, const expr::Gradient& gradient, const Groups& groups);

  std::int64_t groups() const { return own_ ? groups_.count : 1; }
  Memory memory(std::int64_t group) const;
  void clear() const;
  /// The terms of `rows` rows of a chunk: `ds` are its gradients of the final score.
  void add(const Memory& memory,
           const Files& files,
           int first_row,
           int rows,
           int lanes_in_use,
           const float* ds) const;
  void finish() const;

 private:
  const Run& run_;
  const expr::Gradient& gradient_;
  Groups groups_;
  bool own_ = false;  // groups have sums of their own; else the only one adds to the results
  std::int64_t elements_ = 0;
};

}  // namespace undivided::cpu
