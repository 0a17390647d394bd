// SPDX-License-Identifier: Apache-2.0
// Canonical text: as few parentheses as C needs, names for shared parts of large programs.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

enum Precedence {
  ternary = 1,
  either,
  both,
  bit_or,
  bit_xor,
  bit_and,
  equality,
  relation,
  shift,
  sum,
  product,
  prefix,
  primary
};

int precedence_of(Op op) {
  switch (op) {
    case Op::select:
      return ternary;
    case Op::logical_or:
      return either;
    case Op::logical_and:
      return both;
    case Op::bit_or:
      return bit_or;
    case Op::bit_xor:
      return bit_xor;
    case Op::bit_and:
      return bit_and;
    case Op::eq:
    case Op::ne:
      return equality;
    case Op::lt:
    case Op::le:
    case Op::gt:
    case Op::ge:
      return relation;
    case Op::shl:
    case Op::shr:
      return shift;
    case Op::add:
    case Op::sub:
      return sum;
    case Op::mul:
    case Op::div:
    case Op::floordiv:
    case Op::mod:
      return product;
    case Op::neg:
    case Op::logical_not:
      return prefix;
    default:
      return primary;
  }
}

std::string real_text(double value) {
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", static_cast<float>(value));
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

constexpr int deepest_unnamed = 48;  // a deeper part gets a name, so that a parser need not nest
constexpr std::int64_t inline_size = 256;  // larger programs name their shared parts

class Printer {
 public:
  explicit Printer(const Program& p) : p_(p), name_(p.nodes.size()) {}

  std::string whole(bool declarations) {
    std::string text;
    if (declarations) {
      for (const Slot& s : p_.slots)
        text += fmt::format("array {}: {}[{}]; ", s.name, type_name(type_of(s.dtype)), s.rank);
      for (const ParamDecl& d : p_.params)
        text +=
            fmt::format("param {}: {} = {}; ",
                        d.name,
                        type_name(d.type),
                        d.type == Type::f32 ? real_text(d.value)
                                            : std::to_string(static_cast<std::int64_t>(d.value)));
    }
    text += lets();
    for (std::size_t i = 0; i < p_.roots.size(); ++i)
      text += (i ? ", " : "") + node(p_.roots[i], ternary);
    return text;
  }

  std::string part(std::int32_t id) {
    cut_ = 8;
    return node(id, ternary);
  }

 private:
  const Node& at(std::int32_t id) const { return p_.nodes[static_cast<std::size_t>(id)]; }

  // Names the parts that must not be repeated or nested, and returns their definitions.
  std::string lets() {
    const std::size_t n = p_.nodes.size();
    std::vector<int> uses(n, 0), depth(n, 0);
    std::vector<std::int64_t> size(n, 1);
    for (const Node& node : p_.nodes)
      for (auto o : node.operand)
        if (o >= 0) ++uses[static_cast<std::size_t>(o)];
    std::int64_t total = 0;
    for (std::size_t i = 0; i < n; ++i)
      for (auto o : p_.nodes[i].operand)
        if (o >= 0)
          size[i] = std::min<std::int64_t>(size[i] + size[static_cast<std::size_t>(o)], 1 << 30);
    for (auto r : p_.roots) total += size[static_cast<std::size_t>(r)];
    std::string prefix = "t";
    auto taken = [&](const std::string& name) { return name.rfind(prefix, 0) == 0; };
    for (bool clash = true; clash;) {
      clash = false;
      for (const Slot& s : p_.slots) clash = clash || taken(s.name);
      for (const ParamDecl& d : p_.params) clash = clash || taken(d.name);
      if (clash) prefix += '_';
    }
    std::string text;
    int next = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const Node& node = p_.nodes[i];
      if (node.operand[0] < 0) continue;
      for (auto o : node.operand)
        if (o >= 0) depth[i] = std::max(depth[i], depth[static_cast<std::size_t>(o)] + 1);
      const bool shared = uses[i] > 1 && total > inline_size;
      if (!shared && depth[i] < deepest_unnamed) continue;
      const std::string body = this->node(static_cast<std::int32_t>(i), ternary);
      name_[i] = fmt::format("{}{}", prefix, next++);
      depth[i] = 0;
      text += fmt::format("let {} = {}; ", name_[i], body);
    }
    return text;
  }

  std::string node(std::int32_t id, int around) {
    if (!name_[static_cast<std::size_t>(id)].empty()) return name_[static_cast<std::size_t>(id)];
    if (++level_ > cut_) {
      --level_;
      return "...";
    }
    const Node& n = at(id);
    std::string text = body(n);
    --level_;
    return precedence_of(n.op) < around ? "(" + text + ")" : text;
  }

  // An operand beside a float: the conversion of an integer is understood.
  std::string beside(std::int32_t id, std::int32_t other, int around) {
    const bool understood = at(id).op == Op::to_float && at(other).type == Type::f32 &&
                            at(other).op != Op::to_float &&
                            name_[static_cast<std::size_t>(id)].empty();
    return node(understood ? at(id).operand[0] : id, around);
  }

  std::string body(const Node& n) {
    const auto [a, b, c, d] = n.operand;
    const int mine = precedence_of(n.op);
    switch (n.op) {
      case Op::constant:
        if (n.type == Type::boolean) return n.integer ? "true" : "false";
        return n.type == Type::f32 ? real_text(n.real) : std::to_string(n.integer);
      case Op::param:
        return p_.params[static_cast<std::size_t>(n.slot)].name;
      case Op::load: {
        std::string text = p_.slots[static_cast<std::size_t>(n.slot)].name + "[";
        for (std::size_t i = 0; i < 4 && n.operand[i] >= 0; ++i)
          text += (i ? ", " : "") + node(n.operand[i], ternary);
        return text + "]";
      }
      case Op::select:
        return fmt::format(
            "{} ? {} : {}", node(a, either), beside(b, c, either), beside(c, b, ternary));
      case Op::neg:
        // -5 would be read as one number, and --x as something else
        return "-" + (at(a).op == Op::constant || at(a).op == Op::neg ? "(" + node(a, ternary) + ")"
                                                                      : node(a, prefix));
      case Op::logical_not:
        return "!" + node(a, prefix);
      case Op::min:
      case Op::max:
        return fmt::format(
            "{}({}, {})", symbol_of(n.op), beside(a, b, ternary), beside(b, a, ternary));
      case Op::abs:
      case Op::tanh:
      case Op::exp:
      case Op::log:
      case Op::sqrt:
      case Op::to_float:
      case Op::trunc:
        return fmt::format("{}({})", symbol_of(n.op), node(a, ternary));
      default:
        break;
    }
    if (arity(n.op) == 0) return std::string(symbol_of(n.op));
    // A compare inside a compare is legal without parentheses, but nobody reads it right.
    const int left = is_compare(n.op) ? shift : mine;
    const int right = is_compare(n.op) ? shift : mine + 1;
    return fmt::format("{} {} {}", beside(a, b, left), symbol_of(n.op), beside(b, a, right));
  }

  const Program& p_;
  std::vector<std::string> name_;
  int level_ = 0;
  int cut_ = 1 << 20;
};

}  // namespace

std::string print(const Program& p, bool declarations) { return Printer(p).whole(declarations); }

std::string print_node(const Program& p, std::int32_t id) { return Printer(p).part(id); }

}  // namespace undivided::expr
