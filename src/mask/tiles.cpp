// SPDX-License-Identifier: Apache-2.0
// Sorts a mask's nodes by what they read, then computes tiles on demand.
#include "mask/tiles.hpp"

#include <algorithm>
#include <optional>

#include "expr/internal.hpp"
#include "mask/plan.hpp"
#include "mask/slopes.hpp"

namespace undivided::masks {

using expr::Op;
using expr::Type;

namespace {

constexpr std::uint64_t ones = ~std::uint64_t{0};

expr::Program part(const expr::Program& p, std::vector<std::int32_t> roots, bool by_query) {
  expr::Program out = p;
  out.roots = std::move(roots);
  out = expr::compact(out, nullptr, true);
  if (by_query)
    for (expr::Node& n : out.nodes)
      if (n.op == Op::q) n.op = Op::k;  // lanes run along queries
  return out;
}

}  // namespace

std::size_t TileMaker::Axis::root_of(std::int32_t node) {
  const auto at = std::find(nodes.begin(), nodes.end(), node);
  if (at != nodes.end()) return static_cast<std::size_t>(at - nodes.begin());
  nodes.push_back(node);
  return nodes.size() - 1;
}

TileMaker::TileMaker(const expr::Program& p,
                     const expr::Bound& bound,
                     const Sequence& s,
                     std::int64_t batch,
                     std::int64_t head)
    : nodes_(p.nodes),
      kinds_(p.nodes.size(), Kind::other),
      atom_of_(p.nodes.size(), -1),
      sequence_(s),
      root_(p.roots[0]),
      seen_(p.nodes.size()),
      stamp_(p.nodes.size(), -1) {
  MaskPlan::Tile tile{};
  tiles_.id_of(tile);
  tile.fill(ones);
  tiles_.id_of(tile);
  classify(p, bound, batch, head);
  walk(p, root_);
  const auto evaluator = [&](const std::vector<std::int32_t>& roots, bool by_query) {
    RowEvaluator e(part(p, roots, by_query), bound);
    e.begin(batch, head, s.q_len, s.k_len);
    return e;
  };
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    if (atom_of_[i] < 0) continue;
    Atom& a = atoms_[static_cast<std::size_t>(atom_of_[i])];
    if (a.plain) continue;
    a.evaluator = static_cast<std::int32_t>(evaluators_.size());
    evaluators_.push_back(evaluator({static_cast<std::int32_t>(i)}, false));
  }
  query_.origin = s.q_origin;
  key_.origin = s.k_origin;
  const auto fill = [&](Axis& axis, std::int64_t length, bool by_query) {
    if (axis.nodes.empty()) return;
    axis.evaluator.push_back(evaluator(axis.nodes, by_query));
    axis.ids.assign(
        static_cast<std::size_t>((length + block_size - 1) / block_size) * axis.nodes.size(), -1);
  };
  fill(query_, s.q_len, true);
  fill(key_, s.k_len, false);
}

void TileMaker::classify(const expr::Program& p,
                         const expr::Bound& bound,
                         std::int64_t batch,
                         std::int64_t head) {
  const SlopeReader reader(bound, sequence_, batch, head);
  // The 128 differences of a block are read along keys from its first one: they must be positions.
  const bool differences = sequence_.k_origin + sequence_.k_len + 2 * block_size < INT32_MAX &&
                           sequence_.q_origin + sequence_.q_len + 2 * block_size < INT32_MAX &&
                           sequence_.k_origin > -(1 << 30) && sequence_.q_origin > -(1 << 30);
  Slopes slopes(nodes_.size());
  std::vector<Kind> kinds(nodes_.size(), Kind::other);  // other: reads no position
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const expr::Node& n = nodes_[i];
    Kind kind = n.op == Op::q ? Kind::query : n.op == Op::k ? Kind::key : Kind::other;
    for (std::size_t j = 0; j < 4 && n.operand[j] >= 0; ++j) {
      const Kind of = kinds[static_cast<std::size_t>(n.operand[j])];
      if (of == Kind::other || of == kind) continue;
      kind = kind == Kind::other ? of : Kind::atom;
    }
    if (n.type == Type::i32) slopes[i] = reader.read(n, kind == Kind::other, slopes);
    std::optional<Slope> slope = slopes[i];
    if (expr::is_compare(n.op)) {
      const auto a = slopes[static_cast<std::size_t>(n.operand[0])],
                 b = slopes[static_cast<std::size_t>(n.operand[1])];
      if (a && b) slope = Slope{a->q - b->q, a->k - b->k, 0};
    }
    if (differences && kind == Kind::atom && slope && slope->q == -slope->k)
      kind = Kind::difference;
    kinds[i] = kind;
  }
  kinds_ = kinds;
  for (std::size_t i = 0; i < nodes_.size(); ++i)
    if (kinds_[i] == Kind::atom && expr::is_connective(p, nodes_[i])) kinds_[i] = Kind::tree;
}

