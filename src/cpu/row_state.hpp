// SPDX-License-Identifier: Apache-2.0
// The online softmax of a macro-tile: what its rows hold between two key blocks.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

/// Unnormalised O with its m and l, queries in the lanes of each sub-block; m in log2 units.
class RowState {
 public:
  RowState(Arena& arena, const Setup& setup)
      : lanes_(setup.kernels->lanes), o_size_(whole_blocks(setup.spec.dv) * lanes_) {
    o_ = arena.take<float>(setup.subs() * o_size_);
    m_ = arena.take<float>(setup.subs() * lanes_);
    l_ = arena.take<float>(setup.subs() * lanes_);
    begun_ = arena.take<bool>(setup.subs());
    ended_ = arena.take<bool>(setup.subs());
  }

  void clear(int subs) const {
    std::fill_n(begun_, subs, false);
    std::fill_n(ended_, subs, false);
    std::fill_n(l_, subs * lanes_, 0.0f);
    std::fill_n(m_, subs * lanes_, -std::numeric_limits<float>::infinity());
  }
  /// The visited block, whose keys and values are loaded:
  ///   S^T = K Q^T; score program; mask; m' = max(m, S); P = 2^(S - m'); l, O rescaled; O^T += V^T
  ///   P
  /// The last product may wait for the next block, see ScoreTiles::waits.
  /// `ask` and `clear` are called for each tile, apart from each other and from the keys that are
  /// asked for: a core waits for few lines at once, and products need some of these.
  template <class F, class G>
  void absorb(const Run& run, ScoreTiles& tiles, F&& ask, G&& clear) const {
    alignas(64) float alpha[2 * max_lanes];
    for (int sub = 0; sub < tiles.subs(); ++sub) {
      const RowRange& range = tiles.range(sub);
      if (range.empty()) continue;
      tiles.prefetch();
      if (tiles.absorb_whole(sub, m(sub), l(sub))) {
        begun_[sub] = true;
        continue;
      }
      float* s = tiles.scores(sub);
      ask();
      float* p = tiles.softmax(sub, s, m(sub), l(sub), alpha + sub % 2 * lanes_);
      if (run.spec.dropout) tiles.drop(sub, p);
      clear();
      if (tiles.waits()) {
        tiles.wait(sub, p, alpha);
        continue;
      }
      tiles.accumulate_values(sub, p, alpha, begun_[sub], o(sub));
      begun_[sub] = true;
    }
    if (tiles.places_taken())
      for (int sub = 0; sub < tiles.subs(); ++sub) accumulate_waiting(tiles, sub);
  }
  /// Calls use(sub) once for each sub-block: here for those that need no key after the visited
  /// block, or for all that are left.
  template <class F>
  void finish(ScoreTiles& tiles, bool all, F&& use) const {
    for (int sub = 0; sub < tiles.subs(); ++sub) {
      if (ended_[sub] || !(all || tiles.done(sub))) continue;
      ended_[sub] = true;
      accumulate_waiting(tiles, sub);
      if (!begun_[sub]) std::fill_n(o(sub), o_size_, 0.0f);
      tiles.finish_values(sub, o(sub));
      use(sub);
    }
  }

  float* o(int sub) const { return o_ + sub * o_size_; }  // [column][lanes]
  float* m(int sub) const { return m_ + sub * lanes_; }
  float* l(int sub) const { return l_ + sub * lanes_; }

 private:
  void accumulate_waiting(ScoreTiles& tiles, int sub) const {
    if (tiles.accumulate_waiting(sub, begun_[sub], o(sub))) begun_[sub] = true;
  }

  std::int64_t lanes_, o_size_;
  float *o_, *m_, *l_;
  bool *begun_, *ended_;  // does O hold anything? was it used?
};

}  // namespace undivided::cpu
