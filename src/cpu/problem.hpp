// SPDX-License-Identifier: Apache-2.0
// One prepared attention problem on the CPU, and one run of it: what all tasks share.
#pragma once

#include "cpu/programs.hpp"
#include "problem/sequence.hpp"

namespace undivided::cpu {

inline constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;

/// How far a macro-tile may grow.
constexpr int with_quarter(int tile) { return tile < 512 ? tile : tile + tile / 4; }

/// Fixed by prepare.
struct Setup {
  Spec spec;
  Bounds bounds;
  const Kernels* kernels = nullptr;
  FlatCode mask, score, gradient;
  expr::ColumnTree columns;              // of the mask, where that gives its words
  bool band = false;                     // the mask has the shape of a band
  const Dots* dots = nullptr;            // products of bf16 pairs; else of float32
  const Quantised* quantised = nullptr;  // but those of Q and K of int8; null for other products
  bool bf16_values = false;  // and P and V are rounded to bf16, whatever multiplies them
  bool packed = false;       // lanes hold (token, head of the group) pairs
  const DecodeProducts* decode = nullptr;  // of tiles of few rows
  int tile = query_tile;
  int sliding_tile = query_tile;  // where the keys of a row are few and move along with it
  int workers = 1;

  Setup(const Spec& spec, const Bounds& bounds, const Context& context);
  const Products& products() const { return dots ? dots->bf16 : kernels->f32; }
  int words(int d) const { return dots ? (d + 1) / 2 : d; }
  int qk_words() const {
    if (!quantised) return words(spec.dqk);
    return (spec.dqk + quantised->values - 1) / quantised->values;
  }
  int subs() const {
    return (with_quarter(std::max(tile, sliding_tile)) + kernels->lanes - 1) / kernels->lanes;
  }
  std::int64_t heads() const { return bounds.kv_heads * spec.group; }
  /// Rows of one packed or plain head that fill lanes.
  std::int64_t max_rows() const { return bounds.max_q_len * (packed ? spec.group : 1); }
  std::int64_t tiles(std::int64_t rows) const { return (rows + tile - 1) / tile; }
  /// Do rows that are a macro-tile of their own take the decode tile? It keeps O in rows; more than
  /// a vector of them must meet some keys for that to pay. Bits are the same, but for
  /// decodes_at_once.
  bool decodes(std::int64_t rows, std::int64_t keys) const {
    return decode && rows <= decode->most &&
           (rows <= kernels->width || keys * (spec.dqk + spec.dv) >= 1 << 16);
  }

  /// Are tiles of so few rows done at once, where nothing touches their scores? The order of their
  /// sums is then not that of a prefill.
  bool decodes_at_once(std::int64_t rows) const {
    return decode && rows <= decode->row_tile_most && spec.determinism != Determinism::invariant &&
           spec.dqk % 32 == 0 && spec.dv % 32 == 0;
  }

 private:
  void choose_tiles(bool may_slide);
};

/// Of a band the ends of the keys of a row are known, from its position or from lists.
enum class MaskKind : std::uint8_t { none, band, plan, program };

/// Queries of a macro-tile over which short rows of keys slide, and how long such a row is at most
/// on average, from its first key to its last. A key block is then packed once for all rows that
/// meet it, and only the rows that meet it are in the cache.
inline constexpr int sliding_query_tile = 2048, sliding_keys = 1024;

/// One call.
struct Run {
  const Setup& setup;
  const Args& args;
  const Spec& spec;
  const Kernels& kernels;
  std::int64_t batch = 0, heads = 0, kv_heads = 0;
  std::int64_t max_q_len = 0, max_k_len = 0;  // over the sequences of this call
  MaskKind mask_kind = MaskKind::none;
  int tile = 0;               // queries of a macro-tile
  bool asks_program = false;  // about single pairs: without a plan, or where a plan has no bits
  expr::Band band;
  Contents mask, score;
  float q_scale = 1;      // what Q is multiplied with when it is packed
  float score_scale = 1;  // what the first product is multiplied with
  float factor = 1;       // from the unit of the scores to log2
  float slack = 0;        // by which scores may exceed m in log2 units, see Softmax
  std::uint32_t threshold = 0;
  float keep_scale = 1;

  /// Validates contents (lengths, offsets, pages) and binds programs. `arena` continues with the
  /// layout that `layout` counted.
  Run(const Setup& setup, const Args& args, Arena& arena);
  static void layout(Arena& arena, const Setup& setup);
  std::int64_t tiles(std::int64_t rows) const { return (rows + tile - 1) / tile; }

  /// One task's row: R-th row of a head, or of a KV head's group when packed.
  std::int64_t rows_of(const Sequence& s) const {
    return s.q_len * (setup.packed ? spec.group : 1);
  }
  /// Lanes of the first sub-block that stay idle before row 0. Under an order the first rows of a
  /// list meet few keys and the last ones most, so it is there that a sub-block had better be
  /// short.
  int idle_lanes(const Sequence& s) const {
    const bool many = s.q_rows && tile > 64 && s.q_len > 64;
    return many ? static_cast<int>((kernels.lanes - s.q_len % kernels.lanes) % kernels.lanes) : 0;
  }
  struct TileRows {
    std::int64_t first, end;  // end <= first: there are none
  };
  TileRows rows_of_tile(const Sequence& s, std::int64_t index) const {
    const std::int64_t first = index * tile - idle_lanes(s);
    return {std::max<std::int64_t>(0, first), std::min(rows_of(s), first + tile)};
  }
  std::int64_t token_of(std::int64_t row) const { return setup.packed ? row / spec.group : row; }
  std::int64_t head_of(std::int64_t head, std::int64_t row) const {
    return setup.packed ? head * spec.group + row % spec.group : head;
  }
  std::int64_t kv_head_of(std::int64_t head) const {
    return setup.packed ? head : head / spec.group;
  }
  std::int64_t task_heads() const { return setup.packed ? kv_heads : heads; }
};

/// Asks for the lines of a row, which memory then brings.
inline void ask_row(const std::byte* row, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

/// Zeroes `count` rows of `bytes` bytes that lie `step` apart.
void clear_rows(std::byte* first, std::int64_t step, std::int64_t count, std::int64_t bytes);

/// The executor of a call; refuses one with more workers than the plan has scratch for.
Executor& executor_of(const Context& context, int workers);

}  // namespace undivided::cpu