void TileMaker::walk(const expr::Program& p, std::int32_t node) {
  const auto i = static_cast<std::size_t>(node);
  if (stamp_[i] == -2) return;
  stamp_[i] = -2;
  switch (kinds_[i]) {
    case Kind::other:  // undecided only when it reads floats
    case Kind::query:
      query_.root_of(node);
      break;
    case Kind::key:
      key_.root_of(node);
      break;
    case Kind::tree:
      for (const std::int32_t o : nodes_[i].operand)
        if (o >= 0) walk(p, o);
      break;
    default:
      atom_of_[i] = static_cast<std::int32_t>(atoms_.size());
      atoms_.push_back(make_atom(p, node));
  }
}

TileMaker::Atom TileMaker::make_atom(const expr::Program& p, std::int32_t node) {
  Atom a;
  const expr::Node& n = nodes_[static_cast<std::size_t>(node)];
  a.op = n.op;
  if (kinds_[static_cast<std::size_t>(node)] == Kind::difference) return a;
  std::vector<std::int32_t> stack{node};
  std::vector<char> met(nodes_.size());
  while (!stack.empty()) {
    const std::int32_t at = stack.back();
    const auto i = static_cast<std::size_t>(at);
    stack.pop_back();
    if (met[i]) continue;
    met[i] = 1;
    const bool operand = kinds_[i] == Kind::query || kinds_[i] == Kind::key;
    if (operand && p.nodes[i].type == Type::f32) a.shared = false;
    if (nodes_[i].op == Op::q || nodes_[i].op == Op::k) a.shared = false;  // never repeat
    if (kinds_[i] == Kind::difference) {
      a.difference = true;
    } else if (operand && p.nodes[i].type != Type::f32) {
      if (kinds_[i] == Kind::query)
        a.query.push_back(query_.root_of(at));
      else
        a.key.push_back(key_.root_of(at));
    } else if (!operand && kinds_[i] != Kind::other) {
      for (const std::int32_t o : nodes_[i].operand)
        if (o >= 0) stack.push_back(o);
    }
  }
  if (expr::is_compare(n.op)) {
    const auto left = static_cast<std::size_t>(n.operand[0]),
               right = static_cast<std::size_t>(n.operand[1]);
    const bool ints = nodes_[left].type == Type::i32;
    a.swapped = kinds_[left] == Kind::key;
    a.plain = ints && ((kinds_[left] == Kind::query && kinds_[right] == Kind::key) ||
                       (kinds_[left] == Kind::key && kinds_[right] == Kind::query));
  }
  return a;
}

// The contents of every root of an axis on one block. Where a lane lies beyond the length, it
// holds whatever the program gives there; clip() takes it away.
const std::int32_t* TileMaker::ids_of(Axis& axis, std::int64_t at) {
  std::int32_t* ids = axis.ids.data() + static_cast<std::size_t>(at) * axis.nodes.size();
  if (ids[0] >= 0) return ids;
  axis.evaluator[0].keys(axis.origin + at * block_size, RowEvaluator::lanes);
  for (std::size_t r = 0; r < axis.nodes.size(); ++r) {
    Lanes lanes;
    std::copy_n(axis.evaluator[0].lanes_of(r), lanes.size(), lanes.begin());
    ids[r] = lanes_.id_of(lanes);
  }
  return ids;
}

std::int32_t TileMaker::tile(std::int64_t q_block,
                             std::int64_t k_block,
                             const AbstractMask& decided) {
  q_block_ = q_block;
  k_block_ = k_block;
  decided_ = &decided;
  ++now_;
  const std::int32_t id = eval(root_);
  const std::int64_t rows = std::min(block_size, sequence_.q_len - q_block * block_size),
                     columns = std::min(block_size, sequence_.k_len - k_block * block_size);
  return rows == block_size && columns == block_size
             ? id
             : combine(Op::logical_and, id, clip(rows, columns));
}

std::int32_t TileMaker::clip(std::int64_t rows, std::int64_t columns) {
  std::int32_t& id = known_.at(3, static_cast<std::uint64_t>(rows * 256 + columns));
  if (id >= 0) return id;
  MaskPlan::Tile tile{};
  const std::uint64_t word = columns == block_size ? ones : (std::uint64_t{1} << columns) - 1;
  std::fill_n(tile.begin(), rows, word);
  return id = tiles_.id_of(tile);
}

