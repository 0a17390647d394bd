// SPDX-License-Identifier: Apache-2.0
// The two products of a tile for few queries on tile registers. Included once, after
// tile_matrix.hpp.
//
// S^T = K Q^T as in prefill, with K read where it lies. O = P V has queries in its rows: V needs
// pairs of its rows woven together, which is one shuffle for 64 bytes, where its transpose would
// need five. Sums run in the order of the prefill tile.

/// Do 16 rows lie at equal distances?
UNDIVIDED_VEC bool evenly_spaced(const std::byte* const* row, std::int64_t stride) {
  const __m512i step = _mm512_set1_epi64(8 * stride);
  const __m512i eight =
      _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(stride));
  const __m512i want =
      _mm512_add_epi64(_mm512_set1_epi64(reinterpret_cast<std::int64_t>(row[0])), eight);
  return _mm512_cmpneq_epi64_mask(want, _mm512_loadu_si512(row)) == 0 &&
         _mm512_cmpneq_epi64_mask(_mm512_add_epi64(want, step), _mm512_loadu_si512(row + 8)) == 0;
}

/// 16 rows of K as a tile loads them: where they lie if at equal distances, else copied.
struct KeyTile {
  const std::byte* at;
  std::int64_t stride;
};
static KeyTile key_tile(const std::byte* const* k, int n, int columns, float* copy) {
  const std::int64_t stride = n > 1 ? k[1] - k[0] : 0;
  if (n >= edge && evenly_spaced(k, stride)) return {k[0], stride};
  const int words = columns / 2;
  for (int i = 0; i < edge; ++i)
    for (int w = 0; w < words; w += W)
      store(copy + i * words + w, load(reinterpret_cast<const float*>(k[i < n ? i : n - 1]) + w));
  return {reinterpret_cast<const std::byte*>(copy), words * 4};
}

template <bool R2, bool N2>
static __attribute__((noinline)) void matrix_decode_scores_part(
    KeyTile k, KeyTile k2, int words, const float* q_t, int rows, float* s, Ahead& ahead) {
  using Sums = TileSums<R2, N2>;
  Sums::clear();
  for (int w = 0; w < words; w += edge) {
    Sums::template add_rows<!R2>(
        k.at + 4 * w, k.stride, k2.at + 4 * w, k2.stride, q_t + w * lanes, lanes);
    ask(ahead, 4);
  }
  if (R2 || rows >= edge) return Sums::store_to(s, lanes);
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
  const int words = columns / 2;
  k += first;
  for (int r = 0; r < rows;) {
    const bool two = count > edge && rows - r >= 2 * edge;
    const KeyTile key = key_tile(k + r, rows - r, columns, copy);
    const KeyTile next = two ? key_tile(k + r + edge, edge, columns, copy + edge * words) : key;
    for (int g = 0; g < count; g += lanes) {
      const auto part = two             ? count - g > W ? matrix_decode_scores_part<true, true>
                                                        : matrix_decode_scores_part<true, false>
                                    : count - g > W ? matrix_decode_scores_part<false, true>
                                        : matrix_decode_scores_part<false, false>;
      part(key, next, words, q_t + g * words, rows - r, s + g * key_block + r * lanes, ahead);
    }
    r += two ? 2 * edge : edge;
  }
  if (scale == 1.0f) return;
  const vf factor = set1(scale);
  for (int g = 0; g < count; g += W)
    for (int i = 0; i < rows; ++i) {
      float* at = s + g / lanes * lanes * key_block + i * lanes + g % lanes;
      store(at, mul(load(at), factor));
    }
}

/// 16 rows of 16 pairs of weights, by query, from those of pairs [first, end); the rest is 0.
static void weights_by_query(const float* p, int first, int end, float* to) {
  alignas(64) static constexpr float none[edge] = {};
  const std::byte* rows[edge];
  for (int i = 0; i < edge; ++i)
    rows[i] =
        reinterpret_cast<const std::byte*>(i >= first && i < end ? p + (i - first) * lanes : none);
  vf a[W];
  load_transposed(rows, 0, a);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) store(to + i * edge, a[i]);
}

/// Of 32 columns of O: those that one shuffle leaves together lie together.
constexpr int plain_column(int i) { return i / 4 % 4 * 8 + i / 16 * 4 + i % 4; }

/// Rows of V in pairs, 32 columns of each: pair i becomes row i of two tiles that lie side by side.
UNDIVIDED_VEC void weave(const std::byte* const* v, int first, int end, int c, float* to) {
  for (int i = first; i < end; ++i) {
    const __m512i even = _mm512_loadu_si512(v[2 * i] + 2 * c),
                  odd = _mm512_loadu_si512(v[2 * i + 1] + 2 * c);
    store(to + i * lanes, as_f(_mm512_unpacklo_epi16(even, odd)));
    store(to + i * lanes + edge, as_f(_mm512_unpackhi_epi16(even, odd)));
  }
}

