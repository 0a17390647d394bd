// SPDX-License-Identifier: Apache-2.0
// The backward tiles and the measuring loops. Included once, inside the namespace of an ISA.

static void weights_tile(float* s, int rows, float c, const float* lse2) {
  const vf factor = set1(c);
  for (int v = 0; v < 2; ++v) {
    const vf base = sub(set1(0.0f), load(lse2 + v * W));
    for (int r = 0; r < rows; ++r) {
      float* at = s + r * lanes + v * W;
      store(at, exp2_of(fma(load(at), factor, base)));
    }
  }
}

static void score_gradient_tile(const float* p, float* dp, int rows, const float* delta) {
  const vf zero = set1(0.0f);
  for (int v = 0; v < 2; ++v) {
    const vf d = load(delta + v * W);
    for (int r = 0; r < rows; ++r) {
      const vf w = load(p + r * lanes + v * W);
      float* at = dp + r * lanes + v * W;
      store(at, select(eq(w, zero), zero, mul(w, sub(load(at), d))));
    }
  }
}

// dK and dV: sums over queries, MR keys by NV vectors of d in registers; PS words
// lie between the coefficients of two keys. The queries of all parts
// are added in ascending order, then what was there.
constexpr int wide = W == 16 ? 4 : 2;  // vectors: 24 of 32 or 12 of 16 registers hold sums

template <class Dot, int PS, int MR, int NV>
static __attribute__((noinline)) void accumulate_keys_of(const Outer* parts,
                                                         int count,
                                                         std::int64_t first,
                                                         std::int64_t column,
                                                         std::int64_t x_stride,
                                                         float* __restrict to,
                                                         std::int64_t to_stride) {
  vf acc[MR][NV];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) acc[r][v] = set1(0.0f);
  for (int part = 0; part < count; ++part) {
    const float* __restrict p = parts[part].p + first;
    const float* __restrict x = parts[part].x + column;
    const auto step = [&](int i) __attribute__((always_inline)) {
      vf row[NV];
      for (int v = 0; v < NV; ++v) row[v] = load(x + v * W);
      for (int r = 0; r < MR; ++r) {
        const vf b = set1(p[r * PS + i]);
        for (int v = 0; v < NV; ++v) acc[r][v] = Dot::step(acc[r][v], b, row[v]);
      }
      x += x_stride;
    };
    int left = parts[part].count;
    for (; left >= 4; left -= 4, p += 4) {
      step(0);
      step(1);
      step(2);
      step(3);
    }
    for (; left > 0; --left, ++p) step(0);
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < NV; ++v) {
      float* at = to + r * to_stride + v * W;
      store(at, add(load(at), acc[r][v]));
    }
}

template <class Dot, int PS, int NV>
static void accumulate_keys_rows(const Outer* parts,
                                 int count,
                                 int rows,
                                 std::int64_t column,
                                 std::int64_t x_stride,
                                 float* to,
                                 std::int64_t to_stride) {
  static constexpr decltype(&accumulate_keys_of<Dot, PS, 1, NV>) of[] = {
      accumulate_keys_of<Dot, PS, 1, NV>,
      accumulate_keys_of<Dot, PS, 2, NV>,
      accumulate_keys_of<Dot, PS, 3, NV>,
      accumulate_keys_of<Dot, PS, 4, NV>,
      accumulate_keys_of<Dot, PS, 5, NV>,
      accumulate_keys_of<Dot, PS, 6, NV>};
  // Tiles as equal as can be: a rest of one row would start too few sums to keep the FMAs busy.
  int tiles = (rows + 5) / 6;
  for (int r = 0; tiles > 0; --tiles) {
    const int n = (rows - r + tiles - 1) / tiles;
    of[n - 1](parts,
              count,
              std::int64_t{r} * PS,
              column,
              x_stride,
              to + r * to_stride + column,
              to_stride);
    r += n;
  }
}

/// Columns outside: the slab of x stays in the first cache while all rows pass.
template <class Dot, int PS>
static void accumulate_keys_tile(const Outer* parts,
                                 int count,
                                 int rows,
                                 std::int64_t x_stride,
                                 int d,
                                 float* to,
                                 std::int64_t to_stride) {
  int c = 0;
  for (; c + wide * W <= d; c += wide * W)
    accumulate_keys_rows<Dot, PS, wide>(parts, count, rows, c, x_stride, to, to_stride);
  for (; c < d; c += 2 * W)
    accumulate_keys_rows<Dot, PS, 2>(parts, count, rows, c, x_stride, to, to_stride);
}

static void sum_lanes_tile(const float* p, int rows, int count, float* to) {
  for (int r = 0; r < rows; ++r) {
    float sum = to[r];
    for (int lane = 0; lane < count; ++lane) sum += p[r * lanes + lane];
    to[r] = sum;
  }
}

static float dot_row(const float* a, const float* b, int n) {
  vf sum = set1(0.0f);
  int i = 0;
  for (; i + W <= n; i += W) sum = fma(load(a + i), load(b + i), sum);
  float part[W], total = 0;
  store(part, sum);
  for (int lane = 0; lane < W; ++lane) total += part[lane];
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

static void exp2_array(float* x, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) store(x + i, exp2_of(load(x + i)));
  if (i == n) return;
  float part[W] = {};
  for (std::int64_t j = i; j < n; ++j) part[j - i] = x[j];
  store(part, exp2_of(load(part)));
  for (std::int64_t j = i; j < n; ++j) x[j] = part[j - i];
}

/// Independent chains, register operands only: as many FMAs as the core can start.
static __attribute__((noinline)) double fma_rounds(std::int64_t rounds) {
  constexpr int chains = W == 16 ? 16 : W == 8 ? 12 : 8;
  vf acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = set1(static_cast<float>(i));
  // The compiler must not know them: a chain that begins at 1 stays there, and it left that one
  // out.
  volatile const float factor = 0.999f, term = 0.001f;
  const vf a = set1(factor), b = set1(term);
  for (std::int64_t n = 0; n < rounds; ++n)
    for (int i = 0; i < chains; ++i) acc[i] = fma(acc[i], a, b);
  vf sum = acc[0];
  for (int i = 1; i < chains; ++i) sum = add(sum, acc[i]);
  float part[W];
  store(part, sum);
  volatile float sink = part[0];
  (void)sink;
  return 2.0 * W * chains * static_cast<double>(rounds);
}

static float read_all(const float* x, std::int64_t n) {
  vf acc[4] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
  for (std::int64_t i = 0; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; ++j) acc[j] = add(acc[j], load(x + i + j * W));
  float part[W];
  store(part, add(add(acc[0], acc[1]), add(acc[2], acc[3])));
  return part[0];
}
