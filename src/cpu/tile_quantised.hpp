// SPDX-License-Identifier: Apache-2.0
// Rows of int8 with a factor each, and the scores of such rows (Zhang et al. 2024, SageAttention,
// section 4.1 and 4.2). Included once, inside the namespace of an ISA that defines IntegerWords.

/// Words of one whole number each, for instruction sets without a dot product of quads.
struct FloatWords {
  static constexpr int values = 1, bias = 0;
  using Dot = FloatDot;
  UNDIVIDED_VEC void put(float* row, int c, vi x) { store(row + c, to_f(x)); }
  UNDIVIDED_VEC float start(int) { return 0; }
  UNDIVIDED_VEC vf number(vf sum) { return sum; }
};

/// Of W values, in halves: lanes that are left meet at once.
template <class T, class F>
UNDIVIDED_VEC T over_lanes(T* part, F&& f) {
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) part[i] = f(part[i], part[i + n]);
  return part[0];
}
UNDIVIDED_VEC float sum_of(vf a) {
  float part[W];
  store(part, a);
  return over_lanes(part, [](float x, float y) { return x + y; });
}

constexpr int float_row = max_dim + W, integer_row = max_dim / IntegerWords::values + W;
constexpr int integer_bytes(int columns) { return columns * 4 / IntegerWords::values; }

/// Whole vectors of a row, 0 past its end.
UNDIVIDED_VEC void widen_whole(DType dtype, const std::byte* from, int columns, float* to) {
  widen_row(dtype, from, columns, to);
  for (int c = columns; c % W != 0; ++c) to[c] = 0;
}

/// Writes round((x - mean) / factor) + bias and the sum without bias; returns the factor: NaN if
/// some x is not finite, 0 if all are 0 or too small to divide 127 by. x holds x - mean afterwards.
UNDIVIDED_VEC float quantise(
    float* x, const float* mean, int columns, int bias, float* to, int* sum) {
  const vf zero = set1(0.0f);
  vf high = zero, odd = zero;
  for (int c = 0; c < columns; c += W) {
    const vf value = sub(load(x + c), load(mean + c));
    store(x + c, value);
    high = max(high, max(value, sub(zero, value)));
    odd = fma(value, zero, odd);  // 0, or NaN where the value is not finite
  }
  float part[W];
  store(part, high);
  const float most = over_lanes(part, [](float a, float b) { return a > b ? a : b; });
  const bool counts = most >= 0x1p-100f;
  const vf inverse = set1(counts ? 127.0f / most : 0.0f);
  vi total = set1i(0);
  for (int c = 0; c < columns; c += W) {
    const vi whole = to_i(round(mul(load(x + c), inverse)));
    total = addi(total, whole);
    IntegerWords::put(to, c, addi(whole, set1i(bias)));
  }
  std::uint32_t parts[W];
  storei(reinterpret_cast<std::int32_t*>(parts), total);
  *sum =
      static_cast<int>(over_lanes(parts, [](std::uint32_t a, std::uint32_t b) { return a + b; }));
  return (counts ? most / 127.0f : 0.0f) + sum_of(odd);
}

static void pack_quantised_queries(const std::byte* const* rows,
                                   int count,
                                   DType dtype,
                                   int columns,
                                   const float* mean,
                                   float scale,
                                   float* to,
                                   float* factor,
                                   float* offset) {
  alignas(64) float made[lanes][integer_row], x[float_row];
  alignas(64) static constexpr float nothing[float_row] = {};
  const std::byte* from[lanes];
  for (int lane = 0; lane < lanes; ++lane) {
    factor[lane] = offset[lane] = 0;
    if (lane >= count) continue;
    widen_whole(dtype, rows[lane], columns, x);
    int sum = 0;
    factor[lane] = quantise(x, nothing, columns, IntegerWords::bias, made[lane], &sum) * scale;
    vf dot = set1(0.0f);
    for (int c = 0; c < columns; c += W) dot = fma(load(x + c), load(mean + c), dot);
    offset[lane] = sum_of(dot) * scale;
    from[lane] = reinterpret_cast<const std::byte*>(made[lane]);
  }
  pack_words_tile(from, count, integer_bytes(columns), to);
}

/// PackWords lays the words of rows out as the products read them.
template <auto PackWords>
static void pack_quantised_keys(const std::byte* const* rows,
                                int count,
                                DType dtype,
                                int columns,
                                const float* mean,
                                float* to,
                                float* factor,
                                float* start) {
  alignas(64) float made[integer_row], x[float_row];
  const auto* words = reinterpret_cast<const std::byte*>(made);
  for (int r = 0; r < count; ++r) {
    widen_whole(dtype, rows[r], columns, x);
    int sum = 0;
    factor[r] = quantise(x, mean, columns, 0, made, &sum);
    start[r] = IntegerWords::start(sum);
    PackWords(&words, r, 1, integer_bytes(columns), to);
  }
}

/// Sums of whole numbers become scores.
struct FactoredSums {
  const float *k_factor, *k_start, *q_factor, *q_offset;
  UNDIVIDED_VEC vf begin(const FactoredSums& at, int r) { return set1(at.k_start[r]); }
  template <int MR, int NV>
  UNDIVIDED_VEC void end(const FactoredSums& at, vf (&acc)[MR][NV]) {
    vf factor[NV], offset[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      factor[v] = load(at.q_factor + v * W);
      offset[v] = load(at.q_offset + v * W);
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf k = set1(at.k_factor[r]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        acc[r][v] = fma(mul(IntegerWords::number(acc[r][v]), k), factor[v], offset[v]);
    }
  }
};

static void quantised_scores_tile(const float* k,
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
  using Dot = IntegerWords::Dot;
  const int blocks = (words + block_edge - 1) / block_edge;
  k += first * block_edge;
  by_tile_rows(rows, [&](auto count, int r) {
    constexpr int MR = decltype(count)::value;
    const FactoredSums sums{k_factor + first + r, k_start + first + r, q_factor, q_offset};
    const float* from = k + r * block_edge;
    float* to = s + r * lanes;
    vectors == 1 ? block_scores<Dot, MR, 1>(from, blocks, q_t, sums, to)
                 : block_scores<Dot, MR, 2>(from, blocks, q_t, sums, to);
  });
}

/// Halves go away from 0: that is two instructions, and what becomes of NaN does not matter where
/// the sum of the unrounded weights holds it too.
static void round_bf16_all(float* x, std::int64_t n) {
  const vi half = set1i(0x8000), upper = set1i(-0x10000);
  for (std::int64_t i = 0; i < n; i += W)
    store(x + i, as_f(andi(addi(as_i(load(x + i)), half), upper)));
}
