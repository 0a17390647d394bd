// SPDX-License-Identifier: Apache-2.0
// What the tiles of few queries are made of, see Kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "undivided/tensor.hpp"

namespace undivided::cpu {

/// Pieces of the rows of K and V of the next tile, in the order of memory. Some are asked for
/// whenever work of some weight is done, so that the requests are spread over the tile: a core has
/// few buffers for lines on their way, and every load waits for one of these. Kernels work on a
/// copy of their own: what lies in memory is written and read again around every use.
struct Ahead {
  static constexpr int whole = 1 << 12;
  /// Bytes of a piece. Its lines at 0 and `apart` are asked for, and those `far` after them where
  /// the processor does not bring them by itself.
  static constexpr int step = 256;
  const std::byte *const *next = nullptr, *const *end = nullptr;
  std::int64_t apart = 0, far = 0;
  int pace = 0;   // pieces, times `whole`, for a weight of 1
  int due = 0;    // pieces, times `whole`
  int spent = 0;  // weight of the work done, about 10 ns each on tile registers
};

inline constexpr int row_group = 16;

/// A tile of keys that nothing touches between the products, for at most half a vector of queries.
struct RowTile {
  /// Rows of the caller, of any dtype: where they begin, if all lie at equal distances; or where
  /// groups of `row_group` begin, those of this tile and then of the next.
  struct Rows {
    const std::byte* at = nullptr;
    const std::byte* const* groups = nullptr;
    std::int64_t stride = 0;  // bytes from one row of a group to the next
  } k, v;
  DType dtype{};
  int rows = 0, dqk = 0, dv = 0;     // dims are multiples of 32
  int count = 0;                     // queries
  const float* q = nullptr;          // as row_queries leaves them
  float scale = 1;                   // of scores, see Products
  float factor = 1, slack = 0;       // see Softmax
  float *m = nullptr, *l = nullptr;  // whole vectors, also of fewer queries
  float* o = nullptr;
  std::int64_t o_stride = 0;
  float* copy = nullptr;  // room for 16 rows, widened
  bool stream = false;    // do rows of K follow one another?
};

/// The products of a tile of few queries. K and V are rows of any dtype where the caller has them.
/// Bits are those of Products, but for row_tile.
struct DecodeProducts {
  int most;  // queries
  /// The softmax, weights as Products has them. It asks for what is due, and for `rows` rows of V,
  /// of which the first cache then has what the outputs read.
  void (*softmax)(float* s,
                  int rows,
                  float c,
                  float slack,
                  float* m,
                  float* l,
                  float* alpha,
                  int vectors,
                  const std::byte* const* v,
                  int v_bytes,
                  Ahead& ahead);
  /// s[row][lane] as Products, rows rounded up to the width. `kt` is
  /// [2][decode_columns][key_block].
  void (*scores)(const std::byte* const* k,
                 DType dtype,
                 int first,
                 int rows,
                 int columns,
                 const float* q_t,
                 int count,
                 float scale,
                 float* kt,
                 float* s,
                 Ahead& ahead);
  /// Weights of the queries from `query` on as outputs read them, from p of words as Products has
  /// them, laid out like s; null where outputs read those.
  void (*weights)(const float* p, int first, int rows, int query, int count, float* to);
  /// o[query][column] = alpha[query] * o[query][column] + (sum over rows of v[row][column] *
  /// p[row][query]), of one sub-block, or of two if there is `weights`. Columns are in an order of
  /// their own, `o_stride` is a multiple of two widths.
  void (*outputs)(const std::byte* const* v,
                  DType dtype,
                  int first,
                  int rows,
                  int columns,
                  const float* p,
                  const float* alpha,
                  int count,
                  float* o,
                  std::int64_t o_stride,
                  Ahead& ahead);
  /// All of that, with columns in the lanes of the scores and keys in those of the softmax: sums
  /// have an order of their own. Null for none.
  void (*row_tile)(const RowTile& tile);
  int row_tile_most;  // queries of that
  /// q_t of [words][lanes] as row_tile reads it.
  void (*row_queries)(const float* q_t, int words, int count, float* to);
  /// That o to [columns][lanes].
  void (*lanes)(
      const float* o, std::int64_t o_stride, DType dtype, int columns, int count, float* o_t);
};

}  // namespace undivided::cpu
