// SPDX-License-Identifier: Apache-2.0
// The two products of a tile for few queries. Included once, inside the namespace of an ISA.
//
// A prefill tile has queries in its lanes, which few queries leave idle, and reads a copy of K and
// V. Here keys fill the lanes of the scores (K is transposed on its way) and columns those of the
// outputs; queries and weights are read by broadcast. Rows are read where they lie, and every few
// steps ask for a piece of the next tile's rows, so that the memory never rests. Sums run in the
// order of the prefill tile, so a row's bits do not depend on which of the two it met.

constexpr int decode_registers = W == 16 ? 16 : 8;  // accumulators of a tile
/// Vectors beside `queries` queries.
constexpr int beside(int queries) {
  return decode_registers / queries < 4 ? decode_registers / queries : 4;
}

/// Calls body(Count<queries>, first query) until all of `count` are done.
template <class F>
UNDIVIDED_VEC void by_queries(int count, F&& body) {
  int g = 0;
  for (; g + decode_registers / 2 <= count; g += decode_registers / 2)
    body(Count<decode_registers / 2>(), g);
  if constexpr (decode_registers > 8)
    for (; g + 4 <= count; g += 4) body(Count<4>(), g);
  for (; g + 2 <= count; g += 2) body(Count<2>(), g);
  if (g < count) body(Count<1>(), g);
}

template <DType T>
constexpr int bytes_of = T == DType::f32 ? 4 : 2;

/// Words of two bfloat16: those at even and at odd columns.
UNDIVIDED_VEC void split_bf16(vf words, vf& even, vf& odd) {
  even = as_f(shli(as_i(words), set1i(16)));
  odd = as_f(andi(as_i(words), set1i(static_cast<std::int32_t>(0xffff0000u))));
}

/// W keys to kt[column][key], `columns` of each. Columns that no whole load covers, and float16,
/// are widened on the way.
template <DType T>
static __attribute__((noinline)) void decode_keys(const std::byte* const* rows,
                                                  std::int64_t offset,
                                                  int columns,
                                                  float* __restrict kt,
                                                  Ahead& ahead) {
  Ahead due = ahead;
  constexpr int step = 64 / bytes_of<T> / (16 / W);
  vf a[W];
  int c = 0;
  if constexpr (T != DType::f16) {
#pragma GCC unroll 1
    for (; c + step <= columns; c += step) {
      load_transposed(rows, offset + c * bytes_of<T>, a);
      if constexpr (T == DType::bf16) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          vf even, odd;
          split_bf16(a[i], even, odd);
          store(kt + (c + 2 * i) * key_block, even);
          store(kt + (c + 2 * i + 1) * key_block, odd);
        }
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(kt + (c + i) * key_block, a[i]);
      }
      ask(due, 4);
    }
  }
  alignas(64) float wide[W][W];
#pragma GCC unroll 1
  for (; c < columns; c += W) {
    const std::byte* from[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      from[i] = reinterpret_cast<const std::byte*>(wide[i]);
      store(wide[i], load_columns(T, rows[i] + offset + c * bytes_of<T>, columns - c));
    }
    load_transposed(from, 0, a);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(kt + (c + i) * key_block, a[i]);
    ask(due, 4);
  }
  ahead = due;
}

/// part[query][key] += the products of some columns: MR queries and a few vectors of keys.
template <int MR>
static __attribute__((noinline)) void decode_scores_part(const float* __restrict kt,
                                                         int columns,
                                                         const float* __restrict q_t,
                                                         float* __restrict part,
                                                         Ahead& ahead) {
  Ahead due = ahead;
  constexpr int NK = beside(MR);
  vf acc[MR][NK];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int k = 0; k < NK; ++k) acc[r][k] = load(part + r * key_block + k * W);
  const auto step = [&](int u) __attribute__((always_inline)) {
    vf key[NK];
#pragma GCC unroll 4
    for (int k = 0; k < NK; ++k) key[k] = load(kt + u * key_block + k * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf q = set1(q_t[u * lanes + r]);
#pragma GCC unroll 4
      for (int k = 0; k < NK; ++k) acc[r][k] = fma(key[k], q, acc[r][k]);
    }
  };
  int c = 0;
#pragma GCC unroll 1
  for (; c + 4 <= columns; c += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) step(u);
    kt += 4 * key_block;
    q_t += 4 * lanes;
    ask(due, MR < 8 ? 1 : 2);
  }
#pragma GCC unroll 1
  for (; c < columns; ++c) {
    step(0);
    kt += key_block;
    q_t += lanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int k = 0; k < NK; ++k) store(part + r * key_block + k * W, acc[r][k]);
  ahead = due;
}

