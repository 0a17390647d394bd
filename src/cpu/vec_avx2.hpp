// SPDX-License-Identifier: Apache-2.0
// vec for AVX2, FMA and F16C: 8 lanes of float32 or int32. Included once, inside the namespace of
// its ISA.

using vf = __m256;
using vi = __m256i;
struct vm {
  __m256i bits;
};
constexpr int W = 8;

#define UNDIVIDED_VEC static inline __attribute__((always_inline))

UNDIVIDED_VEC vf load(const float* p) { return _mm256_loadu_ps(p); }
UNDIVIDED_VEC void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
UNDIVIDED_VEC vf set1(float a) { return _mm256_set1_ps(a); }
UNDIVIDED_VEC vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
UNDIVIDED_VEC vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
UNDIVIDED_VEC vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
UNDIVIDED_VEC vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
UNDIVIDED_VEC vf reciprocal(vf a) { return div(set1(1.0f), a); }
UNDIVIDED_VEC vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
UNDIVIDED_VEC vf max(vf a, vf b) { return _mm256_max_ps(a, b); }  // b if either is NaN
UNDIVIDED_VEC vf min(vf a, vf b) { return _mm256_min_ps(a, b); }  // b if either is NaN
UNDIVIDED_VEC vf sqrt(vf a) { return _mm256_sqrt_ps(a); }
UNDIVIDED_VEC vf round(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
UNDIVIDED_VEC vf floor_of(vf a, vf& rest) {
  const vf whole = _mm256_floor_ps(a);
  rest = sub(a, whole);
  return whole;
}

UNDIVIDED_VEC vi loadi(const std::int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
UNDIVIDED_VEC void storei(std::int32_t* p, vi a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
}
UNDIVIDED_VEC vi set1i(std::int32_t a) { return _mm256_set1_epi32(a); }
UNDIVIDED_VEC vi addi(vi a, vi b) { return _mm256_add_epi32(a, b); }
UNDIVIDED_VEC vi subi(vi a, vi b) { return _mm256_sub_epi32(a, b); }
UNDIVIDED_VEC vi muli(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
UNDIVIDED_VEC vi mini(vi a, vi b) { return _mm256_min_epi32(a, b); }
UNDIVIDED_VEC vi maxi(vi a, vi b) { return _mm256_max_epi32(a, b); }
UNDIVIDED_VEC vi andi(vi a, vi b) { return _mm256_and_si256(a, b); }
UNDIVIDED_VEC vi ori(vi a, vi b) { return _mm256_or_si256(a, b); }
UNDIVIDED_VEC vi xori(vi a, vi b) { return _mm256_xor_si256(a, b); }
UNDIVIDED_VEC vi shli(vi a, vi n) { return _mm256_sllv_epi32(a, n); }
UNDIVIDED_VEC vi shri(vi a, vi n) { return _mm256_srav_epi32(a, n); }
UNDIVIDED_VEC vi shr_logical(vi a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
UNDIVIDED_VEC vf to_f(vi a) { return _mm256_cvtepi32_ps(a); }
UNDIVIDED_VEC vi to_i(vf a) { return _mm256_cvttps_epi32(a); }  // 0x80000000 out of range
UNDIVIDED_VEC vf as_f(vi a) { return _mm256_castsi256_ps(a); }
UNDIVIDED_VEC vi as_i(vf a) { return _mm256_castps_si256(a); }

UNDIVIDED_VEC vm lt(vf a, vf b) { return {as_i(_mm256_cmp_ps(a, b, _CMP_LT_OQ))}; }
UNDIVIDED_VEC vm le(vf a, vf b) { return {as_i(_mm256_cmp_ps(a, b, _CMP_LE_OQ))}; }
UNDIVIDED_VEC vm eq(vf a, vf b) { return {as_i(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))}; }
UNDIVIDED_VEC vm ne(vf a, vf b) { return {as_i(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ))}; }
UNDIVIDED_VEC vm lti(vi a, vi b) { return {_mm256_cmpgt_epi32(b, a)}; }
UNDIVIDED_VEC vm eqi(vi a, vi b) { return {_mm256_cmpeq_epi32(a, b)}; }
UNDIVIDED_VEC vm ltu(vi a, vi b) {
  const vi flip = set1i(INT32_MIN);
  return lti(xori(a, flip), xori(b, flip));
}
UNDIVIDED_VEC vm both(vm a, vm b) { return {andi(a.bits, b.bits)}; }
UNDIVIDED_VEC vm either(vm a, vm b) { return {ori(a.bits, b.bits)}; }
UNDIVIDED_VEC vm negate(vm a) { return {xori(a.bits, set1i(-1))}; }
UNDIVIDED_VEC bool any(vm a) { return _mm256_movemask_epi8(a.bits) != 0; }
UNDIVIDED_VEC vf select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, as_f(m.bits)); }
UNDIVIDED_VEC vi selecti(vm m, vi a, vi b) { return _mm256_blendv_epi8(b, a, m.bits); }
/// Booleans in memory are 0 or -1.
UNDIVIDED_VEC vi to_bits(vm m) { return m.bits; }
UNDIVIDED_VEC vm from_bits(vi a) { return {a}; }
/// Lane i is bit i of the word.
UNDIVIDED_VEC vm from_word(std::uint32_t word) {
  const vi bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return eqi(andi(set1i(static_cast<std::int32_t>(word)), bit), bit);
}
UNDIVIDED_VEC std::uint32_t to_word(vm m) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(m.bits)));
}

