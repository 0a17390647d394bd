// SPDX-License-Identifier: Apache-2.0
// The table of functions that every instruction set provides, and the plain data they read.
//
// A tile is S^T: rows are keys, lanes are queries. A sub-block has `lanes` = 2 * width query lanes;
// arrays with a lane axis have exactly that stride. `vectors` is how many of the two vectors of a
// sub-block hold queries, so a single decode row does half the work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/decode_products.hpp"
#include "expr/bytecode.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cpu {

inline constexpr int key_block = 64;  // rows of a tile: the grid starts at local key 0
inline constexpr int max_dim = 512;   // of a head
inline constexpr int chunk_rows = 8;  // rows that element code handles at once
inline constexpr int max_lanes = 32;  // lanes of the widest instruction set
/// Queries of a macro-tile at most: each packs the keys and values anew. The backward keeps five
/// arrays of them in the second-level cache, the forward two; of narrow heads both take twice as
/// many. With tile registers packing is a larger part of the work, and the processors that have
/// them have 2 MiB of that cache.
inline constexpr int query_tile = 256, forward_query_tile = 512, matrix_query_tile = 1024;
inline constexpr int block_edge = 8;  // packed keys and values lie in blocks of 8 rows x 8 words
/// From the word at (row, column) of packed rows to that at (row, column + 8). A column of blocks
/// is one block longer than a tile, so that columns do not share the same sets of the cache.
inline constexpr int block_column = (key_block / block_edge + 1) * block_edge * block_edge;
inline constexpr int decode_rows = 16;         // rows of scores of the decode tile at most
inline constexpr int decode_columns = 64;      // columns of K that it transposes at once
inline constexpr int matrix_decode_rows = 64;  // queries of that tile on tile registers at most
constexpr int whole_blocks(int n) { return (n + block_edge - 1) / block_edge * block_edge; }

/// How rows are written: over what is there; added to it, of float32 alone; or, of float32, past
/// the caches, which saves reading their lines first: a fence must follow before others read.
enum class Write : std::uint8_t { over, add, past };

/// Byte-code without containers: what the interpreter of an ISA may touch.
struct Instruction {
  expr::Op op{};
  expr::Type type{}, operand_type{};
  expr::Rate rate{};                // of the result
  std::int32_t result = 0;          // index in the file of its rate
  expr::Rate operand_rate[4] = {};  // of each operand
  std::int32_t operand[4] = {-1, -1, -1, -1};
  std::int32_t slot = -1;
  std::int32_t bits = 0;  // a constant's 32 bits: int32, float32, or 0 / -1
};
struct Register {
  expr::Rate rate{};
  std::int32_t index = 0;
};
struct ArrayRef {
  const void* data = nullptr;
  DType dtype{};
  int rank = 1;
  bool narrow = false;  // 4-byte elements and offsets below 2^31: one gather
  std::int64_t shape[4] = {1, 1, 1, 1}, stride[4] = {};
};
/// The element register that is the tile of scores itself.
inline constexpr std::int32_t tile_register = -2;
/// Register files by rate. Sizes of one register in floats: uniform W, key key_block * W, query
/// lanes, diagonal key_block + lanes, element chunk_rows * lanes. Row r and lane i of a tile lie on
/// diagonal key_block - 1 - r + i, if lane i holds the i-th query after that of lane 0.
struct Files {
  float* file[expr::rates] = {};
  float* tile = nullptr;  // row 0 of the tile of scores
};
/// Leaves of a program at one tile.
struct Environment {
  const ArrayRef* arrays = nullptr;
  const std::int32_t* params = nullptr;  // 32 bits each, booleans 0 or -1
  std::int32_t batch = 0, head = 0, q_len = 0, k_len = 0;
  const std::int32_t* q = nullptr;  // [lanes] positions
  std::int32_t k = 0;               // position of row 0
  int vectors = 2;                  // of element code: 1 if only the first holds queries
};

/// Dropout of a tile: counter words that do not change inside it.
struct DropoutTile {
  const std::int32_t *q = nullptr, *head = nullptr;  // [lanes] positions and heads
  std::uint32_t batch = 0, k = 0, threshold = 0, key0 = 0, key1 = 0;
  float keep_scale = 1;
};

/// The two products of a tile. A word of K, V, Q and P is 4 bytes: a float32, or neighbours along
/// the sum, see Kernels. `columns` and `words` are rounded up to blocks: what is packed is 0 there.
struct Products {
  /// s[row][lane] = scale * (sum over words of k[first + row][word] * q_t[word][lane]), for `rows`
  /// rounded up to blocks; `first` is a multiple of 8.
  void (*scores)(const float* k,
                 int first,
                 int rows,
                 int words,
                 const float* q_t,
                 float scale,
                 float* s,
                 int vectors);
  /// o_t[column][lane] = alpha[lane] * o_t[column][lane] + (sum over rows of
  /// v[first + row][column] * p[row][lane]). Without alpha nothing was there.
  void (*accumulate)(const float* v,
                     int first,
                     int rows,
                     int columns,
                     const float* p,
                     const float* alpha,
                     float* o_t,
                     int vectors);
  /// Scores of two sub-blocks with all their lanes: q_t and s of the second lie `q_apart` and
  /// `s_apart` floats after the first. A word of K then serves twice as many lanes. Null for none.
  void (*scores_of_two)(const float* k,
                        int first,
                        int rows,
                        int words,
                        const float* q_t,
                        std::int64_t q_apart,
                        float scale,
                        float* s,
                        std::int64_t s_apart);
};