template <DType T>
static void decode_scores_of(const std::byte* const* k,
                             int rows,
                             int columns,
                             const float* q_t,
                             int count,
                             float* kt,
                             float* s,
                             Ahead& ahead) {
  alignas(64) float part[decode_rows][key_block];
  for (int r = 0; r < (count + W - 1) / W * W; ++r)
    for (int j = 0; j < key_block; j += W) store(part[r] + j, set1(0.0f));
  for (int c = 0; c < columns; c += decode_columns) {
    const int n = columns - c < decode_columns ? columns - c : decode_columns;
    for (int j = 0; j < rows; j += W) {
      const std::byte* last[W];
      const std::byte* const* from = k + j;
      if (j + W > rows) {
        for (int i = 0; i < W; ++i) last[i] = k[j + i < rows ? j + i : rows - 1];
        from = last;
      }
      decode_keys<T>(from, c * bytes_of<T>, n, kt + j, ahead);
    }
    by_queries(count, [&](auto queries, int g) {
      constexpr int MR = decltype(queries)::value;
      for (int j = 0; j < rows; j += beside(MR) * W)
        decode_scores_part<MR>(kt + j, n, q_t + c * lanes + g, part[g] + j, ahead);
    });
  }
  for (int v = 0; v < count; v += W)
    for (int j = 0; j < rows; j += W) {
      vf a[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) a[i] = load(part[v + i] + j);
      transpose(a);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(s + (j + i) * lanes + v, a[i]);
    }
}

/// A row of V, widened: what weights of one key multiply.
template <DType T>
struct WideRows {
  using Dot = FloatDot;
  static constexpr int rows = 1, bytes = bytes_of<T>, most = 16;  // vectors at once
  template <int NC, class Rows>
  UNDIVIDED_VEC void get(Rows v, int i, std::int64_t offset, bool, vf* x) {
    const std::byte* at = v[i] + offset;
#pragma GCC unroll 8
    for (int c = 0; c < NC; ++c)
      if constexpr (T == DType::bf16) {
        if (c % 2 == 0)
          split_bf16(load(reinterpret_cast<const float*>(at + c * W * 2)), x[c], x[c + 1]);
      } else {
        x[c] = load_columns(T, at + c * W * bytes, W);
      }
  }
};

/// Where weights lie: from one key, or pair of keys, to the next, and from one query to the next.
struct WeightsByKey {
  static constexpr int key = lanes, query = 1;
};

/// MR queries and NC vectors of columns of what decode_outputs says.
template <class Values, class Weights, int MR, int NC, class Rows, class Asks>
static __attribute__((noinline)) void decode_outputs_part(Rows v,
                                                          std::int64_t offset,
                                                          int rows,
                                                          const float* __restrict p,
                                                          const float* __restrict alpha,
                                                          float* __restrict o,
                                                          std::int64_t o_stride,
                                                          Asks& ahead) {
  Asks due = ahead;
  vf acc[MR][NC];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < NC; ++c) acc[r][c] = set1(0.0f);
  v.parts(rows, [&](auto part, int n) __attribute__((always_inline)) {
    const auto step = [&](int u, bool whole) __attribute__((always_inline)) {
      vf x[NC];
      Values::template get<NC>(part, u * Values::rows, offset, whole, x);
#pragma GCC unroll 2
      for (int i = 0; i < Values::rows; ++i)
        part.template ask<NC * W * Values::bytes>(u * Values::rows + i, offset);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const vf w = set1(p[u * Weights::key + r * Weights::query]);
#pragma GCC unroll 16
        for (int c = 0; c < NC; ++c) acc[r][c] = Values::Dot::step(acc[r][c], x[c], w);
      }
    };
    int j = 0;
#pragma GCC unroll 1
    for (; j + 4 * Values::rows <= n; j += 4 * Values::rows) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) step(u, true);
      part += 4 * Values::rows;
      p += 4 * Weights::key;
      ask(due, MR < 8 ? 1 : 2);
    }
#pragma GCC unroll 1
    for (; j < n; j += Values::rows) {
      step(0, j + Values::rows <= n);
      part += Values::rows;
      p += Weights::key;
    }
  });
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    const vf a = set1(alpha[r]);
#pragma GCC unroll 8
    for (int c = 0; c < NC; ++c) {
      float* at = o + r * o_stride + c * W;
      store(at, fma(load(at), a, acc[r][c]));
    }
  }
  ahead = due;
}

/// Whole pairs of vectors of columns, NC vectors at once as long as there are so many.
template <class Values, class Weights, int MR, int NC, class Rows, class Asks>
static void decode_outputs_columns(Rows v,
                                   int rows,
                                   int columns,
                                   const float* p,
                                   const float* alpha,
                                   float* o,
                                   std::int64_t o_stride,
                                   Asks& ahead,
                                   int c = 0) {
  for (; c + NC * W <= columns; c += NC * W)
    decode_outputs_part<Values, Weights, MR, NC>(
        v, c * Values::bytes, rows, p, alpha, o + c, o_stride, ahead);
  if constexpr (NC > 2)
    decode_outputs_columns<Values, Weights, MR, NC / 2>(
        v, rows, columns, p, alpha, o, o_stride, ahead, c);
}

