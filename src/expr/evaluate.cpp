// SPDX-License-Identifier: Apache-2.0
// The scalar reading: float64 for floats and exact integers. It defines what a program means.
#include <algorithm>
#include <cmath>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

double load(const Bound::ArrayRef& a, const Node& n, int rank, const double* value) {
  std::int64_t offset = 0;
  for (int i = 0; i < rank; ++i) {
    const auto axis = static_cast<std::size_t>(i);
    const std::int64_t extent = a.shape[axis];
    if (extent <= 0) return 0;
    const auto index = static_cast<std::int64_t>(value[n.operand[axis]]);
    offset += std::clamp<std::int64_t>(index, 0, extent - 1) * a.stride[axis];
  }
  switch (a.dtype) {
    case DType::i32:
      return static_cast<const std::int32_t*>(a.data)[offset];
    case DType::f32:
      return static_cast<double>(static_cast<const float*>(a.data)[offset]);
    default:
      return static_cast<const std::uint8_t*>(a.data)[offset] != 0;
  }
}

double arithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::add:
      return a + b;
    case Op::sub:
      return a - b;
    case Op::mul:
      return a * b;
    case Op::div:
      return a / b;
    case Op::abs:
      return std::fabs(a);
    case Op::neg:
      return -a;
    case Op::min:
      return a < b ? a : b;
    default:
      return a > b ? a : b;
  }
}

}  // namespace

void evaluate(
    const Program& p, const Bound& bound, const Point& at, double* scratch, double* results) {
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const Node& n = p.nodes[i];
    const double a = n.operand[0] >= 0 ? scratch[n.operand[0]] : 0;
    const double b = n.operand[1] >= 0 ? scratch[n.operand[1]] : 0;
    double r = 0;
    switch (n.op) {
      case Op::batch:
        r = static_cast<double>(at.batch);
        break;
      case Op::head:
        r = static_cast<double>(at.head);
        break;
      case Op::q:
        r = static_cast<double>(at.q);
        break;
      case Op::k:
        r = static_cast<double>(at.k);
        break;
      case Op::q_len:
        r = static_cast<double>(at.q_len);
        break;
      case Op::k_len:
        r = static_cast<double>(at.k_len);
        break;
      case Op::score:
        r = at.score;
        break;
      case Op::constant:
        r = n.type == Type::f32 ? n.real : static_cast<double>(n.integer);
        break;
      case Op::param:
        r = bound.params[static_cast<std::size_t>(n.slot)];
        break;
      case Op::load: {
        const auto slot = static_cast<std::size_t>(n.slot);
        r = load(bound.arrays[slot], n, p.slots[slot].rank, scratch);
        break;
      }
      case Op::logical_and:
        r = a != 0 && b != 0;
        break;
      case Op::logical_or:
        r = a != 0 || b != 0;
        break;
      case Op::logical_not:
        r = a == 0;
        break;
      case Op::select:
        r = a != 0 ? b : scratch[n.operand[2]];
        break;
      case Op::tanh:
        r = std::tanh(a);
        break;
      case Op::exp:
        r = std::exp(a);
        break;
      case Op::log:
        r = std::log(a);
        break;
      case Op::sqrt:
        r = std::sqrt(a);
        break;
      case Op::to_float:
        r = a;
        break;
      case Op::trunc:
        r = static_cast<double>(saturating_trunc(a));
        break;
      case Op::lt:
      case Op::le:
      case Op::gt:
      case Op::ge:
      case Op::eq:
      case Op::ne:
        // Floats are compared as float32, so that a kernel and the oracle branch alike.
        if (p.nodes[static_cast<std::size_t>(n.operand[0])].type == Type::f32)
          r = compare_result(n.op,
                             static_cast<double>(static_cast<float>(a)),
                             static_cast<double>(static_cast<float>(b)));
        else
          r = compare_result(n.op, a, b);
        break;
      default:
        r = n.type == Type::f32
                ? arithmetic(n.op, a, b)
                : static_cast<double>(wrap(integer_result(
                      n.op, static_cast<std::int64_t>(a), static_cast<std::int64_t>(b))));
    }
    scratch[i] = r;
  }
  for (std::size_t i = 0; i < p.roots.size(); ++i) results[i] = scratch[p.roots[i]];
}

}  // namespace undivided::expr
