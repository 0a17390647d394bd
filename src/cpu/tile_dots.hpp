// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit pairs. Included once, inside the namespace of an ISA that has the bf16 dot.

/// A word is two bf16. The upper product is added first, then the lower; each sum is rounded to
/// nearest even, and subnormal operands and results count as 0.
struct PairDot {
  UNDIVIDED_VEC vf step(vf sum, vf word, vf lanes_of) {
    const auto pairs = [](vf x) { return __builtin_bit_cast(__m512bh, x); };
    return _mm512_dpbf16_ps(sum, pairs(lanes_of), pairs(word));
  }
};

/// Two rows become one of pairs, rounded to nearest, ties to even.
UNDIVIDED_VEC vf paired(vf low, vf high) {
  alignas(64) static constexpr std::uint16_t order[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both_rows = __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(high, low));
  return as_f(_mm512_permutexvar_epi16(_mm512_load_si512(order), both_rows));
}
/// The same rounded upwards where both neighbours are as near, in half the time. For weights: a NaN
/// of all ones becomes 0, but O has it through the sum of its row. Gradients keep theirs above.
UNDIVIDED_VEC vf paired_weights(vf low, vf high) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i a = _mm512_add_epi32(as_i(low), half), b = _mm512_add_epi32(as_i(high), half);
  return as_f(_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a, 16), b));
}
struct WeightsInPairs {
  UNDIVIDED_VEC void two(float*, float* pair, vf a, vf b) { store(pair, paired_weights(a, b)); }
  UNDIVIDED_VEC void one(float*, float* pair, vf a) { store(pair, paired_weights(a, set1(0.0f))); }
};

/// Two neighbouring rows become one of pairs; an odd last row gets 0.
static void pair_rows_tile(float* p, int rows, int vectors) {
  for (int r = 0; r < rows; r += 2)
    for (int v = 0; v < vectors; ++v) {
      const float* from = p + r * lanes + v * W;
      const vf high = r + 1 < rows ? load(from + lanes) : set1(0.0f);
      store(p + r / 2 * lanes + v * W, paired(load(from), high));
    }
}

/// 16 of `n` 16-bit values, each in a word of its own; those past the end are 0.
UNDIVIDED_VEC vi wide_words(const std::byte* from, int n) {
  alignas(32) std::uint16_t part[W] = {};
  const void* at = from;
  if (n < W) {
    if (n > 0) __builtin_memcpy(part, at, static_cast<std::size_t>(n) * 2);
    at = part;
  }
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
}

static void pack_row_pairs_tile(const std::byte* const* rows, int count, int columns, float* to) {
  const int whole = whole_blocks(columns);
  for (int r = 0; r < count; r += 2)
    for (int c = 0; c < whole; c += W) {
      const vi low = wide_words(rows[r] + 2 * c, columns - c);
      const vi high = r + 1 < count ? wide_words(rows[r + 1] + 2 * c, columns - c) : set1i(0);
      store_blocks(block_at(to, r / 2, c),
                   block_column,
                   whole - c,
                   as_f(ori(low, _mm512_slli_epi32(high, 16))));
    }
}

static void pair_lanes_tile(const float* p, int rows, float* to) {
  for (int r = 0; r < rows; ++r, p += lanes, to += W)
    store(to, __builtin_bit_cast(vf, _mm512_cvtne2ps_pbh(load(p + W), load(p))));
}

static void pair_queries_tile(
    const std::byte* const* rows, int count, int columns, float* to, std::int64_t to_stride) {
  for (int r = 0; r < count; r += 2, to += to_stride)
    for (int c = 0; c < to_stride; c += W) {
      const auto half = [&](int row) {
        return row < count ? wide_words(rows[row] + 2 * c, columns - c) : set1i(0);
      };
      store(to + c, as_f(ori(half(r), _mm512_slli_epi32(half(r + 1), 16))));
    }
}

/// Columns in pairs before rows and lanes change places: half as many to move, and whole lines.
static void unpack_pairs_tile(const float* from,
                              const float* factor,
                              int count,
                              DType dtype,
                              int columns,
                              std::byte* const* rows,
                              Write how) {
  if (dtype != DType::bf16 || columns % (2 * W) != 0)
    return unpack_tile(from, factor, count, dtype, columns, rows, how);
  const vf zero = set1(0.0f);
  for (int first = 0; first < count; first += W) {
    const vf f = load(factor + first);
    const vm none = eq(f, zero);
    for (int c = 0; c < columns; c += 2 * W) {
      const auto column = [&](int i) {
        return select(none, zero, mul(load(from + (c + i) * lanes + first), f));
      };
      vf a[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) a[i] = paired(column(2 * i), column(2 * i + 1));
      transpose(a);
#pragma GCC unroll 16
      for (int x = 0; x < W; ++x)
        if (first + x < count) store(reinterpret_cast<float*>(rows[first + x] + 2 * c), a[x]);
    }
  }
}

static __attribute__((noinline)) double pair_rounds(std::int64_t rounds) {
  constexpr int chains = 16;
  vf acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = set1(static_cast<float>(i));
  vf a = as_f(set1i(0x3f803f80)), b = as_f(set1i(0x3c003c00));  // pairs of 1 and of 1 / 128
  __asm__ volatile("" : "+v"(a), "+v"(b));
  for (std::int64_t n = 0; n < rounds; ++n)
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) acc[i] = PairDot::step(acc[i], a, b);
  vf sum = acc[0];
  for (int i = 1; i < chains; ++i) sum = add(sum, acc[i]);
  float part[W];
  store(part, sum);
  volatile float sink = part[0];
  (void)sink;
  return 4.0 * W * chains * static_cast<double>(rounds);
}
