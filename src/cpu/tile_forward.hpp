// SPDX-License-Identifier: Apache-2.0
// Online softmax of a tile (Milakov and Gimelshein 2018), masks and dropout. Included once, inside
// the namespace of an ISA.

/// Where the weights of two rows, or of a last one, go: those of rows stay where the scores were.
struct WeightsInRows {
  UNDIVIDED_VEC void two(float* row, float*, vf a, vf b) {
    store(row, a);
    store(row + lanes, b);
  }
  UNDIVIDED_VEC void one(float* row, float*, vf a) { store(row, a); }
};

/// m is kept in log2 units. A lane whose maximum is still -inf keeps exponent base 0, so that its
/// weights are exp2(-inf) = 0. `alpha` = exp2(old m - new m) is for the caller to scale O with. A
/// lane keeps its m while the maximum is above it by `slack` at most.
/// `beside` is called for every two rows.
template <int NV, class Weights, class F>
UNDIVIDED_VEC void softmax_all(float* s,
                               int rows,
                               float c,
                               float slack,
                               float* m,
                               float* l,
                               float* alpha,
                               float* pairs,
                               F&& beside) {
  const vf infinity = set1(-__builtin_inff()), factor = set1(c), zero = set1(0.0f);
  constexpr int chains = 4;  // a maximum waits for the one before it
  vf high[NV], part[chains][NV], base[NV], even[NV], odd[NV];
#pragma GCC unroll 4
  for (int i = 0; i < chains; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) part[i][v] = infinity;
  int row = 0;
#pragma GCC unroll 1
  for (; row + chains <= rows; row += chains)
#pragma GCC unroll 4
    for (int i = 0; i < chains; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        part[i][v] = max(part[i][v], load(s + (row + i) * lanes + v * W));
#pragma GCC unroll 1
  for (; row < rows; ++row)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) part[0][v] = max(part[0][v], load(s + row * lanes + v * W));
  for (int v = 0; v < NV; ++v)
    high[v] = max(max(part[0][v], part[1][v]), max(part[2][v], part[3][v]));
  for (int v = 0; v < NV; ++v) {
    const vf old = load(m + v * W);
    const vf found = mul(high[v], factor);
    const vf now = select(lt(add(old, set1(slack)), found), found, old);
    store(m + v * W, now);
    base[v] = select(eq(now, infinity), zero, now);
    const vf a = exp2_of(sub(old, base[v]));
    store(alpha + v * W, a);
    store(l + v * W, mul(load(l + v * W), a));
    even[v] = odd[v] = zero;
  }
  for (int v = 0; v < NV; ++v) base[v] = sub(zero, base[v]);
  int r = 0;
  for (; r + 2 <= rows; r += 2) {
    for (int v = 0; v < NV; ++v) {
      float* at = s + r * lanes + v * W;
      const vf a = exp2_of(fma(load(at), factor, base[v]));
      const vf b = exp2_of(fma(load(at + lanes), factor, base[v]));
      Weights::two(at, pairs + r / 2 * lanes + v * W, a, b);
      even[v] = add(even[v], a);
      odd[v] = add(odd[v], b);
    }
    beside(r);
  }
  if (r < rows)
    for (int v = 0; v < NV; ++v) {
      float* at = s + r * lanes + v * W;
      const vf a = exp2_of(fma(load(at), factor, base[v]));
      Weights::one(at, pairs + r / 2 * lanes + v * W, a);
      even[v] = add(even[v], a);
    }
  for (int v = 0; v < NV; ++v) store(l + v * W, add(load(l + v * W), add(even[v], odd[v])));
}

template <int NV, class Weights>
static __attribute__((noinline)) void softmax_part(
    float* s, int rows, float c, float slack, float* m, float* l, float* alpha, float* pairs) {
  softmax_all<NV, Weights>(s, rows, c, slack, m, l, alpha, pairs, [](int) {});
}

template <class Weights>
static void softmax_tile(float* s,
                         int rows,
                         float c,
                         float slack,
                         float* m,
                         float* l,
                         float* alpha,
                         int vectors,
                         float* pairs) {
  vectors == 1 ? softmax_part<1, Weights>(s, rows, c, slack, m, l, alpha, pairs)
               : softmax_part<2, Weights>(s, rows, c, slack, m, l, alpha, pairs);
}

/// What `end_of_row` gives without a sink, of all lanes. log2(l) = e + 2 log2(e) atanh(s), where
/// l = 2^e x, x is around 1 and s = (x - 1) / (x + 1); the series ends beyond double precision.
static void end_rows_tile(const float* m, const float* l, float* factor, float* lse) {
  constexpr float infinity = __builtin_inff();
  constexpr double log2_e = 1.4426950408889634, ln_2 = 0.6931471805599453;
  for (int lane = 0; lane < lanes; ++lane) {
    const float sum = l[lane];
    const auto bits = __builtin_bit_cast(std::int32_t, sum);
    const std::int32_t e = (bits - 0x3f3504f3) >> 23;  // x from sqrt(1/2) to sqrt(2)
    const double x = __builtin_bit_cast(float, bits - e * (1 << 23));
    const double s = (x - 1) / (x + 1), z = s * s;
    double series = 1.0 / 21;
    for (int k = 19; k > 0; k -= 2) series = series * z + 1.0 / k;
    const double log2 = sum < infinity ? e + 2 * log2_e * s * series : sum;
    factor[lane] = sum == 0 ? 0.0f : static_cast<float>(1 / static_cast<double>(sum));
    lse[lane] = sum == 0 ? -infinity : static_cast<float>((m[lane] + log2) * ln_2);
  }
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
