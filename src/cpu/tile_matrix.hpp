// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit pairs on tile registers (AMX). Included once, inside the namespace of an ISA
// that has them, after tile_dots.hpp.
//
// One instruction adds A B to C: A is 16 rows of 16 words, B 16 words of 16 lanes, a word is two
// bf16. So K lies in rows of 16 words and V in columns of 16 pairs of keys, both ready to be A;
// queries and weights are B as the dot tiles have them. Head dims are multiples of 32: no tails.
// Sums over keys begin at multiples of 32 keys, and what is not there is 0: bits do not depend on
// neighbours.

constexpr int edge = 16;
/// From 16 words of packed rows, or 16 columns, to the next: as long as two columns of blocks.
constexpr int panel = 2 * block_column;
constexpr std::int64_t lane_bytes = lanes * 4;

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
/// What tile loads are about to read is in memory. GCC's intrinsics do not say that they read.
UNDIVIDED_VEC void settled(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

static void open_tiles() {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = edge;
  }
  settled(&shapes);
  _tile_loadconfig(&shapes);
}
static void close_tiles() { _tile_release(); }

static void pack_panel_words(
    const std::byte* const* rows, int first, int count, int bytes, float* to) {
  for (int r = 0; r < count; ++r)
    for (int w = 0; w < bytes / 4; w += edge)
      store(to + w / edge * panel + (first + r) * edge,
            load(reinterpret_cast<const float*>(rows[r]) + w));
}

/// Half a panel of V, 16 pairs of rows: in rows of 16 columns, then in columns of 16 pairs.
UNDIVIDED_VEC std::int64_t half_panel(int c, int half) {
  return c / edge * panel + half * edge * edge;
}

static void pack_panel_pairs(const std::byte* const* rows, int count, int columns, float* to) {
  // The low and the high halves of quarters, which a shuffle of two rows keeps apart.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  for (int r = 0; r < count; r += 2) {
    float* at = to + r / 2 * edge;
    for (int c = 0; c < columns; c += 2 * edge) {
      const auto row = [&](int i) {
        return i < count ? _mm512_permutexvar_epi64(order, _mm512_loadu_si512(rows[i] + 2 * c))
                         : _mm512_setzero_si512();
      };
      const __m512i even = row(r), odd = row(r + 1);
      store(at + half_panel(c, 0), as_f(_mm512_unpacklo_epi16(even, odd)));
      store(at + half_panel(c + edge, 0), as_f(_mm512_unpackhi_epi16(even, odd)));
    }
  }
}

/// Rows of pairs to columns of pairs, and 0 for the rows that are missing.
static void end_panel_pairs(int rows, int columns, float* to) {
  alignas(64) static constexpr float none[edge] = {};
  const int pairs = (rows + 1) / 2;
  for (int c = 0; c < columns; c += edge)
    for (int half = 0; half * edge < pairs; ++half) {
      float* at = to + half_panel(c, half);
      const std::byte* from[edge];
      for (int i = 0; i < edge; ++i)
        from[i] =
            reinterpret_cast<const std::byte*>(half * edge + i < pairs ? at + i * edge : none);
      vf a[W];
      load_transposed(from, 0, a);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(at + i * edge, a[i]);
    }
}

/// The sums of 2 x 2 tiles, fewer where there are not as many rows or lanes; of pairs of bf16, or
/// of quads of int8 as QuadWords has them.
template <bool R2, bool N2, bool Int8 = false>
struct TileSums {
  UNDIVIDED_VEC void clear() {
    _tile_zero(0);
    if constexpr (N2) _tile_zero(1);
    if constexpr (R2) _tile_zero(2);
    if constexpr (R2 && N2) _tile_zero(3);
  }
  UNDIVIDED_VEC void load_from(const float* c, std::int64_t stride) {
    const auto bytes = static_cast<std::size_t>(stride) * 4;
    settled(c);
    _tile_loadd(0, c, bytes);
    if constexpr (N2) _tile_loadd(1, c + edge, bytes);
    if constexpr (R2) _tile_loadd(2, c + edge * stride, bytes);
    if constexpr (R2 && N2) _tile_loadd(3, c + edge * stride + edge, bytes);
  }
  UNDIVIDED_VEC void store_to(float* c, std::int64_t stride) {
    const auto bytes = static_cast<std::size_t>(stride) * 4;
    _tile_stored(0, c, bytes);
    if constexpr (N2) _tile_stored(1, c + edge, bytes);
    if constexpr (R2) _tile_stored(2, c + edge * stride, bytes);
    if constexpr (R2 && N2) _tile_stored(3, c + edge * stride + edge, bytes);
  }
// The numbers of tiles are written into the instruction.
#define UNDIVIDED_TILE_PRODUCT(c, a, b) \
  {                                     \
    if constexpr (Int8)                 \
      _tile_dpbsud(c, a, b);            \
    else                                \
      _tile_dpbf16ps(c, a, b);          \
  }
  UNDIVIDED_VEC void add(const float* a, const float* a2, const float* b, std::int64_t stride) {
    add_rows<false>(a, 64, a2, 64, b, stride);
  }
  /// The same with rows of A at some distance, in bytes; `once`: which no cache need keep.
  template <bool once>
  UNDIVIDED_VEC void add_rows(const void* a,
                              std::int64_t a_bytes,
                              const void* a2,
                              std::int64_t a2_bytes,
                              const float* b,
                              std::int64_t stride) {
    const auto bytes = static_cast<std::size_t>(stride) * 4;
    settled(a);
    settled(b);
    if constexpr (once)
      _tile_stream_loadd(4, a, static_cast<std::size_t>(a_bytes));
    else
      _tile_loadd(4, a, static_cast<std::size_t>(a_bytes));
    _tile_loadd(6, b, bytes);
    UNDIVIDED_TILE_PRODUCT(0, 4, 6)
    if constexpr (N2) {
      _tile_loadd(7, b + edge, bytes);
      UNDIVIDED_TILE_PRODUCT(1, 4, 7)
    }
    if constexpr (R2) {
      _tile_loadd(5, a2, static_cast<std::size_t>(a2_bytes));
      UNDIVIDED_TILE_PRODUCT(2, 5, 6)
      if constexpr (N2) UNDIVIDED_TILE_PRODUCT(3, 5, 7)
    }
  }
#undef UNDIVIDED_TILE_PRODUCT
};

