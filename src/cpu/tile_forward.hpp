// SPDX-License-Identifier: Apache-2.0
// The forward tiles. Included once, inside the namespace of an ISA.
//
// S^T = K Q^T with queries in lanes (Milakov and Gimelshein 2018 for the online softmax): K and V
// are read by broadcast, so every reduction is lane by lane. Each score sums d in ascending order
// and each output sums keys in ascending order, whatever the tile: bits do not depend on
// neighbours.

template <int MR, int NV>
static __attribute__((noinline)) void scores_rows(const float* __restrict k,
                                                  std::int64_t stride,
                                                  int d,
                                                  const float* __restrict q_t,
                                                  float* __restrict s) {
  vf acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = set1(0.0f);
  const float* row[MR];
  for (int r = 0; r < MR; ++r) row[r] = k + r * stride;
  for (std::int64_t i = 0; i < d; ++i) {
    vf q[NV];
    for (int v = 0; v < NV; ++v) q[v] = load(q_t + i * lanes + v * W);
    for (int r = 0; r < MR; ++r) {
      const vf b = set1(row[r][i]);
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(b, q[v], acc[r][v]);
    }
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) store(s + r * lanes + v * W, acc[r][v]);
}

template <int NV>
static void scores_all(
    const float* k, std::int64_t stride, int rows, int d, const float* q_t, float* s) {
  int r = 0;
  for (; r + tile_rows <= rows; r += tile_rows)
    scores_rows<tile_rows, NV>(k + r * stride, stride, d, q_t, s + r * lanes);
  for (; r + 2 <= rows; r += 2) scores_rows<2, NV>(k + r * stride, stride, d, q_t, s + r * lanes);
  for (; r < rows; ++r) scores_rows<1, NV>(k + r * stride, stride, d, q_t, s + r * lanes);
}

static void scores_tile(
    const float* k, std::int64_t stride, int rows, int d, const float* q_t, float* s, int vectors) {
  vectors == 1 ? scores_all<1>(k, stride, rows, d, q_t, s)
               : scores_all<2>(k, stride, rows, d, q_t, s);
}

template <int MR, int NV>
static __attribute__((noinline)) void accumulate_columns(const float* __restrict v,
                                                         std::int64_t stride,
                                                         int rows,
                                                         const float* __restrict p,
                                                         float* __restrict o_t) {
  vf acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int x = 0; x < NV; ++x) acc[r][x] = load(o_t + r * lanes + x * W);
  for (int j = 0; j < rows; ++j) {
    vf w[NV];
    for (int x = 0; x < NV; ++x) w[x] = load(p + j * lanes + x * W);
    for (int r = 0; r < MR; ++r) {
      const vf b = set1(v[r]);
      for (int x = 0; x < NV; ++x) acc[r][x] = fma(b, w[x], acc[r][x]);
    }
    v += stride;
  }
  for (int r = 0; r < MR; ++r)
    for (int x = 0; x < NV; ++x) store(o_t + r * lanes + x * W, acc[r][x]);
}

template <int NV>
static void accumulate_all(
    const float* v, std::int64_t stride, int rows, int dv, const float* p, float* o_t) {
  int c = 0;
  for (; c + tile_rows <= dv; c += tile_rows)
    accumulate_columns<tile_rows, NV>(v + c, stride, rows, p, o_t + c * lanes);
  for (; c + 2 <= dv; c += 2) accumulate_columns<2, NV>(v + c, stride, rows, p, o_t + c * lanes);
  for (; c < dv; ++c) accumulate_columns<1, NV>(v + c, stride, rows, p, o_t + c * lanes);
}

static void accumulate_tile(const float* v,
                            std::int64_t stride,
                            int rows,
                            int dv,
                            const float* p,
                            float* o_t,
                            int vectors) {
  vectors == 1 ? accumulate_all<1>(v, stride, rows, dv, p, o_t)
               : accumulate_all<2>(v, stride, rows, dv, p, o_t);
}

