// SPDX-License-Identifier: Apache-2.0
// The two products of a tile for few queries by dots of bf16 pairs. Included once, after
// tile_dots.hpp.
//
// Queries fill the lanes of the scores, half a vector or a whole one, and K is read by broadcast
// where it lies, which is free beside a dot. O = P V has columns in its lanes: pairs of rows of V
// are woven together, which is one shuffle for 64 bytes, and weights are read by broadcast. Sums
// run in the order of the prefill tile.

constexpr int dots_decode_rows = 16;  // queries at most

/// Do as many rows lie at equal distances?
static bool evenly_spaced(const std::byte* const* row, std::int64_t stride) {
  bool even = true;
  for (int i = 0; i < key_group; ++i) even &= row[i] == row[0] + i * stride;
  return even;
}

static KeyTile key_tile(const std::byte* const* k, int n, int words, float* copy) {
  const std::int64_t stride = n > 1 ? k[1] - k[0] : 0;
  if (n >= key_group && evenly_spaced(k, stride)) return {k[0], stride};
  return copied_keys<DType::f32>(ListedRows{k}, n, words, copy);
}

/// Sums over the lanes of half a vector; the others become 0.
struct HalfLanes {
  using Sum = __m256;
  UNDIVIDED_VEC Sum zero() { return _mm256_setzero_ps(); }
  UNDIVIDED_VEC Sum step(Sum sum, const float* q, std::int32_t word) {
    return _mm256_dpbf16_ps(sum,
                            __builtin_bit_cast(__m256bh, _mm256_loadu_ps(q)),
                            __builtin_bit_cast(__m256bh, _mm256_set1_epi32(word)));
  }
  UNDIVIDED_VEC vf whole(Sum sum) { return _mm512_zextps256_ps512(sum); }
};
struct WholeLanes {
  using Sum = vf;
  UNDIVIDED_VEC Sum zero() { return set1(0.0f); }
  UNDIVIDED_VEC Sum step(Sum sum, const float* q, std::int32_t word) {
    return PairDot::step(sum, as_f(set1i(word)), load(q));
  }
  UNDIVIDED_VEC vf whole(Sum sum) { return sum; }
};

/// Scores of 16 keys.
template <class Lanes>
static __attribute__((noinline)) void pair_decode_scores_part(
    KeyTile k, int words, const float* __restrict q_t, float scale, float* s, Ahead& ahead) {
  Ahead due = ahead;
  typename Lanes::Sum sum[key_group];
#pragma GCC unroll 16
  for (int i = 0; i < key_group; ++i) sum[i] = Lanes::zero();
  // Two bases and four distances reach all rows; the processor adds the rest.
  const std::byte *low = k.at, *high = k.at + 8 * k.stride;
  const std::int64_t one = k.stride, three = 3 * one, five = 5 * one, seven = 7 * one;
#pragma GCC unroll 1
  for (int w = 0; w < words; w += 4) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const auto word = [&](const std::byte* at) __attribute__((always_inline)) {
        std::int32_t x;
        __builtin_memcpy(&x, at + 4 * u, 4);
        return x;
      };
      const float* q = q_t + u * lanes;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const std::byte* at = half ? high : low;
        const auto add = [&](int i, const std::byte* row) __attribute__((always_inline)) {
          sum[8 * half + i] = Lanes::step(sum[8 * half + i], q, word(row));
        };
        add(0, at);
        add(1, at + one);
        add(2, at + 2 * one);
        add(3, at + three);
        add(4, at + 4 * one);
        add(5, at + five);
        add(6, at + 2 * three);
        add(7, at + seven);
      }
    }
    low += 16;
    high += 16;
    q_t += 4 * lanes;
    ask(due, 1);
  }
  const vf factor = set1(scale);
#pragma GCC unroll 16
  for (int i = 0; i < key_group; ++i) store(s + i * lanes, mul(Lanes::whole(sum[i]), factor));
  ahead = due;
}

/// Scores of 16 keys for up to 4 queries: a quarter of a vector is those of one key. Four rows come
/// with a load each, and a shuffle gives a word of all four.
static __attribute__((noinline)) void pair_decode_scores_of_four(
    KeyTile k, int words, const float* __restrict q_t, float scale, float* s, Ahead& ahead) {
  constexpr int groups = key_group / 4;
  Ahead due = ahead;
  vf sum[groups];
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) sum[g] = set1(0.0f);
  const std::byte* row[groups];
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) row[g] = k.at + 4 * g * k.stride;
  const std::int64_t one = k.stride, two = 2 * one, three = 3 * one;
