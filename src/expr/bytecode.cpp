// SPDX-License-Identifier: Apache-2.0
// Sorts a program by rate and assigns registers.
#include "expr/bytecode.hpp"

#include <algorithm>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

Rate leaf_rate(Op op) {
  switch (op) {
    case Op::k:
      return Rate::key;
    case Op::q:
      return Rate::query;
    case Op::score:
      return Rate::element;
    default:
      return Rate::uniform;
  }
}

Rate join(Rate a, Rate b) {
  if (a == b || b == Rate::uniform) return a;
  return a == Rate::uniform ? b : Rate::element;
}

}  // namespace

ByteCode compile(const Program& p, const std::vector<std::array<std::int32_t, 4>>& keep) {
  const std::size_t count = p.nodes.size();
  constexpr std::size_t forever = static_cast<std::size_t>(-1);
  std::vector<char> live(count, 0);
  std::vector<std::size_t> last(count, 0);  // the node that reads it last
  std::vector<Rate> rate(count);
  auto hold = [&](std::int32_t id) {
    if (id < 0) return;
    live[static_cast<std::size_t>(id)] = 1;
    last[static_cast<std::size_t>(id)] = forever;
  };
  for (auto r : p.roots) hold(r);
  for (const auto& index : keep)
    for (auto id : index) hold(id);
  for (std::size_t i = count; i-- > 0;) {
    if (!live[i]) continue;
    for (auto o : p.nodes[i].operand) {
      if (o < 0) continue;
      live[static_cast<std::size_t>(o)] = 1;
      last[static_cast<std::size_t>(o)] = std::max(last[static_cast<std::size_t>(o)], i);
    }
  }

  ByteCode code;
  std::vector<std::int32_t> reg(count, -1);
  std::vector<std::int32_t> idle;  // element registers free for reuse
  auto fresh = [&](Rate r) {
    const auto global = static_cast<std::int32_t>(code.rate_of.size());
    code.rate_of.push_back(r);
    code.index_of.push_back(code.file_size[static_cast<std::size_t>(r)]++);
    return global;
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (!live[i]) continue;
    const Node& n = p.nodes[i];
    rate[i] = leaf_rate(n.op);
    Instruction in;
    in.op = n.op;
    in.type = n.type;
    in.operand_type = n.type;
    for (std::size_t j = 0; j < 4; ++j) {
      if (n.operand[j] < 0) continue;
      const auto o = static_cast<std::size_t>(n.operand[j]);
      rate[i] = join(rate[i], rate[o]);
      in.operand[j] = reg[o];
    }
    if (n.operand[0] >= 0) {
      const auto typed = static_cast<std::size_t>(n.operand[n.op == Op::select ? 1 : 0]);
      in.operand_type = p.nodes[typed].type;
    }
    in.rate = rate[i];
    in.slot = n.slot;
    in.integer = n.integer;
    in.real = n.real;
    if (rate[i] == Rate::element && !idle.empty()) {
      reg[i] = idle.back();
      idle.pop_back();
    } else {
      reg[i] = fresh(rate[i]);
    }
    in.result = reg[i];
    for (std::size_t j = 0; j < 4; ++j) {  // after the result: it never lands on an operand
      if (n.operand[j] < 0) continue;
      const auto o = static_cast<std::size_t>(n.operand[j]);
      const bool again =
          std::find(n.operand.begin(),
                    n.operand.begin() + static_cast<std::ptrdiff_t>(j),
                    n.operand[j]) != n.operand.begin() + static_cast<std::ptrdiff_t>(j);
      if (!again && last[o] == i && rate[o] == Rate::element) idle.push_back(reg[o]);
    }
    code.reads_score = code.reads_score || n.op == Op::score;
    switch (rate[i]) {
      case Rate::uniform:
        code.uniform.push_back(in);
        break;
      case Rate::key:
        code.key.push_back(in);
        break;
      case Rate::query:
        code.query.push_back(in);
        break;
      case Rate::element:
        code.element.push_back(in);
        break;
    }
  }
  auto register_of = [&](std::int32_t id) {
    return id < 0 ? -1 : reg[static_cast<std::size_t>(id)];
  };
  for (auto r : p.roots) code.roots.push_back(register_of(r));
  for (const auto& index : keep)
    code.keep.push_back({register_of(index[0]),
                         register_of(index[1]),
                         register_of(index[2]),
                         register_of(index[3])});
  return code;
}

}  // namespace undivided::expr
