// SPDX-License-Identifier: Apache-2.0
// The exact bits of undecided blocks, each distinct one computed once.
//
// The boolean tree of a mask is walked over whole tiles. Parts that the abstract reading decides
// are constant; parts that read q (or k) alone are one word; parts that read only q - k are a
// pattern of 127 bits; the rest are compares whose operands are known by the contents of their 64
// values, so that equal contents give the tile that was made before.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "mask/abstract.hpp"
#include "mask/evaluate.hpp"
#include "problem/sequence.hpp"
#include "undivided/mask_plan.hpp"

namespace undivided::masks {

/// Numbers keys of two words in the order in which they come.
class Numbers {
 public:
  /// A place that holds -1 when the key is new. Valid until the next call.
  std::int32_t& at(std::uint64_t a, std::uint64_t b);

 private:
  struct Cell {
    std::uint64_t a = 0, b = 0;
    std::int32_t value = -1;
    bool used = false;
  };
  Cell& find(std::uint64_t a, std::uint64_t b);
  std::vector<Cell> cells_ = std::vector<Cell>(256);
  std::size_t count_ = 0;
};

/// Distinct arrays of one size, numbered.
template <class T>
class Pool {
 public:
  std::int32_t id_of(const T& x);
  const T& operator[](std::int32_t id) const { return items_[static_cast<std::size_t>(id)]; }
  const std::vector<T>& items() const { return items_; }

 private:
  std::vector<T> items_;
  std::vector<std::int32_t> cells_ = std::vector<std::int32_t>(256, -1);
  std::vector<std::uint64_t> hashes_;
};
using Lanes = std::array<std::int32_t, RowEvaluator::lanes>;
extern template class Pool<MaskPlan::Tile>;
extern template class Pool<Lanes>;

class TileMaker {
 public:
  static constexpr std::int32_t none = 0, all = 1;  // ids of the constant tiles

  TileMaker(const expr::Program& p,
            const expr::Bound& bound,
            const Sequence& sequence,
            std::int64_t batch,
            std::int64_t head);

  /// The tile of a block, clipped to the lengths. `decided` holds the mask's values on that block.
  std::int32_t tile(std::int64_t q_block, std::int64_t k_block, const AbstractMask& decided);
  /// The tile of an unmasked block of this size.
  std::int32_t clip(std::int64_t rows, std::int64_t columns);
  const Pool<MaskPlan::Tile>& tiles() const { return tiles_; }

 private:
  enum class Kind : std::uint8_t { other, query, key, difference, tree, atom };
  struct Atom {
    std::vector<std::size_t> query, key;  // operands by query and by key, as roots of an axis
    bool difference = false;              // reads q - k as well
    bool shared = true;                   // operands repeat: worth looking up
    bool plain = false;                   // compares one query root with one key root
    expr::Op op{};
    bool swapped = false;  // the key root is on the left
    std::int32_t evaluator = -1;
  };
  struct Axis {  // what depends on q (or k) alone, 64 positions at a time
    std::vector<std::int32_t> nodes;
    std::vector<RowEvaluator> evaluator;  // none or one
    std::vector<std::int32_t> ids;        // [block][root]: contents, or -1
    std::int64_t origin = 0;
    std::size_t root_of(std::int32_t node);
  };

  void classify(const expr::Program& p,
                const expr::Bound& bound,
                std::int64_t batch,
                std::int64_t head);
  void walk(const expr::Program& p, std::int32_t node);
  Atom make_atom(const expr::Program& p, std::int32_t node);
  const std::int32_t* ids_of(Axis& axis, std::int64_t block);
  std::int32_t eval(std::int32_t node);
  std::int32_t tree(const expr::Node& node);
  std::int32_t combine(expr::Op op, std::int32_t a, std::int32_t b);
  std::int32_t word_tile(std::int32_t node, bool by_query);
  std::int32_t difference(std::int32_t node);
  std::int32_t atom(std::int32_t node);
  MaskPlan::Tile plain_tile(const Atom& a, const Lanes& q, const Lanes& k) const;

  std::vector<expr::Node> nodes_;
  std::vector<Kind> kinds_;
  std::vector<Atom> atoms_;
  std::vector<std::int32_t> atom_of_;
  std::vector<RowEvaluator> evaluators_;
  Axis query_, key_;
  Sequence sequence_;
  std::int32_t root_ = 0;

  Pool<MaskPlan::Tile> tiles_;
  Pool<Lanes> lanes_;
  Numbers known_, tuples_;
  std::int32_t next_tuple_ = 0;

  std::int64_t q_block_ = 0, k_block_ = 0;
  const AbstractMask* decided_ = nullptr;
  std::vector<std::int32_t> seen_;   // tiles of tree nodes on this block
  std::vector<std::int64_t> stamp_;  // ... if this is the block's number
  std::int64_t now_ = 0;
};

}  // namespace undivided::masks
