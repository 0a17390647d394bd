// SPDX-License-Identifier: Apache-2.0
// Exact element evaluation of a mask: one query row against up to 64 keys at a time.
//
// Nodes run at the rate at which they change: once per (batch, head), once per block of keys, once
// per query row, or for each pair. Integers wrap as everywhere in the language; floats are float64,
// as in the scalar reading.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "problem/bound.hpp"

namespace undivided::masks {

class RowEvaluator {
 public:
  static constexpr int lanes = 64;

  explicit RowEvaluator(const BoundProgram& mask) : RowEvaluator(*mask.program, mask.bound) {}
  /// `bound` must outlive the evaluator; `program` may go.
  RowEvaluator(const expr::Program& program, const expr::Bound& bound);

  /// Fixes everything but the positions q and k.
  void begin(std::int64_t batch, std::int64_t head, std::int64_t q_len, std::int64_t k_len);
  /// Fixes `count` keys (at most 64) from position `first` on.
  void keys(std::int64_t first, int count);
  /// Bit j of the result: does position q keep key first + j?
  std::uint64_t row(std::int64_t q);
  /// After keys(): the values over its lanes of a root that does not read q. Not for floats.
  const std::int32_t* lanes_of(std::size_t root) { return ints(roots_[root]); }

 private:
  struct Step {
    expr::Node node;
    std::int32_t at;                     // value of this node
    std::array<std::int32_t, 4> from{};  // values of its operands
  };
  std::int32_t* ints(std::int32_t at) { return ints_.data() + std::size_t{lanes} * at_(at); }
  double* reals(std::int32_t at) { return reals_.data() + std::size_t{lanes} * at_(at); }
  static std::size_t at_(std::int32_t at) { return static_cast<std::size_t>(at); }
  void run(const std::vector<Step>& steps, int width);
  void run_int(const Step& s, int width);
  void run_real(const Step& s, int width);
  void run_load(const Step& s, int width);
  std::int64_t leaf(const expr::Node& node) const;

  const expr::Bound* bound_;
  std::vector<std::int32_t> ints_;  // i32 and booleans
  std::vector<double> reals_;
  std::vector<Step> uniform_, key_, query_, element_;
  std::vector<char> is_real_;
  std::vector<std::int32_t> roots_;
  expr::Point at_point_;
  int count_ = 0;
};

/// Bit j is set where values[j] is not 0; values are 0 or 1.
std::uint64_t packed(const std::int32_t* values);
std::uint64_t packed(const std::uint8_t* values);

}  // namespace undivided::masks
