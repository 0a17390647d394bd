// SPDX-License-Identifier: Apache-2.0
// The byte-code interpreter. Included once, inside the namespace of an ISA.
//
// An instruction runs over `rows` x `nv` vectors. Uniform and key registers are stored broadcast
// over a vector, and the diagonals of a row begin one float before those of the row above, so every
// operand is read by one load with two strides and no test.

struct Reader {
  const float* p;
  std::int64_t row, vec;
  vf f(std::int64_t r, std::int64_t v) const { return load(p + r * row + v * vec); }
  vi i(std::int64_t r, std::int64_t v) const { return as_i(f(r, v)); }
};

static std::int64_t register_size(expr::Rate rate) {
  switch (rate) {
    case expr::Rate::uniform:
      return W;
    case expr::Rate::key:
      return key_block * W;
    case expr::Rate::query:
      return lanes;
    case expr::Rate::diagonal:
      return key_block + lanes;
    default:
      return chunk_rows * lanes;
  }
}

/// A register as code of rate `at` reads it.
static Reader reader(
    expr::Rate rate, std::int32_t index, expr::Rate at, int first_row, const Files& files) {
  if (index == tile_register) return {files.tile + std::int64_t{first_row} * lanes, lanes, W};
  const float* base = files.file[static_cast<int>(rate)] + index * register_size(rate);
  switch (rate) {
    case expr::Rate::uniform:
      return {base, 0, 0};
    case expr::Rate::key:
      return {base + first_row * W, W, 0};
    case expr::Rate::query:
      return {base, 0, W};
    case expr::Rate::diagonal:
      if (at == expr::Rate::diagonal) return {base, W, 0};
      return {base + key_block - 1 - first_row, -1, W};
    default:
      return {base, lanes, W};
  }
}

struct Shape {
  float* to;
  std::int64_t row, vec;
  int rows, nv;
};

template <class F>
UNDIVIDED_VEC void fill(const Shape& s, F&& value) {
  float* to = s.to;
  if (s.nv == 1)
    for (int r = 0; r < s.rows; ++r, to += s.row) store(to, value(r, 0));
  else
    for (int r = 0; r < s.rows; ++r, to += s.row) {
      store(to, value(r, 0));
      store(to + s.vec, value(r, 1));
    }
}

UNDIVIDED_VEC vi remainder_of(vi a, vi b) { return subi(a, muli(floor_quotient(a, b), b)); }
UNDIVIDED_VEC vi where_nonzero(vi b, vi a) { return selecti(eqi(b, set1i(0)), set1i(0), a); }

/// Toward zero, saturating; NaN gives 0.
UNDIVIDED_VEC vi truncate(vf a) {
  const vi r = selecti(le(set1(2147483648.0f), a), set1i(INT32_MAX), to_i(a));
  return selecti(ne(a, a), set1i(0), r);
}

static void execute_load(const Instruction& n,
                         const Shape& s,
                         const Reader* x,
                         const ArrayRef& array) {
  if (array.narrow) {
    const auto* base = static_cast<const std::int32_t*>(array.data);
    fill(s, [&](int r, int v) {
      vi offset = set1i(0);
      for (int axis = 0; axis < array.rank; ++axis) {
        const vi top = set1i(static_cast<std::int32_t>(array.shape[axis] - 1));
        const vi at = maxi(mini(x[axis].i(r, v), top), set1i(0));
        offset = addi(offset, muli(at, set1i(static_cast<std::int32_t>(array.stride[axis]))));
      }
      return as_f(gather(base, offset));
    });
    return;
  }
  std::int32_t index[4][W], out[W];
  fill(s, [&](int r, int v) {
    for (int axis = 0; axis < array.rank; ++axis) storei(index[axis], x[axis].i(r, v));
    for (int lane = 0; lane < W; ++lane) {
      std::int64_t offset = 0;
      bool empty = false;
      for (int axis = 0; axis < array.rank; ++axis) {
        std::int64_t at = index[axis][lane];
        if (at > array.shape[axis] - 1) at = array.shape[axis] - 1;
        if (at < 0) at = 0;
        empty |= array.shape[axis] <= 0;
        offset += at * array.stride[axis];
      }
      if (empty)
        out[lane] = 0;
      else if (n.type == expr::Type::boolean)
        out[lane] = static_cast<const std::uint8_t*>(array.data)[offset] != 0 ? -1 : 0;
      else
        out[lane] = static_cast<const std::int32_t*>(array.data)[offset];
    }
    return as_f(loadi(out));
  });
}

