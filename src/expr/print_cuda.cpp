// SPDX-License-Identifier: Apache-2.0
// CUDA text: one statement a node, named v<node>, and out<i> for each root.
#include <fmt/format.h>

#include <algorithm>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

const char* cuda_type(Type type) {
  switch (type) {
    case Type::boolean:
      return "bool";
    case Type::i32:
      return "int";
    case Type::f32:
      return "float";
  }
  return "";
}

std::string real_literal(double value) {
  if (std::isinf(value))
    return value < 0 ? "__int_as_float(0xff800000)" : "__int_as_float(0x7f800000)";
  std::string text = fmt::format("{:.9g}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text + "f";
}

std::string integer_literal(std::int64_t value) {
  return value == INT32_MIN ? "(-2147483647 - 1)" : std::to_string(value);
}

// 1 for k - q, -1 for q - k: the kernels know both as floats.
int distance_sign(const Program& p, std::int32_t node) {
  const Node& n = p.nodes[static_cast<std::size_t>(node)];
  if (n.op != Op::sub) return 0;
  const Op a = p.nodes[static_cast<std::size_t>(n.operand[0])].op;
  const Op b = p.nodes[static_cast<std::size_t>(n.operand[1])].op;
  return a == Op::k && b == Op::q ? 1 : a == Op::q && b == Op::k ? -1 : 0;
}

std::string value_of(const Program& p, const Node& n, bool fast) {
  auto v = [&](std::size_t i) { return fmt::format("v{}", n.operand[i]); };
  const bool real = n.type == Type::f32;
  switch (n.op) {
    case Op::constant:
      if (n.type == Type::boolean) return n.integer ? "true" : "false";
      return real ? real_literal(n.real) : integer_literal(n.integer);
    case Op::param:
      return fmt::format("env.p{}", n.slot);
    case Op::load: {
      const char* suffix = real ? "f32" : n.type == Type::i32 ? "i32" : "b";
      std::string text = fmt::format("load_{}(env.a{}", suffix, n.slot);
      const int rank = p.slots[static_cast<std::size_t>(n.slot)].rank;
      for (int i = 0; i < rank; ++i) text += ", " + v(static_cast<std::size_t>(i));
      return text + ")";
    }
    case Op::floordiv:
      return fmt::format("floor_div({}, {})", v(0), v(1));
    case Op::mod:
      return fmt::format("floor_mod({}, {})", v(0), v(1));
    case Op::abs:
      return real ? fmt::format("fabsf({})", v(0)) : fmt::format("({0} < 0 ? -{0} : {0})", v(0));
    case Op::min:
      return fmt::format("({0} < {1} ? {0} : {1})", v(0), v(1));
    case Op::max:
      return fmt::format("({0} > {1} ? {0} : {1})", v(0), v(1));
    case Op::neg:
      return "-" + v(0);
    case Op::shl:  // unsigned: a signed overflow would be undefined
      return fmt::format("(int)((unsigned)({}) << ({} & 31))", v(0), v(1));
    case Op::shr:
      return fmt::format("({} >> ({} & 31))", v(0), v(1));
    case Op::logical_not:
      return "!" + v(0);
    case Op::select:
      return fmt::format("({} ? {} : {})", v(0), v(1), v(2));
    case Op::tanh:
      return fmt::format("{}({})", fast ? "tanh_fast<Config::Element>" : "tanhf", v(0));
    case Op::exp:
      return fmt::format("expf({})", v(0));
    case Op::log:
      return fmt::format("logf({})", v(0));
    case Op::sqrt:
      return fmt::format("sqrtf({})", v(0));
    case Op::to_float:
      if (const int sign = fast ? distance_sign(p, n.operand[0]) : 0)
        return sign > 0 ? "distance" : "-distance";
      return fmt::format("(float)({})", v(0));
    case Op::trunc:
      return fmt::format("__float2int_rz({})", v(0));  // saturates; NaN gives 0
    case Op::div:
      if (fast && real) return fmt::format("__fdividef({}, {})", v(0), v(1));
      break;
    default:
      break;
  }
  if (arity(n.op) == 0) return std::string(symbol_of(n.op));
  return fmt::format("{} {} {}", v(0), symbol_of(n.op), v(1));
}

/// Scores, for which order of rounding is free: what is the same for all pairs is multiplied first,
/// once, and so is the scale of Q K^T.
class ScorePrinter {
 public:
  explicit ScorePrinter(const Program& p) : p_(p), fixed_(p.nodes.size()) {
    for (std::size_t i = 0; i < p.nodes.size(); ++i) {
      const Node& n = p.nodes[i];
      bool fixed = n.op != Op::q && n.op != Op::k && n.op != Op::score;
      for (const std::int32_t o : n.operand)
        fixed = fixed && (o < 0 || fixed_[static_cast<std::size_t>(o)]);
      fixed_[i] = fixed;
    }
    // Values made of loads that are the same for all pairs, where other values read them.
    std::vector<bool> loads(p.nodes.size()), read(p.nodes.size());
    for (std::size_t i = 0; i < p.nodes.size(); ++i) {
      const Node& n = p.nodes[i];
      loads[i] = n.op == Op::load;
      for (const std::int32_t o : n.operand) {
        if (o < 0) continue;
        loads[i] = loads[i] || loads[static_cast<std::size_t>(o)];
        if (!fixed_[i]) read[static_cast<std::size_t>(o)] = true;
      }
    }
    for (const std::int32_t r : p.roots) read[static_cast<std::size_t>(r)] = true;
    for (std::size_t i = 0; i < p.nodes.size() && kept_.size() < most_kept; ++i)
      if (fixed_[i] && loads[i] && read[i]) kept_.push_back(static_cast<std::int32_t>(i));
  }

  const std::vector<std::int32_t>& kept() const { return kept_; }
  bool is_kept(std::int32_t id) const {
    return std::find(kept_.begin(), kept_.end(), id) != kept_.end();
  }

  std::string value(std::int32_t id) const {
    const Node& n = at(id);
    const bool chain = n.op == Op::mul || n.op == Op::neg || n.op == Op::score ||
                       (n.op == Op::div && fixed(n.operand[1]));
    return n.type == Type::f32 && chain && !fixed(id) ? product(factors(id))
                                                      : value_of(p_, n, true);
  }

  CudaScore score() const {
    const std::int32_t root = p_.roots.front();
    CudaScore out;
    if (fixed(root)) return {fmt::format("v{}", root), "1.0f", false};
    const Op op = at(root).op;
    if (op != Op::add && op != Op::sub) {
      Factors f = factors(root);
      out.unit = take_positive(f);
      out.value = product(f);
      return out;
    }
    // score + rest is scale * (q.k + rest / scale): one fused multiplication.
    std::vector<Term> terms;
    flatten(root, false, terms);
    const auto plain = std::find_if(terms.begin(), terms.end(), [&](const Term& t) {
      Factors f = t.factors;
      take_positive(f);
      return !t.negative && f.fixed.empty() && f.moving == std::vector<std::string>{"raw"};
    });
    if (plain == terms.end()) return {fmt::format("v{}", root), "1.0f", false};
    Factors f = plain->factors;
    out.unit = take_positive(f);
    std::rotate(terms.begin(), plain, plain + 1);
    out.linear = f.fixed.empty() && terms.size() == 2 && terms[1].factors.distance;
    for (Term& t : terms) {
      const bool first = out.value.empty();
      if (!first) t.factors.add(fmt::format("inverse({})", out.unit), true);
      out.value += (first ? "" : t.negative ? " - " : " + ") + product(first ? f : t.factors);
    }
    return out;
  }

  bool fixed(std::int32_t id) const { return fixed_[static_cast<std::size_t>(id)]; }

 private:
  static constexpr std::size_t most_kept = 4;  // each takes a register
  struct Factors {
    std::vector<std::string> fixed, moving;
    std::vector<bool> positive;  // of the fixed ones: is it known?
    bool distance = false;       // is it all that moves?
    void add(std::string text, bool sure) {
      fixed.push_back(std::move(text));
      positive.push_back(sure);
    }
  };
  struct Term {
    Factors factors;
    bool negative;
  };

  const Node& at(std::int32_t id) const { return p_.nodes[static_cast<std::size_t>(id)]; }
  bool positive(std::int32_t id) const {
    const Node& n = at(id);
    if (n.type != Type::f32) return false;
    return (n.op == Op::constant && n.real > 0 && std::isfinite(n.real)) ||
           (n.op == Op::param && p_.params[static_cast<std::size_t>(n.slot)].lifted);
  }

  /// Text that stands alone if the node may be part of the unit.
  std::string name(std::int32_t id) const {
    return positive(id) ? value_of(p_, at(id), true) : fmt::format("v{}", id);
  }

  Factors factors(std::int32_t id) const {
    Factors f;
    gather(id, f);
    return f;
  }
  void gather(std::int32_t id, Factors& f) const {
    const Node& n = at(id);
    if (fixed(id)) {
      f.add(name(id), positive(id));
    } else if (n.op == Op::mul) {
      gather(n.operand[0], f);
      gather(n.operand[1], f);
    } else if (n.op == Op::div && fixed(n.operand[1])) {
      gather(n.operand[0], f);
      f.add(fmt::format("inverse({})", name(n.operand[1])), positive(n.operand[1]));
    } else if (n.op == Op::neg) {
      gather(n.operand[0], f);
      f.add("-1.0f", false);
    } else if (n.op == Op::score) {
      f.distance = false;
      f.moving.push_back("raw");
      f.add("scale", true);
    } else {
      f.distance = f.moving.empty() && n.op == Op::to_float && distance_sign(p_, n.operand[0]) != 0;
      f.moving.push_back(fmt::format("v{}", id));
    }
  }
  static std::string product(const Factors& f) {
    std::string text;
    if (!f.fixed.empty()) text = fmt::format("({})", fmt::join(f.fixed, " * "));
    for (const std::string& m : f.moving) text += (text.empty() ? "" : " * ") + m;
    return text;
  }
  /// Removes the positive fixed factors: their product.
  static std::string take_positive(Factors& f) {
    std::vector<std::string> taken, left;
    for (std::size_t i = 0; i < f.fixed.size(); ++i)
      (f.positive[i] ? taken : left).push_back(f.fixed[i]);
    f.fixed = left;
    f.positive.assign(left.size(), false);
    return taken.empty() ? "1.0f" : fmt::format("{}", fmt::join(taken, " * "));
  }
  void flatten(std::int32_t id, bool negative, std::vector<Term>& out) const {
    const Node& n = at(id);
    if ((n.op == Op::add || n.op == Op::sub) && !fixed(id)) {
      flatten(n.operand[0], negative, out);
      flatten(n.operand[1], negative != (n.op == Op::sub), out);
    } else {
      out.push_back({factors(id), negative});
    }
  }

  const Program& p_;
  std::vector<bool> fixed_;
  std::vector<std::int32_t> kept_;
};

}  // namespace

