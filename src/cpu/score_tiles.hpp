// SPDX-License-Identifier: Apache-2.0
// Scores of one macro-tile of queries against key blocks: positions, masks and score programs.
// Forward, backward and key mass all ask it for the same tiles, so they see the same bits.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/decode.hpp"
#include "cpu/problem.hpp"

namespace undivided::cpu {

/// Rows [begin, end) of a key block that some lane of a sub-block needs; begin is a multiple of 8.
struct RowRange {
  int begin = 0, end = 0;
  bool masked = false;                   // some pair inside may not be kept
  const std::uint64_t* words = nullptr;  // bits of the keys of a block: of a plan or a program
  int shift = 0;                         // bit of lane 0
  bool apart = false;                    // is each vector multiplied with rows of its own?
  struct {
    int begin = 0, end = 0;
  } rows_of[2] = {};
  bool empty() const { return begin >= end; }
  int size() const { return end - begin; }
};

class ScoreTiles {
  struct Edges {  // of the keys that the lanes of a sub-block keep
    std::int32_t low_min = 0, low_max = 0, high_min = 0, high_max = 0;
  };
  enum class Ready : std::uint8_t { nothing, placed, packed };  // of a sub-block's rows
  struct KeyRows {                                              // where those of a block lie
    std::int64_t j0 = -1;
    std::array<const std::byte*, key_block> k, v;
  };
  struct Waiting {  // key blocks of a sub-block whose weights are not in O yet
    int count = 0;
    Weighted blocks[waiting_blocks];
  };
  struct PlanRuns {  // of a sub-block's row of blocks: those not yet passed
    const MaskPlan::Run *next = nullptr, *end = nullptr;
  };

 public:
  /// Scratch of one worker; the lane arrays are [sub-blocks][lanes].
  struct Memory {
    /// `places`: of values, and of the weights that wait for them if there are several.
    Memory(Arena& arena, const Setup& setup, int places = 1);
    int places;
    float *q_t, *s, *k_blocks;
    float* v_blocks;          // [places]
    float *weights, *alphas;  // [places][sub-blocks]
    Waiting* waiting;
    float* k_sums;  // K as dQ sums it: pairs of keys, or the same blocks
    float *mean, *k_factor, *k_start, *q_factor, *q_offset;  // of int8, see Quantised
    std::byte* rounded;                                      // V in bf16, where it came as another
    std::int32_t *low, *high, *q, *head;
    Edges* edges;
    PlanRuns* runs;
    Ready* ready;
    RowRange* ranges;
    std::uint64_t* words;  // [sub-blocks][key_block]: what the mask program keeps
    std::uint64_t* steps;  // [steps of the columns][key_block]
    WorkerFiles mask, score;
    Decode::Memory decode;
  };
  ScoreTiles(const Run& run, const Memory& memory)
      : run_(run), kernels_(run.kernels), memory_(memory), decode_(run, memory.decode) {
    if (run.setup.dots && run.setup.dots->open) run.setup.dots->open();
  }
  ~ScoreTiles() {
    if (run_.setup.dots && run_.setup.dots->close) run_.setup.dots->close();
  }
  ScoreTiles(const ScoreTiles&) = delete;