static void execute_float(const Instruction& n, const Shape& s, const Reader* x) {
  const Reader &a = x[0], &b = x[1];
  using expr::Op;
  switch (n.op) {
    case Op::add:
      return fill(s, [&](int r, int v) { return add(a.f(r, v), b.f(r, v)); });
    case Op::sub:
      return fill(s, [&](int r, int v) { return sub(a.f(r, v), b.f(r, v)); });
    case Op::mul:
      return fill(s, [&](int r, int v) { return mul(a.f(r, v), b.f(r, v)); });
    case Op::div:
      // One division for all, where the reciprocal is no denormal: an error of an ulp and a half.
      if (n.operand_rate[1] == expr::Rate::uniform && b.p[0] * b.p[0] < 0x1p120f &&
          b.p[0] * b.p[0] > 0x1p-120f) {
        const vf inverse = set1(1.0f / b.p[0]);
        return fill(s, [&](int r, int v) { return mul(a.f(r, v), inverse); });
      }
      return fill(s, [&](int r, int v) { return div(a.f(r, v), b.f(r, v)); });
    case Op::min:
      return fill(s, [&](int r, int v) { return min(a.f(r, v), b.f(r, v)); });
    case Op::max:
      return fill(s, [&](int r, int v) { return max(a.f(r, v), b.f(r, v)); });
    case Op::abs:
      return fill(s, [&](int r, int v) { return as_f(andi(a.i(r, v), set1i(INT32_MAX))); });
    case Op::neg:
      return fill(s, [&](int r, int v) { return as_f(xori(a.i(r, v), set1i(INT32_MIN))); });
    case Op::tanh:
      return fill(s, [&](int r, int v) { return tanh_of(a.f(r, v)); });
    case Op::exp:
      return fill(s, [&](int r, int v) { return exp_of(a.f(r, v)); });
    case Op::log:
      return fill(s, [&](int r, int v) { return log_of(a.f(r, v)); });
    case Op::sqrt:
      return fill(s, [&](int r, int v) { return sqrt(a.f(r, v)); });
    default:
      return fill(s, [&](int r, int v) { return to_f(a.i(r, v)); });  // to_float
  }
}

