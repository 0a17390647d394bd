// SPDX-License-Identifier: Apache-2.0
// A tile of keys for few queries where nothing happens between the products. Included once, inside
// the namespace of an ISA, after tile_decode.hpp.
//
// Scores are sums over a row of K where it lies, so its columns fill the lanes, and the sums of a
// vector of keys become one vector. The softmax then has keys in its lanes, all of them in use, and
// its weights lie as the outputs read them. Sums do not run in the order of a prefill.

constexpr int key_group = W;  // keys that are met at once

/// A group of rows of K as the products read them: where they lie, or copied.
using KeyTile = EvenRows;
/// Widened copies; rows that are not there repeat the last one.
template <DType T, class Rows>
static KeyTile copied_keys(Rows k, int n, int words, float* copy) {
  for (int i = 0; i < key_group; ++i)
    for (int w = 0; w < words; w += W)
      store(copy + i * words + w, load_columns(T, k[i < n ? i : n - 1] + w * bytes_of<T>, W));
  return {reinterpret_cast<const std::byte*>(copy), std::int64_t{words} * 4};
}

/// Scores of W keys of type T for one query, of NV vectors of words, or of any number for 0. Rows
/// are read one after the other, which is how a processor sees a stream in them, and each asks for
/// one further on.
template <DType T, class Dot, int NV, class Part>
static __attribute__((noinline)) void row_scores(KeyTile k,
                                                 int words,
                                                 const float* __restrict q,
                                                 float scale,
                                                 float* s,
                                                 const Part& rows,
                                                 int bytes) {
  vf sum[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    const std::byte* at = k[i];
    for (int c = 0; c < bytes; c += 256) rows.template ask<256>(i, c);
    sum[i] = set1(0.0f);
    const auto step = [&](int w) __attribute__((always_inline)) {
      sum[i] = Dot::step(sum[i], load_columns(T, at + w * bytes_of<T>, W), load(q + w));
    };
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) step(v * W);
#pragma GCC unroll 1
    for (int w = NV * W; NV == 0 && w < words; w += W) step(w);
  }
  store(s, mul(sums_of(sum), set1(scale)));
}

/// Queries of a vector of four words of each.
constexpr int quad_queries = W / 4;

/// Scores of 8 keys for up to G vectors of queries: four words of a key meet those of all.
template <class Dot, int G, class Part>
static __attribute__((noinline)) void quad_scores(
    KeyTile k, int words, const float* __restrict q, float scale, float* s, Part rows, int bytes) {
  constexpr int keys = 8;
  vf sum[keys][G];
#pragma GCC unroll 8
  for (int i = 0; i < keys; ++i)
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) sum[i][g] = set1(0.0f);
  const std::byte* at = k.at;
  const std::int64_t one = k.stride, three = 3 * one, five = 5 * one, seven = 7 * one;
  int due = 0;
#pragma GCC unroll 1
  for (int w = 0; w < words; w += 8) {
    for (due += 8 * keys; due >= words; due -= words, rows += 1)
      for (int c = 0; c < bytes; c += 256) rows.template ask<256>(0, c);
#pragma GCC unroll 2
    for (int u = 0; u < 8; u += 4) {
      vf x[G];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) x[g] = load(q + g * W);
      const auto row = [&](int i, std::int64_t from) __attribute__((always_inline)) {
        const vf four = load_quad(reinterpret_cast<const float*>(at + from) + u);
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) sum[i][g] = Dot::step(sum[i][g], four, x[g]);
      };
      row(0, 0);
      row(1, one);
      row(2, 2 * one);
      row(3, three);
      row(4, 4 * one);
      row(5, five);
      row(6, 2 * three);
      row(7, seven);
      q += G * W;
    }
    at += 32;
  }
  const vf factor = set1(scale);
#pragma GCC unroll 2
  for (int i = 0; i < keys; i += 4)
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      const vf four[4] = {sum[i][g], sum[i + 1][g], sum[i + 2][g], sum[i + 3][g]};
      store_quads(s + g * quad_queries * key_block + i, key_block, mul(quad_sums(four), factor));
    }
}

/// Queries of which each meets all keys before the next: quads of so few leave lanes idle. More
/// than these pay with quads of four alone.
constexpr int rows_apart = 2, row_tile_most = W == 16 ? 8 : rows_apart;

/// Scores of a group of keys of type T; `bytes` of a row are asked for beside each.
template <DType T, class Dot, class Part>
static void row_tile_scores(
    KeyTile k, int words, const RowTile& t, float* s, Part rows, int bytes) {
  if (W < 16 || t.count <= rows_apart) {
    const auto part = words == 8 * W   ? row_scores<T, Dot, 8, Part>
                      : words == 4 * W ? row_scores<T, Dot, 4, Part>
                      : words == 2 * W ? row_scores<T, Dot, 2, Part>
                                       : row_scores<T, Dot, 0, Part>;
    for (int i = 0; i < t.count; ++i, bytes = 0)
      part(k, words, t.q + i * max_dim, t.scale, s + i * key_block, rows, bytes);
  } else if constexpr (W == 16) {
    const auto part =
        t.count <= quad_queries ? quad_scores<Dot, 1, Part> : quad_scores<Dot, 2, Part>;
    for (int r = 0; r < key_group; r += 8, k += 8, rows += 8)
      part(k, words, t.q, t.scale, s + r, rows, bytes);
  }
}

