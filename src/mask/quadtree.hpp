// SPDX-License-Identifier: Apache-2.0
// Classes a mask over squares of blocks, split only where they are undecided.
#pragma once

#include <cstdint>
#include <vector>

#include "mask/tiles.hpp"

namespace undivided::masks {

/// Runs of one row (or column) of blocks, in order. Run::tiles indexes `ids`.
struct Line {
  std::vector<MaskPlan::Run> runs;
  std::vector<std::int32_t> ids;
  void add_full(std::int64_t begin, std::int64_t end);
  void add_partial(std::int64_t at, std::int32_t id);
};

/// Rows of blocks [first_row, first_row + rows.size()) of one sequence, classed.
struct Strip {
  std::int64_t first_row = 0;
  std::vector<Line> rows, columns;
  std::vector<MaskPlan::Tile> tiles;  // by id
};

/// Classes `rows` rows of blocks from `first_row`, a multiple of 2^level, in squares of 2^level.
Strip classify_strip(const expr::Program& p,
                     const expr::Bound& bound,
                     const RangeTables& tables,
                     const Sequence& sequence,
                     std::int64_t batch,
                     std::int64_t head,
                     std::int64_t first_row,
                     std::int64_t rows,
                     int level);

}  // namespace undivided::masks
