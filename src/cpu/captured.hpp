// SPDX-License-Identifier: Apache-2.0
// Gradients of captured arrays and parameters: adds each pair's term to the element it came from.
// One thread adds in a fixed order, so the sums repeat bit for bit.
#pragma once

#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

class CapturedSums {
 public:
  CapturedSums(const Run& run, const expr::Gradient& gradient) : run_(run), gradient_(gradient) {}
  struct Memory {
    Memory(Arena& arena, const Setup& setup);
    float *value, *index[4];
    double* params;
  };

  void clear(const Memory& memory) const;
  /// The terms of `rows` rows of a chunk: `ds` are its gradients of the final score.
  void add(const Memory& memory,
           const Files& files,
           int first_row,
           int rows,
           int lanes_in_use,
           const float* ds) const;
  void finish(const Memory& memory) const;

 private:
  const Run& run_;
  const expr::Gradient& gradient_;
};

}  // namespace undivided::cpu
