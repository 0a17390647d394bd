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
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[r][v] = mul(acc[r][v], factor);
  }
};

template <class Dot, int NV, class Sums>
static __attribute__((noinline)) void block_scores(const float* __restrict k,
                                                   int blocks,
                                                   const float* __restrict q_t,
                                                   Sums sums,
                                                   float* __restrict s) {
  constexpr int MR = tile_rows;
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[r][v] = Sums::begin(sums, r);
#pragma GCC unroll 1
  for (int b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int u = 0; u < block_edge; ++u) {
      vf q[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) q[v] = load(q_t + u * lanes + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const vf word = set1(k[r * block_edge + u]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[r][v] = Dot::step(acc[r][v], word, q[v]);
      }
    }
    k += block_column;
    q_t += block_edge * lanes;
  }
  Sums::end(sums, acc);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(s + r * lanes + v * W, acc[r][v]);
}

template <class Dot, int NV>
static __attribute__((noinline)) void block_outputs(const float* __restrict v,
                                                    int first,
                                                    int end,
                                                    const float* __restrict p,
                                                    const float* __restrict alpha,
                                                    float* __restrict o_t) {
  constexpr int MR = tile_rows;
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
      const vf word = set1(v[u * block_edge + r]);
#pragma GCC unroll 2
      for (int x = 0; x < NV; ++x) acc[r][x] = Dot::step(acc[r][x], word, w[x]);
    }
  };
  int j = first;
#pragma GCC unroll 1
  for (; j + block_edge <= end; j += block_edge) {
#pragma GCC unroll 8
    for (int u = 0; u < block_edge; ++u) step(u);
    v += block_edge * block_edge;
    p += block_edge * lanes;
  }
#pragma GCC unroll 1
  for (; j < end; ++j) {
    step(0);
    v += block_edge;
    p += lanes;
  }
  vf a[NV];
#pragma GCC unroll 2
  for (int x = 0; x < NV; ++x) a[x] = load(alpha + x * W);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
    for (int x = 0; x < NV; ++x) {
      float* at = o_t + r * lanes + x * W;
      store(at, fma(load(at), a[x], acc[r][x]));
    }
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
  for (int r = 0; r < rows; r += tile_rows, k += tile_rows * block_edge, s += tile_rows * lanes)
    vectors == 1 ? block_scores<Dot, 1>(k, blocks, q_t, ScaledSums{scale}, s)
                 : block_scores<Dot, 2>(k, blocks, q_t, ScaledSums{scale}, s);
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
  for (int c = 0; c < columns; c += tile_rows, o_t += tile_rows * lanes) {
    const float* at = v + c / block_edge * block_column + c % block_edge;
    vectors == 1 ? block_outputs<Dot, 1>(at, first, first + rows, p, alpha, o_t)
                 : block_outputs<Dot, 2>(at, first, first + rows, p, alpha, o_t);
  }
}
