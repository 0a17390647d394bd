// SPDX-License-Identifier: Apache-2.0
// Tiles of final scores.
#include "cpu/score_tiles.hpp"

#include <limits>

#include "cpu/column_words.hpp"

namespace undivided::cpu {

ScoreTiles::Memory::Memory(Arena& arena, const Setup& setup, int count) : places(count) {
  const Kernels& k = *setup.kernels;
  const std::int64_t lanes = k.lanes, subs = setup.subs(), all = lanes * subs;
  q_t = arena.take<float>(all * whole_blocks(setup.qk_words()));
  s = arena.take<float>(2 * key_block * lanes);  // the decode tile rounds rows up
  k_blocks = arena.take<float>(whole_blocks(setup.qk_words()) / block_edge * block_column);
  v_blocks = arena.take<float>(places * whole_blocks(setup.spec.dv) / block_edge * block_column);
  const std::int64_t waiting_places = places > 1 ? places : 0;
  weights = arena.take<float>(waiting_places * all * key_block / 2);
  alphas = arena.take<float>(waiting_places * all);
  waiting = arena.take<Waiting>(places > 1 ? subs : 0);
  k_sums = setup.dots && setup.spec.op == Operation::backward
               ? arena.take<float>(whole_blocks(setup.spec.dqk) / block_edge * block_column)
               : k_blocks;
  const bool quantised = setup.quantised;
  mean = arena.take<float>(quantised ? max_dim : 0);
  k_factor = arena.take<float>(quantised ? key_block : 0);
  k_start = arena.take<float>(quantised ? key_block : 0);
  q_factor = arena.take<float>(quantised ? all : 0);
  q_offset = arena.take<float>(quantised ? all : 0);
  rounded = arena.take<std::byte>(
      setup.bf16_values && setup.spec.dtype != DType::bf16 ? 2 * key_block * setup.spec.dv : 0);
  low = arena.take<std::int32_t>(all);
  high = arena.take<std::int32_t>(all);
  q = arena.take<std::int32_t>(all);
  head = arena.take<std::int32_t>(all);
  edges = arena.take<Edges>(subs);
  runs = arena.take<PlanRuns>(subs);
  ready = arena.take<Ready>(subs);
  ranges = arena.take<RowRange>(subs);
  words = arena.take<std::uint64_t>(setup.mask.used ? subs * key_block : 0);
  steps =
      arena.take<std::uint64_t>(static_cast<std::int64_t>(setup.columns.steps.size()) * key_block);
  decode = Decode::Memory(arena, setup);
  mask = WorkerFiles::layout(arena, setup.mask, k, setup.subs());
  score = WorkerFiles::layout(arena, setup.score, k, setup.subs());
}

void ScoreTiles::begin(
    const Sequence& s, std::int64_t b, std::int64_t head, std::int64_t first, int count) {
  sequence_ = s;
  b_ = b;
  head_ = head;
  first_ = first;
  count_ = count;
  idle_ = first == 0 ? run_.idle_lanes(s) : 0;
  subs_ = (count + idle_ + kernels_.lanes - 1) / kernels_.lanes;
  const bool banded = run_.mask_kind == MaskKind::band;
  const bool planned = run_.mask_kind == MaskKind::plan;
  here_.j0 = soon_.j0 = -1;
  if (run_.setup.quantised) load_mean();
  low_ = banded || planned ? s.k_len : 0;
  high_ = banded || planned ? 0 : s.k_len;
  std::fill_n(memory_.ready, subs_, Ready::nothing);
  place_ = memory_.places - 1;
  passed_ = 0;
  absorbs_ = false;
  if (memory_.places > 1) std::fill_n(memory_.waiting, subs_, Waiting{});
  for (int sub = 0; sub < subs_; ++sub) {
    if (banded) {
      const auto first_low = low_of(row(sub, 0)), last_high = high_of(last_row(sub));
      memory_.edges[sub] = {first_low, low_of(last_row(sub)), high_of(row(sub, 0)), last_high};
      low_ = std::min<std::int64_t>(low_, first_low);
      high_ = std::max<std::int64_t>(high_, last_high + 1);
    }
    if (planned) {
      const MaskPlan& plan = *run_.args.mask_plan;
      const std::int32_t* offsets =
          plan.run_offsets.data() + plan.entry(b, head).query_runs + row(sub, 0) / MaskPlan::block;
      const PlanRuns runs{plan.runs.data() + offsets[0], plan.runs.data() + offsets[1]};
      memory_.runs[sub] = runs;
      if (runs.next != runs.end) {
        low_ = std::min<std::int64_t>(low_, std::int64_t{runs.next->begin} * MaskPlan::block);
        high_ = std::max<std::int64_t>(high_, std::int64_t{runs.end[-1].end} * MaskPlan::block);
      }
    }
  }
  const auto prepare = [&](const FlatCode& code, const WorkerFiles& files, const Contents& c) {
    code.run(kernels_, expr::Rate::uniform, 0, 1, files.at(0), environment(0, c));
  };
  if (run_.setup.score.used) prepare(run_.setup.score, memory_.score, run_.score);
  if (run_.asks_program) prepare(run_.setup.mask, memory_.mask, run_.mask);
  low_ = low_ / key_block * key_block;
  high_ = std::min(high_, s.k_len);
  decode_.begin(s, b, run_.kv_head_of(head), count, high_);
  if (waits()) slots_ = 1;  // scores are read before the next ones come
  for (int sub = 0; sub < ahead; ++sub) ask_sub(run_.args.q.data, sub);
}

/// The first key that a row of a band keeps. Rows ascend, so those of a sub-block lie between the
/// first one's and the last one's.
std::int32_t ScoreTiles::low_of(std::int64_t r) const {
  if (sequence_.first) return sequence_.first[r];
  const expr::Band& band = run_.band;
  if (!band.has_left) return 0;
  const std::int64_t q = sequence_.q_origin + run_.token_of(r);
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(q - band.left - sequence_.k_origin, 0, sequence_.k_len));
}