#pragma GCC unroll 1
  for (int w = 0; w < words; w += 4) {
    vf q[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) q[u] = _mm512_broadcast_f32x4(_mm_loadu_ps(q_t + u * lanes));
    q_t += 4 * lanes;
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) {
      const auto four = [&](std::int64_t at) __attribute__((always_inline)) {
        return _mm_loadu_ps(reinterpret_cast<const float*>(row[g] + at));
      };
      vf x = _mm512_castps128_ps512(four(0));
      x = _mm512_mask_broadcast_f32x4(x, 0x00f0, four(one));
      x = _mm512_mask_broadcast_f32x4(x, 0x0f00, four(two));
      x = _mm512_mask_broadcast_f32x4(x, 0xf000, four(three));
      row[g] += 16;
      sum[g] = PairDot::step(sum[g], _mm512_permute_ps(x, 0x00), q[0]);
      sum[g] = PairDot::step(sum[g], _mm512_permute_ps(x, 0x55), q[1]);
      sum[g] = PairDot::step(sum[g], _mm512_permute_ps(x, 0xaa), q[2]);
      sum[g] = PairDot::step(sum[g], _mm512_permute_ps(x, 0xff), q[3]);
    }
    ask(due, 1);
  }
  const vf factor = set1(scale);
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) {
    const vf x = mul(sum[g], factor);
    float* to = s + 4 * g * lanes;
    const auto put = [&](int i, __m128 part) __attribute__((always_inline)) {
      store(to + i * lanes, _mm512_zextps128_ps512(part));
    };
    put(0, _mm512_castps512_ps128(x));
    put(1, _mm512_extractf32x4_ps(x, 1));
    put(2, _mm512_extractf32x4_ps(x, 2));
    put(3, _mm512_extractf32x4_ps(x, 3));
  }
  ahead = due;
}

static void pair_decode_scores(const std::byte* const* k,
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
  const auto part = count > W / 2 ? pair_decode_scores_part<WholeLanes>
                    : count > 4   ? pair_decode_scores_part<HalfLanes>
                                  : pair_decode_scores_of_four;
  for (int r = 0; r < rows; r += key_group)
    part(key_tile(k + first + r, rows - r, columns / 2, copy),
         columns / 2,
         q_t,
         scale,
         s + r * lanes,
         ahead);
}

/// Of 32 columns of O: those that one shuffle leaves together lie together.
constexpr int plain_column(int i) { return i / 4 % 4 * 8 + i / 16 * 4 + i % 4; }

/// Two rows of V, woven: what pairs of weights multiply. An odd last row is paired with 0.
struct WovenRows {
  using Dot = PairDot;
  static constexpr int rows = 2, bytes = 2, most = 8;
  template <int NC, class Rows>
  UNDIVIDED_VEC void get(Rows v, int i, std::int64_t offset, bool whole, vf* x) {
#pragma GCC unroll 8
    for (int c = 0; c < NC; c += 2) {
      const __m512i a = _mm512_loadu_si512(v[i] + offset + c * W * bytes);
      const __m512i b = whole ? _mm512_loadu_si512(v[i + 1] + offset + c * W * bytes) : set1i(0);
      x[c] = as_f(_mm512_unpacklo_epi16(a, b));
      x[c + 1] = as_f(_mm512_unpackhi_epi16(a, b));
    }
  }
};

static void pair_decode_outputs(const std::byte* const* v,
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
  decode_outputs_whole<WovenRows, WeightsByKey>(
      ListedRows{v + first}, rows, columns, p, alpha, count, o, o_stride, ahead);
}

static void pair_decode_lanes(
    const float* o, std::int64_t o_stride, DType, int columns, int count, float* o_t) {
  for (int r = 0; r < count; r += W)
    for (int c = 0; c < columns; c += W) {
      vf a[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) a[i] = load(o + (r + i) * o_stride + c);
      transpose(a);
      float* to = o_t + c / (2 * W) * (2 * W) * lanes + r;
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + plain_column(c % (2 * W) + i) * lanes, a[i]);
    }
}

/// Weights of neighbouring keys are the pairs.
struct RowOfPairs {
  UNDIVIDED_VEC void put(float* p, int key, vf a) {
    const vi rounded = shr_logical(addi(as_i(a), set1i(0x8000)), 16);
    store_low16(reinterpret_cast<std::uint16_t*>(p) + key, rounded);
  }
};
static void pair_row_tile(const RowTile& t) {
  row_tile_of<DType::f32, PairDot, RowOfPairs, WovenRows>(t, t.dqk / 2);
}

static constexpr DecodeProducts pair_decode = {dots_decode_rows,
                                               decode_softmax<WeightsInPairs>,
                                               pair_decode_scores,
                                               nullptr,
                                               pair_decode_outputs,
                                               pair_row_tile,
                                               row_tile_most,
                                               row_queries,
                                               pair_decode_lanes};

static const Dots dots = {
    {scores_tile<PairDot>, accumulate_tile<PairDot>, scores_tile_of_two<PairDot>},
    nullptr,
    &pair_decode,
    nullptr,
    nullptr,
    nullptr,
    softmax_tile<WeightsInPairs>,
    pair_rows_tile,
    pack_block_words,
    pack_row_pairs_tile,
    nullptr,
    pair_lanes_tile,
    pair_queries_tile,
    accumulate_keys_tile<PairDot, W>,
    unpack_pairs_tile,
    pair_rounds,
};
