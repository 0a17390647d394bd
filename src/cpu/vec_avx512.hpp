// SPDX-License-Identifier: Apache-2.0
// vec for AVX-512 F, BW, VL, DQ: 16 lanes of float32 or int32. Included once, inside the namespace
// of its ISA.

using vf = __m512;
using vi = __m512i;
using vm = __mmask16;
constexpr int W = 16;

#define UNDIVIDED_VEC static inline __attribute__((always_inline))

UNDIVIDED_VEC vf load(const float* p) { return _mm512_loadu_ps(p); }
UNDIVIDED_VEC void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
UNDIVIDED_VEC vf set1(float a) { return _mm512_set1_ps(a); }
UNDIVIDED_VEC vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
UNDIVIDED_VEC vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
UNDIVIDED_VEC vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
UNDIVIDED_VEC vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
/// 1 / a to an ulp, for normal a whose reciprocal is normal.
UNDIVIDED_VEC vf reciprocal(vf a) {
  const vf r = _mm512_rcp14_ps(a);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(2.0f)));
}
UNDIVIDED_VEC vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
UNDIVIDED_VEC vf max(vf a, vf b) { return _mm512_max_ps(a, b); }  // b if either is NaN
UNDIVIDED_VEC vf min(vf a, vf b) { return _mm512_min_ps(a, b); }  // b if either is NaN
UNDIVIDED_VEC vf sqrt(vf a) { return _mm512_sqrt_ps(a); }
UNDIVIDED_VEC vf round(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// What scale2 takes as floor(a), and rest = a - floor(a); 0 at infinity.
UNDIVIDED_VEC vf floor_of(vf a, vf& rest) {
  rest = _mm512_reduce_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return a;
}
/// p * 2^floor(n); 0 for n = -inf, whatever p.
UNDIVIDED_VEC vf scale2(vf p, vf n) { return _mm512_scalef_ps(p, n); }

UNDIVIDED_VEC vi loadi(const std::int32_t* p) { return _mm512_loadu_si512(p); }
UNDIVIDED_VEC void storei(std::int32_t* p, vi a) { _mm512_storeu_si512(p, a); }
UNDIVIDED_VEC vi set1i(std::int32_t a) { return _mm512_set1_epi32(a); }
UNDIVIDED_VEC vi addi(vi a, vi b) { return _mm512_add_epi32(a, b); }
UNDIVIDED_VEC vi subi(vi a, vi b) { return _mm512_sub_epi32(a, b); }
UNDIVIDED_VEC vi muli(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
UNDIVIDED_VEC vi mini(vi a, vi b) { return _mm512_min_epi32(a, b); }
UNDIVIDED_VEC vi maxi(vi a, vi b) { return _mm512_max_epi32(a, b); }
UNDIVIDED_VEC vi andi(vi a, vi b) { return _mm512_and_si512(a, b); }
UNDIVIDED_VEC vi ori(vi a, vi b) { return _mm512_or_si512(a, b); }
UNDIVIDED_VEC vi xori(vi a, vi b) { return _mm512_xor_si512(a, b); }
UNDIVIDED_VEC vi shli(vi a, vi n) { return _mm512_sllv_epi32(a, n); }
UNDIVIDED_VEC vi shri(vi a, vi n) { return _mm512_srav_epi32(a, n); }
UNDIVIDED_VEC vi shr_logical(vi a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
UNDIVIDED_VEC vf to_f(vi a) { return _mm512_cvtepi32_ps(a); }
UNDIVIDED_VEC vi to_i(vf a) { return _mm512_cvttps_epi32(a); }  // 0x80000000 out of range
UNDIVIDED_VEC vf as_f(vi a) { return _mm512_castsi512_ps(a); }
UNDIVIDED_VEC vi as_i(vf a) { return _mm512_castps_si512(a); }

UNDIVIDED_VEC vm lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
UNDIVIDED_VEC vm le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
UNDIVIDED_VEC vm eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
UNDIVIDED_VEC vm ne(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
UNDIVIDED_VEC vm lti(vi a, vi b) { return _mm512_cmp_epi32_mask(a, b, _MM_CMPINT_LT); }
UNDIVIDED_VEC vm eqi(vi a, vi b) { return _mm512_cmp_epi32_mask(a, b, _MM_CMPINT_EQ); }
UNDIVIDED_VEC vm ltu(vi a, vi b) { return _mm512_cmp_epu32_mask(a, b, _MM_CMPINT_LT); }
UNDIVIDED_VEC vm both(vm a, vm b) { return static_cast<vm>(a & b); }
UNDIVIDED_VEC vm either(vm a, vm b) { return static_cast<vm>(a | b); }
UNDIVIDED_VEC vm negate(vm a) { return static_cast<vm>(~a); }
UNDIVIDED_VEC bool any(vm a) { return a != 0; }
UNDIVIDED_VEC vf select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
UNDIVIDED_VEC vi selecti(vm m, vi a, vi b) { return _mm512_mask_blend_epi32(m, b, a); }
/// Booleans in memory are 0 or -1.
UNDIVIDED_VEC vi to_bits(vm m) { return _mm512_movm_epi32(m); }
UNDIVIDED_VEC vm from_bits(vi a) { return _mm512_movepi32_mask(a); }
/// Lane i is bit i of the word.
UNDIVIDED_VEC vm from_word(std::uint32_t word) { return static_cast<vm>(word); }
UNDIVIDED_VEC std::uint32_t to_word(vm m) { return m; }

/// The two halves of the unsigned 64-bit product.
UNDIVIDED_VEC void mul_wide(vi a, vi b, vi& high, vi& low) {
  const vi even = _mm512_mul_epu32(a, b);
  const vi odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
  low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
/// floor(a / b) by exact double quotients; callers deal with b = 0.
UNDIVIDED_VEC vi floor_quotient(vi a, vi b) {
  const auto half = [](__m256i x, __m256i y) {
    const __m512d q = _mm512_div_pd(_mm512_cvtepi32_pd(x), _mm512_cvtepi32_pd(y));
    return _mm512_cvttpd_epi32(_mm512_roundscale_pd(q, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  };
  const __m256i low = half(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b));
  const __m256i high = half(_mm512_extracti64x4_epi64(a, 1), _mm512_extracti64x4_epi64(b, 1));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
UNDIVIDED_VEC vi gather(const std::int32_t* base, vi index) {
  return _mm512_i32gather_epi32(index, base, 4);
}

UNDIVIDED_VEC vf load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
UNDIVIDED_VEC vf load_bf16(const std::uint16_t* p) {
  return as_f(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
UNDIVIDED_VEC void store_f16(std::uint16_t* p, vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/// The low 16 bits of each lane.
UNDIVIDED_VEC void store_low16(std::uint16_t* p, vi a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
/// An aligned vector past the caches, where there is a way.
UNDIVIDED_VEC void stream(float* p, vf x) { _mm512_stream_ps(p, x); }
/// A line of 64 bytes of zeros likewise.
UNDIVIDED_VEC void clear_line(float* p) { _mm512_stream_ps(p, _mm512_setzero_ps()); }
/// Lanes to columns of blocks of 8, `apart` floats from one block to the next; none past `columns`.
UNDIVIDED_VEC void store_blocks(float* p, int apart, int columns, vf a) {
  _mm256_storeu_ps(p, _mm512_castps512_ps256(a));
  if (columns > 8) _mm256_storeu_ps(p + apart, _mm512_extractf32x8_ps(a, 1));
}
/// a[i] is the i-th word of 16 rows, `offset` bytes after their beginnings.
UNDIVIDED_VEC void load_transposed(const std::byte* const* row, std::int64_t offset, vf* a) {
  vf b[16];
  // Quarter q of b[4 * j + i] holds words 4 * j to 4 * j + 3 of row 4 * q + i. Loads place them
  // there, which spares the one port that moves data across quarters.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto words = [&](int q) {
        return _mm_loadu_ps(reinterpret_cast<const float*>(row[4 * q + i] + offset) + 4 * j);
      };
      vf x = _mm512_castps128_ps512(words(0));
      x = _mm512_mask_broadcast_f32x4(x, 0x00f0, words(1));
      x = _mm512_mask_broadcast_f32x4(x, 0x0f00, words(2));
      b[4 * j + i] = _mm512_mask_broadcast_f32x4(x, 0xf000, words(3));
    }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d p = _mm512_castps_pd(_mm512_unpacklo_ps(b[i], b[i + 1]));
    const __m512d q = _mm512_castps_pd(_mm512_unpackhi_ps(b[i], b[i + 1]));
    const __m512d r = _mm512_castps_pd(_mm512_unpacklo_ps(b[i + 2], b[i + 3]));
    const __m512d t = _mm512_castps_pd(_mm512_unpackhi_ps(b[i + 2], b[i + 3]));
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, r));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, r));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(q, t));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(q, t));
  }
}
/// a[i] becomes lane i of all.
UNDIVIDED_VEC void transpose(vf* a) {
  vf b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto d = [&](int j) { return _mm512_castps_pd(b[i + j]); };
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
  }
  // Now quarter q of a[4 * i + j] holds lane 4 * q + j of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const vf low02 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    const vf low13 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const vf high02 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const vf high13 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_f32x4(low02, high02, 0x88);
    b[4 + j] = _mm512_shuffle_f32x4(low13, high13, 0x88);
    b[8 + j] = _mm512_shuffle_f32x4(low02, high02, 0xdd);
    b[12 + j] = _mm512_shuffle_f32x4(low13, high13, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = b[i];
}
/// Lane i of quarter q is the sum over quarter q of a[i].
UNDIVIDED_VEC vf quad_sums(const vf* a) {
  const auto pd = [](vf x) { return _mm512_castps_pd(x); };
  const vf low = add(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
  const vf high = add(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(pd(low), pd(high))),
             _mm512_castpd_ps(_mm512_unpackhi_pd(pd(low), pd(high))));
}
/// Lane i is the sum over all lanes of a[i].
UNDIVIDED_VEC vf sums_of(const vf* a) {
  vf four[4], half[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) four[i] = quad_sums(a + 4 * i);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    half[i] = add(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                  _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return add(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
             _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
}
/// Four floats in each quarter.
UNDIVIDED_VEC vf load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
/// The quarters, `apart` floats from one to the next.
UNDIVIDED_VEC void store_quads(float* p, int apart, vf a) {
  _mm_storeu_ps(p, _mm512_castps512_ps128(a));
  _mm_storeu_ps(p + apart, _mm512_extractf32x4_ps(a, 1));
  _mm_storeu_ps(p + 2 * apart, _mm512_extractf32x4_ps(a, 2));
  _mm_storeu_ps(p + 3 * apart, _mm512_extractf32x4_ps(a, 3));
}
/// f of all lanes, in every lane.
template <class F>
UNDIVIDED_VEC vf across(vf a, F&& f) {
  a = f(a, _mm512_shuffle_f32x4(a, a, 0x4e));
  a = f(a, _mm512_shuffle_f32x4(a, a, 0xb1));
  a = f(a, _mm512_permute_ps(a, 0x4e));
  return f(a, _mm512_permute_ps(a, 0xb1));
}
UNDIVIDED_VEC float first_lane(vf a) { return _mm512_cvtss_f32(a); }