template <bool R2, bool N2, bool Int8>
static __attribute__((noinline)) void matrix_scores_part(
    const float* k, int words, const float* q_t, int rows, float* s) {
  using Sums = TileSums<R2, N2, Int8>;
  Sums::clear();
  for (int w = 0; w < words; w += edge, k += panel, q_t += edge * lanes)
    Sums::add(k, k + edge * edge, q_t, lanes);
  if (R2 || rows >= edge) return Sums::store_to(s, lanes);
  alignas(64) float part[edge * lanes];  // rows past the last are another tile's
  Sums::store_to(part, lanes);
  for (int i = 0; i < rows * lanes; i += W) store(s + i, load(part + i));
}

template <bool Int8>
static void matrix_sums(
    const float* k, int first, int rows, int words, const float* q_t, float* s, int vectors) {
  const auto two =
      vectors == 1 ? matrix_scores_part<true, false, Int8> : matrix_scores_part<true, true, Int8>;
  const auto one =
      vectors == 1 ? matrix_scores_part<false, false, Int8> : matrix_scores_part<false, true, Int8>;
  k += first * edge;
  int r = 0;
  for (; r + 2 * edge <= rows; r += 2 * edge)
    two(k + r * edge, words, q_t, rows - r, s + r * lanes);
  for (; r < rows; r += edge) one(k + r * edge, words, q_t, rows - r, s + r * lanes);
}

static void matrix_scores(const float* k,
                          int first,
                          int rows,
                          int words,
                          const float* q_t,
                          float scale,
                          float* s,
                          int vectors) {
  matrix_sums<false>(k, first, rows, words, q_t, s, vectors);
  if (scale == 1.0f) return;
  const vf factor = set1(scale);
  for (int i = 0; i < rows * lanes; i += W) store(s + i, mul(load(s + i), factor));
}

/// Quantised::scores, of words in multiples of 16.
static void matrix_quantised_scores(const float* k,
                                    const float* k_factor,
                                    const float* k_start,
                                    int first,
                                    int rows,
                                    int words,
                                    const float* q_t,
                                    const float* q_factor,
                                    const float* q_offset,
                                    float* s,
                                    int vectors) {
  matrix_sums<true>(k, first, rows, words, q_t, s, vectors);
  for (int v = 0; v < vectors; ++v) {
    const vf factor = load(q_factor + v * W), offset = load(q_offset + v * W);
    for (int r = 0; r < rows; ++r) {
      float* at = s + r * lanes + v * W;
      const vf sum = as_f(addi(as_i(load(at)), as_i(set1(k_start[first + r]))));
      store(at, fma(mul(QuadWords::number(sum), set1(k_factor[first + r])), factor, offset));
    }
  }
}
static constexpr Quantised matrix_quantised = {QuadWords::values,
                                               pack_quantised_queries,
                                               pack_quantised_keys<pack_panel_words>,
                                               matrix_quantised_scores};

/// Halves [begin, end) of a block and their weights; `p` is that of pair 0.
struct Halves {
  const float *v, *p;
  int begin, end;
};

template <bool N2>
static __attribute__((noinline)) void matrix_outputs_part(
    const Halves* blocks, int count, int c, bool fresh, float* o_t) {
  using Sums = TileSums<true, N2>;
  if (fresh)
    Sums::clear();
  else
    Sums::load_from(o_t, lanes);
  for (int i = 0; i < count; ++i) {
    const Halves& b = blocks[i];
    for (int half = b.begin; half < b.end; ++half)
      Sums::add(b.v + half_panel(c, half),
                b.v + half_panel(c + edge, half),
                b.p + half * edge * lanes,
                lanes);
  }
  Sums::store_to(o_t, lanes);
}

