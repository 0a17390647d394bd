// SPDX-License-Identifier: Apache-2.0
// Canonical form: constants folded, identities and dead nodes removed, commutative operands
// ordered.
//
// Two rules keep the meaning. Integers keep their value bit for bit. A float operation is folded
// only when its result is exact in float32, so that no reading rounds differently.
#include <algorithm>
#include <map>
#include <tuple>

#include "expr/builder.hpp"
#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

class Simplifier {
 public:
  explicit Simplifier(const Program& p) : source_(p) {
    out_.program().slots = p.slots;
    out_.program().params = p.params;
    out_.set_limit(64 * max_nodes);  // joining chains leaves dead nodes behind
  }

  Program run(std::vector<std::int32_t>& extra, bool keep_tables) {
    std::vector<std::int32_t> place;
    place.reserve(source_.nodes.size());
    for (Node n : source_.nodes) {
      for (auto& o : n.operand)
        if (o >= 0) o = place[static_cast<std::size_t>(o)];
      place.push_back(rewrite(n));
    }
    for (auto r : source_.roots) out_.program().roots.push_back(place[static_cast<std::size_t>(r)]);
    for (auto& e : extra)
      if (e >= 0) e = place[static_cast<std::size_t>(e)];
    return compact(out_.program(), &extra, keep_tables);
  }

 private:
  const Node& at(std::int32_t id) const {
    return out_.program().nodes[static_cast<std::size_t>(id)];
  }
  bool constant(std::int32_t id) const { return at(id).op == Op::constant; }
  bool literal(std::int32_t id) const {  // lifting must not change the order
    return constant(id) || (at(id).op == Op::param && lifted(id));
  }
  bool lifted(std::int32_t id) const {
    return out_.program().params[static_cast<std::size_t>(at(id).slot)].lifted;
  }
  bool is_integer(std::int32_t id, std::int64_t value) const {
    return constant(id) && at(id).type != Type::f32 && at(id).integer == value;
  }
  bool is_real(std::int32_t id, double value) const {
    return constant(id) && at(id).type == Type::f32 && same_bits(at(id).real, value);
  }
  std::int32_t make(Op op, Type type, std::int32_t a, std::int32_t b = -1) {
    Node n;
    n.op = op;
    n.type = type;
    n.operand = {a, b, -1, -1};
    return push(n);
  }

  // --- order -------------------------------------------------------------------------------------
  // `shape` numbers what a node looks like with its literals blanked; `size` counts its tree.
  struct Look {
    std::int32_t shape;
    std::int64_t size;
  };

  std::int32_t push(const Node& n) {
    const std::int32_t id = out_.append(n);
    if (static_cast<std::size_t>(id) < looks_.size()) return id;
    std::int64_t size = 1;
    std::array<std::int32_t, 4> shapes{-1, -1, -1, -1};
    for (std::size_t i = 0; i < 4; ++i) {
      if (n.operand[i] < 0) continue;
      const Look& look = looks_[static_cast<std::size_t>(n.operand[i])];
      shapes[i] = look.shape;
      size = std::min<std::int64_t>(size + look.size, 1 << 30);
    }
    const bool blank = literal(id);
    const auto key =
        std::make_tuple(blank ? Op::constant : n.op, n.type, blank ? -1 : n.slot, shapes);
    const auto shape =
        shapes_.emplace(key, static_cast<std::int32_t>(shapes_.size())).first->second;
    looks_.push_back({shape, size});
    return id;
  }

  // Below zero when a comes first: small trees, then positions before literals, then by operation.
  // Each step follows the first operand that differs, so the depth is the depth of the tree.
  int order(std::int32_t a, std::int32_t b, bool shape_only) const {
    while (a != b) {
      const Look &x = looks_[static_cast<std::size_t>(a)], &y = looks_[static_cast<std::size_t>(b)];
      if (shape_only && x.shape == y.shape) return 0;
      if (x.shape != y.shape && x.size != y.size) return x.size < y.size ? -1 : 1;
      const Node &m = at(a), &n = at(b);
      if (literal(a) != literal(b)) return literal(a) ? 1 : -1;
      if (literal(a)) return literal_order(m, n);
      if (m.op != n.op) return m.op < n.op ? -1 : 1;
      if (m.type != n.type) return m.type < n.type ? -1 : 1;
      if (m.slot != n.slot) return name_of_slot(m).compare(name_of_slot(n)) < 0 ? -1 : 1;
      std::size_t i = 0;
      auto equal = [&](std::int32_t s, std::int32_t t) {
        if (s == t) return true;
        return shape_only && s >= 0 && t >= 0 &&
               looks_[static_cast<std::size_t>(s)].shape ==
                   looks_[static_cast<std::size_t>(t)].shape;
      };
      while (i < 4 && equal(m.operand[i], n.operand[i])) ++i;
      if (i == 4 || m.operand[i] < 0 || n.operand[i] < 0) return 0;
      a = m.operand[i];
      b = n.operand[i];
    }
    return 0;
  }

