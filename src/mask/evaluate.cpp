// SPDX-License-Identifier: Apache-2.0
// Runs a mask program over lanes of keys; loops are plain so that the compiler vectorises them.
#include "mask/evaluate.hpp"

#include <algorithm>
#include <cmath>

#include "expr/internal.hpp"

namespace undivided::masks {
namespace {

using expr::Op;
using expr::Rate;
using expr::Type;

Rate own_rate(Op op) {
  if (op == Op::q) return Rate::query;
  if (op == Op::k) return Rate::key;
  return Rate::uniform;
}
Rate join(Rate a, Rate b) {
  if (a == Rate::uniform) return b;
  if (b == Rate::uniform || a == b) return a;
  return Rate::element;
}

template <class F>
void map1(const std::int32_t* a, std::int32_t* out, int width, F f) {
  for (int i = 0; i < width; ++i) out[i] = f(a[i]);
}
template <class T, class R, class F>
void map2(const T* a, const T* b, R* out, int width, F f) {
  for (int i = 0; i < width; ++i) out[i] = f(a[i], b[i]);
}
std::int32_t wrapped(std::uint32_t x) { return static_cast<std::int32_t>(x); }
std::uint32_t bits(std::int32_t x) { return static_cast<std::uint32_t>(x); }

// Floats are compared as float32, as in the scalar reading.
std::int32_t comparable(std::int32_t x) { return x; }
float comparable(double x) { return static_cast<float>(x); }

template <class T>
void compare(Op op, const T* a, const T* b, std::int32_t* out, int width) {
  switch (op) {
    case Op::lt:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) < comparable(y)}; });
    case Op::le:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) <= comparable(y)}; });
    case Op::gt:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) > comparable(y)}; });
    case Op::ge:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) >= comparable(y)}; });
    case Op::eq:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) == comparable(y)}; });
    default:
      return map2(
          a, b, out, width, [](T x, T y) { return std::int32_t{comparable(x) != comparable(y)}; });
  }
}

}  // namespace

std::uint64_t packed(const std::int32_t* values) {
  std::array<std::uint8_t, RowEvaluator::lanes> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(values[i]);
  return packed(bytes.data());
}

// Eight bytes of 0 or 1 become eight bits: the product moves byte i to bit 56 + i.
std::uint64_t packed(const std::uint8_t* bytes) {
  std::uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    std::uint64_t eight = 0;
    for (int j = 0; j < 8; ++j) eight |= std::uint64_t{bytes[8 * i + j]} << (8 * j);
    word |= (eight * 0x0102040810204080ull >> 56) << (8 * i);
  }
  return word;
}

RowEvaluator::RowEvaluator(const expr::Program& p, const expr::Bound& bound) : bound_(&bound) {
  std::vector<Rate> rates(p.nodes.size());
  std::vector<std::int32_t> at(p.nodes.size());
  std::int32_t int_count = 0, real_count = 0;
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const expr::Node& node = p.nodes[i];
    const bool real = node.type == Type::f32;
    at[i] = real ? real_count++ : int_count++;
    is_real_.push_back(real);
    Step step{node, at[i], {}};
    Rate rate = own_rate(node.op);
    for (std::size_t j = 0; j < 4 && node.operand[j] >= 0; ++j) {
      const auto operand = static_cast<std::size_t>(node.operand[j]);
      rate = join(rate, rates[operand]);
      step.from[j] = at[operand];
    }
    rates[i] = rate;
    auto& steps = rate == Rate::uniform ? uniform_
                  : rate == Rate::key   ? key_
                  : rate == Rate::query ? query_
                                        : element_;
    steps.push_back(step);
  }
  for (const std::int32_t root : p.roots) roots_.push_back(at[static_cast<std::size_t>(root)]);
  ints_.resize(std::size_t{lanes} * static_cast<std::size_t>(int_count));
  reals_.resize(std::size_t{lanes} * static_cast<std::size_t>(real_count));
}

