// SPDX-License-Identifier: Apache-2.0
// The one recognised shape: upper bounds on q - k and on k - q.
#include <algorithm>
#include <cmath>
#include <optional>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

struct Linear {  // cq * q + ck * k + offset
  int cq = 0, ck = 0;
  std::int64_t offset = 0;
  Linear operator-(const Linear& o) const { return {cq - o.cq, ck - o.ck, offset - o.offset}; }
  Linear operator+(const Linear& o) const { return {cq + o.cq, ck + o.ck, offset + o.offset}; }
};

class Reader {
 public:
  Reader(const Program& p, const std::vector<double>& params)
      : p_(p), params_(params), seen_(p.nodes.size(), 0) {}

  bool condition(std::int32_t id, Band& band, int depth = 0) {
    const Node& n = at(id);
    if (depth > 64) return false;
    if (seen_[static_cast<std::size_t>(id)]) return true;  // a conjunct twice is a conjunct once
    seen_[static_cast<std::size_t>(id)] = 1;
    if (n.op == Op::constant) return n.integer != 0;
    if (n.op == Op::logical_and)
      return condition(n.operand[0], band, depth + 1) && condition(n.operand[1], band, depth + 1);
    std::int32_t low = n.operand[0], high = n.operand[1];  // low <= high - strict
    if (n.op == Op::gt || n.op == Op::ge) std::swap(low, high);
    const std::int64_t strict = n.op == Op::lt || n.op == Op::gt;
    if (n.op == Op::eq) return bound(low, high, 0, band) && bound(high, low, 0, band);
    if (n.op < Op::lt || n.op > Op::ge) return false;
    const Node& left = at(low);
    if (left.op == Op::abs) {  // |x| <= c: both sides
      const auto x = linear(left.operand[0]), c = linear(high);
      return x && c && !c->cq && !c->ck && keep(*x - *c, strict, band) &&
             keep(Linear{} - *x - *c, strict, band);
    }
    return bound(low, high, strict, band);
  }

 private:
  const Node& at(std::int32_t id) const { return p_.nodes[static_cast<std::size_t>(id)]; }

  bool bound(std::int32_t low, std::int32_t high, std::int64_t strict, Band& band) const {
    const auto a = linear(low), b = linear(high);
    return a && b && keep(*a - *b, strict, band);
  }

  // d + strict <= 0
  static bool keep(const Linear& d, std::int64_t strict, Band& band) {
    const std::int64_t limit = -d.offset - strict;
    if (d.cq == 1 && d.ck == -1) {
      band.left = band.has_left ? std::min(band.left, limit) : limit;
      return band.has_left = true;
    }
    if (d.cq == -1 && d.ck == 1) {
      band.right = band.has_right ? std::min(band.right, limit) : limit;
      return band.has_right = true;
    }
    return false;
  }

  std::optional<Linear> linear(std::int32_t id, int depth = 0) const {
    const Node& n = at(id);
    if (n.type != Type::i32 || depth > 16) return {};
    switch (n.op) {
      case Op::q:
        return Linear{1, 0, 0};
      case Op::k:
        return Linear{0, 1, 0};
      case Op::constant:
        return Linear{0, 0, n.integer};
      case Op::param: {
        const auto i = static_cast<std::size_t>(n.slot);
        return Linear{0, 0, std::llround(i < params_.size() ? params_[i] : p_.params[i].value)};
      }
      case Op::neg: {
        const auto a = linear(n.operand[0], depth + 1);
        if (!a) return {};
        return Linear{} - *a;
      }
      case Op::add:
      case Op::sub: {
        const auto a = linear(n.operand[0], depth + 1), b = linear(n.operand[1], depth + 1);
        if (!a || !b) return {};
        return n.op == Op::add ? *a + *b : *a - *b;
      }
      default:
        return {};
    }
  }

  const Program& p_;
  const std::vector<double>& params_;
  std::vector<char> seen_;
};

}  // namespace

Band recognise_band(const Program& p, const std::vector<double>& params) {
  Band band;
  band.is_band = p.roots.size() == 1 && p.root().type == Type::boolean &&
                 Reader(p, params).condition(p.roots.front(), band);
  return band.is_band ? band : Band{};
}

}  // namespace undivided::expr
