// SPDX-License-Identifier: Apache-2.0
// Runs a program over rectangles; range tables answer loads.
#include "mask/abstract.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "expr/internal.hpp"

namespace undivided::masks {

using expr::Op;
using expr::Type;

RangeTable::RangeTable(const expr::Bound::ArrayRef& array) : array_(array) {
  size_ = 1;
  dense_ = array.dtype == DType::i32;
  for (std::size_t axis = 4; axis-- > 0;) {
    dense_ &= array.shape[axis] <= 1 || array.stride[axis] == size_;
    size_ *= array.shape[axis];
  }
  if (size_ <= 0) return;
  const auto granules = static_cast<std::size_t>((size_ + granule - 1) / granule);
  low_.emplace_back(granules);
  high_.emplace_back(granules);
  for (std::size_t g = 0; g < granules; ++g) {
    const std::int64_t first = static_cast<std::int64_t>(g) * granule;
    std::int32_t low = at(first), high = low;
    for (std::int64_t i = first + 1; i < std::min(first + granule, size_); ++i) {
      const std::int32_t x = at(i);
      low = std::min(low, x);
      high = std::max(high, x);
    }
    low_[0][g] = low;
    high_[0][g] = high;
  }
  for (std::size_t width = 1; 2 * width <= granules; width *= 2) {
    const auto& below_low = low_.back();
    const auto& below_high = high_.back();
    std::vector<std::int32_t> low(granules - 2 * width + 1), high(low.size());
    for (std::size_t g = 0; g < low.size(); ++g) {
      low[g] = std::min(below_low[g], below_low[g + width]);
      high[g] = std::max(below_high[g], below_high[g + width]);
    }
    low_.push_back(std::move(low));
    high_.push_back(std::move(high));
  }
}

std::int32_t RangeTable::at(std::int64_t i) const {
  std::int64_t offset = i;
  if (!dense_) {
    offset = 0;
    for (std::size_t axis = 4; axis-- > 0;) {
      offset += i % array_.shape[axis] * array_.stride[axis];
      i /= array_.shape[axis];
    }
  }
  return array_.dtype == DType::boolean
             ? std::int32_t{static_cast<const std::uint8_t*>(array_.data)[offset] != 0}
             : static_cast<const std::int32_t*>(array_.data)[offset];
}

Value RangeTable::between(std::int64_t first, std::int64_t last) const {
  if (size_ <= 0) return Value::point(0);  // a load from nothing reads 0
  std::int32_t low = INT32_MAX, high = INT32_MIN;
  const auto take = [&](std::int32_t l, std::int32_t h) {
    low = std::min(low, l);
    high = std::max(high, h);
  };
  const auto scan = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) take(at(i), at(i));
  };
  const std::int64_t begin = (first + granule - 1) / granule;
  const std::int64_t end =
      last + 1 == size_ ? (size_ + granule - 1) / granule : (last + 1) / granule;
  if (begin >= end) {
    scan(first, last + 1);
    return Value::between(low, high);
  }
  scan(first, begin * granule);
  scan(end * granule, last + 1);
  const auto level =
      static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(end - begin)) - 1);
  const auto g = static_cast<std::size_t>(begin);
  const std::size_t h = static_cast<std::size_t>(end) - (std::size_t{1} << level);
  take(low_[level][g], high_[level][g]);
  take(low_[level][h], high_[level][h]);
  return Value::between(low, high);
}

RangeTables range_tables(const expr::Program& p, const expr::Bound& bound) {
  RangeTables tables(p.slots.size());
  for (std::size_t i = 0; i < p.slots.size(); ++i)
    if (p.slots[i].dtype != DType::f32)
      tables[i] = std::make_shared<const RangeTable>(bound.arrays[i]);
  return tables;
}

AbstractMask::AbstractMask(const expr::Program& p,
                           const expr::Bound& bound,
                           const RangeTables& tables,
                           int slots)
    : bound_(&bound), tables_(&tables), places_(p.nodes.size()), root_(p.roots[0]) {
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const expr::Node& node = p.nodes[i];
    int rate = node.op == Op::q ? 1 : node.op == Op::k ? 2 : 0;
    Step step{node, 0, {}, false};
    for (std::size_t j = 0; j < 4 && node.operand[j] >= 0; ++j) {
      const auto operand = static_cast<std::size_t>(node.operand[j]);
      step.from[j] = places_[operand];
      step.real |= expr::is_compare(node.op) && p.nodes[operand].type == Type::f32;
      rate |= places_[operand].rate;
    }
    floats_ |= node.type == Type::f32;
    step.at = static_cast<std::int32_t>(steps_[static_cast<std::size_t>(rate)].size());
    places_[i] = {rate, step.at};
    steps_[static_cast<std::size_t>(rate)].push_back(step);
  }
  for (std::size_t rate = 0; rate < 4; ++rate) {
    const auto copies = rate == 1 || rate == 2 ? static_cast<std::size_t>(slots) : 1;
    store_[rate].resize(copies * steps_[rate].size());
    bases_[rate] = store_[rate].data();
    if (floats_) real_store_[rate].resize(store_[rate].size());
    real_bases_[rate] = real_store_[rate].data();
  }
}

