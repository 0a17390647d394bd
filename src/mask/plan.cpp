// SPDX-License-Identifier: Apache-2.0
// Builds plans: bands in closed form, everything else by evaluating each element once.
#include "mask/plan.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "mask/evaluate.hpp"
#include "mask/writer.hpp"
#include "undivided/error.hpp"

namespace undivided {

using masks::BlockRow;
using masks::LocalBand;
using masks::RowEvaluator;

namespace {

constexpr std::int64_t block = MaskPlan::block;
std::int64_t blocks_of(std::int64_t n) { return (n + block - 1) / block; }

LocalBand local_band(const expr::Band& band, const Sequence& s) {
  // Positions are origin + local index; beyond these distances a bound no longer cuts anything.
  const std::int64_t shift = s.q_origin - s.k_origin, far = s.q_len + s.k_len;
  return {s.q_len,
          s.k_len,
          band.has_left ? std::clamp(band.left - shift, -far, far) : far,
          band.has_right ? std::clamp(band.right + shift, -far, far) : far};
}

BlockRow evaluated_row(RowEvaluator& evaluator, const Sequence& s, std::int64_t q_block) {
  BlockRow out;
  const std::int64_t q0 = q_block * block, rows = std::min(block, s.q_len - q0);
  MaskPlan::Tile seen{};  // keys met so far, folded, to find rows without one
  for (std::int64_t k = 0; k < blocks_of(s.k_len); ++k) {
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

void check(const BoundProgram& mask, std::int64_t heads, std::span<const Sequence> sequences) {
  if (mask.program->root().type != expr::Type::boolean)
    throw Error(Code::invalid_argument, Stage::plan, "a mask plan needs a mask, not a score");
  if (mask.on_device)
    throw Error(Code::invalid_argument,
                Stage::plan,
                "a mask plan is made from host arrays; these are on a device: copy them first");
  if (heads < 0)
    throw Error(Code::invalid_argument, Stage::plan, "a mask plan needs a number of heads >= 0");
  for (const Sequence& s : sequences)
    if (s.q_len < 0 || s.k_len < 0)
      throw Error(Code::invalid_argument, Stage::plan, "lengths of a mask plan must be >= 0");
}

}  // namespace

std::shared_ptr<MaskPlan> make_mask_plan(const BoundProgram& mask,
                                         std::int64_t heads,
                                         std::span<const Sequence> sequences,
                                         Executor& executor) {
  check(mask, heads, sequences);
  auto plan = std::make_shared<MaskPlan>();
  plan->batch = static_cast<std::int64_t>(sequences.size());
  plan->heads = heads;
  masks::PlanWriter writer(*plan);
  const bool by_batch = mask.program->reads(expr::Op::batch);
  const bool by_head = mask.program->reads(expr::Op::head);
  std::vector<RowEvaluator> evaluators;
  if (!mask.band.is_band)
    evaluators.assign(static_cast<std::size_t>(executor.workers()), RowEvaluator(mask));

  using Key = std::
      tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  std::map<Key, std::int32_t> known;
  for (std::int64_t b = 0; b < plan->batch; ++b) {
    const Sequence& s = sequences[static_cast<std::size_t>(b)];
    for (std::int64_t h = 0; h < heads; ++h) {
      const Key key{s.q_len, s.k_len, s.q_origin, s.k_origin, by_batch ? b : -1, by_head ? h : -1};
      const auto [at, is_new] = known.emplace(key, static_cast<std::int32_t>(plan->entries.size()));
      plan->entry_of.push_back(at->second);
      if (!is_new) continue;

      MaskPlan::Entry entry;
      entry.q_len = s.q_len;
      entry.k_len = s.k_len;
      entry.q_blocks = static_cast<std::int32_t>(blocks_of(s.q_len));
      entry.k_blocks = static_cast<std::int32_t>(blocks_of(s.k_len));
      std::vector<BlockRow> rows(static_cast<std::size_t>(entry.q_blocks));
      if (mask.band.is_band) {
        const LocalBand band = local_band(mask.band, s);
        const auto fill = [&](std::vector<BlockRow>& into, const LocalBand& of) {
          executor.parallel_for(static_cast<std::int64_t>(into.size()), [&](std::int64_t i, int) {
            into[static_cast<std::size_t>(i)] = masks::band_row(of, i);
          });
        };
        fill(rows, band);
        writer.query_rows(entry, rows);
        std::vector<BlockRow> columns(static_cast<std::size_t>(entry.k_blocks));
        fill(columns, band.transposed());
        writer.key_rows(entry, columns);
      } else {
        for (RowEvaluator& e : evaluators) e.begin(b, h, s.q_len, s.k_len);
        executor.parallel_for(entry.q_blocks, [&](std::int64_t i, int worker) {
          rows[static_cast<std::size_t>(i)] =
              evaluated_row(evaluators[static_cast<std::size_t>(worker)], s, i);
        });
        writer.query_rows(entry, rows);
        writer.key_rows_from_query_rows(entry);
      }
      plan->entries.push_back(entry);
    }
  }
  return plan;
}

}  // namespace undivided