std::int32_t TileMaker::eval(std::int32_t node) {
  const Value& value = decided_->value(node);
  if (value.single()) return value.low ? all : none;
  const auto i = static_cast<std::size_t>(node);
  switch (kinds_[i]) {
    case Kind::other:
    case Kind::query:
      return word_tile(node, true);
    case Kind::key:
      return word_tile(node, false);
    case Kind::difference:
      return difference(node);
    case Kind::atom:
      return atom(node);
    default:
      break;
  }
  if (stamp_[i] != now_) {
    seen_[i] = tree(nodes_[i]);
    stamp_[i] = now_;
  }
  return seen_[i];
}

std::int32_t TileMaker::tree(const expr::Node& n) {
  const std::int32_t a = eval(n.operand[0]);
  if (n.op == Op::logical_not) return combine(Op::ne, a, all);
  if (n.op == Op::select) {
    if (a == all) return eval(n.operand[1]);
    if (a == none) return eval(n.operand[2]);
    const std::int32_t yes = combine(Op::logical_and, a, eval(n.operand[1]));
    const std::int32_t no = combine(Op::logical_and, combine(Op::ne, a, all), eval(n.operand[2]));
    return combine(Op::logical_or, yes, no);
  }
  if (n.op == Op::logical_and && a == none) return none;
  if (n.op == Op::logical_or && a == all) return all;
  return combine(n.op, a, eval(n.operand[1]));
}

std::int32_t TileMaker::combine(Op op, std::int32_t a, std::int32_t b) {
  if (op == Op::logical_and) {
    if (a == all || a == b) return b;
    if (b == all) return a;
    if (a == none || b == none) return none;
  } else if (op == Op::logical_or) {
    if (a == none || a == b) return b;
    if (b == none) return a;
    if (a == all || b == all) return all;
  }
  const std::uint64_t pair =
      static_cast<std::uint64_t>(std::min(a, b)) << 32 | static_cast<std::uint32_t>(std::max(a, b));
  std::int32_t& id = known_.at(16 + static_cast<std::uint64_t>(op), pair);
  if (id >= 0) return id;
  MaskPlan::Tile tile;
  const MaskPlan::Tile &x = tiles_[a], &y = tiles_[b];
  for (std::size_t i = 0; i < tile.size(); ++i)
    tile[i] = op == Op::logical_and  ? x[i] & y[i]
              : op == Op::logical_or ? x[i] | y[i]
              : op == Op::eq         ? ~(x[i] ^ y[i])
                                     : x[i] ^ y[i];
  return id = tiles_.id_of(tile);
}

std::int32_t TileMaker::word_tile(std::int32_t node, bool by_query) {
  Axis& axis = by_query ? query_ : key_;
  const std::int32_t lanes = ids_of(axis, by_query ? q_block_ : k_block_)[axis.root_of(node)];
  std::int32_t& id = known_.at(by_query ? 1 : 2, static_cast<std::uint64_t>(lanes));
  if (id >= 0) return id;
  const std::uint64_t word = packed(lanes_[lanes].data());
  MaskPlan::Tile tile;
  for (std::size_t i = 0; i < tile.size(); ++i)
    tile[i] = !by_query ? word : word >> i & 1 ? ones : 0;
  return id = tiles_.id_of(tile);
}

// Row 63 against 128 keys passes over every difference of the block; row i is the same pattern,
// shifted.
std::int32_t TileMaker::difference(std::int32_t node) {
  const std::int64_t q0 = sequence_.q_origin + q_block_ * block_size,
                     k0 = sequence_.k_origin + k_block_ * block_size;
  std::int32_t& id = known_.at(std::uint64_t{1} << 32 | static_cast<std::uint32_t>(node),
                               static_cast<std::uint64_t>(q0 - k0));
  if (id >= 0) return id;
  const Atom& a = atoms_[static_cast<std::size_t>(atom_of_[static_cast<std::size_t>(node)])];
  RowEvaluator& e = evaluators_[static_cast<std::size_t>(a.evaluator)];
  e.keys(k0, RowEvaluator::lanes);
  const std::uint64_t low = e.row(q0 + block_size - 1);
  e.keys(k0 + block_size, RowEvaluator::lanes);
  const std::uint64_t high = e.row(q0 + block_size - 1);
  MaskPlan::Tile tile;
  tile[63] = low;
  for (std::size_t i = 0; i < 63; ++i) tile[i] = low >> (63 - i) | high << (i + 1);
  return id = tiles_.id_of(tile);
}