/// A tile of coefficients and the rows they are the coefficients of.
struct Outer {
  const float *p = nullptr, *x = nullptr;
  int count = 0;  // rows of x
};
/// to[key][d] += sum over parts and i of p[key][i] * x[i][d], words; d is a multiple of lanes. A
/// row of p has as many words as lanes, or pairs of lanes.
using AccumulateKeys = void(const Outer* parts,
                            int count,
                            int rows,
                            std::int64_t x_stride,
                            int d,
                            float* to,
                            std::int64_t to_stride);

/// Lane i of [columns][lanes], times factor[i], to row i; a factor of 0 writes exact zeros. Not
/// Write::add.
using Unpack = void(const float* from,
                    const float* factor,
                    int count,
                    DType dtype,
                    int columns,
                    std::byte* const* rows,
                    Write how);

/// Scores of int8: rows of K and Q are whole numbers of at most 127 times a factor of their own. A
/// word holds four of them where the instruction set sums products of quads, else one as a float32:
/// sums of at most 127 * 127 * max_dim < 2^24 are exact either way.
struct Quantised {
  int values;  // of a word
  /// Up to `lanes` rows to [words, in whole blocks][lanes]. factor[lane] is that of the row, times
  /// `scale`; offset[lane] = scale * (row . mean), what `mean` was worth in each score of the row.
  void (*pack_queries)(const std::byte* const* rows,
                       int count,
                       DType dtype,
                       int columns,
                       const float* mean,
                       float scale,
                       float* to,
                       float* factor,
                       float* offset);
  /// Rows minus `mean` to blocks of words. factor[row], and start[row]: what the sums of the row
  /// begin with.
  void (*pack_keys)(const std::byte* const* rows,
                    int count,
                    DType dtype,
                    int columns,
                    const float* mean,
                    float* to,
                    float* factor,
                    float* start);
  /// s[row][lane] = k_factor[row] * q_factor[lane] * (sum over words) + q_offset[lane], for rows
  /// from `first` on as in Products.
  void (*scores)(const float* k,
                 const float* k_factor,
                 const float* k_start,
                 int first,
                 int rows,
                 int words,
                 const float* q_t,
                 const float* q_factor,
                 const float* q_offset,
                 float* s,
                 int vectors);
};

/// Online softmax of one tile: s becomes exp2(c * s - m); m and l follow, alpha = exp2(old - new
/// m). m follows a maximum only where that is more than `slack` above it. Rows of pairs go to
/// `pairs`, which may be s.
using Softmax = void(float* s,
                     int rows,
                     float c,
                     float slack,
                     float* m,
                     float* l,
                     float* alpha,
                     int vectors,
                     float* pairs);

/// The weights of a key block and the values they are the weights of, as Products::accumulate takes
/// them.
struct Weighted {
  const float *v = nullptr, *p = nullptr;
  int first = 0, rows = 0;
};
/// Key blocks whose weights wait for each other, so that O is read and written once for all. With
/// three or four their values and weights are gone from the caches before they are used.
inline constexpr int waiting_blocks = 2;

/// What an instruction set with a dot product of bf16 pairs adds. Both products then sum words of
/// two: a word of Q and K holds two neighbours of d, a word of P and V two neighbouring keys.
struct Dots {
  Products bf16;
  /// Products::accumulate of up to waiting_blocks key blocks, one after the other, where O is read
  /// and written once; alpha is that of the first. Null for none.
  void (*accumulate_blocks)(
      const Weighted* blocks, int count, int columns, const float* alpha, float* o_t, int vectors);
  const DecodeProducts* decode;  // of head dims that are multiples of 32; null for none
  const Quantised* quantised;    // of head dims that are multiples of 64; null for none
  /// What a thread owes the products before the first and after the last; null for nothing.
  void (*open)();
  void (*close)();
  /// The softmax whose weights become rows of pairs at once.
  Softmax* softmax;
  /// Rows of a tile to half as many rows of pairs, in place; an odd last row is paired with 0.
  void (*pair_rows)(float* p, int rows, int vectors);
  /// Like Kernels::pack_blocks, from row `first` on, for rows of `bytes` bytes taken as they are, a
  /// word at a time.
  void (*pack_words)(const std::byte* const* rows, int first, int count, int bytes, float* to);
  /// `count` rows of 16-bit values to blocks whose words pair rows 2i and 2i + 1; an odd last row
  /// is paired with 0.
  void (*pack_row_pairs)(const std::byte* const* rows, int count, int columns, float* to);
  /// The last step of packing `rows` rows by pairs; null for none.
  void (*end_row_pairs)(int rows, int columns, float* to);
  /// Rows of lanes, rounded, to rows of pairs of lanes.
  void (*pair_lanes)(const float* p, int rows, float* to);
  /// 16-bit rows to half as many rows of words that pair rows 2i and 2i + 1, filled with 0 up to
  /// `to_stride` columns and, after an odd row, in the other half.
  void (*pair_queries)(
      const std::byte* const* rows, int count, int columns, float* to, std::int64_t to_stride);
  AccumulateKeys* accumulate_keys;
  /// Kernels::unpack, sooner to bf16: numbers too small for a normal one become 0.
  Unpack* unpack;
  double (*bf16_loop)(std::int64_t rounds);  // returns the FLOPs done
};