alignas(64) constexpr float lane_numbers[16] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// As softmax_all says, of all queries: s of whole vectors of keys, -inf past the last key. Maxima
/// and sums are found by keys, with queries in the lanes from there on.
template <class Weights>
static void rows_softmax(float (*s)[key_block], const RowTile& t, float* alpha) {
  const vf infinity = set1(-__builtin_inff()), c = set1(t.factor);
  const auto lane = [&](int i) __attribute__((always_inline)) {
    return eq(load(lane_numbers), set1(static_cast<float>(i)));
  };
  vf top = infinity;
  for (int i = 0; i < t.count; ++i) {
    vf high = infinity;
    for (int j = 0; j < t.rows; j += W) high = max(high, load(s[i] + j));
    top = select(lane(i), across(high, [](vf a, vf b) { return max(a, b); }), top);
  }
  const vf found = mul(top, c), old = load(t.m);
  const vf now = select(lt(add(old, set1(t.slack)), found), found, old);
  const vf base = select(eq(now, infinity), set1(0.0f), now);
  const vf a = exp2_of(sub(old, base));
  store(t.m, now);
  store(alpha, a);
  alignas(64) float less[W];
  store(less, sub(set1(0.0f), base));
  vf sums = set1(0.0f);
  for (int i = 0; i < t.count; ++i) {
    vf sum = set1(0.0f);
    for (int j = 0; j < t.rows; j += W) {
      const vf p = exp2_of(fma(load(s[i] + j), c, set1(less[i])));
      sum = add(sum, p);
      Weights::put(s[i], j, p);
    }
    sums = select(lane(i), across(sum, [](vf x, vf y) { return add(x, y); }), sums);
  }
  store(t.l, fma(load(t.l), a, sums));
}

struct RowOfWeights {
  UNDIVIDED_VEC void put(float* p, int key, vf a) { store(p + key, a); }
};
struct WeightsByQuery {
  static constexpr int key = 1, query = key_block;
};

template <DType T, class Dot, class Weights, class Values, class Asks>
static void row_tile_asking(const RowTile& t, int words) {
  alignas(64) float s[row_tile_most][key_block], alpha[W];
  const GroupedRows<Asks> keys = {t.k}, values = {t.v};
  for (int r = 0; r < t.rows; r += key_group) {
    const auto rows = keys.from(r);
    const int n = t.rows - r;
    const int bytes = words * bytes_of<T>;
    // So few queries widen rows anew, which costs less than a copy.
    if (n >= key_group && (T == DType::f32 || t.count <= rows_apart))
      row_tile_scores<T, Dot>(rows.now, words, t, s[0] + r, rows, bytes);
    else
      row_tile_scores<DType::f32, Dot>(
          copied_keys<T>(rows.now, n, words, t.copy), words, t, s[0] + r, rows, bytes);
  }
  for (int i = 0; i < t.count; ++i)
    for (int r = t.rows; r % W != 0; ++r) s[i][r] = -__builtin_inff();
  rows_softmax<Weights>(s, t, alpha);
  Beside none;
  decode_outputs_whole<Values, WeightsByQuery>(
      values, t.rows, t.dv, s[0], alpha, t.count, t.o, t.o_stride, none);
}

/// What is read once and in order is a stream.
template <DType T, class Dot, class Weights, class Values>
static void row_tile_of(const RowTile& t, int words) {
  const int at_once =
      decode_registers / t.count < Values::most ? decode_registers / t.count : Values::most;
  const bool stream = t.stream && t.count <= rows_apart && t.dv <= at_once * W;
  const auto as = stream ? row_tile_asking<T, Dot, Weights, Values, Stream>
                         : row_tile_asking<T, Dot, Weights, Values, Spread>;
  as(t, words);
}

template <DType T>
static void wide_row_tile(const RowTile& t) {
  row_tile_of<T, FloatDot, RowOfWeights, WideRows<T>>(t, t.dqk);
}
static void decode_row_tile(const RowTile& t) {
  const auto as = t.dtype == DType::f32    ? wide_row_tile<DType::f32>
                  : t.dtype == DType::bf16 ? wide_row_tile<DType::bf16>
                                           : wide_row_tile<DType::f16>;
  as(t);
}

/// Rows max_dim apart, or for more of them quads of [words / 4][vectors of queries][queries][4].
static void row_queries(const float* q_t, int words, int count, float* to) {
  const int groups = (count + quad_queries - 1) / quad_queries;
  for (int w = 0; w < words; w += W) {
    vf a[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) a[i] = load(q_t + (w + i) * lanes);
    transpose(a);
    alignas(64) float row[W][W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(row[i], a[i]);
    for (int i = 0; i < count && count <= rows_apart; ++i)
      store(to + i * max_dim + w, load(row[i]));
    for (int i = 0; i < groups * quad_queries && count > rows_apart; ++i)
      for (int c = 0; c < W; c += 4)
        __builtin_memcpy(
            to + ((w + c) / 4 * groups * quad_queries + i) * 4, row[i] + c, 4 * sizeof(float));
  }
}