/// The last one.
std::int32_t ScoreTiles::high_of(std::int64_t r) const {
  if (sequence_.end) return sequence_.end[r] - 1;
  const expr::Band& band = run_.band;
  if (!band.has_right) return static_cast<std::int32_t>(sequence_.k_len - 1);
  const std::int64_t q = sequence_.q_origin + run_.token_of(r);
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(q + band.right - sequence_.k_origin, -1, sequence_.k_len - 1));
}

void ScoreTiles::place(int sub) {
  if (memory_.ready[sub] != Ready::nothing) return;
  memory_.ready[sub] = Ready::placed;
  const std::int64_t last = last_row(sub);
  for (int lane = 0; lane < kernels_.lanes; ++lane) {
    // Idle lanes repeat the last row, so that positions stay in their proven range.
    const std::int64_t r = std::min(row(sub, lane), last);
    const std::int64_t at = std::int64_t{sub} * kernels_.lanes + lane;
    memory_.q[at] = static_cast<std::int32_t>(sequence_.q_origin + run_.token_of(r));
    memory_.head[at] = static_cast<std::int32_t>(run_.head_of(head_, r));
    if (run_.mask_kind != MaskKind::band) continue;
    memory_.low[at] = low_of(r);
    memory_.high[at] = high_of(r);
  }
  if (run_.asks_program)
    run_.setup.mask.run(
        kernels_, expr::Rate::query, 0, 1, memory_.mask.at(sub), environment(sub, run_.mask));
}

Environment ScoreTiles::environment(int sub, const Contents& contents) const {
  Environment env;
  env.arrays = contents.arrays;
  env.params = contents.params;
  env.batch = static_cast<std::int32_t>(b_);
  env.head = static_cast<std::int32_t>(head_);
  env.q_len = static_cast<std::int32_t>(sequence_.q_len);
  env.k_len = static_cast<std::int32_t>(sequence_.k_len);
  env.q = memory_.q + sub * kernels_.lanes;
  env.vectors = vectors(sub);
  env.k = static_cast<std::int32_t>(sequence_.k_origin + j0_);
  return env;
}

RowRange ScoreTiles::whole_chunks(int begin, int end) const {
  RowRange r;
  if (begin >= end) return r;
  r.begin = begin / chunk_rows * chunk_rows;
  r.end = std::min(rows_, (end + chunk_rows - 1) / chunk_rows * chunk_rows);
  return r;
}

RowRange ScoreTiles::band_range(int sub) const {
  const Edges& e = memory_.edges[sub];
  const auto local = [&](std::int64_t key) {
    return static_cast<int>(std::clamp<std::int64_t>(key - j0_, 0, rows_));
  };
  RowRange r = whole_chunks(local(e.low_min), local(std::int64_t{e.high_max} + 1));
  r.masked = j0_ + r.begin < e.low_max || j0_ + r.end - 1 > e.high_min;
  return r;
}

