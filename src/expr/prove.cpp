// SPDX-License-Identifier: Apache-2.0
// Interval analysis: integers stay in int32, divisors are not zero, load indices are inside.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <initializer_list>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

constexpr Interval whole{INT32_MIN, INT32_MAX};

Interval hull(std::initializer_list<std::int64_t> values) {
  return {std::min(values), std::max(values)};
}

// Smallest 2^n - 1 that is at least x.
std::int64_t filled(std::int64_t x) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(x) + 1)) - 1;
}

bool contains(const Interval& a, std::int64_t x) { return a.low <= x && x <= a.high; }

class Prover {
 public:
  Prover(const Program& p, const Bound& bound, const Box& box)
      : p_(p), bound_(bound), box_(box), range_(p.nodes.size(), whole) {}

  void run() {
    for (std::size_t i = 0; i < p_.nodes.size(); ++i) {
      const Node& n = p_.nodes[i];
      if (n.op == Op::load) check_load(n);
      if (n.type == Type::boolean) {
        range_[i] = condition(n);
        continue;
      }
      if (n.type != Type::i32) continue;
      const Interval r = integer(n, static_cast<std::int32_t>(i));
      if (!fits_int32(r.low) || !fits_int32(r.high))
        refuse(Stage::bind,
               fmt::format("`{}` may reach [{}, {}], which leaves int32; allowed are {} to {}: "
                           "clamp its parts, or compute it in floats",
                           text(i),
                           r.low,
                           r.high,
                           INT32_MIN,
                           INT32_MAX));
      range_[i] = r;
    }
  }

 private:
  std::string text(std::size_t id) const { return print_node(p_, static_cast<std::int32_t>(id)); }
  const Node& at(std::int32_t id) const { return p_.nodes[static_cast<std::size_t>(id)]; }
  const Interval& of(std::int32_t id) const { return range_[static_cast<std::size_t>(id)]; }

  void check_load(const Node& n) const {
    const auto slot = static_cast<std::size_t>(n.slot);
    const Slot& s = p_.slots[slot];
    if (slot >= bound_.arrays.size())
      refuse(Stage::bind, fmt::format("array \"{}\" is not bound; pass its contents", s.name));
    const Bound::ArrayRef& a = bound_.arrays[slot];
    for (int i = 0; i < s.rank; ++i) {
      const auto axis = static_cast<std::size_t>(i);
      const std::int64_t extent = a.shape[axis];
      const Interval r = of(n.operand[axis]);
      if (r.low >= 0 && r.high < extent) continue;
      const std::string index = text(static_cast<std::size_t>(n.operand[axis]));
      const std::string where = s.rank == 1 ? "" : fmt::format(" (axis {})", i);
      if (extent <= 0)
        refuse(
            Stage::bind,
            fmt::format(
                "array \"{}\" has no elements{}, but index `{}` reads it", s.name, where, index));
      refuse(
          Stage::bind,
          fmt::format("index `{0}` of array \"{1}\"{2} may reach [{3}, {4}], but the extent is "
                      "{5}: allowed are 0 to {6}; pass a larger array or write clamp({0}, 0, {6})",
                      index,
                      s.name,
                      where,
                      r.low,
                      r.high,
                      extent,
                      extent - 1));
    }
  }

  // [0, 0] is false, [1, 1] is true, [0, 1] is undecided.
  Interval condition(const Node& n) const {
    const Interval a = n.operand[0] >= 0 ? of(n.operand[0]) : Interval{};
    const Interval b = n.operand[1] >= 0 ? of(n.operand[1]) : Interval{};
    switch (n.op) {
      case Op::constant:
        return {n.integer, n.integer};
      case Op::logical_and:
        return {std::min(a.low, b.low), std::min(a.high, b.high)};
      case Op::logical_or:
        return {std::max(a.low, b.low), std::max(a.high, b.high)};
      case Op::logical_not:
        return {1 - a.high, 1 - a.low};
      default:
        break;
    }
    if (!is_compare(n.op) || at(n.operand[0]).type != Type::i32) return {0, 1};
    switch (n.op) {
      case Op::lt:
        return {a.high < b.low, a.low < b.high};
      case Op::le:
        return {a.high <= b.low, a.low <= b.high};
      case Op::gt:
        return {a.low > b.high, a.high > b.low};
      case Op::ge:
        return {a.low >= b.high, a.high >= b.low};
      default:
        break;
    }
    const bool apart = a.high < b.low || b.high < a.low;
    const bool same = a.low == a.high && b.low == b.high && a.low == b.low;
    return n.op == Op::eq ? Interval{same, !apart} : Interval{apart, !same};
  }