std::string print_cuda(const Program& p, bool score, const char* kept) {
  std::string text;
  const ScorePrinter scores(p);
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const Node& n = p.nodes[i];
    text += fmt::format("const {} v{} = {};\n",
                        cuda_type(n.type),
                        i,
                        !score                       ? value_of(p, n, false)
                        : kept && scores.is_kept(id) ? fmt::format("{}{}", kept, i)
                                                     : scores.value(id));
  }
  for (std::size_t i = 0; i < p.roots.size(); ++i)
    text += fmt::format("out{} = v{};\n", i, p.roots[i]);
  return text;
}

CudaScore cuda_score(const Program& p) { return ScorePrinter(p).score(); }

CudaKept cuda_kept(const Program& p, const char* kept) {
  CudaKept out;
  const ScorePrinter scores(p);
  if (scores.kept().empty()) return out;
  for (std::int32_t i = 0; i <= scores.kept().back(); ++i)
    if (const Node& n = p.nodes[static_cast<std::size_t>(i)]; scores.fixed(i))
      out.statements +=
          fmt::format("const {} v{} = {};\n", cuda_type(n.type), i, value_of(p, n, true));
  for (const std::int32_t i : scores.kept()) {
    const char* type = cuda_type(p.nodes[static_cast<std::size_t>(i)].type);
    out.members += fmt::format("{} {}{};\n", type, kept, i);
    out.statements += fmt::format("{}{} = v{};\n", kept, i, i);
  }
  return out;
}

}  // namespace undivided::expr
