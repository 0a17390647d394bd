// SPDX-License-Identifier: Apache-2.0
// The quadtree. Its order visits the blocks of a row, and those of a column, from first to last,
// so runs in both orders come out sorted.
#include "mask/quadtree.hpp"

#include <algorithm>
#include <array>

#include "mask/plan.hpp"

namespace undivided::masks {
namespace {

class Walk {
 public:
  Walk(const expr::Program& p,
       const expr::Bound& bound,
       const RangeTables& tables,
       const Sequence& s,
       std::int64_t batch,
       std::int64_t head,
       Strip& out)
      : sequence_(s),
        q_blocks_((s.q_len + block_size - 1) / block_size),
        k_blocks_((s.k_len + block_size - 1) / block_size),
        mask_(p, bound, tables, 2 * levels),
        maker_(p, bound, s, batch, head),
        out_(out) {
    mask_.begin(batch, head, s.q_len, s.k_len);
    q_tags_.fill(-1);
    k_tags_.fill(-1);
  }

  // The square (i, j) of 2^level blocks a side.
  void visit(int level, std::int64_t i, std::int64_t j) {
    const std::int64_t rows = i << level, columns = j << level;
    if (rows >= q_blocks_ || columns >= k_blocks_) return;
    const std::int64_t rows_end = std::min((i + 1) << level, q_blocks_),
                       columns_end = std::min((j + 1) << level, k_blocks_);
    // Two slots a level: the halves of the square above stay while its quarters are visited.
    const int q_slot = 2 * level + static_cast<int>(i & 1),
              k_slot = 2 * level + static_cast<int>(j & 1);
    if (q_tags_[at(q_slot)] != i) {
      q_tags_[at(q_slot)] = i;
      mask_.query(q_slot,
                  sequence_.q_origin + rows * block_size,
                  sequence_.q_origin + std::min(rows_end * block_size, sequence_.q_len) - 1);
    }
    if (k_tags_[at(k_slot)] != j) {
      k_tags_[at(k_slot)] = j;
      mask_.key(k_slot,
                sequence_.k_origin + columns * block_size,
                sequence_.k_origin + std::min(columns_end * block_size, sequence_.k_len) - 1);
    }
    const Value verdict = mask_.evaluate(q_slot, k_slot);
    if (verdict.single()) {
      if (verdict.low) full(rows, rows_end, columns, columns_end);
    } else if (level == 0) {
      one(rows, columns);
    } else {
      for (std::int64_t half = 0; half < 4; ++half)
        visit(level - 1, 2 * i + half / 2, 2 * j + half % 2);
    }
  }

  std::vector<MaskPlan::Tile> tiles() const { return maker_.tiles().items(); }

 private:
  static constexpr int levels = 32;
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  void full(std::int64_t row, std::int64_t row_end, std::int64_t column, std::int64_t column_end) {
    for (std::int64_t r = row; r < row_end; ++r)
      out_.rows[at(r - out_.first_row)].add_full(column, column_end);
    for (std::int64_t c = column; c < column_end; ++c) out_.columns[at(c)].add_full(row, row_end);
  }

  void one(std::int64_t row, std::int64_t column) {
    const std::int32_t id = maker_.tile(row, column, mask_);
    if (id == TileMaker::none) return;
    const std::int64_t height = std::min(block_size, sequence_.q_len - row * block_size),
                       width = std::min(block_size, sequence_.k_len - column * block_size);
    const bool whole = height == block_size && width == block_size;
    if (id == (whole ? TileMaker::all : maker_.clip(height, width)))
      return full(row, row + 1, column, column + 1);
    out_.rows[at(row - out_.first_row)].add_partial(column, id);
    out_.columns[at(column)].add_partial(row, id);
  }

  Sequence sequence_;
  std::int64_t q_blocks_, k_blocks_;
  AbstractMask mask_;
  TileMaker maker_;
  Strip& out_;
  std::array<std::int64_t, 2 * levels> q_tags_{}, k_tags_{};
};

}  // namespace

void Line::add_full(std::int64_t begin, std::int64_t end) {
  if (!runs.empty() && runs.back().tiles < 0 && runs.back().end == begin)
    runs.back().end = static_cast<std::int32_t>(end);
  else
    runs.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), -1});
}

void Line::add_partial(std::int64_t at, std::int32_t id) {
  if (!runs.empty() && runs.back().tiles >= 0 && runs.back().end == at)
    ++runs.back().end;
  else
    runs.push_back({static_cast<std::int32_t>(at),
                    static_cast<std::int32_t>(at + 1),
                    static_cast<std::int32_t>(ids.size())});
  ids.push_back(id);
}

Strip classify_strip(const expr::Program& p,
                     const expr::Bound& bound,
                     const RangeTables& tables,
                     const Sequence& sequence,
                     std::int64_t batch,
                     std::int64_t head,
                     std::int64_t first_row,
                     std::int64_t rows,
                     int level) {
  Strip out;
  out.first_row = first_row;
  out.rows.resize(static_cast<std::size_t>(rows));
  const std::int64_t k_blocks = (sequence.k_len + block_size - 1) / block_size;
  out.columns.resize(static_cast<std::size_t>(k_blocks));
  Walk walk(p, bound, tables, sequence, batch, head, out);
  for (std::int64_t i = first_row >> level; i << level < first_row + rows; ++i)
    for (std::int64_t j = 0; j << level < k_blocks; ++j) walk.visit(level, i, j);
  out.tiles = walk.tiles();
  return out;
}

}  // namespace undivided::masks