static void execute_integer(const Instruction& n, const Shape& s, const Reader* x) {
  const Reader &a = x[0], &b = x[1];
  using expr::Op;
  const auto with = [&](auto&& f) {
    fill(s, [&](int r, int v) { return as_f(f(a.i(r, v), b.i(r, v))); });
  };
  const auto count = [](vi c) { return andi(c, set1i(31)); };
  // The exponent of a divisor that is a power of two and the same for all, else -1.
  std::int32_t power = -1;
  if ((n.op == Op::floordiv || n.op == Op::mod) && n.operand_rate[1] == expr::Rate::uniform) {
    const auto divisor = __builtin_bit_cast(std::uint32_t, b.p[0]);
    if (divisor < 0x80000000u && __builtin_popcount(divisor) == 1) power = __builtin_ctz(divisor);
  }
  switch (n.op) {
    case Op::add:
      return with([](vi p, vi q) { return addi(p, q); });
    case Op::sub:
      return with([](vi p, vi q) { return subi(p, q); });
    case Op::mul:
      return with([](vi p, vi q) { return muli(p, q); });
    case Op::min:
      return with([](vi p, vi q) { return mini(p, q); });
    case Op::max:
      return with([](vi p, vi q) { return maxi(p, q); });
    case Op::floordiv:
      if (power >= 0) return with([&](vi p, vi) { return shri(p, set1i(power)); });
      return with([](vi p, vi q) { return where_nonzero(q, floor_quotient(p, q)); });
    case Op::mod:
      if (power >= 0) return with([](vi p, vi q) { return andi(p, subi(q, set1i(1))); });
      return with([](vi p, vi q) { return where_nonzero(q, remainder_of(p, q)); });
    case Op::shl:
      return with([&](vi p, vi q) { return shli(p, count(q)); });
    case Op::shr:
      return with([&](vi p, vi q) { return shri(p, count(q)); });
    case Op::bit_and:
      return with([](vi p, vi q) { return andi(p, q); });
    case Op::bit_or:
      return with([](vi p, vi q) { return ori(p, q); });
    case Op::bit_xor:
      return with([](vi p, vi q) { return xori(p, q); });
    case Op::neg:
      return fill(s, [&](int r, int v) { return as_f(subi(set1i(0), a.i(r, v))); });
    case Op::abs:
      return fill(s, [&](int r, int v) {
        const vi p = a.i(r, v);
        return as_f(maxi(p, subi(set1i(0), p)));
      });
    default:
      return fill(s, [&](int r, int v) { return as_f(truncate(a.f(r, v))); });  // trunc
  }
}

static void execute_boolean(const Instruction& n, const Shape& s, const Reader* x) {
  const Reader &a = x[0], &b = x[1];
  using expr::Op;
  const auto bits = [&](auto&& f) {
    fill(s, [&](int r, int v) { return as_f(f(a.i(r, v), b.i(r, v))); });
  };
  if (n.op == Op::logical_and) return bits([](vi p, vi q) { return andi(p, q); });
  if (n.op == Op::logical_or) return bits([](vi p, vi q) { return ori(p, q); });
  if (n.op == Op::logical_not)
    return fill(s, [&](int r, int v) { return as_f(xori(a.i(r, v), set1i(-1))); });
  if (n.operand_type == expr::Type::f32) {
    const auto floats = [&](auto&& f) {
      fill(s, [&](int r, int v) { return as_f(to_bits(f(a.f(r, v), b.f(r, v)))); });
    };
    switch (n.op) {
      case Op::lt:
        return floats([](vf p, vf q) { return lt(p, q); });
      case Op::le:
        return floats([](vf p, vf q) { return le(p, q); });
      case Op::gt:
        return floats([](vf p, vf q) { return lt(q, p); });
      case Op::ge:
        return floats([](vf p, vf q) { return le(q, p); });
      case Op::eq:
        return floats([](vf p, vf q) { return eq(p, q); });
      default:
        return floats([](vf p, vf q) { return ne(p, q); });
    }
  }
  switch (n.op) {
    case Op::lt:
      return bits([](vi p, vi q) { return to_bits(lti(p, q)); });
    case Op::le:
      return bits([](vi p, vi q) { return to_bits(negate(lti(q, p))); });
    case Op::gt:
      return bits([](vi p, vi q) { return to_bits(lti(q, p)); });
    case Op::ge:
      return bits([](vi p, vi q) { return to_bits(negate(lti(p, q))); });
    case Op::eq:
      return bits([](vi p, vi q) { return to_bits(eqi(p, q)); });
    default:
      return bits([](vi p, vi q) { return to_bits(negate(eqi(p, q))); });
  }
}

/// q - k on the diagonals of vector r, counted from the pair of row 0 and lane 0.
UNDIVIDED_VEC vi diagonal_of(int r) {
  std::int32_t i[W];
  for (int lane = 0; lane < W; ++lane) i[lane] = r * W + lane - (key_block - 1);
  return loadi(i);
}

