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

template <int MR>
static __attribute__((noinline)) void accumulate_rows_of(const float* __restrict p,
                                                         int count,
                                                         const float* __restrict x,
                                                         std::int64_t x_stride,
                                                         float* __restrict to,
                                                         std::int64_t to_stride) {
  vf acc[MR][2];
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < 2; ++v) acc[r][v] = load(to + r * to_stride + v * W);
  for (int lane = 0; lane < count; ++lane) {
    const vf x0 = load(x), x1 = load(x + W);
    for (int r = 0; r < MR; ++r) {
      const vf b = set1(p[r * lanes + lane]);
      acc[r][0] = fma(b, x0, acc[r][0]);
      acc[r][1] = fma(b, x1, acc[r][1]);
    }
    x += x_stride;
  }
  for (int r = 0; r < MR; ++r)
    for (int v = 0; v < 2; ++v) store(to + r * to_stride + v * W, acc[r][v]);
}

static void accumulate_rows_tile(const float* p,
                                 int rows,
                                 int count,
                                 const float* x,
                                 std::int64_t x_stride,
                                 int d,
                                 float* to,
                                 std::int64_t to_stride) {
  for (int c = 0; c < d; c += lanes) {
    int r = 0;
    for (; r + tile_rows <= rows; r += tile_rows)
      accumulate_rows_of<tile_rows>(
          p + r * lanes, count, x + c, x_stride, to + r * to_stride + c, to_stride);
    for (; r < rows; ++r)
      accumulate_rows_of<1>(
          p + r * lanes, count, x + c, x_stride, to + r * to_stride + c, to_stride);
  }
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
  const vf a = set1(0.999f), b = set1(0.001f);
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