RowRange ScoreTiles::plan_range(int sub) const {
  static_assert(key_block == MaskPlan::block);
  const MaskPlan& plan = *run_.args.mask_plan;
  const auto block = static_cast<std::int32_t>(j0_ / MaskPlan::block);
  PlanRuns& runs = memory_.runs[sub];
  while (runs.next != runs.end && runs.next->end <= block) ++runs.next;
  if (runs.next == runs.end || runs.next->begin > block) return {};
  if (runs.next->tiles < 0) return {0, rows_, false};
  if (run_.asks_program) return {0, rows_, true};
  const auto at = static_cast<std::size_t>(runs.next->tiles + block - runs.next->begin);
  const MaskPlan::Tile& tile = plan.tiles_by_key[static_cast<std::size_t>(plan.tile_ids[at])];
  return bits_range(sub, tile.data(), static_cast<int>(row(sub, 0) % MaskPlan::block));
}

RowRange ScoreTiles::bits_range(const std::uint64_t* words, std::uint64_t lanes) const {
  int begin = 0, end = rows_;
  while (begin < end && (words[begin] & lanes) == 0) ++begin;
  while (begin < end && (words[end - 1] & lanes) == 0) --end;
  return whole_chunks(begin, end);
}

RowRange ScoreTiles::bits_range(int sub, const std::uint64_t* words, int shift) const {
  RowRange range = bits_range(words, ((std::uint64_t{1} << lanes_of(sub)) - 1) << shift);
  range.masked = true;
  range.words = words;
  range.shift = shift;
  return range;
}

RowRange ScoreTiles::program_range(int sub) const {
  const FlatCode& code = run_.setup.mask;
  const Environment env = environment(sub, run_.mask);
  const Files files = memory_.mask.at(sub);
  std::uint64_t* words = memory_.words + std::int64_t{sub} * key_block;
  if (const expr::ColumnTree& columns = run_.setup.columns; !columns.steps.empty()) {
    column_words(columns, code, files, kernels_.width, env.q[0], rows_, memory_.steps, words);
    return bits_range(sub, words, 0);
  }
  code.run(kernels_, expr::Rate::diagonal, 0, 0, files, env);
  for (int r = 0; r < rows_; r += chunk_rows) {
    const int n = std::min(chunk_rows, rows_ - r);
    code.run(kernels_, expr::Rate::element, r, n, files, env);
    kernels_.bits_of_register(code.roots[0], r, n, files, words + r);
  }
  return bits_range(sub, words, 0);
}

bool ScoreTiles::visit(std::int64_t j0) {
  if (j0 < passed_) return false;
  j0_ = j0;
  made_ = -1;
  rows_ = static_cast<int>(std::min<std::int64_t>(key_block, sequence_.k_len - j0));
  met_ = asked_ = 0;
  bool asked = false;
  for (int sub = 0; sub < subs_; ++sub) {
    RowRange& range = memory_.ranges[sub];
    switch (run_.mask_kind) {
      case MaskKind::band:
        range = band_range(sub);
        break;
      case MaskKind::plan:
        range = plan_range(sub);
        break;
      case MaskKind::none:
        range = {0, rows_, false};
        break;
      case MaskKind::program:
        range = {0, rows_, true};
        break;
    }
    if (range.masked && run_.asks_program) {
      if (!asked)
        run_.setup.mask.run(
            kernels_, expr::Rate::key, 0, rows_, memory_.mask.at(0), environment(0, run_.mask));
      asked = true;
      place(sub);
      range = program_range(sub);
    }
    if (range.empty()) continue;
    if (range.masked) part_vectors(sub, range);
    ++met_;
    place(sub);
  }
  next_ = run_.mask_kind != MaskKind::plan || next_is_needed();
  return met_ > 0;
}

void ScoreTiles::part_vectors(int sub, RowRange& range) const {
  const Setup& setup = run_.setup;
  constexpr int worth = 16;  // rows of a vector that are saved
  // What is not multiplied must be masked, or in a lane that nobody reads.
  const bool sums_lanes = run_.spec.op == Operation::backward || run_.spec.key_mass;
  if (vectors(sub) == 1 || (sums_lanes && lanes_of(sub) < kernels_.lanes) || decode_.used() ||
      setup.quantised || (setup.dots && setup.dots == kernels_.matrix))
    return;
  int size = 0;
  for (int v = 0; v < 2; ++v) {
    const int first = v * kernels_.width,
              last = v == 0 ? first - 1 + kernels_.width : lanes_of(sub) - 1;
    RowRange part;
    if (range.words) {
      const std::uint64_t lanes = ((std::uint64_t{2} << (last - first)) - 1)
                                  << (range.shift + first);
      part = bits_range(range.words, lanes);
    } else {
      const auto local = [&](std::int64_t key) {
        return static_cast<int>(std::clamp<std::int64_t>(key - j0_, range.begin, range.end));
      };
      part = whole_chunks(local(low_of(row(sub, first))),
                          local(std::int64_t{high_of(row(sub, last))} + 1));
    }
    range.rows_of[v] = {part.begin, part.end};
    size += part.size();
  }
  range.apart = 2 * range.size() - size >= worth;
}

