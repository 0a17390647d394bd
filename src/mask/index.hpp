// SPDX-License-Identifier: Apache-2.0
// Prefix sums over a plan, so that a rectangle costs O(log) steps and not its blocks.
//
// A rectangle is whole blocks, edges that cut blocks in one direction, and corners. Whole blocks:
// each row of blocks is a step function of kept pairs per block, and a wavelet matrix over the
// places of the steps sums any range of rows and columns. Edges: running counts per line of a
// block, kept at every sixteenth Partial block. Corners: one bit tile.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "mask/abstract.hpp"
#include "undivided/mask_plan.hpp"

namespace undivided::masks {

using Span = std::pair<std::int64_t, std::int64_t>;

/// The runs of one order (by query or by key) with counts in front of each.
class RunOrder {
 public:
  RunOrder(const MaskPlan& plan,
           std::int32_t first_offset,
           std::int64_t lines,
           std::int64_t columns,
           const std::vector<MaskPlan::Tile>& tiles);
  /// Kept pairs of lines [low, high) of block `line` with the whole blocks [begin, end) across.
  std::int64_t strip(std::int64_t line,
                     std::int64_t low,
                     std::int64_t high,
                     std::int64_t begin,
                     std::int64_t end,
                     std::int64_t& steps) const;
  /// Kept pairs of lines [low, high) of block `line` with columns [from, to) of block `across`.
  std::int64_t corner(std::int64_t line,
                      std::int64_t low,
                      std::int64_t high,
                      std::int64_t across,
                      std::int64_t from,
                      std::int64_t to,
                      std::int64_t& steps) const;
  const MaskPlan::Run* begin(std::int64_t line) const;
  const MaskPlan::Run* end(std::int64_t line) const { return begin(line + 1); }
  const MaskPlan::Tile& tile(std::int64_t slot) const;

 private:
  struct Before {  // in front of a block
    std::int64_t full = 0, slot = 0;
  };
  /// The last run that begins before `block`, or end() when none does.
  const MaskPlan::Run* run_before(std::int64_t line, std::int64_t block, std::int64_t& steps) const;
  Before before(std::int64_t line, std::int64_t block, std::int64_t& steps) const;
  void add_lines(std::int64_t slot, std::array<std::uint32_t, 64>& lines) const;

  static constexpr std::int64_t spacing = 16;
  const MaskPlan* plan_;
  std::int32_t first_offset_;
  std::int64_t columns_;
  const std::vector<MaskPlan::Tile>* tiles_;
  std::int64_t first_run_ = 0, first_slot_ = 0, slots_ = 0;
  std::vector<std::int64_t> full_, slot_;  // in front of each run: Full blocks of its line, slots
  std::vector<std::array<std::uint32_t, 64>> counts_;  // of each line, modulo 2^32
};

/// Sums of steps (row, column, change) over rows [i, j) and columns below x.
class StepSums {
 public:
  struct Step {
    std::uint32_t column = 0;
    std::int64_t change = 0;
  };
  StepSums(const std::vector<Step>& steps, std::int64_t columns);
  /// The integral up to column x of the step functions whose steps are [first, last).
  std::int64_t integral(std::size_t first, std::size_t last, std::int64_t x, std::int64_t& n) const;

 private:
  struct Level {
    std::vector<std::uint32_t> zeros;             // steps in front that have this bit clear
    std::vector<std::uint64_t> change, weighted;  // running sums after the sort by this bit
    std::size_t ones_begin = 0;
  };
  std::vector<Level> levels_;  // from the highest bit
};

class Index {
 public:
  Index(std::shared_ptr<const MaskPlan> plan, std::int64_t batch, std::int64_t head);
  std::int64_t kept_pairs(std::int64_t q0,
                          std::int64_t q1,
                          std::int64_t k0,
                          std::int64_t k1,
                          std::int64_t& steps) const;
  Span key_range(std::int64_t q0, std::int64_t q1) const;
  const std::vector<Span>& rows_without_key() const { return keyless_; }

 private:
  std::vector<StepSums::Step> steps_of_rows();
  void find_ends();

  std::shared_ptr<const MaskPlan> plan_;
  MaskPlan::Entry entry_;
  RunOrder by_query_, by_key_;
  std::vector<std::size_t> row_steps_;  // first step of each row of blocks
  StepSums sums_;
  std::vector<std::int32_t> first_, last_;  // per query: first kept key, end of the last
  std::vector<RangeTable> ends_;            // over first_ and last_
  std::vector<Span> keyless_;
};

}  // namespace undivided::masks
