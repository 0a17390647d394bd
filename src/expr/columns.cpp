// SPDX-License-Identifier: Apache-2.0
// Recognises masks that say for each key which queries keep it.
#include <algorithm>

#include "expr/internal.hpp"

namespace undivided::expr {

bool is_connective(const Program& p, const Node& n) {
  switch (n.op) {
    case Op::logical_and:
    case Op::logical_or:
    case Op::logical_not:
      return true;
    case Op::select:
      return n.type == Type::boolean;
    case Op::eq:
    case Op::ne:
      return p.nodes[static_cast<std::size_t>(n.operand[0])].type == Type::boolean;
    default:
      return false;
  }
}

ColumnForm by_columns(const Program& p) {
  ColumnForm form;
  if (p.roots.size() != 1 || p.root().type != Type::boolean) return {};
  struct Reads {
    bool q = false, array = false;
  };
  std::vector<Reads> reads(p.nodes.size());
  std::vector<char> needed(p.nodes.size());
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const Node& n = p.nodes[i];
    reads[i] = {n.op == Op::q, n.op == Op::load};
    for (const std::int32_t o : n.operand)
      if (o >= 0) {
        const Reads& of = reads[static_cast<std::size_t>(o)];
        reads[i].q |= of.q;
        reads[i].array |= of.array;
      }
  }
  std::size_t compares = 0;
  needed[static_cast<std::size_t>(p.roots[0])] = 1;
  for (std::size_t i = p.nodes.size(); i-- > 0;) {
    const Node& n = p.nodes[i];
    if (!needed[i]) continue;
    if (reads[i].q && is_connective(p, n)) {
      for (const std::int32_t o : n.operand)
        if (o >= 0) needed[static_cast<std::size_t>(o)] = 1;
      continue;
    }
    if (reads[i].q) {
      if (!is_compare(n.op)) return {};
      const auto at = [&](int side) {
        return static_cast<std::size_t>(n.operand[static_cast<std::size_t>(side)]);
      };
      const int side = p.nodes[at(0)].op == Op::q ? 0 : 1;
      if (p.nodes[at(side)].op != Op::q || reads[at(1 - side)].q) return {};
      if (++compares > most_column_compares) return {};
    }
    form.loads |= reads[i].array;
    form.leaves.push_back(static_cast<std::int32_t>(i));
  }
  std::reverse(form.leaves.begin(), form.leaves.end());
  return form;
}

ColumnTree column_tree(const Program& p) {
  const ColumnForm form = by_columns(p);
  ColumnTree tree;
  if (form.leaves.empty()) return tree;
  const auto mirrored = [](Op op) {
    return op == Op::lt   ? Op::gt
           : op == Op::le ? Op::ge
           : op == Op::gt ? Op::lt
           : op == Op::ge ? Op::le
                          : op;
  };
  std::vector<std::int32_t> step_of(p.nodes.size(), -1);
  auto leaf = form.leaves.begin();
  for (std::size_t i = 0; i < p.nodes.size(); ++i) {
    const Node& n = p.nodes[i];
    ColumnTree::Step step{n.op, {-1, -1, -1}, -1};
    if (leaf != form.leaves.end() && *leaf == static_cast<std::int32_t>(i)) {
      ++leaf;
      const auto is_query = [&](std::size_t side) {
        return is_compare(n.op) && p.nodes[static_cast<std::size_t>(n.operand[side])].op == Op::q;
      };
      if (is_query(0)) {
        step.node = n.operand[1];
      } else if (is_query(1)) {
        step.node = n.operand[0];
        step.op = mirrored(n.op);
      } else {
        step.node = static_cast<std::int32_t>(i);
        step.op = Op::constant;
      }
    } else {
      bool whole = is_connective(p, n);
      for (std::size_t j = 0; whole && j < 3 && n.operand[j] >= 0; ++j) {
        step.from[j] = step_of[static_cast<std::size_t>(n.operand[j])];
        whole = step.from[j] >= 0;
      }
      if (!whole) continue;  // inside a leaf
    }
    step_of[i] = static_cast<std::int32_t>(tree.steps.size());
    tree.steps.push_back(step);
  }
  tree.steps.resize(static_cast<std::size_t>(step_of[static_cast<std::size_t>(p.roots[0])]) + 1);
  return tree;
}

}  // namespace undivided::expr