  /// Rows [first, first + count) of a head (of a KV head when packed) of sequence b, count > 0.
  void begin(const Sequence& s, std::int64_t b, std::int64_t head, std::int64_t first, int count);
  /// Local keys [low, high) that any row may need; low is on the grid of key blocks.
  std::int64_t low() const { return low_; }
  std::int64_t high() const { return high_; }
  /// Blocks up to `high` will be absorbed: absorb_whole() comes before scores().
  void absorb_until(std::int64_t high) {
    high_ = high;
    absorbs_ = true;
  }
  /// Finds the ranges of all sub-blocks in the block at key j0; false if nobody needs it. Blocks
  /// are visited in ascending order. A sub-block's queries are packed for its first product.
  bool visit(std::int64_t j0);
  /// Does a sub-block need no key after the visited block?
  bool done(int sub) const;
  void load_keys();      // of the visited block
  void load_values();    // as O sums them
  void load_gradient();  // V as dP sums it and K as dQ does
  /// Asks for a share of the next block of keys and values, which the memory then brings while this
  /// one is computed. To be called for each sub-block that meets the visited block.
  void prefetch();
  /// Sub-blocks that meet the visited block.
  int met() const { return met_; }
  /// Asks for rows of Q, or of what has the shape of its rows, some time before they are needed:
  /// those of a sub-block `ahead` sub-blocks before, or rows [begin, end) of the macro-tile.
  static constexpr int ahead = 2;
  void ask_sub(const View& v, int sub) const {
    if (sub < subs_) ask_rows(v, begin_of(sub), begin_of(sub) + lanes_of(sub));
  }
  void ask_rows(const View& v, int begin, int end) const;
  /// Up to which row, from `row` on, the sub-blocks need no key after the visited block.
  int ending(int row) const;
  const RowRange& range(int sub) const { return memory_.ranges[sub]; }
  /// Scores of the range of a sub-block, from its first row: times run.factor they are log2 units.
  /// `raw` (a whole tile, if given) receives them as they are before programs and masks.
  float* scores(int sub, float* raw = nullptr);
  /// What comes of the visited block, all at once, where nothing touches its scores: false if that
  /// cannot be. Some of the blocks after it are then done as well, and visit() passes over them.
  bool absorb_whole(int sub, float* m, float* l);
  /// Does the softmax leave weights in pairs? Dropout wants them in rows.
  bool pairs_weights() const { return run_.setup.dots && !run_.spec.dropout; }
  /// The softmax of those; gives where the weights are.
  float* softmax(int sub, float* s, float* m, float* l, float* alpha);
  /// o_t = alpha * o_t + V^T P over the range of a sub-block, V^T P alone unless `begun`; `p`
  /// begins at its first row and is rounded as the products want it. `alpha` is of all sub-blocks
  /// [sub % 2][lanes]: the decode tile makes two at once, when it meets the second.
  void accumulate_values(int sub, float* p, const float* alpha, bool begun, float* o_t);
  /// Where weights wait, in place of that: those of a few blocks, of which O is read and written
  /// once. Bits are the same. `alpha` is of all sub-blocks.
  bool waits() const { return memory_.places > 1 && pairs_weights() && !decode_.used(); }
  void wait(int sub, const float* p, const float* alpha);
  /// Has the visited block the last place?
  bool places_taken() const { return place_ + 1 == memory_.places; }
  /// False if nothing waits.
  bool accumulate_waiting(int sub, bool begun, float* o_t);
  /// Where scores() leaves its tiles from now on: that of a sub-block in slot `sub % slots` of
  /// [slots][key_block][lanes].
  void use(float* tiles, int slots) {
    memory_.s = tiles;
    slots_ = slots;
  }
  /// Does one product serve this sub-block, which is even, and the next? Those made by scores() for
  /// the next one wait in its slot.
  bool two_at_once(int sub) const;
  /// Queries of a sub-block, and of the next one if a product serves both.
  int queries_at_once(int sub) const {
    return lanes_of(sub) + (two_at_once(sub) ? lanes_of(sub + 1) : 0);
  }
  /// Outputs that the decode tile keeps in rows go to lanes; the last step.
  void finish_values(int sub, float* o_t) const {
    if (decode_.used()) decode_.finish(sub * kernels_.lanes, lanes_of(sub), o_t);
  }
  void drop(int sub, float* p) const;

