// SPDX-License-Identifier: Apache-2.0
// exp2 and the functions of the language over vec. Included once, inside the namespace of an ISA.

/// (2^f - 1) / f for |f| <= 1/2: for tanh, where what is near 0 must stay there, exp2 takes floors.
UNDIVIDED_VEC vf exp2_slope(vf f) {
  vf p = fma(f, set1(0x1.5bba0ep-10f), set1(0x1.3cea88p-7f));
  p = fma(p, f, set1(0x1.c6b752p-5f));
  p = fma(p, f, set1(0x1.ebf9bcp-3f));
  return fma(p, f, set1(0x1.62e42ap-1f));
}

/// 2^x to 1e-7 relative. Exactly 1 at 0 and exactly 0 at -inf; NaN stays NaN.
UNDIVIDED_VEC vf exp2_of(vf x) {
  // The clamps keep NaN: it is the second operand. 2^-150 rounds to 0 in scale2.
  if constexpr (W < 16) x = min(set1(129.0f), max(set1(-150.0f), x));
  vf f;
  const vf n = floor_of(x, f);
  vf p = fma(f, set1(0x1.e974fep-10f), set1(0x1.277854p-7f));
  p = fma(p, f, set1(0x1.c91ce6p-5f));
  p = fma(p, f, set1(0x1.ebdb56p-3f));
  p = fma(p, f, set1(0x1.62e4bap-1f));
  return scale2(fma(p, f, set1(1.0f)), n);
}

/// e^x. The argument is reduced by ln 2 in two parts, so large x keep their accuracy.
UNDIVIDED_VEC vf exp_of(vf x) {
  const vf log2e = set1(1.44269504f);
  const vf c = min(set1(100.0f), max(set1(-110.0f), x));
  const vf n = round(mul(c, log2e));
  vf r = fma(n, set1(-0.693145752f), c);
  r = fma(n, set1(-1.42860677e-6f), r);
  const vf f = mul(r, log2e);
  return scale2(exp2_of(f), n);
}

/// Natural logarithm: 2 atanh((m - 1) / (m + 1)) + e ln 2 with m in [sqrt 1/2, sqrt 2).
UNDIVIDED_VEC vf log_of(vf x) {
  const vf infinity = set1(__builtin_inff());
  const vm tiny = lt(x, set1(1.17549435e-38f));
  const vf y = select(tiny, mul(x, set1(33554432.0f)), x);
  const vi bits = as_i(y), offset = subi(bits, set1i(0x3f3504f3));
  const vi whole = shri(offset, set1i(23));
  vf e = to_f(whole);
  e = select(tiny, sub(e, set1(25.0f)), e);
  const vf m = as_f(addi(andi(offset, set1i(0x007fffff)), set1i(0x3f3504f3)));
  const vf s = div(sub(m, set1(1.0f)), add(m, set1(1.0f))), z = mul(s, s);
  vf p = fma(z, set1(0.222222222f), set1(0.285714286f));
  p = fma(p, z, set1(0.4f));
  p = fma(p, z, set1(0.666666667f));
  p = mul(mul(p, z), s);
  const vf low = fma(e, set1(1.42860677e-6f), p);
  vf r = add(fma(e, set1(0.693145752f), add(s, s)), low);
  r = select(eq(x, set1(0.0f)), sub(set1(0.0f), infinity), r);
  r = select(eq(x, infinity), infinity, r);
  return select(le(set1(0.0f), x), r, set1(__builtin_nanf("")));
}

/// tanh |x| = (1 - e) / (1 + e) with e = 2^(-2 log2(e) |x|). e - 1 comes from the polynomial before
/// its 1 is added, so nothing cancels near 0.
UNDIVIDED_VEC vf tanh_of(vf x) {
  const vi sign = andi(as_i(x), set1i(INT32_MIN));
  const vf t = mul(as_f(xori(as_i(x), sign)), set1(-2.88539008f));
  const vf c = max(set1(-100.0f), t);  // keeps NaN: it is the second operand
  const vf n = round(c), f = sub(c, n), scale = scale2(set1(1.0f), n);
  const vf less = fma(mul(scale, f), exp2_slope(f), sub(scale, set1(1.0f)));
  const vf y = mul(sub(set1(0.0f), less), reciprocal(add(less, set1(2.0f))));
  return as_f(ori(as_i(y), sign));
}

/// Rounded to bfloat16 bits, to nearest even; NaN stays NaN.
UNDIVIDED_VEC vi bf16_bits(vf a) {
  const vi bits = as_i(a), high = shr_logical(bits, 16);
  const vi odd = andi(high, set1i(1));
  const vi rounded = shr_logical(addi(addi(bits, set1i(0x7fff)), odd), 16);
  return selecti(ne(a, a), ori(high, set1i(0x40)), rounded);
}