  int literal_order(const Node& m, const Node& n) const {
    if (m.type != n.type) return m.type < n.type ? -1 : 1;
    if (m.op != n.op) return m.op < n.op ? -1 : 1;
    if (m.op == Op::param) return 0;  // lifted: keep the order that the literals had
    if (m.type != Type::f32) return m.integer < n.integer ? -1 : m.integer > n.integer;
    if (m.real == n.real) return std::signbit(m.real) ? -1 : 1;
    return m.real < n.real ? -1 : 1;
  }

  const std::string& name_of_slot(const Node& n) const {
    const auto i = static_cast<std::size_t>(n.slot);
    return n.op == Op::param ? out_.program().params[i].name : out_.program().slots[i].name;
  }

  bool before(std::int32_t a, std::int32_t b) const {
    int c = order(a, b, true);
    if (c == 0) c = order(a, b, false);
    return c < 0;
  }

  bool commutes(const Node& n) const {
    switch (n.op) {
      case Op::add:
      case Op::mul:
      case Op::bit_and:
      case Op::bit_or:
      case Op::bit_xor:
      case Op::eq:
      case Op::ne:
        return true;
      case Op::min:
      case Op::max:
        return n.type == Type::i32;  // floats: NaN and -0.0 tell the sides apart
      default:
        return false;
    }
  }

  void sort_operands(Node& n) const {
    auto &a = n.operand[0], &b = n.operand[1];
    if (literal(a) != literal(b)) {  // 2 * x, but x + 2
      if (literal(a) != (n.op == Op::mul)) std::swap(a, b);
      return;
    }
    if (before(b, a)) std::swap(a, b);
  }

  // --- rules -------------------------------------------------------------------------------------
  std::int32_t rewrite(Node n) {
    if (n.op == Op::gt || n.op == Op::ge) {
      n.op = n.op == Op::gt ? Op::lt : Op::le;
      std::swap(n.operand[0], n.operand[1]);
    }
    if (commutes(n)) sort_operands(n);
    std::int32_t r = folded(n);
    if (r < 0) r = n.type == Type::boolean ? logical(n) : -1;
    if (r < 0 && n.type == Type::i32) r = integer(n);
    if (r < 0 && n.type == Type::f32) r = real(n);
    if (r < 0 && n.op == Op::select) r = chosen(n);
    return r >= 0 ? r : push(n);
  }

  std::int32_t push_constant(bool v) { return looked(out_.constant(v)); }
  std::int32_t push_constant(std::int64_t v) { return looked(out_.constant(v)); }
  std::int32_t looked(std::int32_t id) { return push(Node(at(id))); }

  std::int32_t folded(const Node& n) {
    const std::int32_t a = n.operand[0], b = n.operand[1];
    if (arity(n.op) < 1 || n.op == Op::select || !constant(a) || (b >= 0 && !constant(b)))
      return -1;
    const auto value = folded_constant(n, at(a), at(b >= 0 ? b : a));
    return value ? push(*value) : -1;
  }

  std::int32_t logical(const Node& n) {
    const std::int32_t a = n.operand[0], b = n.operand[1];
    if (n.op == Op::logical_not) return negated(a);
    if (n.op == Op::logical_and || n.op == Op::logical_or) return chain(n.op, a, b);
    if (!is_compare(n.op)) return -1;
    const Type type = at(a).type;
    if (type == Type::boolean && constant(b))
      return (n.op == Op::eq) == (at(b).integer != 0) ? a : rewrite_not(a);
    if (a == b && type != Type::f32) return push_constant(n.op == Op::le || n.op == Op::eq);
    return -1;
  }

  std::int32_t rewrite_not(std::int32_t a) {
    const std::int32_t r = negated(a);
    return r >= 0 ? r : make(Op::logical_not, Type::boolean, a);
  }

  std::int32_t negated(std::int32_t a) {
    const Node x = at(a);
    if (x.op == Op::constant) return push_constant(x.integer == 0);
    if (x.op == Op::logical_not) return x.operand[0];
    if (x.op == Op::eq || x.op == Op::ne) {
      Node n = x;
      n.op = x.op == Op::eq ? Op::ne : Op::eq;
      return push(n);
    }
    if ((x.op == Op::lt || x.op == Op::le) &&
        at(x.operand[0]).type == Type::i32) {  // not for floats: NaN
      Node n = x;
      n.op = x.op == Op::lt ? Op::le : Op::lt;
      std::swap(n.operand[0], n.operand[1]);
      return push(n);
    }
    return -1;
  }

