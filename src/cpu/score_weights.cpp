// SPDX-License-Identifier: Apache-2.0
// From tiles of scores to weights, and from those to sums of values.
#include <algorithm>

#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

std::int64_t ScoreTiles::whole_blocks_ahead() const {
  const RowRange& range = memory_.ranges[0];
  if (!absorbs_ || !decode_.whole_tiles() || range.masked || range.size() < rows_ ||
      run_.setup.score.used || run_.spec.dropout)
    return 0;
  std::int64_t end = high_;
  if (run_.mask_kind == MaskKind::band)
    end = std::min(end, std::int64_t{memory_.edges[0].high_min} + 1);
  const bool alike = run_.mask_kind == MaskKind::none || run_.mask_kind == MaskKind::band;
  return alike ? std::max<std::int64_t>(1, (end - j0_) / key_block) : 1;
}

bool ScoreTiles::absorb_whole(int sub, float* m, float* l) {
  if (!decode_.at_once()) return false;
  pack_queries(sub);
  passed_ = j0_ + decode_.whole(q_t(sub), m, l) * key_block;
  return true;
}

float* ScoreTiles::softmax(int sub, float* s, float* m, float* l, float* alpha) {
  const RowRange& range = memory_.ranges[sub];
  if (decode_.used() && (pairs_weights() || !run_.setup.dots)) {
    decode_.softmax(range.begin, range.size(), s, m, l, alpha, vectors(sub));
    return s;
  }
  const auto as = pairs_weights() ? run_.setup.dots->softmax : kernels_.softmax;
  const std::int64_t at = std::int64_t{place_} * run_.setup.subs() + sub;
  float* to = waits() ? memory_.weights + at * kernels_.lanes * key_block / 2 : s;
  const int lanes = kernels_.lanes;
  by_vectors(sub, [&](int lane, int begin, int end, int count) {
    if (begin == end) return std::fill_n(alpha + lane, kernels_.width, 1.0f), void();
    const int above = begin - range.begin;
    as(s + above * lanes + lane,
       end - begin,
       run_.factor,
       run_.slack,
       m + lane,
       l + lane,
       alpha + lane,
       count,
       to + above / 2 * lanes + lane);
  });
  return to;
}

void ScoreTiles::wait(int sub, const float* p, const float* alpha) {
  const RowRange& range = memory_.ranges[sub];
  Waiting& w = memory_.waiting[sub];
  w.blocks[w.count] = {values(), p, range.begin / 2, (range.size() + 1) / 2};
  const std::int64_t lanes = kernels_.lanes;
  std::copy_n(alpha + sub % 2 * lanes,
              vectors(sub) * kernels_.width,
              memory_.alphas + (std::int64_t{w.count} * run_.setup.subs() + sub) * lanes);
  ++w.count;
}

/// Blocks whose m stayed add to the same sums as those before them.
bool ScoreTiles::accumulate_waiting(int sub, bool begun, float* o_t) {
  if (memory_.places == 1 || memory_.waiting[sub].count == 0) return false;
  Waiting& w = memory_.waiting[sub];
  const auto alpha = [&](int i) {
    return memory_.alphas + (std::int64_t{i} * run_.setup.subs() + sub) * kernels_.lanes;
  };
  const auto stayed = [&](int i) {
    return std::all_of(
        alpha(i), alpha(i) + vectors(sub) * kernels_.width, [](float a) { return a == 1.0f; });
  };
  for (int i = 0, end; i < w.count; i = end) {
    for (end = i + 1; end < w.count && stayed(end);) ++end;
    run_.setup.dots->accumulate_blocks(w.blocks + i,
                                       end - i,
                                       run_.spec.dv,
                                       begun || i > 0 ? alpha(i) : nullptr,
                                       o_t,
                                       vectors(sub));
  }
  w.count = 0;
  return true;
}

void ScoreTiles::accumulate_values(int sub, float* p, const float* alpha, bool begun, float* o_t) {
  const RowRange& range = memory_.ranges[sub];
  const int lanes = kernels_.lanes;
  const int first = range.begin, rows = range.size();
  if (run_.setup.dots && !pairs_weights()) run_.setup.dots->pair_rows(p, rows, vectors(sub));
  if (decode_.used()) {
    const int from = sub > 0 && two_at_once(sub - 1) ? sub - 1 : sub;
    decode_.weights(first, rows, (sub - from) * lanes, lanes_of(sub), p);
    if (two_at_once(sub)) return;  // with the next one's
    alpha += from % 2 * lanes;
    return decode_.outputs(first, rows, from * lanes, queries_at_once(from), p, alpha);
  }
  if (!run_.setup.dots && run_.setup.bf16_values)
    kernels_.round_bf16(p, std::int64_t{rows} * lanes);
  const int of_word = run_.setup.dots ? 2 : 1;  // rows
  by_vectors(sub, [&](int lane, int begin, int end, int count) {
    if (begin == end && begun) return;
    run_.setup.products().accumulate(values(),
                                     begin / of_word,
                                     (end - begin + of_word - 1) / of_word,
                                     run_.spec.dv,
                                     p + (std::max(begin, first) - first) / of_word * lanes + lane,
                                     begun ? alpha + sub % 2 * lanes + lane : nullptr,
                                     o_t + lane,
                                     count);
  });
}

void ScoreTiles::drop(int sub, float* p) const {
  const RowRange& range = memory_.ranges[sub];
  DropoutTile at;
  at.q = memory_.q + sub * kernels_.lanes;
  at.head = memory_.head + sub * kernels_.lanes;
  at.batch = static_cast<std::uint32_t>(b_);
  at.k = static_cast<std::uint32_t>(sequence_.k_origin + j0_ + range.begin);
  at.threshold = run_.threshold;
  at.key0 = static_cast<std::uint32_t>(run_.args.seed);
  at.key1 = static_cast<std::uint32_t>(run_.args.seed >> 32);
  at.keep_scale = run_.keep_scale;
  kernels_.drop(p, range.size(), at);
}

}  // namespace undivided::cpu