/// m is kept in log2 units. A lane whose maximum is still -inf keeps exponent base 0, so that its
/// weights are exp2(-inf) = 0. A rescale by exp2(0) = 1 changes no bit, hence one test for all.
template <int NV>
static __attribute__((noinline)) void softmax_all(
    float* s, int rows, float c, float* m, float* l, float* o_t, int dv) {
  const vf infinity = set1(-__builtin_inff()), factor = set1(c), zero = set1(0.0f);
  vf high[NV], base[NV], even[NV], odd[NV];
  bool rose = false;
  for (int v = 0; v < NV; ++v) high[v] = infinity;
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < NV; ++v) high[v] = max(high[v], load(s + r * lanes + v * W));
  for (int v = 0; v < NV; ++v) {
    const vf old = load(m + v * W);
    const vf now = max(old, mul(high[v], factor));
    high[v] = old;
    store(m + v * W, now);
    base[v] = select(eq(now, infinity), zero, now);
    rose |= any(ne(old, now));
    even[v] = odd[v] = zero;
  }
  if (rose) {
    vf alpha[NV];
    for (int v = 0; v < NV; ++v) {
      alpha[v] = exp2_of(sub(high[v], base[v]));
      store(l + v * W, mul(load(l + v * W), alpha[v]));
    }
    for (int i = 0; i < dv; ++i)
      for (int v = 0; v < NV; ++v) {
        float* at = o_t + i * lanes + v * W;
        store(at, mul(load(at), alpha[v]));
      }
  }
  for (int v = 0; v < NV; ++v) base[v] = sub(zero, base[v]);
  int r = 0;
  for (; r + 2 <= rows; r += 2)
    for (int v = 0; v < NV; ++v) {
      float* at = s + r * lanes + v * W;
      const vf a = exp2_of(fma(load(at), factor, base[v]));
      const vf b = exp2_of(fma(load(at + lanes), factor, base[v]));
      store(at, a);
      store(at + lanes, b);
      even[v] = add(even[v], a);
      odd[v] = add(odd[v], b);
    }
  if (r < rows)
    for (int v = 0; v < NV; ++v) {
      float* at = s + r * lanes + v * W;
      const vf a = exp2_of(fma(load(at), factor, base[v]));
      store(at, a);
      even[v] = add(even[v], a);
    }
  for (int v = 0; v < NV; ++v) store(l + v * W, add(load(l + v * W), add(even[v], odd[v])));
}

static void softmax_tile(
    float* s, int rows, float c, float* m, float* l, float* o_t, int dv, int vectors) {
  vectors == 1 ? softmax_all<1>(s, rows, c, m, l, o_t, dv)
               : softmax_all<2>(s, rows, c, m, l, o_t, dv);
}

static void mask_band_tile(
    float* s, int rows, int first, const std::int32_t* low, const std::int32_t* high) {
  const vf infinity = set1(-__builtin_inff());
  for (int v = 0; v < 2; ++v) {
    const vi l = loadi(low + v * W), h = loadi(high + v * W);
    for (int r = 0; r < rows; ++r) {
      const vi j = set1i(first + r);
      float* at = s + r * lanes + v * W;
      store(at, select(either(lti(j, l), lti(h, j)), infinity, load(at)));
    }
  }
}

static void mask_bits_tile(float* s, int rows, const std::uint64_t* words, int shift) {
  const vf infinity = set1(-__builtin_inff());
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 2; ++v) {
      float* at = s + r * lanes + v * W;
      const auto word = static_cast<std::uint32_t>(words[r] >> (shift + v * W));
      store(at, select(from_word(word), load(at), infinity));
    }
}

/// Philox4x32-10 over lanes (Salmon et al. 2011): one call serves four consecutive key positions.
static void drop_tile(float* p, int rows, const DropoutTile& at) {
  const vi c0 = set1i(static_cast<std::int32_t>(0xD2511F53u));
  const vi c1 = set1i(static_cast<std::int32_t>(0xCD9E8D57u));
  const vi threshold = set1i(static_cast<std::int32_t>(at.threshold));
  const vf scale = set1(at.keep_scale), zero = set1(0.0f);
  for (int v = 0; v < 2; ++v) {
    const vi q = loadi(at.q + v * W), head = loadi(at.head + v * W);
    vi word[4];
    for (int r = 0; r < rows; ++r) {
      const std::uint32_t k = at.k + static_cast<std::uint32_t>(r);
      if (r == 0 || (k & 3u) == 0) {
        vi a = set1i(static_cast<std::int32_t>(k >> 2)), b = q, c = head;
        vi d = set1i(static_cast<std::int32_t>(at.batch));
        std::uint32_t key0 = at.key0, key1 = at.key1;
        for (int round = 0; round < 10; ++round) {
          vi high0, low0, high1, low1;
          mul_wide(a, c0, high0, low0);
          mul_wide(c, c1, high1, low1);
          a = xori(xori(high1, b), set1i(static_cast<std::int32_t>(key0)));
          c = xori(xori(high0, d), set1i(static_cast<std::int32_t>(key1)));
          b = low1;
          d = low0;
          key0 += 0x9E3779B9u;
          key1 += 0xBB67AE85u;
        }
        word[0] = a, word[1] = b, word[2] = c, word[3] = d;
      }
      float* x = p + r * lanes + v * W;
      store(x, select(ltu(word[k & 3u], threshold), zero, mul(load(x), scale)));
    }
  }
}