  int subs() const { return subs_; }
  /// The first row of a sub-block in the macro-tile, and how many it has.
  int begin_of(int sub) const { return std::max(0, sub * kernels_.lanes - idle_); }
  int lanes_of(int sub) const {
    return std::min((sub + 1) * kernels_.lanes - idle_, count_) - begin_of(sub);
  }
  int vectors(int sub) const { return lanes_of(sub) <= kernels_.width ? 1 : 2; }
  /// Calls body(first lane, first row, end of rows, vectors) for all that is multiplied at once.
  template <class F>
  void by_vectors(int sub, F&& body) const {
    const RowRange& range = memory_.ranges[sub];
    if (!range.apart) return body(0, range.begin, range.end, vectors(sub));
    for (int v = 0; v < 2; ++v)
      body(v * kernels_.width, range.rows_of[v].begin, range.rows_of[v].end, 1);
  }
  std::int64_t row(int sub, int lane) const { return first_ + begin_of(sub) + lane; }
  std::byte* address(const View& v, int sub, int lane) const {  // of a row of Q, O, dO or dQ
    const std::int64_t r = row(sub, lane);
    return row_address(run_.spec, v, sequence_, b_, run_.head_of(head_, r), run_.token_of(r));
  }
  float* tile(int sub) const {
    return memory_.s + std::int64_t{sub % slots_} * key_block * kernels_.lanes;
  }
  const float* q_t(int sub) const {
    return memory_.q_t + std::int64_t{sub} * whole_blocks(run_.setup.qk_words()) * kernels_.lanes;
  }
  std::int64_t key() const { return j0_; }
  int key_rows() const { return rows_; }
  const float* keys() const { return memory_.k_sums; }  // after load_gradient, in blocks
  const float* values() const { return memory_.v_blocks + place_ * v_size(); }
  const Sequence& sequence() const { return sequence_; }
  std::int64_t batch() const { return b_; }
  std::int64_t head() const { return head_; }
  Environment environment(int sub, const Contents& contents) const;
  /// Calls body(first row, rows) for each chunk of the range of a sub-block.
  template <class F>
  void by_chunks(int sub, F&& body) const {
    const RowRange& range = memory_.ranges[sub];
    for (int r = range.begin; r < range.end; r += chunk_rows)
      body(r, std::min(chunk_rows, range.end - r));
  }

 private:
  /// Blocks from the visited one on that absorb_whole() can do.
  std::int64_t whole_blocks_ahead() const;
  std::int64_t last_row(int sub) const { return row(sub, lanes_of(sub) - 1); }
  std::int32_t low_of(std::int64_t row) const;
  std::int32_t high_of(std::int64_t row) const;
  void place(int sub);         // positions of the lanes, and what the mask program makes of them
  void pack_queries(int sub);  // and what the score program makes of them
  void find_keys(std::int64_t j0, KeyRows& to) const;
  // Rows of K or V of the visited block, in pairs along d or along the keys.
  void pack_by_columns(const std::byte* const* rows, int d, float* to) const;
  void pack_by_rows(const std::byte* const* rows, int d, float* to) const;
  void pack_quantised() const;  // K in int8
  void load_mean() const;
  void clear_rest(int words, float* to) const;
  RowRange band_range(int sub) const;
  RowRange plan_range(int sub) const;
  std::int64_t v_size() const { return whole_blocks(run_.spec.dv) / block_edge * block_column; }
  bool next_is_needed() const;  // of the block after the visited one, by the plan
  /// Asks the mask program about the whole block.
  RowRange program_range(int sub) const;
  /// The chunks between the first and the last key that some lane of the sub-block keeps.
  RowRange bits_range(int sub, const std::uint64_t* words, int shift) const;
  RowRange bits_range(const std::uint64_t* words, std::uint64_t lanes) const;
  /// Under the edge of a mask the lower half of a sub-block needs other keys than the upper one.
  void part_vectors(int sub, RowRange& range) const;
  /// Sums of products of a sub-block, perhaps with the next one's.
  void multiply(int sub);
  /// Rows [begin, end) with `begin` rounded down and `end` up to whole chunks of the block.
  RowRange whole_chunks(int begin, int end) const;

  const Run& run_;
  const Kernels& kernels_;
  Memory memory_;
  Decode decode_;
  Sequence sequence_;
  std::int64_t b_ = 0, head_ = 0, first_ = 0, j0_ = 0, low_ = 0, high_ = 0;
  std::int64_t passed_ = 0;  // keys before it need no visit
  bool absorbs_ = false;
  KeyRows here_, soon_;  // of the visited block and the next
  int count_ = 0, idle_ = 0, subs_ = 0, rows_ = 0;
  int met_ = 0, asked_ = 0;    // sub-blocks that meet the visited block; rows of the next asked for
  bool next_ = true;           // is the next block needed?
  int place_ = 0;              // of the values of the visited block
  int slots_ = 2, made_ = -1;  // the sub-block whose products were made with those before
};

}  // namespace undivided::cpu
