// SPDX-License-Identifier: Apache-2.0
// A macro-tile of few queries: K and V are read where they lie, the next tile's rows are asked for
// while this one is computed. Bits are those of the prefill tile, but where tiles are done at once,
// which `invariant` plans never do.
#pragma once

#include <array>

#include "cpu/problem.hpp"

namespace undivided::cpu {

class Decode {
 public:
  /// Scratch of one worker; nothing if the plan has no use for it.
  struct Memory {
    Memory() = default;
    Memory(Arena& arena, const Setup& setup);
    float *kt = nullptr, *o = nullptr, *weights = nullptr, *q = nullptr;
    const std::byte** rows[2] = {};      // of this tile and the next
    const std::byte** pieces = nullptr;  // of those, see Ahead
  };
  Decode(const Run& run, const Memory& memory);

  /// Rows of one KV head; keys from `high` on are not read.
  void begin(const Sequence& s, std::int64_t b, std::int64_t kv_head, int count, std::int64_t high);
  bool used() const { return count_ > 0; }
  /// The tile of keys that begins at j0. It and those after it, `at_once` in all, will be done by
  /// whole() as far as that can be.
  void visit(std::int64_t j0, std::int64_t at_once);
  /// Scores of its rows [first, first + rows) for `count` queries; s begins at `first`.
  void scores(int first, int rows, int count, const float* q_t, float* s);
  /// Dots::softmax of scores of its rows from `first` on.
  void softmax(int first, int rows, float* s, float* m, float* l, float* alpha, int vectors);
  /// Can tiles be done at once, where nothing touches their scores?
  bool whole_tiles() const { return used() && run_.setup.decodes_at_once(count_); }
  /// Will the visited tile be?
  bool at_once() const { return at_once_ > 0; }
  /// q_t as scores() takes it, m and l of each query as softmax() does; the tiles that were done.
  std::int64_t whole(const float* q_t, float* m, float* l);
  /// Makes the weights of a tile's queries from `query` on ready for outputs().
  void weights(int first, int rows, int query, int count, const float* p);
  /// Of queries from `query` on.
  void outputs(int first, int rows, int query, int count, const float* p, const float* alpha);
  /// Outputs to [columns][lanes].
  void finish(int query, int count, float* o_t) const;

 private:
  bool find_groups(std::int64_t j0, std::size_t to);
  int find_rows(std::int64_t j0, const std::byte** to) const;
  void ask_for_next();
  std::int64_t o_stride() const;

  const Run& run_;
  Memory memory_;
  Sequence sequence_;
  std::int64_t b_ = 0, kv_head_ = 0, high_ = 0, next_ = -1, k_bytes_, v_bytes_;
  std::int64_t j0_ = 0, at_once_ = 0;
  // Of the tiles that are done at once, see RowTile::Rows.
  static constexpr std::size_t groups = key_block / row_group;
  std::array<const std::byte*, 2 * groups> k_groups_, v_groups_;
  RowTile::Rows k_rows_, v_rows_;
  int count_ = 0, rows_ = 0, next_rows_ = 0;
  bool q_rows_ = false;  // are queries in rows?
  bool near_ = false;    // are V's rows of this tile on their way to the first cache?
  Ahead ahead_;
};

}  // namespace undivided::cpu