  // && and || are associative, commutative and idempotent: collect, order, join from the left.
  std::int32_t chain(Op op, std::int32_t a, std::int32_t b) {
    const std::int64_t unit = op == Op::logical_and;
    std::vector<std::int32_t> terms;
    for (std::int32_t side : {b, a}) {
      while (at(side).op == op && terms.size() <= max_chain) {
        terms.push_back(at(side).operand[1]);
        side = at(side).operand[0];
      }
      terms.push_back(side);
    }
    std::reverse(terms.begin(), terms.end());  // as written, for those that compare equal
    if (terms.size() > max_chain ||
        std::any_of(terms.begin(), terms.end(), [&](std::int32_t t) { return at(t).op == op; }))
      return -1;
    for (auto it = terms.begin(); it != terms.end(); ++it)  // a stable insertion sort
      std::rotate(
          std::upper_bound(
              terms.begin(), it, *it, [&](std::int32_t x, std::int32_t y) { return before(x, y); }),
          it,
          it + 1);
    terms.erase(std::unique(terms.begin(), terms.end()), terms.end());
    std::int32_t joined = -1;
    for (std::int32_t t : terms) {
      if (is_integer(t, 1 - unit)) return t;
      if (is_integer(t, unit)) continue;
      joined = joined < 0 ? t : make(op, Type::boolean, joined, t);
    }
    return joined >= 0 ? joined : push_constant(unit != 0);
  }

  std::int32_t integer(const Node& n) {
    const std::int32_t a = n.operand[0], b = n.operand[1];
    switch (n.op) {
      case Op::add:
        return is_integer(b, 0) ? a : -1;
      case Op::sub:
        if (a == b) return push_constant(std::int64_t{0});
        return is_integer(b, 0) ? a : -1;
      case Op::mul:
        if (is_integer(a, 1)) return b;
        return is_integer(a, 0) ? a : -1;
      case Op::floordiv:
        return is_integer(b, 1) ? a : -1;
      case Op::mod:
        return is_integer(b, 1) ? push_constant(std::int64_t{0}) : -1;
      case Op::shl:
      case Op::shr:
        return is_integer(b, 0) ? a : -1;
      case Op::min:
      case Op::max:
        return a == b ? a : -1;
      case Op::bit_and:
        if (a == b || is_integer(b, -1)) return a;
        return is_integer(b, 0) ? b : -1;
      case Op::bit_or:
        if (a == b || is_integer(b, 0)) return a;
        return is_integer(b, -1) ? b : -1;
      case Op::bit_xor:
        if (a == b) return push_constant(std::int64_t{0});
        return is_integer(b, 0) ? a : -1;
      case Op::neg:
        return at(a).op == Op::neg ? at(a).operand[0] : -1;
      case Op::abs:
        return at(a).op == Op::abs ? a : -1;
      default:
        return -1;
    }
  }

  std::int32_t real(const Node& n) {  // exact for every value, zeros and infinities included
    const std::int32_t a = n.operand[0], b = n.operand[1];
    switch (n.op) {
      case Op::add:
        return is_real(b, -0.0) ? a : -1;
      case Op::sub:
        return is_real(b, 0.0) ? a : -1;
      case Op::mul:
        return is_real(a, 1.0) ? b : -1;
      case Op::div:
        return is_real(b, 1.0) ? a : -1;
      case Op::min:
      case Op::max:
        return a == b ? a : -1;
      case Op::neg:
        return at(a).op == Op::neg ? at(a).operand[0] : -1;
      case Op::abs:
        return at(a).op == Op::abs ? a : -1;
      default:
        return -1;
    }
  }

  std::int32_t chosen(const Node& n) {
    const std::int32_t c = n.operand[0], x = n.operand[1], y = n.operand[2];
    if (constant(c)) return at(c).integer ? x : y;
    if (x == y) return x;
    if (at(c).op == Op::logical_not) {
      Node flipped = n;
      flipped.operand = {at(c).operand[0], y, x, -1};
      return push(flipped);
    }
    if (n.type == Type::boolean && constant(x) && constant(y))
      return at(x).integer ? c : rewrite_not(c);
    return -1;
  }

  static constexpr std::size_t max_chain = 32;
  const Program& source_;
  Builder out_;
  std::vector<Look> looks_;
  std::map<std::tuple<Op, Type, std::int32_t, std::array<std::int32_t, 4>>, std::int32_t> shapes_;
};

}  // namespace

Program simplify(const Program& p) {
  std::vector<std::int32_t> none;
  return Simplifier(p).run(none, false);
}

Program simplify_keeping(const Program& p, std::vector<std::int32_t>& extra) {
  return Simplifier(p).run(extra, true);
}

}  // namespace undivided::expr
