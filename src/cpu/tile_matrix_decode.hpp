// SPDX-License-Identifier: Apache-2.0
// The two products of a tile for few queries on tile registers. Included once, after
// tile_matrix.hpp and tile_dots_decode.hpp.
//
// S^T = K Q^T as in prefill, with K read where it lies. O = P V has queries in its rows: V needs
// pairs of its rows woven together, which is one shuffle for 64 bytes, where its transpose would
// need five. Sums run in the order of the prefill tile.

template <bool N2>
static __attribute__((noinline)) void matrix_decode_scores_part(
    KeyTile k, int words, const float* q_t, int rows, float* s, Ahead& ahead) {
  using Sums = TileSums<false, N2>;
  Ahead due = ahead;
  Sums::clear();
  for (int w = 0; w < words; w += edge) {
    Sums::template add_rows<true>(k.at + 4 * w, k.stride, nullptr, 0, q_t + w * lanes, lanes);
    ask(due, N2 ? 3 : 2);
  }
  ahead = due;
  if (rows >= edge) return Sums::store_to(s, lanes);
  alignas(64) float part[edge * lanes];  // rows past the last are another tile's
  Sums::store_to(part, lanes);
  settled(part);
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < (N2 ? 2 : 1); ++v)
      store(s + i * lanes + v * W, load(part + i * lanes + v * W));
}

static void matrix_decode_scores(const std::byte* const* k,
                                 DType,
                                 int first,
                                 int rows,
                                 int columns,
                                 const float* q_t,
                                 int count,
                                 float scale,
                                 float* copy,
                                 float* s,
                                 Ahead& ahead) {
  const auto part =
      count > edge ? matrix_decode_scores_part<true> : matrix_decode_scores_part<false>;
  for (int r = 0; r < rows; r += edge)
    part(key_tile(k + first + r, rows - r, columns / 2, copy),
         columns / 2,
         q_t,
         rows - r,
         s + r * lanes,
         ahead);
  if (scale == 1.0f) return;
  const vf factor = set1(scale);
  for (int i = 0; i < rows * lanes; i += W) store(s + i, mul(load(s + i), factor));
}

constexpr int group_tile = edge * edge, matrix_groups = matrix_decode_rows / edge;

/// 16 rows of 16 pairs of weights, by query, from those of pairs [first, end); the rest is 0.
static void weights_by_query(const float* p, int first, int end, float* to) {
  alignas(64) static constexpr float none[edge] = {};
  vf a[W];
  const auto turn = [&](auto&& row) __attribute__((always_inline)) {
    const std::byte* rows[edge];
#pragma GCC unroll 16
    for (int i = 0; i < edge; ++i) rows[i] = reinterpret_cast<const std::byte*>(row(i));
    load_transposed(rows, 0, a);
  };
  if (first == 0 && end >= edge)
    turn([&](int i) { return p + i * lanes; });
  else
    turn([&](int i) { return i >= first && i < end ? p + (i - first) * lanes : none; });
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store(to + i * edge, a[i]);
}

/// To [half of 32 keys][group of 16 queries][query][pair of keys]. This follows the softmax of a
/// sub-block at once: tile registers that rest for half a microsecond take a quarter to wake.
static void matrix_decode_weights(
    const float* p, int first, int rows, int query, int count, float* to) {
  const int end = first + rows;
  to += query / edge * group_tile;
  for (int pair = first / 32 * edge; 2 * pair < end;
       pair += edge, to += matrix_groups * group_tile) {
    const int from = first / 2 > pair ? first / 2 : pair;
    for (int g = 0; g * edge < count; ++g)
      weights_by_query(p + (from - first / 2) * lanes + g * edge,
                       from - pair,
                       (end + 1) / 2 - pair,
                       to + g * group_tile);
  }
}

/// Rows of V in pairs, 32 columns of each: pair i becomes row i of two tiles that lie side by side.
UNDIVIDED_VEC void weave(const std::byte* const* v, int pairs, int c, float* to, Ahead& ahead) {
  for (int i = 0; i < pairs; i += 4, v += 8, to += 4 * lanes) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m512i even = _mm512_loadu_si512(v[2 * r] + 2 * c),
                    odd = _mm512_loadu_si512(v[2 * r + 1] + 2 * c);
      store(to + r * lanes, as_f(_mm512_unpacklo_epi16(even, odd)));
      store(to + r * lanes + edge, as_f(_mm512_unpackhi_epi16(even, odd)));
    }
    ask(ahead, 1);
  }
}

/// Weights of one or two groups of 16 queries and one or two halves of a block, to registers.
template <bool G2, bool H2>
UNDIVIDED_VEC void load_weights(const float* weights) {
  constexpr int half = matrix_groups * group_tile;
  settled(weights);
  _tile_loadd(4, weights, 64);
  if constexpr (G2) _tile_loadd(5, weights + group_tile, 64);
  if constexpr (H2) _tile_loadd(6, weights + half, 64);
  if constexpr (G2 && H2) _tile_loadd(7, weights + half + group_tile, 64);
}

