// SPDX-License-Identifier: Apache-2.0
// Byte-code for SIMD tiles: the program sorted by rate, with registers assigned. Interpreted per
// ISA in cpu/.
//
// A tile is `rows` keys x `lanes` queries of one (batch, head). Uniform code runs once per (batch,
// head), key code once per key, query code once per query lane, diagonal code once per value of
// q - k, element code once per pair.
#pragma once

#include "expr/program.hpp"

namespace undivided::expr {

enum class Rate : std::uint8_t { uniform, key, query, diagonal, element };
inline constexpr std::size_t rates = 5;

struct Instruction {
  Op op{};
  Type type{};          // of the result
  Type operand_type{};  // of the operands (compares)
  Rate rate{};
  std::int32_t result = -1;                             // register
  std::array<std::int32_t, 4> operand{-1, -1, -1, -1};  // registers
  std::int32_t slot = -1;                               // param or load
  std::int64_t integer = 0;
  double real = 0;
};

struct ByteCode {
  // Registers are numbered per rate: register r of rate R lives in that rate's file. `rate_of[r]`
  // maps a global register number to its rate and `index_of[r]` to its place in the file. Element
  // registers are reused when their last reader is past; the other files are not. A result never
  // shares a register with an operand of its own instruction, and roots and `keep` live to the end.
  // The score has a register that nothing else uses: a caller may put the scores themselves there.
  // Diagonal code reads uniform and diagonal registers only; it has leaves q and k of its own.
  std::array<std::vector<Instruction>, rates> part;  // indexed by Rate, in order of execution
  std::vector<Rate> rate_of;
  std::vector<std::int32_t> index_of;
  std::array<std::int32_t, rates> file_size{};  // registers per rate, indexed by Rate
  std::vector<std::int32_t> roots;              // global registers
  std::vector<std::array<std::int32_t, 4>>
      keep;  // Gradient terms: registers of their indices (optional)
  bool reads_score = false;
};

/// `keep` lists further nodes whose values the caller reads (index nodes of gradient terms).
/// `diagonals`: lanes hold consecutive queries, so what depends on q - k alone may run at that
/// rate.
ByteCode compile(const Program& p,
                 const std::vector<std::array<std::int32_t, 4>>& keep = {},
                 bool diagonals = false);

}  // namespace undivided::expr
