// SPDX-License-Identifier: Apache-2.0
// The two products of a tile over packed blocks. Included once, inside the namespace of an ISA.
//
// S^T = K Q^T with queries in lanes: K and V are read by broadcast, so every reduction is lane by
// lane. Each score sums its words in ascending order; each output sums the rows of one tile in
// ascending order and adds the sum to alpha times what it held. Whatever the tile, bits do not
// depend on neighbours.
//
// A block is 8 rows x 8 words, so one pointer and constant offsets reach all operands of eight
// steps: integer instructions would take the ports of the multiplications.

template <int N>
struct Count {
  static constexpr int value = N;
};

/// Calls body(Count<rows>, first row) for tiles of `n` rows, which a whole block may round up. What
/// does not divide a block ends with smaller tiles.
template <class F>
UNDIVIDED_VEC void by_tile_rows(int n, F&& body) {
  static_assert(block_edge % tile_rows == 0 || tile_rows == 6);
  int r = 0;
  if constexpr (block_edge % tile_rows == 0) {
    for (; r < n; r += tile_rows) body(Count<tile_rows>(), r);
  } else {
    for (; n - r > 4; r += tile_rows) body(Count<tile_rows>(), r);
    if (n - r > 2)
      body(Count<4>(), r);
    else if (n > r)
      body(Count<2>(), r);
  }
}

/// Steps without a branch. Where the sums leave few registers, operands of eight steps, which the
/// compiler loads early, do not all find one.
constexpr int steps = tile_rows == 6 ? 4 : block_edge;

/// A word is one float32.
struct FloatDot {
  UNDIVIDED_VEC vf step(vf sum, vf word, vf lanes_of) { return fma(word, lanes_of, sum); }
};

/// Sums begin at 0 and end times a scale.
struct ScaledSums {
  float scale;
  UNDIVIDED_VEC vf begin(const ScaledSums&, int) { return set1(0.0f); }
  template <int MR, int NV>
  UNDIVIDED_VEC void end(const ScaledSums& at, vf (&acc)[MR][NV]) {
    if (at.scale == 1.0f) return;
    const vf factor = set1(at.scale);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = mul(acc[r][v], factor);
  }
};

/// MR rows by NV vectors of lanes, two vectors to a sub-block; the second sub-block, if there is
/// one, lies `q_apart` and `s_apart` floats after the first.
template <class Dot, int MR, int NV, class Sums>
static __attribute__((noinline)) void block_scores(const float* __restrict k,
                                                   int blocks,
                                                   const float* __restrict q_t,
                                                   Sums sums,
                                                   float* __restrict s,
                                                   std::int64_t q_apart = 0,
                                                   std::int64_t s_apart = 0) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Sums::begin(sums, r);
#pragma GCC unroll 1
  for (int b = 0; b < blocks; ++b) {
#pragma GCC unroll 1
    for (int done = 0; done < block_edge; done += steps) {
#pragma GCC unroll 8
      for (int u = 0; u < steps; ++u) {
        vf q[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) q[v] = load(q_t + u * lanes + v % 2 * W + v / 2 * q_apart);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
          const vf word = set1(k[r * block_edge + u]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] = Dot::step(acc[r][v], word, q[v]);
        }
      }
      k += steps;
      q_t += steps * lanes;
    }
    k += block_column - block_edge;
  }
  Sums::end(sums, acc);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(s + r * lanes + v % 2 * W + v / 2 * s_apart, acc[r][v]);
}

/// MR columns, the first `Before` of them in one column of blocks and the others in the next.
template <class Dot, int MR, int Before, int NV>
static __attribute__((noinline)) void block_outputs(const float* __restrict v,
                                                    int first,
                                                    int end,
                                                    const float* __restrict p,
                                                    const float* __restrict alpha,
                                                    float* __restrict o_t) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int x = 0; x < NV; ++x) acc[r][x] = set1(0.0f);
  v += first * block_edge;
  const auto step = [&](int u) __attribute__((always_inline)) {
    vf w[NV];
#pragma GCC unroll 2
    for (int x = 0; x < NV; ++x) w[x] = load(p + u * lanes + x * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf word = set1(v[u * block_edge + r + (r < Before ? 0 : block_column - block_edge)]);
#pragma GCC unroll 2
      for (int x = 0; x < NV; ++x) acc[r][x] = Dot::step(acc[r][x], word, w[x]);
    }
  };
  int j = first;
