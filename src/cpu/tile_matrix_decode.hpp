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

static __attribute__((noinline)) void matrix_decode_scores(const std::byte* const* k,
                                                           DType,
                                                           int first,
                                                           int rows,
                                                           int columns,
                                                           const float* q_t,
                                                           int,
                                                           float scale,
                                                           float* copy,
                                                           float* s,
                                                           Ahead& ahead) {
  const vf factor = set1(scale);
  k += first;
  for (int r = 0; r < rows; r += edge, k += edge, s += edge * lanes) {
    const int n = rows - r < edge ? rows - r : edge;
    const std::byte* from = k[0];
    std::int64_t stride = n > 1 ? k[1] - k[0] : 0;
    const bool in_place = n == edge && evenly_spaced(k, stride);
    if (!in_place) stride = 64;
    _tile_zero(0);
    for (int c = 0; c < columns; c += 2 * edge) {
      if (in_place) {
        _tile_stream_loadd(4, from + 2 * c, static_cast<std::size_t>(stride));
      } else {
        for (int i = 0; i < edge; ++i)
          store(copy + c / 2 * edge + i * edge,
                load(reinterpret_cast<const float*>(k[i < n ? i : n - 1] + 2 * c)));
        settled(copy);
        _tile_loadd(4, copy + c / 2 * edge, 64);
      }
      _tile_loadd(6, q_t + c / 2 * lanes, static_cast<std::size_t>(lane_bytes));
      _tile_dpbf16ps(0, 4, 6);
      ask(ahead, 4);
    }
    if (n == edge) {
      _tile_stored(0, s, static_cast<std::size_t>(lane_bytes));
    } else {
      alignas(64) float part[edge * edge];
      _tile_stored(0, part, 64);
      for (int i = 0; i < n; ++i) store(s + i * lanes, load(part + i * edge));
    }
    if (scale != 1.0f)
      for (int i = 0; i < n; ++i) store(s + i * lanes, mul(load(s + i * lanes), factor));
  }
}

/// 16 rows of 32 weights in bf16, by query, from `rows` rows of weights by key; the rest is 0.
static void weights_by_query(const float* p, int first, int rows, float* to) {
  vf low[W], high[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    low[i] = i >= first && i < rows ? load(p + i * lanes) : set1(0.0f);
    high[i] = i + W >= first && i + W < rows ? load(p + (i + W) * lanes) : set1(0.0f);
  }
  transpose(low);
  transpose(high);
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    store(to + i * W, __builtin_bit_cast(vf, _mm512_cvtne2ps_pbh(high[i], low[i])));
}

/// Columns of O: within each 32 those that one shuffle leaves together.
constexpr int woven_column(int c) {
  const int i = c % 32;
  return c - i + (i / 4 % 2) * 16 + i / 8 * 4 + i % 4;
}

static __attribute__((noinline)) void matrix_decode_outputs(const std::byte* const* v,
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
  const int end = first + rows;
  const auto o_bytes = static_cast<std::size_t>(o_stride) * 4;
  p -= first * lanes;
  alignas(64) float weights[edge * edge], woven[2][edge * edge];
  for (int j = first / 32 * 32; j < end; j += 32) {
    weights_by_query(p + j * lanes, first - j, end - j, weights);
    settled(weights);
    _tile_loadd(4, weights, 64);
    for (int c = 0; c < columns; c += 32) {
      for (int i = 0; i < edge; ++i) {
        const auto row = [&](int at) {
          return at < end ? _mm512_loadu_si512(v[at] + 2 * c) : _mm512_setzero_si512();
        };
        const __m512i even = row(j + 2 * i), odd = row(j + 2 * i + 1);
        store(woven[0] + i * edge, as_f(_mm512_unpacklo_epi16(even, odd)));
        store(woven[1] + i * edge, as_f(_mm512_unpackhi_epi16(even, odd)));
      }
      ask(ahead, 8);
      float* to = o + c;
      settled(woven);
      settled(to);
      _tile_loadd(0, to, o_bytes);
      _tile_loadd(6, woven[0], 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(1, to + edge, o_bytes);
      _tile_loadd(7, woven[1], 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stored(0, to, o_bytes);
      _tile_stored(1, to + edge, o_bytes);
    }
  }
}

static void matrix_decode_lanes(
    const float* o, std::int64_t o_stride, DType, int columns, int count, float* o_t) {
  for (int c = 0; c < columns; ++c)
    for (int r = 0; r < count; ++r) o_t[c * lanes + r] = o[r * o_stride + woven_column(c)];
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