  Interval integer(const Node& n, std::int32_t id) const {
    const Interval a = n.operand[0] >= 0 ? of(n.operand[0]) : Interval{};
    const Interval b = n.operand[1] >= 0 ? of(n.operand[1]) : Interval{};
    switch (n.op) {
      case Op::batch:
        return box_.batch;
      case Op::head:
        return box_.head;
      case Op::q:
        return box_.q;
      case Op::k:
        return box_.k;
      case Op::q_len:
        return box_.q_len;
      case Op::k_len:
        return box_.k_len;
      case Op::constant:
        return {n.integer, n.integer};
      case Op::param: {
        const auto i = static_cast<std::size_t>(n.slot);
        const double value = i < bound_.params.size() ? bound_.params[i] : p_.params[i].value;
        if (value != std::floor(value) || value < INT32_MIN || value > INT32_MAX)
          refuse(Stage::bind,
                 fmt::format("parameter \"{}\" is i32, but its value is {}; allowed are whole "
                             "numbers in int32",
                             p_.params[i].name,
                             value));
        const auto exact = static_cast<std::int64_t>(value);
        return {exact, exact};
      }
      case Op::load: {
        const auto& array = bound_.arrays[static_cast<std::size_t>(n.slot)];
        return {array.low, array.high};
      }
      case Op::add:
        return {a.low + b.low, a.high + b.high};
      case Op::sub:
        if (n.operand[0] == n.operand[1]) return {0, 0};
        return {a.low - b.high, a.high - b.low};
      case Op::mul:
        return hull({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
      case Op::neg:
        return {-a.high, -a.low};
      case Op::abs:
        return {contains(a, 0) ? 0 : std::min(std::abs(a.low), std::abs(a.high)),
                std::max(std::abs(a.low), std::abs(a.high))};
      case Op::min:
        return {std::min(a.low, b.low), std::min(a.high, b.high)};
      case Op::max:
        return {std::max(a.low, b.low), std::max(a.high, b.high)};
      case Op::floordiv:
        check_divisor(n, id);
        return hull({floor_div(a.low, b.low),
                     floor_div(a.low, b.high),
                     floor_div(a.high, b.low),
                     floor_div(a.high, b.high)});
      case Op::mod:
        check_divisor(n, id);
        if (a.low >= 0 && a.high < b.low) return a;
        return b.low > 0 ? Interval{0, b.high - 1} : Interval{b.low + 1, 0};
      case Op::shl:
        check_count(n, id);
        return hull({a.low << b.low, a.low << b.high, a.high << b.low, a.high << b.high});
      case Op::shr:
        check_count(n, id);
        return hull({a.low >> b.low, a.low >> b.high, a.high >> b.low, a.high >> b.high});
      case Op::bit_and:
        if (a.low >= 0 && b.low >= 0) return {0, std::min(a.high, b.high)};
        if (a.low >= 0) return {0, a.high};
        if (b.low >= 0) return {0, b.high};
        return whole;
      case Op::bit_or:
        if (a.low < 0 || b.low < 0) return whole;
        return {std::max(a.low, b.low), filled(std::max(a.high, b.high))};
      case Op::bit_xor:
        if (a.low < 0 || b.low < 0) return whole;
        return {0, filled(std::max(a.high, b.high))};
      case Op::select: {
        if (a.low == a.high) return a.low ? of(n.operand[1]) : of(n.operand[2]);
        const Interval x = under(n.operand[1], n.operand[0], true);
        const Interval y = under(n.operand[2], n.operand[0], false);
        return {std::min(x.low, y.low), std::max(x.high, y.high)};
      }
      default:
        return whole;  // trunc
    }
  }

  void check_divisor(const Node& n, std::int32_t id) const {
    const Interval d = of(n.operand[1]);
    if (!contains(d, 0)) return;
    refuse(Stage::bind,
           fmt::format("`{}` may divide by zero: its divisor reaches [{}, {}]; allowed is a range "
                       "without 0, for example max(..., 1)",
                       text(static_cast<std::size_t>(id)),
                       d.low,
                       d.high));
  }

  void check_count(const Node& n, std::int32_t id) const {
    const Interval c = of(n.operand[1]);
    if (c.low >= 0 && c.high <= 31) return;
    refuse(
        Stage::bind,
        fmt::format("`{}` shifts by [{}, {}]; allowed are 0 to 31, for example clamp(..., 0, 31)",
                    text(static_cast<std::size_t>(id)),
                    c.low,
                    c.high));
  }

  // The range of `id` where `condition` is `holds`: a compare of the value itself narrows it.
  Interval under(std::int32_t id, std::int32_t condition, bool holds) const {
    Interval r = of(id);
    const Node& c = at(condition);
    if (!is_compare(c.op) || at(c.operand[0]).type != Type::i32) return r;
    Op op = c.op;
    if (c.operand[1] == id) op = mirrored(op);
    if (c.operand[0] != id && c.operand[1] != id) return r;
    const Interval other = of(c.operand[0] == id ? c.operand[1] : c.operand[0]);
    if (!holds) op = opposite(op);
    if (op == Op::lt) r.high = std::min(r.high, other.high - 1);
    if (op == Op::le || op == Op::eq) r.high = std::min(r.high, other.high);
    if (op == Op::gt) r.low = std::max(r.low, other.low + 1);
    if (op == Op::ge || op == Op::eq) r.low = std::max(r.low, other.low);
    return r.low <= r.high ? r : of(id);  // an impossible branch keeps its plain range
  }

  static Op mirrored(Op op) {
    switch (op) {
      case Op::lt:
        return Op::gt;
      case Op::le:
        return Op::ge;
      case Op::gt:
        return Op::lt;
      case Op::ge:
        return Op::le;
      default:
        return op;
    }
  }
  static Op opposite(Op op) {
    switch (op) {
      case Op::lt:
        return Op::ge;
      case Op::le:
        return Op::gt;
      case Op::gt:
        return Op::le;
      case Op::ge:
        return Op::lt;
      case Op::eq:
        return Op::ne;
      default:
        return Op::eq;
    }
  }

  const Program& p_;
  const Bound& bound_;
  const Box& box_;
  std::vector<Interval> range_;
};

}  // namespace

void prove(const Program& p, const Bound& bound, const Box& box) {
  for (const Interval& side : {box.batch, box.head, box.q, box.k, box.q_len, box.k_len})
    if (side.low > side.high) return;  // no pair exists, so nothing can go wrong
  Prover(p, bound, box).run();
}

}  // namespace undivided::expr
