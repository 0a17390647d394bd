// SPDX-License-Identifier: Apache-2.0
// Builds plans: bands in closed form, everything else by the analysis.
#include "mask/plan.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "mask/columns.hpp"
#include "mask/evaluate.hpp"
#include "mask/quadtree.hpp"
#include "mask/writer.hpp"
#include "undivided/error.hpp"

namespace undivided {

using masks::block_size;
using masks::BlockRow;
using masks::LocalBand;
using masks::RowEvaluator;

namespace {

std::int64_t blocks_of(std::int64_t n) { return (n + block_size - 1) / block_size; }

LocalBand local_band(const expr::Band& band, const Sequence& s) {
  // Positions are origin + local index; beyond these distances a bound no longer cuts anything.
  const std::int64_t shift = s.q_origin - s.k_origin, far = s.q_len + s.k_len;
  return {s.q_len,
          s.k_len,
          band.has_left ? std::clamp(band.left - shift, -far, far) : far,
          band.has_right ? std::clamp(band.right + shift, -far, far) : far};
}

// Strips of rows that can be classed at the same time, as squares of 2^level blocks.
struct Strips {
  int level = 0;
  std::int64_t count = 0;
};
Strips strips_of(const MaskPlan::Entry& entry, int workers) {
  Strips out;
  while ((std::int64_t{1} << out.level) < std::max(entry.q_blocks, entry.k_blocks)) ++out.level;
  if (workers > 1 && entry.q_blocks >= 64) out.level = std::max(0, out.level - 3);
  out.count = (entry.q_blocks + (std::int64_t{1} << out.level) - 1) >> out.level;
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

namespace {

class Maker {
 public:
  Maker(const BoundProgram& mask, Executor& executor, bool exhaustive, Inside inside)
      : mask_(mask),
        executor_(executor),
        plan_(std::make_shared<MaskPlan>()),
        writer_(*plan_),
        exhaustive_(exhaustive) {
    const expr::ColumnForm form = expr::by_columns(*mask.program);
    if (inside == Inside::automatic) inside = form.loads ? Inside::program : Inside::bits;
    plan_->inside = inside;
    columns_ = !exhaustive && inside == Inside::program && !form.leaves.empty();
    if (exhaustive)
      evaluators_.assign(static_cast<std::size_t>(executor.workers()), RowEvaluator(mask));
    else if (!mask.band.is_band && !columns_)
      tables_ = masks::range_tables(*mask.program, mask.bound);
  }

  std::shared_ptr<MaskPlan> make(std::int64_t heads, std::span<const Sequence> sequences) {
    plan_->batch = static_cast<std::int64_t>(sequences.size());
    plan_->heads = heads;
    for (const Array& a : mask_.captures.arrays) plan_->versions.push_back(a.version());
    const bool by_batch = mask_.program->reads(expr::Op::batch);
    const bool by_head = mask_.program->reads(expr::Op::head);
    using Key = std::
        tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
    std::map<Key, std::int32_t> known;
    for (std::int64_t b = 0; b < plan_->batch; ++b) {
      const Sequence& s = sequences[static_cast<std::size_t>(b)];
      for (std::int64_t h = 0; h < heads; ++h) {
        const Key key{
            s.q_len, s.k_len, s.q_origin, s.k_origin, by_batch ? b : -1, by_head ? h : -1};
        const auto [at, is_new] =
            known.emplace(key, static_cast<std::int32_t>(plan_->entries.size()));
        plan_->entry_of.push_back(at->second);
        if (is_new) add_entry(s, b, h);
      }
    }
    if (plan_->inside == Inside::program && !columns_) masks::drop_bits(*plan_);
    return plan_;
  }

 private:
  void add_entry(const Sequence& s, std::int64_t b, std::int64_t h) {
    MaskPlan::Entry entry;
    entry.q_len = s.q_len;
    entry.k_len = s.k_len;
    entry.q_blocks = static_cast<std::int32_t>(blocks_of(s.q_len));
    entry.k_blocks = static_cast<std::int32_t>(blocks_of(s.k_len));
    if (exhaustive_)
      evaluate(entry, s, b, h);
    else if (columns_)
      masks::add_columns(*plan_, entry, mask_, s, b, h, executor_);
    else if (mask_.band.is_band)
      band(entry, s);
    else
      analyse(entry, s, b, h);
    plan_->entries.push_back(entry);
  }

  void band(MaskPlan::Entry& entry, const Sequence& s) {
    const LocalBand band = local_band(mask_.band, s);
    const auto fill = [&](std::int32_t count, const LocalBand& of) {
      std::vector<BlockRow> into(static_cast<std::size_t>(count));
      executor_.parallel_for(count, [&](std::int64_t i, int) {
        into[static_cast<std::size_t>(i)] = masks::band_row(of, i);
      });
      return into;
    };
    writer_.query_rows(entry, fill(entry.q_blocks, band));
    writer_.key_rows(entry, fill(entry.k_blocks, band.transposed()));
  }

  void analyse(MaskPlan::Entry& entry, const Sequence& s, std::int64_t b, std::int64_t h) {
    const Strips split = strips_of(entry, executor_.workers());
    std::vector<masks::Strip> strips(static_cast<std::size_t>(split.count));
    executor_.parallel_for(split.count, [&](std::int64_t i, int) {
      const std::int64_t first = i << split.level;
      const std::int64_t rows = std::min(std::int64_t{1} << split.level, entry.q_blocks - first);
      strips[static_cast<std::size_t>(i)] = masks::classify_strip(
          *mask_.program, mask_.bound, tables_, s, b, h, first, rows, split.level);
    });
    writer_.strips(entry, strips);
  }

  void evaluate(MaskPlan::Entry& entry, const Sequence& s, std::int64_t b, std::int64_t h) {
    std::vector<BlockRow> rows(static_cast<std::size_t>(entry.q_blocks));
    for (RowEvaluator& e : evaluators_) e.begin(b, h, s.q_len, s.k_len);
    executor_.parallel_for(entry.q_blocks, [&](std::int64_t i, int worker) {
      rows[static_cast<std::size_t>(i)] =
          masks::evaluated_row(evaluators_[static_cast<std::size_t>(worker)], s, i);
    });
    writer_.query_rows(entry, rows);
    writer_.key_rows_from_query_rows(entry);
  }

  const BoundProgram& mask_;
  Executor& executor_;
  std::shared_ptr<MaskPlan> plan_;
  masks::PlanWriter writer_;
  masks::RangeTables tables_;
  std::vector<RowEvaluator> evaluators_;
  bool exhaustive_ = false, columns_ = false;
};

}  // namespace

std::shared_ptr<MaskPlan> make_mask_plan(const BoundProgram& mask,
                                         std::int64_t heads,
                                         std::span<const Sequence> sequences,
                                         Executor& executor,
                                         Inside inside) {
  check(mask, heads, sequences);
  return Maker(mask, executor, false, inside).make(heads, sequences);
}

std::shared_ptr<MaskPlan> masks::exhaustive_mask_plan(const BoundProgram& mask,
                                                      std::int64_t heads,
                                                      std::span<const Sequence> sequences,
                                                      Executor& executor) {
  check(mask, heads, sequences);
  return Maker(mask, executor, true, Inside::bits).make(heads, sequences);
}

}  // namespace undivided
