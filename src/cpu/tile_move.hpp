// SPDX-License-Identifier: Apache-2.0
// Copies between any dtype in rows and float32 in lanes. Included once, inside the namespace of an
// ISA.

UNDIVIDED_VEC float load_one(DType dtype, const std::byte* p) {
  if (dtype == DType::f32) return *reinterpret_cast<const float*>(p);
  const std::uint16_t bits = *reinterpret_cast<const std::uint16_t*>(p);
  if (dtype == DType::bf16) return __builtin_bit_cast(float, std::uint32_t{bits} << 16);
  std::uint16_t word[W] = {bits};
  float out[W];
  store(out, load_f16(word));
  return out[0];
}

UNDIVIDED_VEC void store_one(DType dtype, std::byte* p, float x) {
  if (dtype == DType::f32) {
    *reinterpret_cast<float*>(p) = x;
    return;
  }
  std::uint16_t word[W];
  if (dtype == DType::bf16)
    store_low16(word, bf16_bits(set1(x)));
  else
    store_f16(word, set1(x));
  *reinterpret_cast<std::uint16_t*>(p) = word[0];
}

/// One row to float32.
UNDIVIDED_VEC void widen_row(DType dtype, const std::byte* from, int columns, float* to) {
  int c = 0;
  if (dtype == DType::f32) {
    const float* p = reinterpret_cast<const float*>(from);
    for (; c + W <= columns; c += W) store(to + c, load(p + c));
    for (; c < columns; ++c) to[c] = p[c];
    return;
  }
  const std::uint16_t* p = reinterpret_cast<const std::uint16_t*>(from);
  if (dtype == DType::bf16)
    for (; c + W <= columns; c += W) store(to + c, load_bf16(p + c));
  else
    for (; c + W <= columns; c += W) store(to + c, load_f16(p + c));
  for (; c < columns; ++c) to[c] = load_one(dtype, from + 2 * c);
}

static void narrow_row(
    const float* from, float factor, DType dtype, int columns, std::byte* to, bool accumulate) {
  int c = 0;
  const vf scale = set1(factor);
  const auto value = [&](int i) { return mul(load(from + i), scale); };
  if (dtype == DType::f32) {
    float* p = reinterpret_cast<float*>(to);
    if (accumulate) {
      for (; c + W <= columns; c += W) store(p + c, add(load(p + c), value(c)));
      for (; c < columns; ++c) p[c] += from[c] * factor;
    } else {
      for (; c + W <= columns; c += W) store(p + c, value(c));
      for (; c < columns; ++c) p[c] = from[c] * factor;
    }
    return;
  }
  std::uint16_t* p = reinterpret_cast<std::uint16_t*>(to);
  if (dtype == DType::bf16)
    for (; c + W <= columns; c += W) store_low16(p + c, bf16_bits(value(c)));
  else
    for (; c + W <= columns; c += W) store_f16(p + c, value(c));
  for (; c < columns; ++c) store_one(dtype, to + 2 * c, from[c] * factor);
}

static void copy_rows_tile(const std::byte* from,
                           std::ptrdiff_t stride_bytes,
                           DType dtype,
                           std::int64_t rows,
                           int columns,
                           float* to,
                           std::int64_t to_stride,
                           int padded) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* out = to + r * to_stride;
    widen_row(dtype, from + r * stride_bytes, columns, out);
    for (int c = columns; c < padded; ++c) out[c] = 0;
  }
}

static void pack_tile(
    const std::byte* const* rows, int count, DType dtype, int columns, float scale, float* to) {
  alignas(64) float part[64];
  const int bytes = dtype == DType::f32 ? 4 : 2;
  for (int c = 0; c < columns; c += 64) {
    const int n = columns - c < 64 ? columns - c : 64;
    for (int lane = 0; lane < lanes; ++lane) {
      float* out = to + static_cast<std::int64_t>(c) * lanes + lane;
      if (lane < count) {
        widen_row(dtype, rows[lane] + c * bytes, n, part);
        for (int i = 0; i < n; ++i) out[i * lanes] = part[i] * scale;
      } else {
        for (int i = 0; i < n; ++i) out[i * lanes] = 0;
      }
    }
  }
}

static void unpack_tile(const float* from,
                        const float* factor,
                        int count,
                        DType dtype,
                        int columns,
                        std::byte* const* rows) {
  alignas(64) float part[64];
  const int bytes = dtype == DType::f32 ? 4 : 2;
  for (int c = 0; c < columns; c += 64) {
    const int n = columns - c < 64 ? columns - c : 64;
    for (int lane = 0; lane < count; ++lane) {
      const float* in = from + static_cast<std::int64_t>(c) * lanes + lane;
      const float f = factor[lane];
      // A row without keys may have met 0 * NaN; it is 0 all the same.
      for (int i = 0; i < n; ++i) part[i] = f == 0.0f ? 0.0f : in[i * lanes];
      narrow_row(part, f, dtype, n, rows[lane] + c * bytes, false);
    }
  }
}

static void store_row_tile(
    const float* from, float factor, DType dtype, int columns, std::byte* to, bool accumulate) {
  narrow_row(from, factor, dtype, columns, to, accumulate);
}