constexpr int group_tile = edge * edge, matrix_groups = matrix_decode_rows / edge;

/// o += weights * woven, 32 columns of one or two groups of 16 queries, by halves of 32 keys.
template <bool R2, class F>
UNDIVIDED_VEC void add_woven(const float* weights,
                             const float* woven,
                             int halves,
                             float* o,
                             std::int64_t o_stride,
                             F&& between) {
  using Sums = TileSums<R2, true>;
  Sums::load_from(o, o_stride);
  for (int h = 0; h < halves; ++h) {
    const float* w = weights + h * matrix_groups * group_tile;
    Sums::add(w, w + group_tile, woven + h * edge * lanes, lanes);
    between(h);
  }
  Sums::store_to(o, o_stride);
}

/// Weights of `count` queries [half][group of 16][query][pair], times rows of V. Of several groups
/// the next columns are woven between the products of these.
static __attribute__((noinline)) void matrix_decode_outputs_of(const std::byte* const* v,
                                                               int halves,
                                                               int columns,
                                                               const float* weights,
                                                               int count,
                                                               float* o,
                                                               std::int64_t o_stride,
                                                               Ahead& ahead) {
  alignas(64) float woven[2][key_block / 2 * lanes];
  const bool early = count > edge;
  const int share = count > lanes ? edge / 2 : edge;
  if (early) weave(v, 0, halves * edge, 0, woven[0]);
  for (int c = 0; c < columns; c += 32) {
    float *now = woven[c / 32 % 2], *next = woven[(c / 32 + 1) % 2];
    if (!early) {
      weave(v, 0, halves * edge, c, now);
      ask(ahead, 8);
    }
    for (int g = 0; g * edge < count; g += 2) {
      const auto between = [&](int h) {
        if (!early) return;
        const int from = h * edge + g / 2 * share;
        if (c + 32 < columns) weave(v, from, from + share, c + 32, next);
        ask(ahead, 8);
      };
      const float* w = weights + g * group_tile;
      float* to = o + g * edge * o_stride + c;
      if (count - g * edge > edge)
        add_woven<true>(w, now, halves, to, o_stride, between);
      else
        add_woven<false>(w, now, halves, to, o_stride, between);
    }
  }
}

static void matrix_decode_outputs(const std::byte* const* v,
                                  DType,
                                  int first,
                                  int rows,
                                  int columns,
                                  const float* p,
                                  const float* alpha,
                                  int count,
                                  float* o,
                                  std::int64_t o_stride,
                                  Ahead& ahead) {
  for (int r = 0; r < count; ++r) {
    if (alpha[r] == 1.0f) continue;
    const vf a = set1(alpha[r]);
    for (int c = 0; c < columns; c += W)
      store(o + r * o_stride + c, mul(load(o + r * o_stride + c), a));
  }
  alignas(64) static constexpr std::byte none[2 * max_dim] = {};
  alignas(64) float weights[key_block / 32 * matrix_groups * group_tile];
  const std::byte* rest[key_block];
  const int end = first + rows, begin = first / 32 * 32, halves = (end - begin + 31) / 32;
  v += begin;
  if (end % 32 != 0) {
    for (int i = 0; i < halves * 32; ++i) rest[i] = begin + i < end ? v[i] : none;
    v = rest;
  }
  for (int h = 0; h < halves; ++h) {
    const int pair = begin / 2 + h * edge, from = first / 2 > pair ? first / 2 : pair;
    for (int g = 0; g * edge < count; ++g)
      weights_by_query(p + (from - first / 2) * lanes + g / 2 * key_block * lanes + g % 2 * edge,
                       from - pair,
                       (end + 1) / 2 - pair,
                       weights + (h * matrix_groups + g) * group_tile);
  }
  // One group follows the memory more evenly by 32 keys at a time; more spare loads of O.
  const int at_once = count > edge ? halves : 1;
  for (int h = 0; h < halves; h += at_once)
    matrix_decode_outputs_of(v + 32 * h,
                             at_once,
                             columns,
                             weights + h * matrix_groups * group_tile,
                             count,
                             o,
                             o_stride,
                             ahead);
}

static void matrix_decode_lanes(
    const float* o, std::int64_t o_stride, DType, int columns, int count, float* o_t) {
  for (int r = 0; r < count; r += edge)
    for (int c = 0; c < columns; c += edge) {
      vf a[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) a[i] = load(o + (r + i) * o_stride + c);
      transpose(a);
      float* to = o_t + c / 32 * 32 * lanes + r;
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + plain_column(c % 32 + i) * lanes, a[i]);
    }
}

static constexpr DecodeProducts matrix_decode = {
    matrix_decode_scores, matrix_decode_outputs, matrix_decode_lanes};

static const Dots matrix = {
    {matrix_scores, matrix_accumulate, nullptr},
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
    tile_rounds,
};