void RowEvaluator::begin(std::int64_t batch,
                         std::int64_t head,
                         std::int64_t q_len,
                         std::int64_t k_len) {
  at_point_ = {batch, head, 0, 0, q_len, k_len, 0};
  run(uniform_, 1);
}

void RowEvaluator::keys(std::int64_t first, int count) {
  at_point_.k = first;
  count_ = count;
  run(key_, lanes);
}

std::uint64_t RowEvaluator::row(std::int64_t q) {
  at_point_.q = q;
  run(query_, 1);
  run(element_, lanes);
  const std::uint64_t word = packed(ints(roots_[0]));
  return count_ == lanes ? word : word & ((std::uint64_t{1} << count_) - 1);
}

// Values that change slower than keys are computed once and spread over all lanes.
void RowEvaluator::run(const std::vector<Step>& steps, int width) {
  for (const Step& s : steps) {
    const bool real = s.node.type == Type::f32;
    if (s.node.op == Op::load)
      run_load(s, width);
    else if (real)
      run_real(s, width);
    else
      run_int(s, width);
    if (width == 1 && real) std::fill_n(reals(s.at) + 1, lanes - 1, *reals(s.at));
    if (width == 1 && !real) std::fill_n(ints(s.at) + 1, lanes - 1, *ints(s.at));
  }
}

std::int64_t RowEvaluator::leaf(const expr::Node& node) const {
  switch (node.op) {
    case Op::batch:
      return at_point_.batch;
    case Op::head:
      return at_point_.head;
    case Op::q:
      return at_point_.q;
    case Op::q_len:
      return at_point_.q_len;
    case Op::k_len:
      return at_point_.k_len;
    case Op::param:
      return static_cast<std::int64_t>(bound_->params[static_cast<std::size_t>(node.slot)]);
    default:
      return node.integer;
  }
}

void RowEvaluator::run_int(const Step& s, int width) {
  std::int32_t* out = ints(s.at);
  const std::int32_t* a = ints(s.from[0]);
  const std::int32_t* b = ints(s.from[1]);
  using I = std::int32_t;
  switch (const Op op = s.node.op) {
    case Op::k:
      for (int i = 0; i < width; ++i) out[i] = static_cast<I>(expr::wrap(at_point_.k + i));
      return;
    case Op::batch:
    case Op::head:
    case Op::q:
    case Op::q_len:
    case Op::k_len:
    case Op::constant:
    case Op::param:
      std::fill_n(out, width, static_cast<I>(expr::wrap(leaf(s.node))));
      return;
    case Op::add:
      return map2(a, b, out, width, [](I x, I y) { return wrapped(bits(x) + bits(y)); });
    case Op::sub:
      return map2(a, b, out, width, [](I x, I y) { return wrapped(bits(x) - bits(y)); });
    case Op::mul:
      return map2(a, b, out, width, [](I x, I y) { return wrapped(bits(x) * bits(y)); });
    case Op::abs:
      return map1(a, out, width, [](I x) { return x < 0 ? wrapped(0u - bits(x)) : x; });
    case Op::neg:
      return map1(a, out, width, [](I x) { return wrapped(0u - bits(x)); });
    case Op::min:
      return map2(a, b, out, width, [](I x, I y) { return x < y ? x : y; });
    case Op::max:
      return map2(a, b, out, width, [](I x, I y) { return x > y ? x : y; });
    case Op::bit_and:
    case Op::logical_and:
      return map2(a, b, out, width, [](I x, I y) { return x & y; });
    case Op::bit_or:
    case Op::logical_or:
      return map2(a, b, out, width, [](I x, I y) { return x | y; });
    case Op::bit_xor:
      return map2(a, b, out, width, [](I x, I y) { return x ^ y; });
    case Op::logical_not:
      return map1(a, out, width, [](I x) { return x ^ 1; });
    case Op::lt:
    case Op::le:
    case Op::gt:
    case Op::ge:
    case Op::eq:
    case Op::ne:
      return is_real_[static_cast<std::size_t>(s.node.operand[0])]
                 ? compare(op, reals(s.from[0]), reals(s.from[1]), out, width)
                 : compare(op, a, b, out, width);
    case Op::select: {
      const I* c = ints(s.from[2]);
      for (int i = 0; i < width; ++i) out[i] = a[i] ? b[i] : c[i];
      return;
    }
    case Op::trunc: {
      const double* x = reals(s.from[0]);
      for (int i = 0; i < width; ++i) out[i] = static_cast<I>(expr::saturating_trunc(x[i]));
      return;
    }
    default:  // division, modulus, shifts
      for (int i = 0; i < width; ++i)
        out[i] = static_cast<I>(expr::wrap(expr::integer_result(op, a[i], b[i])));
  }
}

