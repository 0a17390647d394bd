// SPDX-License-Identifier: Apache-2.0
// Words of four int8. Included once, inside the namespace of an ISA that has their dot product.

/// One operand of the instruction is unsigned: queries are 128 too large, so sums begin with -128
/// times the sum of the key.
struct QuadWords {
  static constexpr int values = 4, bias = 128;
  using Dot = QuadWords;
  UNDIVIDED_VEC vf step(vf sum, vf word, vf lanes_of) {
    return as_f(_mm512_dpbusd_epi32(as_i(sum), as_i(lanes_of), as_i(word)));
  }
  UNDIVIDED_VEC void put(float* row, int c, vi x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(reinterpret_cast<std::byte*>(row) + c),
                     _mm512_cvtepi32_epi8(x));
  }
  // Modular: the numbers of a row that is not finite are no numbers, and its factor is NaN.
  UNDIVIDED_VEC float start(int sum) {
    return __builtin_bit_cast(float, 0u - 128u * static_cast<unsigned>(sum));
  }
  UNDIVIDED_VEC vf number(vf sum) { return to_f(as_i(sum)); }
};