#pragma GCC unroll 1
  for (; j + steps <= end; j += steps) {
#pragma GCC unroll 8
    for (int u = 0; u < steps; ++u) step(u);
    v += steps * block_edge;
    p += steps * lanes;
  }
#pragma GCC unroll 1
  for (; j < end; ++j) {
    step(0);
    v += block_edge;
    p += lanes;
  }
  if (!alpha) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
      for (int x = 0; x < NV; ++x) store(o_t + r * lanes + x * W, acc[r][x]);
    return;
  }
  vf a[NV];
  bool ones = true;
#pragma GCC unroll 2
  for (int x = 0; x < NV; ++x) {
    a[x] = load(alpha + x * W);
    ones &= !any(ne(a[x], set1(1.0f)));
  }
  const auto follow = [&](auto&& scaled) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
      for (int x = 0; x < NV; ++x) {
        float* at = o_t + r * lanes + x * W;
        store(at, scaled(load(at), a[x], acc[r][x]));
      }
  };
  // Mostly m stayed. Sums leave the units that multiply to the next tile, and have the same bits.
  if (ones)
    follow([](vf o, vf, vf sum) __attribute__((always_inline)) { return add(o, sum); });
  else
    follow([](vf o, vf by, vf sum) __attribute__((always_inline)) { return fma(o, by, sum); });
}

template <class Dot>
static void scores_tile(const float* k,
                        int first,
                        int rows,
                        int words,
                        const float* q_t,
                        float scale,
                        float* s,
                        int vectors) {
  const int blocks = (words + block_edge - 1) / block_edge;
  k += first * block_edge;
  by_tile_rows(rows, [&](auto count, int r) {
    constexpr int MR = decltype(count)::value;
    const float* from = k + r * block_edge;
    float* to = s + r * lanes;
    vectors == 1 ? block_scores<Dot, MR, 1>(from, blocks, q_t, ScaledSums{scale}, to)
                 : block_scores<Dot, MR, 2>(from, blocks, q_t, ScaledSums{scale}, to);
  });
}

/// 4 rows x 4 vectors read 8 operands for 16 products, where 8 x 2 read 10.
template <class Dot>
static void scores_tile_of_two(const float* k,
                               int first,
                               int rows,
                               int words,
                               const float* q_t,
                               std::int64_t q_apart,
                               float scale,
                               float* s,
                               std::int64_t s_apart) {
  constexpr int MR = 4;
  const int blocks = (words + block_edge - 1) / block_edge;
  k += first * block_edge;
  for (int r = 0; r < rows; r += MR, k += MR * block_edge, s += MR * lanes)
    block_scores<Dot, MR, 4>(k, blocks, q_t, ScaledSums{scale}, s, q_apart, s_apart);
}

/// Where there are registers for it.
template <class Dot, bool Enough>
constexpr auto scores_of_two() {
  if constexpr (Enough)
    return &scores_tile_of_two<Dot>;
  else
    return nullptr;
}

template <class Dot>
static void accumulate_tile(const float* v,
                            int first,
                            int rows,
                            int columns,
                            const float* p,
                            const float* alpha,
                            float* o_t,
                            int vectors) {
  by_tile_rows(columns, [&](auto count, int c) {
    constexpr int MR = decltype(count)::value;
    const float* at = v + c / block_edge * block_column + c % block_edge;
    float* to = o_t + c * lanes;
    const auto part = [&](auto before) {
      constexpr int Before = decltype(before)::value;
      vectors == 1 ? block_outputs<Dot, MR, Before, 1>(at, first, first + rows, p, alpha, to)
                   : block_outputs<Dot, MR, Before, 2>(at, first, first + rows, p, alpha, to);
    };
    if constexpr (block_edge % tile_rows == 0)
      part(count);
    else
      switch (block_edge - c % block_edge) {
        case 2:
          return part(Count<2>());
        case 4:
          return part(Count<4>());
        default:
          return part(count);
      }
  });
}