/// Whole pairs of vectors of columns, all queries.
template <class Values, class Weights, class Rows, class Asks>
static void decode_outputs_whole(Rows v,
                                 int rows,
                                 int columns,
                                 const float* p,
                                 const float* alpha,
                                 int count,
                                 float* o,
                                 std::int64_t o_stride,
                                 Asks& ahead) {
  by_queries(count, [&](auto queries, int g) {
    constexpr int MR = decltype(queries)::value, NC = decode_registers / MR;
    decode_outputs_columns < Values, Weights, MR,
        NC<Values::most ? NC : Values::most>(
            v, rows, columns, p + g * Weights::query, alpha + g, o + g * o_stride, o_stride, ahead);
  });
}

/// Columns that are read where they lie, two vectors at a time; the rest is widened first.
constexpr int direct_columns(int columns) { return columns / (2 * W) * (2 * W); }

template <DType T>
static void decode_outputs_of(const std::byte* const* v,
                              int rows,
                              int columns,
                              const float* p,
                              const float* alpha,
                              int count,
                              float* o,
                              std::int64_t o_stride,
                              Ahead& ahead) {
  const int direct = direct_columns(columns);
  decode_outputs_whole<WideRows<T>, WeightsByKey>(
      ListedRows{v}, rows, direct, p, alpha, count, o, o_stride, ahead);
  if (direct == columns) return;
  alignas(64) float wide[key_block][2 * W];
  const std::byte* tail[key_block];
  for (int j = 0; j < rows; ++j) {
    tail[j] = reinterpret_cast<const std::byte*>(wide[j]);
    for (int c = 0; c < 2 * W; c += W)
      store(wide[j] + c,
            direct + c < columns
                ? load_columns(T, v[j] + (direct + c) * bytes_of<T>, columns - direct - c)
                : set1(0.0f));
  }
  decode_outputs_whole<WideRows<DType::f32>, WeightsByKey>(
      ListedRows{tail}, rows, 2 * W, p, alpha, count, o + direct, o_stride, ahead);
}

template <class Weights>
static __attribute__((noinline)) void decode_softmax(float* s,
                                                     int rows,
                                                     float c,
                                                     float slack,
                                                     float* m,
                                                     float* l,
                                                     float* alpha,
                                                     int vectors,
                                                     const std::byte* const* v,
                                                     int v_bytes,
                                                     Ahead& ahead) {
  // Four lines of each row, or those there are.
  const auto last = static_cast<std::size_t>(v_bytes > 64 ? v_bytes - 64 : 0);
  const std::size_t lines[3] = {last < 64 ? last : 64, last < 128 ? last : 128, last};
  Ahead due = ahead;
  const auto beside = [&](int r) __attribute__((always_inline)) {
    for (int i = 0; v && i < 2; ++i) {
      __builtin_prefetch(v[r + i], 0, 3);
      for (const std::size_t line : lines) __builtin_prefetch(v[r + i] + line, 0, 3);
    }
    ask(due, 1);
  };
  if (vectors == 1)
    softmax_all<1, Weights>(s, rows, c, slack, m, l, alpha, s, beside);
  else
    softmax_all<2, Weights>(s, rows, c, slack, m, l, alpha, s, beside);
  ahead = due;
}

static void decode_scores(const std::byte* const* k,
                          DType dtype,
                          int first,
                          int rows,
                          int columns,
                          const float* q_t,
                          int count,
                          float,  // Q carries it
                          float* kt,
                          float* s,
                          Ahead& ahead) {
  const auto as = dtype == DType::f32    ? decode_scores_of<DType::f32>
                  : dtype == DType::bf16 ? decode_scores_of<DType::bf16>
                                         : decode_scores_of<DType::f16>;
  as(k + first, rows, columns, q_t, count, kt, s, ahead);
}

static void decode_outputs(const std::byte* const* v,
                           DType dtype,
                           int first,
                           int rows,
                           int columns,
                           const float* p,
                           const float* alpha,
                           int count,
                           float* o,
                           std::int64_t o_stride,
                           Ahead& ahead) {
  const auto as = dtype == DType::f32    ? decode_outputs_of<DType::f32>
                  : dtype == DType::bf16 ? decode_outputs_of<DType::bf16>
                                         : decode_outputs_of<DType::f16>;
  as(v + first, rows, columns, p, alpha, count, o, o_stride, ahead);
}

static void decode_lanes(
    const float* o, std::int64_t o_stride, DType dtype, int columns, int count, float* o_t) {
  for (int c = 0; c < columns; ++c) {
    const int first = c / (2 * W) * (2 * W), i = c - first;
    const bool split = dtype == DType::bf16 && c < direct_columns(columns);
    const int at = split ? first + i % 2 * W + i / 2 : c;
    for (int r = 0; r < count; ++r) o_t[c * lanes + r] = o[r * o_stride + at];
  }
}
