// SPDX-License-Identifier: Apache-2.0
// Questions about a program: operations and their names, reachability, structure, pruning.
#include "expr/program.hpp"

#include <algorithm>
#include <functional>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

struct OpInfo {
  int arity;
  const char* name;
  std::string_view symbol;
};

constexpr OpInfo table[] = {
    {0, "batch", "batch"},   {0, "head", "head"},
    {0, "q", "q"},           {0, "k", "k"},
    {0, "q_len", "q_len"},   {0, "k_len", "k_len"},
    {0, "score", "score"},   {0, "constant", "constant"},
    {0, "param", "param"},   {-1, "load", "[]"},
    {2, "add", "+"},         {2, "sub", "-"},
    {2, "mul", "*"},         {2, "div", "/"},
    {2, "floordiv", "/"},    {2, "mod", "%"},
    {1, "abs", "abs"},       {2, "min", "min"},
    {2, "max", "max"},       {1, "neg", "-"},
    {2, "shl", "<<"},        {2, "shr", ">>"},
    {2, "bit_and", "&"},     {2, "bit_or", "|"},
    {2, "bit_xor", "^"},     {2, "lt", "<"},
    {2, "le", "<="},         {2, "gt", ">"},
    {2, "ge", ">="},         {2, "eq", "=="},
    {2, "ne", "!="},         {2, "logical_and", "&&"},
    {2, "logical_or", "||"}, {1, "logical_not", "!"},
    {3, "select", "? :"},    {1, "tanh", "tanh"},
    {1, "exp", "exp"},       {1, "log", "log"},
    {1, "sqrt", "sqrt"},     {1, "to_float", "float"},
    {1, "trunc", "trunc"},
};
static_assert(sizeof(table) / sizeof(table[0]) == static_cast<std::size_t>(Op::trunc) + 1);

void mix(std::size_t& seed, std::size_t value) {
  seed ^= value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2);
}

// Marks what the roots reach. Operands precede users, so one backward sweep is enough.
std::vector<char> reachable(const Program& p) {
  std::vector<char> live(p.nodes.size(), 0);
  for (auto r : p.roots) live[static_cast<std::size_t>(r)] = 1;
  for (std::size_t i = p.nodes.size(); i-- > 0;) {
    if (!live[i]) continue;
    for (auto o : p.nodes[i].operand)
      if (o >= 0) live[static_cast<std::size_t>(o)] = 1;
  }
  return live;
}

}  // namespace

int arity(Op op) { return table[static_cast<std::size_t>(op)].arity; }
const char* name_of(Op op) { return table[static_cast<std::size_t>(op)].name; }
std::string_view symbol_of(Op op) { return table[static_cast<std::size_t>(op)].symbol; }

bool Program::reads(Op leaf) const {
  const auto live = reachable(*this);
  for (std::size_t i = 0; i < nodes.size(); ++i)
    if (live[i] && nodes[i].op == leaf) return true;
  return false;
}

bool Program::reads_positions() const { return reads(Op::q) || reads(Op::k); }

bool same_node(const Node& a, const Node& b) {
  return a.op == b.op && a.type == b.type && a.operand == b.operand && a.slot == b.slot &&
         a.integer == b.integer && same_bits(a.real, b.real);
}

bool same_structure(const Program& a, const Program& b) {
  return a.roots == b.roots && a.slots == b.slots &&
         std::equal(a.nodes.begin(), a.nodes.end(), b.nodes.begin(), b.nodes.end(), same_node) &&
         std::equal(a.params.begin(),
                    a.params.end(),
                    b.params.begin(),
                    b.params.end(),
                    [](const ParamDecl& x, const ParamDecl& y) {
                      return x.name == y.name && x.type == y.type;
                    });
}

std::size_t structure_hash(const Program& p) {
  std::size_t seed = p.nodes.size();
  for (const Node& n : p.nodes) {
    mix(seed, static_cast<std::size_t>(n.op) * 4 + static_cast<std::size_t>(n.type));
    for (auto o : n.operand) mix(seed, static_cast<std::size_t>(o));
    mix(seed, static_cast<std::size_t>(n.slot));
    mix(seed, static_cast<std::size_t>(n.integer));
    mix(seed, std::hash<double>{}(n.real));
  }
  for (auto r : p.roots) mix(seed, static_cast<std::size_t>(r));
  for (const Slot& s : p.slots) {
    mix(seed, std::hash<std::string>{}(s.name));
    mix(seed, static_cast<std::size_t>(s.dtype) * 8 + static_cast<std::size_t>(s.rank));
  }
  for (const ParamDecl& d : p.params) {
    mix(seed, std::hash<std::string>{}(d.name));
    mix(seed, static_cast<std::size_t>(d.type));
  }
  return seed;
}

Program compact(const Program& p, std::vector<std::int32_t>* extra, bool keep_tables) {
  Program out;
  std::vector<std::int32_t> place(p.nodes.size(), -1);
  std::vector<std::int32_t> stack;
  auto visit = [&](std::int32_t root) {  // post-order with an explicit stack: traces can be deep
    stack.push_back(root);
    while (!stack.empty()) {
      const std::int32_t id = stack.back();
      const Node& n = p.nodes[static_cast<std::size_t>(id)];
      if (place[static_cast<std::size_t>(id)] >= 0) {
        stack.pop_back();
        continue;
      }
      std::int32_t waiting = -1;
      for (auto o : n.operand) {
        if (o >= 0 && place[static_cast<std::size_t>(o)] < 0) {
          waiting = o;
          break;
        }
      }
      if (waiting >= 0) {
        stack.push_back(waiting);
        continue;
      }
      Node copy = n;
      for (auto& o : copy.operand)
        if (o >= 0) o = place[static_cast<std::size_t>(o)];
      place[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(out.nodes.size());
      out.nodes.push_back(copy);
      stack.pop_back();
    }
    return place[static_cast<std::size_t>(root)];
  };
  for (auto r : p.roots) out.roots.push_back(visit(r));
  if (extra)
    for (auto& e : *extra)
      if (e >= 0) e = visit(e);
  if (keep_tables) {
    out.slots = p.slots;
    out.params = p.params;
    return out;
  }
  std::vector<std::int32_t> slot_at(p.slots.size(), -1), param_at(p.params.size(), -1);
  for (const Node& n : out.nodes) {
    if (n.op != Op::load || slot_at[static_cast<std::size_t>(n.slot)] >= 0) continue;
    slot_at[static_cast<std::size_t>(n.slot)] = static_cast<std::int32_t>(out.slots.size());
    out.slots.push_back(p.slots[static_cast<std::size_t>(n.slot)]);
  }
  for (bool lifted : {false, true}) {
    for (const Node& n : out.nodes) {
      if (n.op != Op::param) continue;
      const auto old = static_cast<std::size_t>(n.slot);
      if (p.params[old].lifted != lifted || param_at[old] >= 0) continue;
      param_at[old] = static_cast<std::int32_t>(out.params.size());
      out.params.push_back(p.params[old]);
    }
  }
  for (Node& n : out.nodes) {
    if (n.op == Op::load) n.slot = slot_at[static_cast<std::size_t>(n.slot)];
    if (n.op == Op::param) n.slot = param_at[static_cast<std::size_t>(n.slot)];
  }
  return out;
}

}  // namespace undivided::expr