void RowEvaluator::run_real(const Step& s, int width) {
  double* out = reals(s.at);
  const double* a = reals(s.from[0]);
  const double* b = reals(s.from[1]);
  const auto one = [&](auto f) {
    for (int i = 0; i < width; ++i) out[i] = f(a[i]);
  };
  const auto two = [&](auto f) { map2(a, b, out, width, f); };
  switch (s.node.op) {
    case Op::constant:
      std::fill_n(out, width, s.node.real);
      return;
    case Op::param:
      std::fill_n(out, width, bound_->params[static_cast<std::size_t>(s.node.slot)]);
      return;
    case Op::add:
      return two([](double x, double y) { return x + y; });
    case Op::sub:
      return two([](double x, double y) { return x - y; });
    case Op::mul:
      return two([](double x, double y) { return x * y; });
    case Op::div:
      return two([](double x, double y) { return x / y; });
    case Op::min:
      return two([](double x, double y) { return x < y ? x : y; });  // a NaN gives y
    case Op::max:
      return two([](double x, double y) { return x > y ? x : y; });
    case Op::abs:
      return one([](double x) { return std::fabs(x); });
    case Op::neg:
      return one([](double x) { return -x; });
    case Op::tanh:
      return one([](double x) { return std::tanh(x); });
    case Op::exp:
      return one([](double x) { return std::exp(x); });
    case Op::log:
      return one([](double x) { return std::log(x); });
    case Op::sqrt:
      return one([](double x) { return std::sqrt(x); });
    case Op::to_float: {
      const std::int32_t* x = ints(s.from[0]);
      for (int i = 0; i < width; ++i) out[i] = x[i];
      return;
    }
    case Op::select: {
      const std::int32_t* condition = ints(s.from[0]);
      const double* yes = reals(s.from[1]);
      const double* no = reals(s.from[2]);
      for (int i = 0; i < width; ++i) out[i] = condition[i] ? yes[i] : no[i];
      return;
    }
    default:
      std::fill_n(out, width, at_point_.score);  // a mask has no score; the leaf reads 0
  }
}

void RowEvaluator::run_load(const Step& s, int width) {
  const auto& array = bound_->arrays[static_cast<std::size_t>(s.node.slot)];
  std::array<std::int64_t, lanes> offset{};
  for (std::size_t axis = 0; axis < 4 && s.node.operand[axis] >= 0; ++axis) {
    const std::int32_t* index = ints(s.from[axis]);
    const std::int64_t last = array.shape[axis] - 1, stride = array.stride[axis];
    for (int i = 0; i < width; ++i)
      offset[static_cast<std::size_t>(i)] +=
          std::max<std::int64_t>(0, std::min<std::int64_t>(index[i], last)) * stride;
  }
  for (int i = 0; i < width; ++i) {
    const std::int64_t at = offset[static_cast<std::size_t>(i)];
    switch (array.dtype) {
      case DType::f32:
        reals(s.at)[i] = static_cast<const float*>(array.data)[at];
        break;
      case DType::boolean:
        ints(s.at)[i] = static_cast<const std::uint8_t*>(array.data)[at] != 0;
        break;
      default:
        ints(s.at)[i] = static_cast<const std::int32_t*>(array.data)[at];
    }
  }
}

}  // namespace undivided::masks
