// SPDX-License-Identifier: Apache-2.0
// Writes rows of blocks into a MaskPlan: shared tiles, runs by query and by key.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "mask/plan.hpp"
#include "mask/quadtree.hpp"

namespace undivided::masks {

/// Offsets inside a plan are int32, as kernels read them. Raises Error{plan} for a larger one.
std::int32_t checked_offset(std::size_t n);

class PlanWriter {
 public:
  explicit PlanWriter(MaskPlan& plan) : plan_(plan) {}

  /// Adds the rows of one entry in query order. Fills counts and query_runs.
  void query_rows(MaskPlan::Entry& entry, const std::vector<BlockRow>& rows);
  /// Adds the columns of one entry. Tiles of `columns` are key-major.
  void key_rows(MaskPlan::Entry& entry, const std::vector<BlockRow>& columns);
  /// Derives the columns from the rows already written.
  void key_rows_from_query_rows(MaskPlan::Entry& entry);
  /// Adds an analysed entry, both orders. Tiles are numbered by first use.
  void strips(MaskPlan::Entry& entry, const std::vector<Strip>& strips);

 private:
  std::int32_t id_of(const MaskPlan::Tile& by_query);
  std::int32_t next_offset() const;

  MaskPlan& plan_;
  std::unordered_multimap<std::uint64_t, std::int32_t> ids_;
};

}  // namespace undivided::masks
