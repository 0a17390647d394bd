// SPDX-License-Identifier: Apache-2.0
// Rows of Q, K and V on their way into the tiles: packed once, and asked for before they are
// needed.
#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

void ScoreTiles::pack_queries(int sub) {
  if (memory_.ready[sub] == Ready::packed) return;
  memory_.ready[sub] = Ready::packed;
  const View& q = run_.args.q.data;
  ask_sub(q, sub + ahead);
  const std::byte* rows[max_lanes];
  const int live = lanes_of(sub);
  const std::int64_t lanes = kernels_.lanes;
  for (int lane = 0; lane < live; ++lane) {
    const std::int64_t at = sub * lanes + lane;
    rows[lane] = row_address(
        run_.spec, q, sequence_, b_, memory_.head[at], memory_.q[at] - sequence_.q_origin);
  }
  float* q_t = memory_.q_t + std::int64_t{sub} * whole_blocks(run_.setup.qk_words()) * lanes;
  if (run_.setup.quantised)
    run_.setup.quantised->pack_queries(rows,
                                       live,
                                       run_.spec.dtype,
                                       run_.spec.dqk,
                                       memory_.mean,
                                       run_.q_scale,
                                       q_t,
                                       memory_.q_factor + std::int64_t{sub} * lanes,
                                       memory_.q_offset + std::int64_t{sub} * lanes);
  else if (run_.setup.dots)
    kernels_.pack_words(rows, live, 2 * run_.spec.dqk, q_t);
  else
    kernels_.pack(rows, live, run_.spec.dtype, run_.spec.dqk, run_.q_scale, q_t);
  if (run_.setup.score.used)
    run_.setup.score.run(
        kernels_, expr::Rate::query, 0, 1, memory_.score.at(sub), environment(sub, run_.score));
}

void ScoreTiles::ask_rows(const View& v, int begin, int end) const {
  const auto bytes = v.size(-1) * static_cast<std::int64_t>(size_of(v.dtype));
  for (int i = begin; i < end; ++i) ask_row(address(v, 0, i), bytes);
}

void ScoreTiles::find_keys(std::int64_t j0, KeyRows& to) const {
  to.j0 = j0;
  const std::int64_t end = std::min(j0 + key_block, sequence_.k_len);
  const std::int64_t head = run_.kv_head_of(head_);
  for (const auto& [view, rows] : {std::pair{&run_.args.kv.k, &to.k}, {&run_.args.kv.v, &to.v}})
    for (std::int64_t j = j0; j < end;) {
      const KeyRun run = key_run(run_.spec, run_.args.kv, *view, sequence_, b_, head, j);
      const std::int64_t last = std::min(end, j + run.count);
      for (const std::byte* at = run.data; j < last; ++j, at += run.stride)
        (*rows)[static_cast<std::size_t>(j - j0)] = at;
    }
}

/// Products compute whole blocks of rows: those past the last key are 0.
void ScoreTiles::clear_rest(int words, float* to) const {
  for (int c = 0; c < words; c += block_edge)
    std::fill_n(to + c / block_edge * block_column + rows_ * block_edge,
                (whole_blocks(rows_) - rows_) * block_edge,
                0.0f);
}

void ScoreTiles::pack_by_columns(const std::byte* const* rows, int d, float* to) const {
  if (run_.setup.dots)
    run_.setup.dots->pack_words(rows, 0, rows_, 2 * d, to);
  else
    kernels_.pack_blocks(rows, rows_, run_.spec.dtype, d, to);
  if (!run_.setup.dots || !run_.setup.dots->end_row_pairs) clear_rest(run_.setup.words(d), to);
}

/// The mean that K is rounded without, filled up with zeros.
void ScoreTiles::load_mean() const {
  std::fill_n(memory_.mean, max_dim, 0.0f);
  const View& mean = run_.args.kv.k_mean;
  if (mean)
    std::copy_n(static_cast<const float*>(mean.at({b_, run_.kv_head_of(head_), 0})),
                run_.spec.dqk,
                memory_.mean);
}

