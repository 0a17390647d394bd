// SPDX-License-Identifier: Apache-2.0
// What a mask can be on a rectangle of positions: intervals, known bits, three-valued conditions.
//
// Every rule is sound for the language as the scalar reading defines it, wrapping included; a value
// that cannot be bounded is any int32. Floats are bounded as the scalar reading rounds them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "expr/program.hpp"

namespace undivided::masks {

/// A set of int32: those in [low, high] whose bits agree with `ones` outside `unknown`. Conditions
/// are 0 and 1.
struct Value {
  std::int32_t low = 0, high = 0;
  std::uint32_t ones = 0, unknown = 0;

  bool single() const { return low == high; }
  bool contains(std::int64_t x) const {
    return low <= x && x <= high &&
           ((static_cast<std::uint32_t>(static_cast<std::int32_t>(x)) ^ ones) & ~unknown) == 0;
  }
  static Value any();
  static Value point(std::int64_t x);
  /// Any set between two numbers; any int32 if they leave int32, because results wrap.
  static Value between(std::int64_t low, std::int64_t high);
};

/// A set of floats between two ends; `nan` when it may hold what is no number.
struct Real {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool nan = true;

  bool finite() const { return !nan && std::isfinite(low) && std::isfinite(high); }
  bool contains(double x) const { return std::isnan(x) ? nan : low <= x && x <= high; }
};

/// The set of results of one float operation. Arithmetic rounds monotonically, so ends map to ends;
/// exp, log and tanh are widened by more than their error. What may be infinite is any float.
Real apply(expr::Op op, const Real& a, const Real& b);
/// A compare of floats: 0, 1 or undecided.
Value compared(expr::Op op, const Real& x, const Real& y);

/// The set of results of one integer or boolean operation. `same` says that both operands are one
/// node.
Value apply(expr::Op op, const Value& a, const Value& b, const Value& c, bool same);

/// Smallest and largest value of any index range of an array: both per 64 entries, and a sparse
/// table above.
class RangeTable {
 public:
  explicit RangeTable(const expr::Bound::ArrayRef& array);
  Value between(std::int64_t first, std::int64_t last) const;  ///< indices of the flattened array

 private:
  static constexpr std::int64_t granule = 64;
  std::int32_t at(std::int64_t i) const;

  expr::Bound::ArrayRef array_;
  std::int64_t size_ = 0;
  bool dense_ = false;
  std::vector<std::vector<std::int32_t>> low_, high_;  // [level][granule]
};

/// Tables of every integer array that a program reads; null for the others.
using RangeTables = std::vector<std::shared_ptr<const RangeTable>>;
RangeTables range_tables(const expr::Program& p, const expr::Bound& bound);

class AbstractMask {
 public:
  AbstractMask(const expr::Program& p,
               const expr::Bound& bound,
               const RangeTables& tables,
               int slots);

  /// Fixes everything but the positions.
  void begin(std::int64_t batch, std::int64_t head, std::int64_t q_len, std::int64_t k_len);
  /// Evaluates what depends on q (or k) alone for positions [first, last] and keeps it in a slot.
  void query(int slot, std::int64_t first, std::int64_t last);
  void key(int slot, std::int64_t first, std::int64_t last);
  /// The mask on the rectangle of two slots: 0 nowhere, 1 everywhere, else undecided.
  const Value& evaluate(int query_slot, int key_slot);
  /// A float node, as of the last evaluate().
  const Real& real(std::int32_t node) const {
    const Place& p = places_[static_cast<std::size_t>(node)];
    return real_bases_[static_cast<std::size_t>(p.rate)][p.at];
  }
  /// Any node, as of the last evaluate().
  const Value& value(std::int32_t node) const {
    const Place& p = places_[static_cast<std::size_t>(node)];
    return bases_[static_cast<std::size_t>(p.rate)][p.at];
  }

 private:
  struct Place {
    std::int32_t rate = 0;  // 0 uniform, 1 query, 2 key, 3 both
    std::int32_t at = 0;
  };
  struct Step {
    expr::Node node;
    std::int32_t at = 0;
    std::array<Place, 4> from{};
    bool real = false;  // a compare of floats
  };
  void at_slot(std::size_t rate, int slot);
  void run(int rate);
  Value compute(const Step& s) const;
  Real compute_real(const Step& s) const;
  Value load(const Step& s) const;
  const Value& operand(const Step& s, std::size_t i) const {
    return bases_[static_cast<std::size_t>(s.from[i].rate)][s.from[i].at];
  }
  const Real& real_operand(const Step& s, std::size_t i) const {
    return real_bases_[static_cast<std::size_t>(s.from[i].rate)][s.from[i].at];
  }

  const expr::Bound* bound_;
  const RangeTables* tables_;
  std::vector<Place> places_;
  std::array<std::vector<Step>, 4> steps_;
  std::array<std::vector<Value>, 4> store_;
  std::array<Value*, 4> bases_{};
  bool floats_ = false;  // does the program have float nodes?
  std::array<std::vector<Real>, 4> real_store_;
  std::array<Real*, 4> real_bases_{};
  Value q_, k_;
  std::int64_t batch_ = 0, head_ = 0, q_len_ = 0, k_len_ = 0;
  std::int32_t root_ = 0;
};

}  // namespace undivided::masks