std::int32_t TileMaker::atom(std::int32_t node) {
  const Atom& a = atoms_[static_cast<std::size_t>(atom_of_[static_cast<std::size_t>(node)])];
  const std::int32_t* q = a.query.empty() ? nullptr : ids_of(query_, q_block_);
  const std::int32_t* k = a.key.empty() ? nullptr : ids_of(key_, k_block_);
  const std::int64_t q0 = sequence_.q_origin + q_block_ * block_size,
                     k0 = sequence_.k_origin + k_block_ * block_size;
  std::int32_t* known = nullptr;
  if (a.shared) {
    std::uint64_t key = std::uint64_t{2} << 32 | static_cast<std::uint32_t>(node);
    const auto fold = [&](std::uint64_t next) {
      std::int32_t& tuple = tuples_.at(key, next);
      if (tuple < 0) tuple = next_tuple_++;
      key = std::uint64_t{3} << 32 | static_cast<std::uint32_t>(tuple);
    };
    for (const std::size_t r : a.query) fold(static_cast<std::uint64_t>(q[r]));
    if (a.difference) fold(static_cast<std::uint64_t>(q0 - k0));
    for (const std::size_t r : a.key) fold(static_cast<std::uint64_t>(k[r]));
    known = &known_.at(key, 0);
    if (*known >= 0) return *known;
  }
  MaskPlan::Tile tile;
  if (a.plain) {
    tile = plain_tile(a, lanes_[q[a.query[0]]], lanes_[k[a.key[0]]]);
  } else {
    RowEvaluator& e = evaluators_[static_cast<std::size_t>(a.evaluator)];
    e.keys(k0, RowEvaluator::lanes);
    // Rows whose operands are equal are equal: each distinct one is evaluated once.
    std::array<std::int8_t, 256> row_with;
    row_with.fill(-1);
    for (std::size_t i = 0; i < tile.size(); ++i) {
      std::uint32_t hash = 0;
      for (const std::size_t r : a.query)
        hash = (hash ^ static_cast<std::uint32_t>(lanes_[q[r]][i])) * 0x9E3779B1u;
      std::int8_t& place = row_with[hash >> 24];
      const bool again = a.shared && !a.difference && place >= 0 &&
                         std::all_of(a.query.begin(), a.query.end(), [&](std::size_t r) {
                           return lanes_[q[r]][i] == lanes_[q[r]][static_cast<std::size_t>(place)];
                         });
      tile[i] =
          again ? tile[static_cast<std::size_t>(place)] : e.row(q0 + static_cast<std::int64_t>(i));
      place = static_cast<std::int8_t>(i);
    }
  }
  const std::int32_t id = tiles_.id_of(tile);
  if (known) *known = id;
  return id;
}

namespace {

template <class F>
MaskPlan::Tile compare_rows(const Lanes& q, const Lanes& k, F holds) {
  MaskPlan::Tile tile;
  for (std::size_t i = 0; i < tile.size(); ++i) {
    if (i > 0 && q[i] == q[i - 1]) {
      tile[i] = tile[i - 1];
      continue;
    }
    std::array<std::uint8_t, RowEvaluator::lanes> bytes;
    for (std::size_t j = 0; j < bytes.size(); ++j) bytes[j] = holds(q[i], k[j]);
    tile[i] = packed(bytes.data());
  }
  return tile;
}

}  // namespace

MaskPlan::Tile TileMaker::plain_tile(const Atom& a, const Lanes& q, const Lanes& k) const {
  using I = std::int32_t;
  Op op = a.op;
  if (a.swapped)
    op = op == Op::lt   ? Op::gt
         : op == Op::le ? Op::ge
         : op == Op::gt ? Op::lt
         : op == Op::ge ? Op::le
                        : op;
  switch (op) {
    case Op::lt:
      return compare_rows(q, k, [](I x, I y) { return x < y; });
    case Op::le:
      return compare_rows(q, k, [](I x, I y) { return x <= y; });
    case Op::gt:
      return compare_rows(q, k, [](I x, I y) { return x > y; });
    case Op::ge:
      return compare_rows(q, k, [](I x, I y) { return x >= y; });
    case Op::eq:
      return compare_rows(q, k, [](I x, I y) { return x == y; });
    default:
      return compare_rows(q, k, [](I x, I y) { return x != y; });
  }
}

}  // namespace undivided::masks
