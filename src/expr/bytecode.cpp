// SPDX-License-Identifier: Apache-2.0
// Sorts a program by rate and assigns registers.
#include "expr/bytecode.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

std::size_t at(std::int32_t id) { return static_cast<std::size_t>(id); }

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

bool compares(Op op) {
  return op == Op::lt || op == Op::le || op == Op::gt || op == Op::ge || op == Op::eq ||
         op == Op::ne;
}

/// The nodes of a program with their rates. A node that depends on q and k through q - k alone gets
/// the diagonal rate, and copies of the q and k under it that have that rate too.
class Rated {
 public:
  Rated(const Program& p, bool diagonals) : p_(p), copy_of_(p.nodes.size(), -1) {
    for (std::size_t i = 0; i < p.nodes.size(); ++i) {
      const Node& n = p.nodes[i];
      Rate r = leaf_rate(n.op);
      bool spread = false;  // reads q or k by an operand of their rate
      for (const auto o : n.operand)
        if (o >= 0) {
          r = join(r, rate[at(id[at(o)])]);
          spread |= rate[at(id[at(o)])] != Rate::uniform && rate[at(id[at(o)])] != Rate::diagonal;
        }
      slope_.push_back(slope(n, r));
      const bool diagonal = diagonals && spread && cancels(n);
      id.push_back(append(n, diagonal ? Rate::diagonal : r));
    }
  }

  std::vector<Node> nodes;
  std::vector<Rate> rate;
  std::vector<std::int32_t> id;  // of each node of the program

 private:
  /// How an int32 grows with q and with k, if it does so evenly and not faster than an int32 can.
  using Slope = std::optional<std::array<std::int64_t, 2>>;

  Slope slope(const Node& n, Rate r) const {
    if (n.type != Type::i32) return {};
    if (n.op == Op::q) return {{1, 0}};
    if (n.op == Op::k) return {{0, 1}};
    if (r == Rate::uniform) return {{0, 0}};
    if (n.op == Op::add) return difference(n, -1);
    if (n.op == Op::sub) return difference(n, 1);
    if (n.op == Op::neg) {
      const Slope a = slope_[at(n.operand[0])];
      if (a) return {{-(*a)[0], -(*a)[1]}};
    }
    return {};
  }
  Slope difference(const Node& n, int sign) const {
    const Slope &a = slope_[at(n.operand[0])], &b = slope_[at(n.operand[1])];
    if (!a || !b) return {};
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const std::int64_t q = (*a)[0] - sign * (*b)[0], k = (*a)[1] - sign * (*b)[1];
    if (std::max(std::abs(q), std::abs(k)) > most) return {};
    return {{q, k}};
  }
  /// Does moving q and k together leave this node as it is? Overflow does not matter: a diagonal is
  /// evaluated at pairs of the tile, whose integers are proved to fit.
  bool cancels(const Node& n) const {
    Slope s = slope_.back();
    if (compares(n.op) && p_.nodes[at(n.operand[0])].type == Type::i32) s = difference(n, 1);
    return s && (*s)[0] + (*s)[1] == 0;
  }

  std::int32_t append(Node n, Rate r) {
    for (auto& o : n.operand)
      if (o >= 0) o = r == Rate::diagonal ? on_diagonal(o) : id[at(o)];
    nodes.push_back(n);
    rate.push_back(r);
    return static_cast<std::int32_t>(nodes.size()) - 1;
  }
  /// A node of the program as diagonal code may read it.
  std::int32_t on_diagonal(std::int32_t node) {
    const Rate r = rate[at(id[at(node)])];
    if (r == Rate::uniform || r == Rate::diagonal) return id[at(node)];
    std::int32_t& copy = copy_of_[at(node)];
    if (copy < 0) copy = append(p_.nodes[at(node)], Rate::diagonal);
    return copy;
  }

  const Program& p_;
  std::vector<Slope> slope_;
  std::vector<std::int32_t> copy_of_;
};

}  // namespace

ByteCode compile(const Program& p,
                 const std::vector<std::array<std::int32_t, 4>>& keep,
                 bool diagonals) {
  const Rated rated(p, diagonals);
  const std::size_t count = rated.nodes.size();
  constexpr std::size_t forever = static_cast<std::size_t>(-1);
  std::vector<char> live(count, 0);
  std::vector<std::size_t> last(count, 0);  // the node that reads it last
  auto hold = [&](std::int32_t node) {
    if (node < 0) return;
    live[at(rated.id[at(node)])] = 1;
    last[at(rated.id[at(node)])] = forever;
  };
  for (auto r : p.roots) hold(r);
  for (const auto& index : keep)
    for (auto node : index) hold(node);
  for (std::size_t i = count; i-- > 0;) {
    if (!live[i]) continue;
    for (auto o : rated.nodes[i].operand) {
      if (o < 0) continue;
      live[at(o)] = 1;
      last[at(o)] = std::max(last[at(o)], i);
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
    const Node& n = rated.nodes[i];
    const Rate rate = rated.rate[i];
    Instruction in;
    in.op = n.op;
    in.type = n.type;
    in.operand_type = n.type;
    for (std::size_t j = 0; j < 4; ++j)
      if (n.operand[j] >= 0) in.operand[j] = reg[at(n.operand[j])];
    if (n.operand[0] >= 0)
      in.operand_type = rated.nodes[at(n.operand[n.op == Op::select ? 1 : 0])].type;
    in.rate = rate;
    in.slot = n.slot;
    in.integer = n.integer;
    in.real = n.real;
    if (rate == Rate::element && n.op != Op::score && !idle.empty()) {
      reg[i] = idle.back();
      idle.pop_back();
    } else {
      reg[i] = fresh(rate);
    }
    in.result = reg[i];
    for (std::size_t j = 0; j < 4; ++j) {  // after the result: it never lands on an operand
      if (n.operand[j] < 0) continue;
      const std::size_t o = at(n.operand[j]);
      const bool again =
          std::find(n.operand.begin(),
                    n.operand.begin() + static_cast<std::ptrdiff_t>(j),
                    n.operand[j]) != n.operand.begin() + static_cast<std::ptrdiff_t>(j);
      if (!again && last[o] == i && rated.rate[o] == Rate::element &&
          rated.nodes[o].op != Op::score)
        idle.push_back(reg[o]);
    }
    code.reads_score = code.reads_score || n.op == Op::score;
    code.part[static_cast<std::size_t>(rate)].push_back(in);
  }
  auto register_of = [&](std::int32_t node) { return node < 0 ? -1 : reg[at(rated.id[at(node)])]; };
  for (auto r : p.roots) code.roots.push_back(register_of(r));
  for (const auto& index : keep)
    code.keep.push_back({register_of(index[0]),
                         register_of(index[1]),
                         register_of(index[2]),
                         register_of(index[3])});
  return code;
}

}  // namespace undivided::expr