void AbstractMask::begin(std::int64_t batch,
                         std::int64_t head,
                         std::int64_t q_len,
                         std::int64_t k_len) {
  batch_ = batch, head_ = head, q_len_ = q_len, k_len_ = k_len;
  run(0);
}

void AbstractMask::query(int slot, std::int64_t first, std::int64_t last) {
  q_ = Value::between(first, last);
  at_slot(1, slot);
  run(1);
}

void AbstractMask::key(int slot, std::int64_t first, std::int64_t last) {
  k_ = Value::between(first, last);
  at_slot(2, slot);
  run(2);
}

const Value& AbstractMask::evaluate(int query_slot, int key_slot) {
  at_slot(1, query_slot);
  at_slot(2, key_slot);
  run(3);
  return value(root_);
}

void AbstractMask::at_slot(std::size_t rate, int slot) {
  const std::size_t offset = static_cast<std::size_t>(slot) * steps_[rate].size();
  bases_[rate] = store_[rate].data() + offset;
  if (floats_) real_bases_[rate] = real_store_[rate].data() + offset;
}

void AbstractMask::run(int rate) {
  const auto r = static_cast<std::size_t>(rate);
  for (const Step& s : steps_[r])
    if (s.node.type == Type::f32)
      real_bases_[r][s.at] = compute_real(s);
    else
      bases_[r][s.at] = compute(s);
}

Value AbstractMask::compute(const Step& s) const {
  const expr::Node& n = s.node;
  switch (n.op) {
    case Op::batch:
      return Value::point(batch_);
    case Op::head:
      return Value::point(head_);
    case Op::q:
      return q_;
    case Op::k:
      return k_;
    case Op::q_len:
      return Value::point(q_len_);
    case Op::k_len:
      return Value::point(k_len_);
    case Op::constant:
      return Value::point(n.integer);
    case Op::param:
      return Value::point(
          static_cast<std::int64_t>(bound_->params[static_cast<std::size_t>(n.slot)]));
    case Op::load:
      return load(s);
    case Op::trunc: {
      const Real& x = real_operand(s, 0);
      return x.nan ? Value::any()
                   : Value::between(expr::saturating_trunc(x.low), expr::saturating_trunc(x.high));
    }
    default:
      break;
  }
  if (s.real) return compared(n.op, real_operand(s, 0), real_operand(s, 1));
  static const Value none{};
  return apply(n.op,
               operand(s, 0),
               n.operand[1] >= 0 ? operand(s, 1) : none,
               n.operand[2] >= 0 ? operand(s, 2) : none,
               n.operand[0] == n.operand[1]);
}

Real AbstractMask::compute_real(const Step& s) const {
  const expr::Node& n = s.node;
  const auto point = [](double x) { return Real{x, x, std::isnan(x)}; };
  switch (n.op) {
    case Op::constant:
      return point(n.real);
    case Op::param:
      return point(bound_->params[static_cast<std::size_t>(n.slot)]);
    case Op::to_float:
      return {
          static_cast<double>(operand(s, 0).low), static_cast<double>(operand(s, 0).high), false};
    case Op::select: {
      const Value& c = operand(s, 0);
      const Real &a = real_operand(s, 1), &b = real_operand(s, 2);
      if (c.single()) return c.low ? a : b;
      return {std::min(a.low, b.low), std::max(a.high, b.high), a.nan || b.nan};
    }
    case Op::load:
    case Op::score:
      return {};
    default:
      return apply(n.op, real_operand(s, 0), n.operand[1] >= 0 ? real_operand(s, 1) : Real{});
  }
}

// The box of indices, widened to one range of the flattened array.
Value AbstractMask::load(const Step& s) const {
  const auto slot = static_cast<std::size_t>(s.node.slot);
  const auto& array = bound_->arrays[slot];
  std::int64_t first = 0, last = 0;
  for (std::size_t axis = 0; axis < 4 && s.node.operand[axis] >= 0; ++axis) {
    const std::int64_t extent = array.shape[axis];
    if (extent <= 0) return Value::point(0);
    const Value& index = bases_[static_cast<std::size_t>(s.from[axis].rate)][s.from[axis].at];
    first = first * extent + std::clamp<std::int64_t>(index.low, 0, extent - 1);
    last = last * extent + std::clamp<std::int64_t>(index.high, 0, extent - 1);
  }
  return (*tables_)[slot]->between(first, last);
}

}  // namespace undivided::masks