/// o += those weights * woven, 32 columns.
template <bool G2, bool H2>
UNDIVIDED_VEC void add_woven(const float* woven, float* o, std::int64_t o_stride, Ahead& ahead) {
  const auto bytes = static_cast<std::size_t>(o_stride) * 4;
  settled(woven);
  settled(o);
  for (int c = 0; c < 2 * edge; c += edge) {
    _tile_loadd(2, woven + c, lane_bytes);
    _tile_loadd(0, o + c, bytes);
    _tile_dpbf16ps(0, 4, 2);
    if constexpr (G2) _tile_loadd(1, o + edge * o_stride + c, bytes);
    if constexpr (G2) _tile_dpbf16ps(1, 5, 2);
    if constexpr (H2) _tile_loadd(3, woven + edge * lanes + c, lane_bytes);
    if constexpr (H2) _tile_dpbf16ps(0, 6, 3);
    if constexpr (G2 && H2) _tile_dpbf16ps(1, 7, 3);
    _tile_stored(0, o + c, bytes);
    if constexpr (G2) _tile_stored(1, o + edge * o_stride + c, bytes);
    ask(ahead, (G2 ? 2 : 1) * (H2 ? 2 : 1));
  }
}

/// Weights of `count` queries [half][group of 16][query][pair], times rows of V. The next columns
/// are woven before the products of these, because a tile load waits for stores to reach the cache.
template <bool G2, bool H2>
static __attribute__((noinline)) void matrix_decode_outputs_of(const std::byte* const* v,
                                                               int columns,
                                                               const float* weights,
                                                               int count,
                                                               float* o,
                                                               std::int64_t o_stride,
                                                               Ahead& ahead) {
  constexpr int pairs = H2 ? 2 * edge : edge;
  alignas(64) float woven[2][key_block / 2 * lanes];
  Ahead due = ahead;
  weave(v, pairs, 0, woven[0], due);
  for (int c = 0; c < columns; c += 32) {
    if (c + 32 < columns) weave(v, pairs, c + 32, woven[(c / 32 + 1) % 2], due);
    for (int g = 0; g * edge < count; g += 2) {
      if (c == 0 || count > lanes) load_weights<G2, H2>(weights + g * group_tile);
      add_woven<G2, H2>(woven[c / 32 % 2], o + g * edge * o_stride + c, o_stride, due);
    }
  }
  ahead = due;
}

static void matrix_decode_outputs(const std::byte* const* v,
                                  DType,
                                  int first,
                                  int rows,
                                  int columns,
                                  const float* weights,
                                  const float* alpha,
                                  int count,
                                  float* o,
                                  std::int64_t o_stride,
                                  Ahead& ahead) {
  for (int g = 0; g < count; g += W) {
    std::uint32_t scaled = to_word(ne(load(alpha + g), set1(1.0f)));
    if (count - g < W) scaled &= (1u << (count - g)) - 1;
    for (; scaled != 0; scaled &= scaled - 1) {
      const int r = g + __builtin_ctz(scaled);
      const vf a = set1(alpha[r]);
      for (int c = 0; c < columns; c += W)
        store(o + r * o_stride + c, mul(load(o + r * o_stride + c), a));
    }
  }
  alignas(64) static constexpr std::byte none[2 * max_dim] = {};
  const std::byte* rest[key_block];
  const int end = first + rows, begin = first / 32 * 32, halves = (end - begin + 31) / 32;
  v += begin;
  if (end % 32 != 0) {
    for (int i = 0; i < halves * 32; ++i) rest[i] = begin + i < end ? v[i] : none;
    v = rest;
  }
  const bool two = count > edge;
  const auto part = halves == 2 ? two ? matrix_decode_outputs_of<true, true>
                                      : matrix_decode_outputs_of<false, true>
                    : two ? matrix_decode_outputs_of<true, false>
                                : matrix_decode_outputs_of<false, false>;
  part(v, columns, weights, count, o, o_stride, ahead);
}

static constexpr DecodeProducts matrix_decode = {matrix_decode_rows,
                                                 decode_softmax<WeightsInPairs>,
                                                 matrix_decode_scores,
                                                 matrix_decode_weights,
                                                 matrix_decode_outputs,
                                                 nullptr,
                                                 0,
                                                 nullptr,
                                                 pair_decode_lanes};

static const Dots matrix = {
    {matrix_scores, matrix_accumulate, nullptr},
    matrix_accumulate_blocks,
    &matrix_decode,
    &matrix_quantised,
    open_tiles,
    close_tiles,
    softmax_tile<WeightsInPairs>,
    pair_rows_tile,
    pack_panel_words,
    pack_panel_pairs,
    end_panel_pairs,
    pair_lanes_tile,
    pair_queries_tile,
    matrix_accumulate_keys,
    unpack_pairs_tile,
    tile_rounds,
};