/// p * 2^n for integral n in two steps, so that the result may be subnormal. Below -150 and for
/// n = -inf it is 0 when p is 1 or less; exp2 clamps its argument to make it so.
UNDIVIDED_VEC vf scale2(vf p, vf n) {
  const vi whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const vi rest = subi(whole, half), bias = set1i(127);
  p = mul(p, as_f(_mm256_slli_epi32(addi(half, bias), 23)));
  return mul(p, as_f(_mm256_slli_epi32(addi(rest, bias), 23)));
}
/// The two halves of the unsigned 64-bit product.
UNDIVIDED_VEC void mul_wide(vi a, vi b, vi& high, vi& low) {
  const vi even = _mm256_mul_epu32(a, b);
  const vi odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
/// floor(a / b) by exact double quotients; callers deal with b = 0.
UNDIVIDED_VEC vi floor_quotient(vi a, vi b) {
  const auto half = [](__m128i x, __m128i y) {
    const __m256d q = _mm256_div_pd(_mm256_cvtepi32_pd(x), _mm256_cvtepi32_pd(y));
    return _mm256_cvttpd_epi32(_mm256_floor_pd(q));
  };
  const __m128i low = half(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b));
  const __m128i high = half(_mm256_extracti128_si256(a, 1), _mm256_extracti128_si256(b, 1));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
UNDIVIDED_VEC vi gather(const std::int32_t* base, vi index) {
  return _mm256_i32gather_epi32(base, index, 4);
}

UNDIVIDED_VEC vf load_f16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
UNDIVIDED_VEC vf load_bf16(const std::uint16_t* p) {
  return as_f(_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
UNDIVIDED_VEC void store_f16(std::uint16_t* p, vf a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/// The low 16 bits of each lane.
UNDIVIDED_VEC void store_low16(std::uint16_t* p, vi a) {
  const vi packed = _mm256_packus_epi32(andi(a, set1i(0xffff)), _mm256_setzero_si256());
  const vi joined = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(joined));
}
/// An aligned vector past the caches, where there is a way.
UNDIVIDED_VEC void stream(float* p, vf x) { _mm256_stream_ps(p, x); }
/// A line of 64 bytes of zeros likewise.
UNDIVIDED_VEC void clear_line(float* p) {
  _mm256_stream_ps(p, _mm256_setzero_ps());
  _mm256_stream_ps(p + 8, _mm256_setzero_ps());
}
/// Lanes to columns of blocks of 8, which hold whole vectors here.
UNDIVIDED_VEC void store_blocks(float* p, int, int, vf a) { store(p, a); }
/// a[i] becomes lane i of all.
UNDIVIDED_VEC void transpose(vf* a) {
  vf b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    b[j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x20);
    b[4 + j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = b[i];
}
/// a[i] is the i-th word of W rows, `offset` bytes after their beginnings.
UNDIVIDED_VEC void load_transposed(const std::byte* const* row, std::int64_t offset, vf* a) {
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) a[i] = load(reinterpret_cast<const float*>(row[i] + offset));
  transpose(a);
}
/// Lane i of half h is the sum over half h of a[i].
UNDIVIDED_VEC vf quad_sums(const vf* a) {
  return _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
}
/// Lane i is the sum over all lanes of a[i].
UNDIVIDED_VEC vf sums_of(const vf* a) {
  const vf low = quad_sums(a), high = quad_sums(a + 4);
  return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
/// Four floats in each half.
UNDIVIDED_VEC vf load_quad(const float* p) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
/// The halves, `apart` floats from one to the next.
UNDIVIDED_VEC void store_quads(float* p, int apart, vf a) {
  _mm_storeu_ps(p, _mm256_castps256_ps128(a));
  _mm_storeu_ps(p + apart, _mm256_extractf128_ps(a, 1));
}
/// f of all lanes, in every lane.
template <class F>
UNDIVIDED_VEC vf across(vf a, F&& f) {
  a = f(a, _mm256_permute2f128_ps(a, a, 0x01));
  a = f(a, _mm256_permute_ps(a, 0x4e));
  return f(a, _mm256_permute_ps(a, 0xb1));
}
UNDIVIDED_VEC float first_lane(vf a) { return _mm256_cvtss_f32(a); }