static void matrix_accumulate_blocks(
    const Weighted* blocks, int count, int columns, const float* alpha, float* o_t, int vectors) {
  for (int x = 0; alpha && x < vectors; ++x) {
    const vf a = load(alpha + x * W);
    if (!any(ne(a, set1(1.0f)))) continue;
    for (int c = 0; c < columns; ++c) {
      float* at = o_t + c * lanes + x * W;
      store(at, mul(load(at), a));
    }
  }
  alignas(64) float grid[waiting_blocks][key_block / 2 * lanes];
  Halves halves[waiting_blocks];
  for (int k = 0; k < count; ++k) {
    const auto& [v, p, first, rows] = blocks[k];
    const int begin = first / edge, end = (first + rows + edge - 1) / edge;
    halves[k] = {v, p - first * lanes, begin, end};
    if (first % edge == 0 && rows % edge == 0) continue;
    float* to = grid[k];
    for (int i = begin * edge * lanes; i < end * edge * lanes; i += W) store(to + i, set1(0.0f));
    for (int i = 0; i < rows * lanes; i += W) store(to + first * lanes + i, load(p + i));
    halves[k].p = to;
  }
  const auto part = vectors == 1 ? matrix_outputs_part<false> : matrix_outputs_part<true>;
  for (int c = 0; c < columns; c += 2 * edge) part(halves, count, c, !alpha, o_t + c * lanes);
}

static void matrix_accumulate(const float* v,
                              int first,
                              int rows,
                              int columns,
                              const float* p,
                              const float* alpha,
                              float* o_t,
                              int vectors) {
  const Weighted block{v, p, first, rows};
  matrix_accumulate_blocks(&block, 1, columns, alpha, o_t, vectors);
}

template <bool R2>
static __attribute__((noinline)) void matrix_keys_part(const Outer* parts,
                                                       int count,
                                                       int r,
                                                       int c,
                                                       std::int64_t x_stride,
                                                       float* to,
                                                       std::int64_t stride) {
  using Sums = TileSums<R2, true>;
  Sums::load_from(to, stride);
  for (int i = 0; i < count; ++i) {
    const float* p = parts[i].p + r * edge;
    Sums::add(p, p + edge * edge, parts[i].x + c, x_stride);
  }
  Sums::store_to(to, stride);
}

static void matrix_accumulate_keys(const Outer* parts,
                                   int count,
                                   int rows,
                                   std::int64_t x_stride,
                                   int d,
                                   float* to,
                                   std::int64_t to_stride) {
  // Lanes without a query become 0 on both sides.
  alignas(64) float p[(key_block + edge) * edge], x[edge * max_dim];
  Outer whole[key_block];
  for (int i = 0; i < count; ++i) {
    whole[i] = parts[i];
    if (parts[i].count == edge) continue;
    const vm live = from_word((1u << parts[i].count) - 1);
    for (int r = 0; r < rows; ++r)
      store(p + r * edge, select(live, load(parts[i].p + r * edge), set1(0.0f)));
    for (int r = 0; r < edge; ++r)
      for (int c = 0; c < d; c += W)
        store(x + r * x_stride + c,
              r < parts[i].count ? load(parts[i].x + r * x_stride + c) : set1(0.0f));
    whole[i].p = p;
    whole[i].x = x;
  }
  for (int c = 0; c < d; c += 2 * edge) {
    int r = 0;
    for (; r + 2 * edge <= rows; r += 2 * edge)
      matrix_keys_part<true>(whole, count, r, c, x_stride, to + r * to_stride + c, to_stride);
    for (; r < rows; r += edge) {
      float* at = to + r * to_stride + c;
      const int left = rows - r;
      if (left >= edge) {
        matrix_keys_part<false>(whole, count, r, c, x_stride, at, to_stride);
        continue;
      }
      alignas(64) float part[edge * 2 * edge];  // rows past the last are another block's
      for (int i = 0; i < left; ++i)
        for (int y = 0; y < 2 * edge; y += W)
          store(part + i * 2 * edge + y, load(at + i * to_stride + y));
      matrix_keys_part<false>(whole, count, r, c, x_stride, part, 2 * edge);
      for (int i = 0; i < left; ++i)
        for (int y = 0; y < 2 * edge; y += W)
          store(at + i * to_stride + y, load(part + i * 2 * edge + y));
    }
  }
}

static __attribute__((noinline)) double tile_rounds(std::int64_t rounds) {
  open_tiles();
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  TileSums<true, true>::clear();
  for (std::int64_t n = 0; n < rounds; ++n) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  close_tiles();
  return 4.0 * 4 * edge * edge * edge * static_cast<double>(rounds);
}
