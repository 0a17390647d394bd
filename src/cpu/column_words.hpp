// SPDX-License-Identifier: Apache-2.0
// Masks by key columns (expr::ColumnTree): what a key keeps follows from the numbers it compares q
// with, 64 queries at once, without looking at pairs.
#pragma once

#include "cpu/programs.hpp"

namespace undivided::cpu {

/// The node of each leaf, for flatten() to keep: code.keep[i] then holds its register.
std::vector<std::array<std::int32_t, 4>> leaves_of(const expr::ColumnTree& tree);

/// Bit i of words[row] is whether the query at position q + i keeps the key of that row, i < 63.
/// Uniform and key code of the mask have run; `scratch` holds key_block words a step.
void column_words(const expr::ColumnTree& tree,
                  const FlatCode& code,
                  const Files& files,
                  int width,
                  std::int64_t q,
                  int rows,
                  std::uint64_t* scratch,
                  std::uint64_t* words);

}  // namespace undivided::cpu
