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

/// May whole vectors of this row go past the caches?
UNDIVIDED_VEC bool goes_past(Write how, const std::byte* to) {
  return how == Write::past && reinterpret_cast<std::uintptr_t>(to) % (4 * W) == 0;
}

static void narrow_row(
    const float* from, float factor, DType dtype, int columns, std::byte* to, Write how) {
  int c = 0;
  const vf scale = set1(factor);
  const auto value = [&](int i) { return mul(load(from + i), scale); };
  if (dtype == DType::f32) {
    float* p = reinterpret_cast<float*>(to);
    if (how == Write::add) {
      for (; c + W <= columns; c += W) store(p + c, add(load(p + c), value(c)));
      for (; c < columns; ++c) p[c] += from[c] * factor;
    } else {
      if (goes_past(how, to))
        for (; c + W <= columns; c += W) stream(p + c, value(c));
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

static void clear_tile(std::byte* to, std::int64_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % 64 == 0)
    for (; bytes >= 64; bytes -= 64, to += 64) clear_line(reinterpret_cast<float*>(to));
  if (bytes > 0) __builtin_memset(to, 0, static_cast<std::size_t>(bytes));
}

/// W columns of a row as float32, zero beyond `n` of them.
UNDIVIDED_VEC vf load_columns(DType dtype, const std::byte* from, int n) {
  if (n <= 0) return set1(0.0f);
  if (dtype == DType::f32) {
    if (n >= W) return load(reinterpret_cast<const float*>(from));
    float part[W] = {};
    __builtin_memcpy(part, from, static_cast<std::size_t>(n) * 4);
    return load(part);
  }
  std::uint16_t part[W] = {};
  const std::uint16_t* p = reinterpret_cast<const std::uint16_t*>(from);
  if (n < W) {
    __builtin_memcpy(part, from, static_cast<std::size_t>(n) * 2);
    p = part;
  }
  return dtype == DType::bf16 ? load_bf16(p) : load_f16(p);
}

/// W words of a row of `bytes` bytes as they are, zero beyond its end.
UNDIVIDED_VEC vf load_words(const std::byte* from, int bytes) {
  if (bytes <= 0) return set1(0.0f);
  if (bytes >= 4 * W) return load(reinterpret_cast<const float*>(from));
  float part[W] = {};
  __builtin_memcpy(part, from, static_cast<std::size_t>(bytes));
  return load(part);
}

/// Rows in lanes: W columns at a time, `row(lane, column)` gives W columns of a row. Where `rows`
/// are given, whole ones are words as they lie.
template <class F>
UNDIVIDED_VEC void pack_lanes(
    int count, int columns, float* to, const std::byte* const* rows, int whole, F&& row) {
  const int end = whole_blocks(columns);
  for (int v = 0; v < 2; ++v)
    for (int c = 0; c < end; c += W) {
      vf a[W];
      if (rows && (v + 1) * W <= count && c + W <= whole) {
        load_transposed(rows + v * W, 4 * c, a);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) a[i] = v * W + i < count ? row(v * W + i, c) : set1(0.0f);
        transpose(a);
      }
      const int n = end - c < W ? end - c : W;
      for (int i = 0; i < n; ++i) store(to + (c + i) * lanes + v * W, a[i]);
    }
}

static void pack_tile(
    const std::byte* const* rows, int count, DType dtype, int columns, float scale, float* to) {
  const vf factor = set1(scale);
  const int bytes = dtype == DType::f32 ? 4 : 2;
  pack_lanes(count, columns, to, nullptr, 0, [&](int lane, int c) {
    return mul(load_columns(dtype, rows[lane] + c * bytes, columns - c), factor);
  });
}

static void pack_words_tile(const std::byte* const* rows, int count, int bytes, float* to) {
  pack_lanes(count, (bytes + 3) / 4, to, rows, bytes / 4, [&](int lane, int c) {
    return load_words(rows[lane] + c * 4, bytes - c * 4);
  });
}

/// Where the word at row `r`, column `c` of packed rows is.
UNDIVIDED_VEC float* block_at(float* to, int r, int c) {
  return to + c / block_edge * block_column + r * block_edge + c % block_edge;
}

/// Whole vectors have a loop of their own: with the questions for dtypes and ends in it, a vector
/// took 4 to 6 cycles, depending on where the code lay.
template <DType T>
UNDIVIDED_VEC void pack_block_rows_of(const std::byte* const* rows,
                                      int count,
                                      int columns,
                                      float* to) {
  constexpr int bytes = T == DType::f32 ? 4 : 2;
  for (int r = 0; r < count; ++r) {
    const auto pack = [&](int c, int n) __attribute__((always_inline)) {
      store_blocks(block_at(to, r, c), block_column, n, load_columns(T, rows[r] + c * bytes, n));
    };
    int c = 0;
#pragma GCC unroll 2
    for (; c + W <= columns; c += W) pack(c, W);
    for (; c < whole_blocks(columns); c += W) pack(c, columns - c);
  }
}

static void pack_block_rows(
    const std::byte* const* rows, int count, DType dtype, int columns, float* to) {
  if (dtype == DType::f32) return pack_block_rows_of<DType::f32>(rows, count, columns, to);
  if (dtype == DType::bf16) return pack_block_rows_of<DType::bf16>(rows, count, columns, to);
  pack_block_rows_of<DType::f16>(rows, count, columns, to);
}

static void pack_block_words(
    const std::byte* const* rows, int first, int count, int bytes, float* to) {
  const int words = (bytes + 3) / 4;
  for (int r = 0; r < count; ++r)
    for (int c = 0; c < whole_blocks(words); c += W)
      store_blocks(block_at(to, first + r, c),
                   block_column,
                   words - c,
                   load_words(rows[r] + c * 4, bytes - c * 4));
}

static void unpack_tile(const float* from,
                        const float* factor,
                        int count,
                        DType dtype,
                        int columns,
                        std::byte* const* rows,
                        Write how) {
  const int bytes = dtype == DType::f32 ? 4 : 2;
  const auto put = [&](std::byte* to, vf x, int n) {
    if (n < W) {
      float part[W];
      store(part, x);
      return narrow_row(part, 1.0f, dtype, n, to, Write::over);
    }
    if (dtype == DType::f32 && goes_past(how, to))
      stream(reinterpret_cast<float*>(to), x);
    else if (dtype == DType::f32)
      store(reinterpret_cast<float*>(to), x);
    else if (dtype == DType::bf16)
      store_low16(reinterpret_cast<std::uint16_t*>(to), bf16_bits(x));
    else
      store_f16(reinterpret_cast<std::uint16_t*>(to), x);
  };
  for (int first = 0; first < count; first += W)
    for (int c = 0; c < columns; c += W) {
      const int n = columns - c < W ? columns - c : W;
      vf a[W];
#pragma GCC unroll 16
      for (int x = 0; x < W; ++x) a[x] = x < n ? load(from + (c + x) * lanes + first) : set1(0.0f);
      transpose(a);
#pragma GCC unroll 16
      for (int x = 0; x < W; ++x) {
        const int lane = first + x;
        if (lane >= count) break;
        // A row without keys may have met 0 * NaN; it is 0 all the same.
        const float f = factor[lane];
        put(rows[lane] + c * bytes, f == 0.0f ? set1(0.0f) : mul(a[x], set1(f)), n);
      }
    }
}

static void store_row_tile(
    const float* from, float factor, DType dtype, int columns, std::byte* to, Write how) {
  narrow_row(from, factor, dtype, columns, to, how);
}
