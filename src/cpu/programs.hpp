// SPDX-License-Identifier: Apache-2.0
// Programs as the interpreter wants them: flat code, and contents bound to it for one run.
#pragma once

#include <array>
#include <vector>

#include "cpu/arena.hpp"
#include "cpu/kernels.hpp"
#include "problem/bound.hpp"

namespace undivided::cpu {

struct FlatCode {
  std::vector<Instruction> part[expr::rates];  // by rate
  std::array<std::int32_t, expr::rates> file_size{};
  std::vector<Register> roots;
  std::vector<std::array<Register, 4>> keep;  // index -1: no such operand
  std::size_t arrays = 0, params = 0;
  std::vector<expr::Type> param_type;
  std::vector<int> rank;
  bool used = false;  // false: nothing to run (identity or full)

  void run(const Kernels& kernels,
           expr::Rate rate,
           int first_row,
           int rows,
           const Files& files,
           const Environment& at) const {
    const auto& code = part[static_cast<int>(rate)];
    if (!code.empty())
      kernels.execute(code.data(), std::ssize(code), rate, first_row, rows, files, at);
  }
};
struct Flatten {
  bool diagonals = false;  // lanes hold consecutive queries
  bool in_place = false;   // the root, if it is element code, overwrites the tile of scores
};
FlatCode flatten(const expr::Program& program,
                 const Flatten& how = {},
                 const std::vector<std::array<std::int32_t, 4>>& keep = {});

/// Arrays and parameters of one run, in workspace memory.
struct Contents {
  ArrayRef* arrays = nullptr;
  std::int32_t* params = nullptr;
  static Contents layout(Arena& arena, const FlatCode& code);
  void fill(const FlatCode& code, const expr::Bound& bound) const;
};

/// Register files of one worker.
struct WorkerFiles {
  float *uniform = nullptr, *key = nullptr, *query = nullptr, *diagonal = nullptr,
        *element = nullptr;
  std::int64_t query_stride = 0;  // floats from one sub-block to the next
  static WorkerFiles layout(Arena& arena, const FlatCode& code, const Kernels& kernels, int subs);
  Files at(int sub, float* tile = nullptr) const {
    return {{uniform, key, query + sub * query_stride, diagonal, element}, tile};
  }
};

}  // namespace undivided::cpu
