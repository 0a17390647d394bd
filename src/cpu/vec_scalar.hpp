// SPDX-License-Identifier: Apache-2.0
// vec in plain C++: 4 lanes, no instruction set needed. Included once, inside the namespace of its
// ISA.

constexpr int W = 4;
struct vf {
  float x[W];
};
struct vi {
  std::int32_t x[W];
};
struct vm {
  bool x[W];
};

#define UNDIVIDED_VEC static inline

template <class R, class F>
UNDIVIDED_VEC R each(F&& f) {
  R r;
  for (int i = 0; i < W; ++i) r.x[i] = f(i);
  return r;
}
UNDIVIDED_VEC std::uint32_t uns(std::int32_t a) { return static_cast<std::uint32_t>(a); }
UNDIVIDED_VEC std::int32_t sig(std::uint32_t a) { return static_cast<std::int32_t>(a); }

/// Any alignment: pairs of 16-bit elements are loaded as float32 too.
UNDIVIDED_VEC vf load(const void* p) {
  vf r;
  __builtin_memcpy(r.x, p, sizeof(r.x));
  return r;
}
UNDIVIDED_VEC void store(float* p, vf a) {
  for (int i = 0; i < W; ++i) p[i] = a.x[i];
}
UNDIVIDED_VEC vf set1(float a) {
  return each<vf>([&](int) { return a; });
}
UNDIVIDED_VEC vf add(vf a, vf b) {
  return each<vf>([&](int i) { return a.x[i] + b.x[i]; });
}
UNDIVIDED_VEC vf sub(vf a, vf b) {
  return each<vf>([&](int i) { return a.x[i] - b.x[i]; });
}
UNDIVIDED_VEC vf mul(vf a, vf b) {
  return each<vf>([&](int i) { return a.x[i] * b.x[i]; });
}
UNDIVIDED_VEC vf div(vf a, vf b) {
  return each<vf>([&](int i) { return a.x[i] / b.x[i]; });
}
UNDIVIDED_VEC vf reciprocal(vf a) { return div(set1(1.0f), a); }
UNDIVIDED_VEC vf fma(vf a, vf b, vf c) {
  return each<vf>([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
}
UNDIVIDED_VEC vf max(vf a, vf b) {  // b if either is NaN
  return each<vf>([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
UNDIVIDED_VEC vf min(vf a, vf b) {  // b if either is NaN
  return each<vf>([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
UNDIVIDED_VEC vf sqrt(vf a) {
  return each<vf>([&](int i) { return __builtin_sqrtf(a.x[i]); });
}
/// To nearest even; values of 2^23 and more, and NaN, are already whole.
UNDIVIDED_VEC vf round(vf a) {
  return each<vf>([&](int i) {
    const float magic = 12582912.0f, x = a.x[i];
    if (!(__builtin_fabsf(x) < 4194304.0f)) return x;
    volatile float shifted = x + magic;
    return shifted - magic;
  });
}
UNDIVIDED_VEC vf floor_of(vf a, vf& rest) {
  const vf near = round(a);
  const vf whole = each<vf>([&](int i) { return near.x[i] > a.x[i] ? near.x[i] - 1 : near.x[i]; });
  rest = sub(a, whole);
  return whole;
}

UNDIVIDED_VEC vi loadi(const std::int32_t* p) {
  return each<vi>([&](int i) { return p[i]; });
}
UNDIVIDED_VEC void storei(std::int32_t* p, vi a) {
  for (int i = 0; i < W; ++i) p[i] = a.x[i];
}
UNDIVIDED_VEC vi set1i(std::int32_t a) {
  return each<vi>([&](int) { return a; });
}
UNDIVIDED_VEC vi addi(vi a, vi b) {
  return each<vi>([&](int i) { return sig(uns(a.x[i]) + uns(b.x[i])); });
}
UNDIVIDED_VEC vi subi(vi a, vi b) {
  return each<vi>([&](int i) { return sig(uns(a.x[i]) - uns(b.x[i])); });
}
UNDIVIDED_VEC vi muli(vi a, vi b) {
  return each<vi>([&](int i) { return sig(uns(a.x[i]) * uns(b.x[i])); });
}
UNDIVIDED_VEC vi mini(vi a, vi b) {
  return each<vi>([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}
UNDIVIDED_VEC vi maxi(vi a, vi b) {
  return each<vi>([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}
UNDIVIDED_VEC vi andi(vi a, vi b) {
  return each<vi>([&](int i) { return a.x[i] & b.x[i]; });
}
UNDIVIDED_VEC vi ori(vi a, vi b) {
  return each<vi>([&](int i) { return a.x[i] | b.x[i]; });
}
UNDIVIDED_VEC vi xori(vi a, vi b) {
  return each<vi>([&](int i) { return a.x[i] ^ b.x[i]; });
}
UNDIVIDED_VEC vi shli(vi a, vi n) {
  return each<vi>([&](int i) { return uns(n.x[i]) > 31 ? 0 : sig(uns(a.x[i]) << n.x[i]); });
}
UNDIVIDED_VEC vi shri(vi a, vi n) {
  return each<vi>([&](int i) { return a.x[i] >> (uns(n.x[i]) > 31 ? 31 : n.x[i]); });
}
UNDIVIDED_VEC vi shr_logical(vi a, int n) {
  return each<vi>([&](int i) { return sig(uns(a.x[i]) >> n); });
}
UNDIVIDED_VEC vf to_f(vi a) {
  return each<vf>([&](int i) { return static_cast<float>(a.x[i]); });
}
UNDIVIDED_VEC vi to_i(vf a) {  // 0x80000000 out of range
  return each<vi>([&](int i) {
    return a.x[i] >= -2147483648.0f && a.x[i] < 2147483648.0f ? static_cast<std::int32_t>(a.x[i])
                                                              : INT32_MIN;
  });
}
UNDIVIDED_VEC vf as_f(vi a) { return __builtin_bit_cast(vf, a); }
UNDIVIDED_VEC vi as_i(vf a) { return __builtin_bit_cast(vi, a); }

UNDIVIDED_VEC vm lt(vf a, vf b) {
  return each<vm>([&](int i) { return a.x[i] < b.x[i]; });
}
UNDIVIDED_VEC vm le(vf a, vf b) {
  return each<vm>([&](int i) { return a.x[i] <= b.x[i]; });
}
UNDIVIDED_VEC vm eq(vf a, vf b) {
  return each<vm>([&](int i) { return a.x[i] == b.x[i]; });
}
UNDIVIDED_VEC vm ne(vf a, vf b) {
  return each<vm>([&](int i) { return a.x[i] != b.x[i]; });
}
UNDIVIDED_VEC vm lti(vi a, vi b) {
  return each<vm>([&](int i) { return a.x[i] < b.x[i]; });
}
UNDIVIDED_VEC vm eqi(vi a, vi b) {
  return each<vm>([&](int i) { return a.x[i] == b.x[i]; });
}
UNDIVIDED_VEC vm ltu(vi a, vi b) {
  return each<vm>([&](int i) { return uns(a.x[i]) < uns(b.x[i]); });
}
UNDIVIDED_VEC vm both(vm a, vm b) {
  return each<vm>([&](int i) { return a.x[i] && b.x[i]; });
}
UNDIVIDED_VEC vm either(vm a, vm b) {
  return each<vm>([&](int i) { return a.x[i] || b.x[i]; });
}
UNDIVIDED_VEC vm negate(vm a) {
  return each<vm>([&](int i) { return !a.x[i]; });
}
UNDIVIDED_VEC bool any(vm a) { return a.x[0] || a.x[1] || a.x[2] || a.x[3]; }
UNDIVIDED_VEC vf select(vm m, vf a, vf b) {
  return each<vf>([&](int i) { return m.x[i] ? a.x[i] : b.x[i]; });
}
UNDIVIDED_VEC vi selecti(vm m, vi a, vi b) {
  return each<vi>([&](int i) { return m.x[i] ? a.x[i] : b.x[i]; });
}
/// Booleans in memory are 0 or -1.
UNDIVIDED_VEC vi to_bits(vm m) {
  return each<vi>([&](int i) { return m.x[i] ? -1 : 0; });
}
UNDIVIDED_VEC vm from_bits(vi a) {
  return each<vm>([&](int i) { return a.x[i] < 0; });
}
/// Lane i is bit i of the word.
UNDIVIDED_VEC vm from_word(std::uint32_t word) {
  return each<vm>([&](int i) { return (word >> i & 1) != 0; });
}
UNDIVIDED_VEC std::uint32_t to_word(vm m) {
  std::uint32_t word = 0;
  for (int i = 0; i < W; ++i) word |= uns(m.x[i]) << i;
  return word;
}

/// p * 2^n for integral n in two steps, so that the result may be subnormal. exp2 clamps n.
UNDIVIDED_VEC vf scale2(vf p, vf n) {
  return each<vf>([&](int i) {
    const float x = n.x[i];
    const int whole = x >= -300.0f && x <= 300.0f ? static_cast<int>(x) : 0;
    const int half = whole >> 1;
    const auto power = [](int e) { return __builtin_bit_cast(float, uns(e + 127) << 23); };
    return p.x[i] * power(half) * power(whole - half);
  });
}
/// The two halves of the unsigned 64-bit product.
UNDIVIDED_VEC void mul_wide(vi a, vi b, vi& high, vi& low) {
  for (int i = 0; i < W; ++i) {
    const std::uint64_t product = static_cast<std::uint64_t>(uns(a.x[i])) * uns(b.x[i]);
    high.x[i] = sig(static_cast<std::uint32_t>(product >> 32));
    low.x[i] = sig(static_cast<std::uint32_t>(product));
  }
}
/// floor(a / b); callers deal with b = 0.
UNDIVIDED_VEC vi floor_quotient(vi a, vi b) {
  return each<vi>([&](int i) {
    if (b.x[i] == 0) return 0;
    const std::int64_t x = a.x[i], y = b.x[i], q = x / y;
    return static_cast<std::int32_t>(q - (x % y != 0 && (x < 0) != (y < 0)));
  });
}
UNDIVIDED_VEC vi gather(const std::int32_t* base, vi index) {
  return each<vi>([&](int i) { return base[index.x[i]]; });
}

UNDIVIDED_VEC vf load_f16(const std::uint16_t* p) {
  return each<vf>([&](int i) { return to_float(Half{p[i]}); });
}
UNDIVIDED_VEC vf load_bf16(const std::uint16_t* p) {
  return each<vf>([&](int i) { return __builtin_bit_cast(float, std::uint32_t{p[i]} << 16); });
}
UNDIVIDED_VEC void store_f16(std::uint16_t* p, vf a) {
  for (int i = 0; i < W; ++i) p[i] = to_half(a.x[i]).bits;
}
/// The low 16 bits of each lane.
UNDIVIDED_VEC void store_low16(std::uint16_t* p, vi a) {
  for (int i = 0; i < W; ++i) p[i] = static_cast<std::uint16_t>(a.x[i]);
}
/// An aligned vector past the caches, where there is a way.
UNDIVIDED_VEC void stream(float* p, vf x) { store(p, x); }
/// A line of 64 bytes of zeros likewise.
UNDIVIDED_VEC void clear_line(float* p) { __builtin_memset(p, 0, 64); }
/// Lanes to columns of blocks of 8, which hold whole vectors here.
UNDIVIDED_VEC void store_blocks(float* p, int, int, vf a) { store(p, a); }
/// a[i] becomes lane i of all.
UNDIVIDED_VEC void transpose(vf* a) {
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < i; ++j) {
      const float x = a[i].x[j];
      a[i].x[j] = a[j].x[i];
      a[j].x[i] = x;
    }
}
/// a[i] is the i-th word of W rows, `offset` bytes after their beginnings.
UNDIVIDED_VEC void load_transposed(const std::byte* const* row, std::int64_t offset, vf* a) {
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) a[i] = load(reinterpret_cast<const float*>(row[i] + offset));
  transpose(a);
}
/// Lane i of four lanes is the sum over these of a[i].
UNDIVIDED_VEC vf quad_sums(const vf* a) {
  vf sum = set1(0.0f);
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < 4; ++j) sum.x[i] += a[i % 4].x[i / 4 * 4 + j];
  return sum;
}
/// Lane i is the sum over all lanes of a[i].
UNDIVIDED_VEC vf sums_of(const vf* a) {
  vf sum = set1(0.0f);
  for (int i = 0; i < W; ++i)
    for (int j = 0; j < W; ++j) sum.x[i] += a[i].x[j];
  return sum;
}
/// The same four floats again and again.
UNDIVIDED_VEC vf load_quad(const float* p) {
  vf a;
  for (int i = 0; i < W; ++i) a.x[i] = p[i % 4];
  return a;
}
/// Four lanes and four more, `apart` floats from one to the next.
UNDIVIDED_VEC void store_quads(float* p, int apart, vf a) {
  for (int i = 0; i < W; ++i) p[i / 4 * apart + i % 4] = a.x[i];
}
/// f of all lanes, in every lane.
template <class F>
UNDIVIDED_VEC vf across(vf a, F&& f) {
  for (int step = W / 2; step > 0; step /= 2) {
    vf other;
    for (int i = 0; i < W; ++i) other.x[i] = a.x[i ^ step];
    a = f(a, other);
  }
  return a;
}
UNDIVIDED_VEC float first_lane(vf a) { return a.x[0]; }