bool ScoreTiles::done(int sub) const {
  const std::int64_t next = j0_ + key_block;
  if (next >= high_) return true;
  if (run_.mask_kind == MaskKind::band) return memory_.edges[sub].high_max < next;
  if (run_.mask_kind != MaskKind::plan) return false;
  const PlanRuns& runs = memory_.runs[sub];
  return runs.next == runs.end || std::int64_t{runs.end[-1].end} * MaskPlan::block <= next;
}

int ScoreTiles::ending(int row) const {
  int sub = (row + idle_) / kernels_.lanes;
  while (sub < subs_ && done(sub)) ++sub;
  return std::min(begin_of(sub), count_);
}

bool ScoreTiles::next_is_needed() const {
  const auto block = static_cast<std::int32_t>(j0_ / MaskPlan::block) + 1;
  return std::any_of(memory_.runs, memory_.runs + subs_, [&](const PlanRuns& runs) {
    const MaskPlan::Run* run = runs.next;
    while (run != runs.end && run->end <= block) ++run;
    return run != runs.end && run->begin <= block;
  });
}

bool ScoreTiles::two_at_once(int sub) const {
  if (sub % 2 == 1 || sub + 1 >= subs_) return false;
  if (!decode_.used() &&
      (vectors(sub + 1) == 1 || run_.setup.quantised || !run_.setup.products().scores_of_two))
    return false;
  const RowRange &one = memory_.ranges[sub], &other = memory_.ranges[sub + 1];
  return one.begin == other.begin && one.end == other.end && !one.apart && !other.apart;
}

void ScoreTiles::multiply(int sub) {
  const RowRange& range = memory_.ranges[sub];
  float* s = tile(sub) + range.begin * kernels_.lanes;
  pack_queries(sub);
  const bool two = two_at_once(sub) && !decode_.used();
  if (two) {
    pack_queries(sub + 1);
    made_ = sub + 1;
  }
  if (decode_.used())
    decode_.scores(range.begin, range.size(), lanes_of(sub), q_t(sub), s);
  else if (run_.setup.quantised)
    run_.setup.quantised->scores(memory_.k_blocks,
                                 memory_.k_factor,
                                 memory_.k_start,
                                 range.begin,
                                 range.size(),
                                 run_.setup.qk_words(),
                                 q_t(sub),
                                 memory_.q_factor + std::int64_t{sub} * kernels_.lanes,
                                 memory_.q_offset + std::int64_t{sub} * kernels_.lanes,
                                 s,
                                 vectors(sub));
  else if (two)
    run_.setup.products().scores_of_two(memory_.k_blocks,
                                        range.begin,
                                        range.size(),
                                        run_.setup.qk_words(),
                                        q_t(sub),
                                        q_t(sub + 1) - q_t(sub),
                                        run_.score_scale,
                                        s,
                                        tile(sub + 1) - tile(sub));
  else
    by_vectors(sub, [&](int lane, int begin, int end, int count) {
      if (begin < end)
        run_.setup.products().scores(memory_.k_blocks,
                                     begin,
                                     end - begin,
                                     run_.setup.qk_words(),
                                     q_t(sub) + lane,
                                     run_.score_scale,
                                     tile(sub) + begin * kernels_.lanes + lane,
                                     count);
    });
}

float* ScoreTiles::scores(int sub, float* raw) {
  const RowRange& range = memory_.ranges[sub];
  if (made_ != sub) multiply(sub);
  float *first_row = tile(sub), *s = first_row + range.begin * kernels_.lanes;
  if (raw) std::copy_n(s, range.size() * kernels_.lanes, raw + range.begin * kernels_.lanes);
  const int lanes = kernels_.lanes;
  const auto element =
      [&](const FlatCode& code, const Files& files, const Environment& env, auto&& result) {
        code.run(kernels_, expr::Rate::diagonal, 0, 0, files, env);
        by_chunks(sub, [&](int r, int n) {
          code.run(kernels_, expr::Rate::element, r, n, files, env);
          if (code.roots[0].index != tile_register)
            result(code.roots[0], r, n, files, first_row + r * lanes);
        });
      };
  if (run_.setup.score.used)
    element(run_.setup.score,
            memory_.score.at(sub, first_row),
            environment(sub, run_.score),
            kernels_.read);
  if (range.words)
    kernels_.mask_bits(s, range.size(), range.words + range.begin, range.shift);
  else if (range.masked)
    kernels_.mask_band(s,
                       range.size(),
                       static_cast<int>(j0_) + range.begin,
                       memory_.low + sub * lanes,
                       memory_.high + sub * lanes);
  return s;
}

}  // namespace undivided::cpu