static void execute_one(
    const Instruction& n, const Shape& s, const Reader* x, int first_row, const Environment& at) {
  using expr::Op;
  const auto constant = [&](std::int32_t bits) {
    fill(s, [&](int, int) { return as_f(set1i(bits)); });
  };
  switch (n.op) {
    case Op::batch:
      return constant(at.batch);
    case Op::head:
      return constant(at.head);
    case Op::q_len:
      return constant(at.q_len);
    case Op::k_len:
      return constant(at.k_len);
    case Op::constant:
      return constant(n.bits);
    case Op::param:
      return constant(at.params[n.slot]);
    // Diagonals are read along column 0, from the last row up, and then along row 0.
    case Op::q:
      if (n.rate == expr::Rate::diagonal)
        return fill(s, [&](int r, int) {
          return as_f(addi(set1i(at.q[0]), maxi(diagonal_of(r), set1i(0))));
        });
      return fill(s, [&](int, int v) { return as_f(loadi(at.q + v * W)); });
    case Op::k:
      if (n.rate == expr::Rate::diagonal)
        return fill(
            s, [&](int r, int) { return as_f(subi(set1i(at.k), mini(diagonal_of(r), set1i(0)))); });
      return fill(s, [&](int r, int) { return as_f(set1i(at.k + first_row + r)); });
    case Op::load:
      return execute_load(n, s, x, at.arrays[n.slot]);
    case Op::select:
      return fill(s, [&](int r, int v) {
        return select(from_bits(x[0].i(r, v)), x[1].f(r, v), x[2].f(r, v));
      });
    default:
      break;
  }
  if (n.type == expr::Type::f32) return execute_float(n, s, x);
  if (n.type == expr::Type::i32) return execute_integer(n, s, x);
  execute_boolean(n, s, x);
}

static void execute_code(const Instruction* code,
                         std::int64_t count,
                         expr::Rate rate,
                         int first_row,
                         int rows,
                         const Files& files,
                         const Environment& at) {
  const int vectors = rate == expr::Rate::query ? 2 : rate == expr::Rate::element ? at.vectors : 1;
  const int height = rate == expr::Rate::diagonal ? (key_block + lanes) / W
                     : rate == expr::Rate::key || rate == expr::Rate::element ? rows
                                                                              : 1;
  for (std::int64_t i = 0; i < count; ++i) {
    const Instruction& n = code[i];
    Reader x[4] = {};
    for (int o = 0; o < 4; ++o)
      if (n.operand[o] != -1)
        x[o] = reader(n.operand_rate[o], n.operand[o], rate, first_row, files);
    const Reader to = reader(rate, n.result, rate, first_row, files);
    execute_one(n, {const_cast<float*>(to.p), to.row, to.vec, height, vectors}, x, first_row, at);
  }
}

static void read_register(Register from, int first_row, int rows, const Files& files, float* to) {
  const Reader x = reader(from.rate, from.index, expr::Rate::element, first_row, files);
  fill(Shape{to, lanes, W, rows, 2}, [&](int r, int v) { return x.f(r, v); });
}

static void bits_of_register(
    Register from, int first_row, int rows, const Files& files, std::uint64_t* words) {
  const Reader x = reader(from.rate, from.index, expr::Rate::element, first_row, files);
  for (int r = 0; r < rows; ++r)
    words[r] = to_word(from_bits(x.i(r, 0))) | std::uint64_t{to_word(from_bits(x.i(r, 1)))} << W;
}

static void multiply_by_register(
    Register from, int first_row, int rows, const Files& files, float* ds) {
  const Reader x = reader(from.rate, from.index, expr::Rate::element, first_row, files);
  const vf zero = set1(0.0f);
  fill(Shape{ds, lanes, W, rows, 2}, [&](int r, int v) {
    const vf d = load(ds + r * lanes + v * W);
    return select(eq(d, zero), zero, mul(d, x.f(r, v)));
  });
}