void ScoreTiles::pack_quantised() const {
  run_.setup.quantised->pack_keys(here_.k.data(),
                                  rows_,
                                  run_.spec.dtype,
                                  run_.spec.dqk,
                                  memory_.mean,
                                  memory_.k_blocks,
                                  memory_.k_factor,
                                  memory_.k_start);
  const int rest = whole_blocks(rows_) - rows_;
  std::fill_n(memory_.k_factor + rows_, rest, 0.0f);
  std::fill_n(memory_.k_start + rows_, rest, 0.0f);
  if (run_.setup.quantised == &kernels_.quantised)
    clear_rest(run_.setup.qk_words(), memory_.k_blocks);
}

void ScoreTiles::pack_by_rows(const std::byte* const* rows, int d, float* to) const {
  DType dtype = run_.spec.dtype;
  std::array<const std::byte*, key_block> rounded;
  if (run_.setup.bf16_values && dtype != DType::bf16) {
    std::byte* at = memory_.rounded;
    for (int r = 0; r < rows_; ++r, at += 2 * std::int64_t{d}) {
      float wide[max_dim];
      kernels_.copy_rows(rows[r], 0, dtype, 1, d, wide, d, d);
      kernels_.store_row(wide, 1.0f, DType::bf16, d, at, Write::over);
      rounded[static_cast<std::size_t>(r)] = at;
    }
    dtype = DType::bf16;
    rows = rounded.data();
  }
  if (run_.setup.dots)
    run_.setup.dots->pack_row_pairs(rows, rows_, d, to);
  else
    kernels_.pack_blocks(rows, rows_, dtype, d, to);
  if (run_.setup.dots && run_.setup.dots->end_row_pairs)
    run_.setup.dots->end_row_pairs(rows_, d, to);
}

void ScoreTiles::load_keys() {
  if (decode_.used()) {
    decode_.visit(j0_, whole_blocks_ahead());
  } else {
    if (soon_.j0 == j0_)
      std::swap(here_, soon_);
    else
      find_keys(j0_, here_);
    run_.setup.quantised ? pack_quantised()
                         : pack_by_columns(here_.k.data(), run_.spec.dqk, memory_.k_blocks);
  }
  const auto prepare = [&](const FlatCode& code, const WorkerFiles& files, const Contents& c) {
    code.run(kernels_, expr::Rate::key, 0, rows_, files.at(0), environment(0, c));
  };
  if (run_.setup.score.used) prepare(run_.setup.score, memory_.score, run_.score);
}

void ScoreTiles::load_values() {
  place_ = places_taken() ? 0 : place_ + 1;
  if (!decode_.used())
    pack_by_rows(here_.v.data(), run_.spec.dv, memory_.v_blocks + place_ * v_size());
}

void ScoreTiles::load_gradient() {
  pack_by_columns(here_.v.data(), run_.spec.dv, memory_.v_blocks);
  if (run_.setup.dots) pack_by_rows(here_.k.data(), run_.spec.dqk, memory_.k_sums);
}

void ScoreTiles::prefetch() {
  if (decode_.used() || !next_) return;  // the decode tile asks by itself
  const std::int64_t next = j0_ + key_block;
  if (next >= high_) return;
  if (soon_.j0 != next) find_keys(next, soon_);
  const int share = (key_block + met_ - 1) / met_, begin = asked_;
  asked_ = static_cast<int>(
      std::min({std::int64_t{begin} + share, std::int64_t{key_block}, high_ - next}));
  const auto bytes = static_cast<std::int64_t>(size_of(run_.spec.dtype));
  for (const auto& [rows, d] : {std::pair{&soon_.k, run_.spec.dqk}, {&soon_.v, run_.spec.dv}})
    for (int r = begin; r < asked_; ++r) ask_row((*rows)[static_cast<std::size_t>(r)], bytes * d);
}

}  // namespace undivided::cpu