struct Kernels {
  const char* name;
  int width, lanes;

  // --- moving ---
  /// rows x columns of any dtype to float32 rows at `to_stride`, zero-filled up to `padded`
  /// columns.
  void (*copy_rows)(const std::byte* from,
                    std::ptrdiff_t stride_bytes,
                    DType dtype,
                    std::int64_t rows,
                    int columns,
                    float* to,
                    std::int64_t to_stride,
                    int padded);
  /// Zeroes `bytes` bytes, whole lines past the caches: a fence must follow before others read.
  void (*clear)(std::byte* to, std::int64_t bytes);
  /// Up to `lanes` rows, times `scale`, to [columns, in whole blocks][lanes]; what is missing is 0.
  void (*pack)(
      const std::byte* const* rows, int count, DType dtype, int columns, float scale, float* to);
  /// The same for rows of `bytes` bytes taken as they are, a word at a time.
  void (*pack_words)(const std::byte* const* rows, int count, int bytes, float* to);
  /// `count` rows of any dtype to float32 blocks, columns zero-filled.
  void (*pack_blocks)(const std::byte* const* rows, int count, DType dtype, int columns, float* to);
  Unpack* unpack;
  /// columns of one float32 row, times `factor`, in any dtype.
  void (*store_row)(
      const float* from, float factor, DType dtype, int columns, std::byte* to, Write how);

  // --- tiles ---
  Products f32;
  const Dots *dots, *matrix;  // on vectors, on tile registers; null without the instructions
  DecodeProducts decode;
  Quantised quantised;
  /// Rounded to bf16, to nearest, in place; n is a multiple of the width.
  void (*round_bf16)(float* x, std::int64_t n);
  Softmax* softmax;
  /// The end of a softmax row without a sink, of all lanes: factor = 1 / l, lse = (m + log2 l) ln
  /// 2; 0 and -inf where l is 0.
  void (*end_rows)(const float* m, const float* l, float* factor, float* lse);
  /// s[row][lane] = -inf unless low[lane] <= row <= high[lane].
  void (*mask_band)(
      float* s, int rows, int first, const std::int32_t* low, const std::int32_t* high);
  /// s[row][lane] = -inf unless bit `shift + lane` of words[row] is set.
  void (*mask_bits)(float* s, int rows, const std::uint64_t* words, int shift);
  /// Zeroes what dropout drops and scales the rest.
  void (*drop)(float* p, int rows, const DropoutTile& at);

  // --- programs ---
  /// Code of one rate. `rows` rows from `first_row` on, where the rate has rows.
  void (*execute)(const Instruction* code,
                  std::int64_t count,
                  expr::Rate rate,
                  int first_row,
                  int rows,
                  const Files& files,
                  const Environment& at);
  /// Reads a register as a tile of `rows` (element registers hold the current chunk).
  void (*read)(Register from, int first_row, int rows, const Files& files, float* to);
  /// Bit `lane` of words[row] is the boolean register.
  void (*bits_of_register)(
      Register from, int first_row, int rows, const Files& files, std::uint64_t* words);
  /// ds = ds * register, 0 where ds is 0.
  void (*multiply_register)(Register from, int first_row, int rows, const Files& files, float* ds);

  // --- backward ---
  /// p = exp2(c * s - lse2), in place.
  void (*weights)(float* s, int rows, float c, const float* lse2);
  /// dp = p * (dp - delta), 0 where p is 0. `p` is the weight before dropout, `dp` after.
  void (*score_gradient)(const float* p, float* dp, int rows, const float* delta);
  AccumulateKeys* accumulate_keys;
  /// to[row] += sum over the first `count` lanes, in lane order.
  void (*sum_lanes)(const float* p, int rows, int count, float* to);
  /// y = x * dy summed, in fixed order.
  float (*dot)(const float* a, const float* b, int n);

  // --- measuring ---
  void (*exp2)(float* x, std::int64_t n);
  double (*fma_loop)(std::int64_t rounds);  // returns the FLOPs done
  float (*read_loop)(const float* x, std::int64_t n);
};

namespace scalar {
extern const Kernels kernels;
}
#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}
#endif

}  // namespace undivided::cpu
