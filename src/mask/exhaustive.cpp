// SPDX-License-Identifier: Apache-2.0
// Every element, one by one: what the analysis is tested against.
#include <algorithm>

#include "mask/evaluate.hpp"
#include "mask/plan.hpp"

namespace undivided::masks {

BlockRow evaluated_row(RowEvaluator& evaluator, const Sequence& s, std::int64_t q_block) {
  constexpr std::int64_t block = MaskPlan::block;
  BlockRow out;
  const std::int64_t q0 = q_block * block, rows = std::min(block, s.q_len - q0);
  MaskPlan::Tile seen{};  // keys met so far, folded, to find rows without one
  for (std::int64_t k = 0; k * block < s.k_len; ++k) {
    const std::int64_t columns = std::min(block, s.k_len - k * block);
    evaluator.keys(s.k_origin + k * block, static_cast<int>(columns));
    MaskPlan::Tile tile{};
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto at = static_cast<std::size_t>(i);
      tile[at] = evaluator.row(s.q_origin + q0 + i);
      kept += __builtin_popcountll(tile[at]);
      seen[at] |= tile[at];
    }
    out.kept_pairs += kept;
    if (kept == rows * columns)
      out.add_full(k, k + 1);
    else if (kept > 0)
      out.add_partial(k, tile);
  }
  out.rows_without_key = std::count(seen.begin(), seen.begin() + rows, std::uint64_t{0});
  return out;
}

}  // namespace undivided::masks
