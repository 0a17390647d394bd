// SPDX-License-Identifier: Apache-2.0
// From stretches of queries per key to runs by key, and from those to runs by query.
#include "mask/columns.hpp"

#include <algorithm>
#include <bit>

#include "expr/internal.hpp"
#include "mask/evaluate.hpp"
#include "mask/writer.hpp"

namespace undivided::masks {
namespace {

using expr::Op;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Which queries a key keeps: the boolean tree over pieces of the axis of queries between which no
/// compare changes, a bit a piece.
class Stretches {
 public:
  Stretches(const BoundProgram& mask, const Sequence& s, std::int64_t batch, std::int64_t head)
      : low_(s.q_origin),
        high_(s.q_origin + s.q_len),
        steps_(expr::column_tree(*mask.program).steps),
        keys_(operands(*mask.program, steps_), mask.bound),
        values_(steps_.size()) {
    std::int32_t leaves = 0;
    for (Step& step : steps_)
      if (is_leaf(step)) step.from[0] = leaves++;
    keys_.begin(batch, head, s.q_len, s.k_len);
  }

  void keys(std::int64_t first, int count) { keys_.keys(first, count); }

  /// Calls each(kept?, first, end) for the stretches of the lane's key, in order: local queries.
  template <class F>
  void read(int lane, F&& each) {
    cuts_[0] = low_;
    count_ = 1;
    for (const Step& s : steps_) {
      if (!is_leaf(s) || s.op == Op::constant) continue;
      const std::int64_t t = value(s, lane);
      if (s.op != Op::le && s.op != Op::gt) cut(t);
      if (s.op != Op::lt && s.op != Op::ge) cut(t + 1);
    }
    for (std::size_t i = 0; i < steps_.size(); ++i) values_[i] = bits(steps_[i], lane);
    const std::uint64_t kept = values_.back();
    for (int i = 0; i < count_;) {
      const bool keep = kept >> i & 1;
      int next = i + 1;
      while (next < count_ && (kept >> next & 1) == keep) ++next;
      each(keep, cuts_[i] - low_, (next < count_ ? cuts_[next] : high_) - low_);
      i = next;
    }
  }

 private:
  using Step = expr::ColumnTree::Step;  // from[0] of a leaf: its root of keys_
  static bool is_leaf(const Step& s) { return s.node >= 0; }
  static constexpr int most = 2 * static_cast<int>(expr::most_column_compares) + 1;
  static_assert(most < 64);

  /// What the leaves read of a key.
  static expr::Program operands(const expr::Program& p, const std::vector<Step>& steps) {
    expr::Program out = p;
    out.roots.clear();
    for (const Step& s : steps)
      if (is_leaf(s)) out.roots.push_back(s.node);
    return expr::compact(out, nullptr, true);
  }

  std::int64_t value(const Step& leaf, int lane) { return keys_.lanes_of(at(leaf.from[0]))[lane]; }
  void cut(std::int64_t t) {
    if (t <= low_ || t >= high_) return;
    int i = count_;
    while (cuts_[i - 1] > t) --i;
    if (cuts_[i - 1] == t) return;
    std::copy_backward(cuts_ + i, cuts_ + count_, cuts_ + count_ + 1);
    cuts_[i] = t;
    ++count_;
  }
  /// Pieces that begin before t.
  std::uint64_t below(std::int64_t t) const {
    std::uint64_t out = 0;
    for (int i = 0; i < count_; ++i) out |= std::uint64_t{cuts_[i] < t} << i;
    return out;
  }
  std::uint64_t bits(const Step& s, int lane) {
    const auto of = [&](std::size_t i) { return values_[at(s.from[i])]; };
    if (is_leaf(s)) {
      const std::int64_t t = value(s, lane);
      switch (s.op) {
        case Op::constant:
          return t ? ~std::uint64_t{0} : 0;
        case Op::lt:
          return below(t);
        case Op::le:
          return below(t + 1);
        case Op::gt:
          return ~below(t + 1);
        case Op::ge:
          return ~below(t);
        case Op::eq:
          return below(t + 1) & ~below(t);
        default:
          return ~below(t + 1) | below(t);
      }
    }
    switch (s.op) {
      case Op::logical_and:
        return of(0) & of(1);
      case Op::logical_or:
        return of(0) | of(1);
      case Op::logical_not:
        return ~of(0);
      case Op::eq:
        return ~(of(0) ^ of(1));
      case Op::ne:
        return of(0) ^ of(1);
      default:  // select
        return (of(0) & of(1)) | (~of(0) & of(2));
    }
  }

  std::int64_t low_, high_;
  std::vector<Step> steps_;
  RowEvaluator keys_;
  std::vector<std::uint64_t> values_;
  std::int64_t cuts_[most + 1] = {};
  int count_ = 0;
};

/// Blocks of queries that some stretch touches.
class Cover {
 public:
  struct Range {
    std::int64_t begin, end;
  };
  void add(std::int64_t first, std::int64_t end) {
    const Range r{first / block_size, (end + block_size - 1) / block_size};
    // Neighbouring keys keep nearly the same stretches: most join one of the last.
    for (std::size_t i = ranges_.size(), tries = 0; i-- > 0 && tries < 8; ++tries)
      if (r.begin <= ranges_[i].end && r.end >= ranges_[i].begin) {
        ranges_[i] = {std::min(r.begin, ranges_[i].begin), std::max(r.end, ranges_[i].end)};
        return;
      }
    ranges_.push_back(r);
  }
  /// In order and apart.
  const std::vector<Range>& sorted() {
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) {
      return a.begin < b.begin;
    });
    std::size_t last = 0;
    for (std::size_t i = 1; i < ranges_.size(); ++i)
      if (ranges_[i].begin <= ranges_[last].end)
        ranges_[last].end = std::max(ranges_[last].end, ranges_[i].end);
      else
        ranges_[++last] = ranges_[i];
    if (!ranges_.empty()) ranges_.resize(last + 1);
    return ranges_;
  }
  void clear() { ranges_.clear(); }

 private:
  std::vector<Range> ranges_;
};

/// Runs of consecutive blocks of keys, each over blocks of queries.
struct Columns {
  std::vector<MaskPlan::Run> runs;
  std::vector<std::int32_t> count;  // of each block of keys
  std::vector<std::int32_t> rises;  // per query: stretches that begin there less those that end
  std::int64_t kept_pairs = 0;

  void add(std::int64_t begin, std::int64_t end, bool full) {
    if (begin >= end) return;
    runs.push_back(
        {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), full ? -1 : 0});
    ++count.back();
  }
  void close(Cover& kept, Cover& masked) {
    count.push_back(0);
    const auto& holes = masked.sorted();
    auto hole = holes.begin();
    for (const Cover::Range& r : kept.sorted()) {
      std::int64_t from = r.begin;
      for (; hole != holes.end() && hole->begin < r.end; ++hole) {
        const std::int64_t begin = std::max(hole->begin, from), end = std::min(hole->end, r.end);
        add(from, begin, true);
        add(begin, end, false);
        from = std::max(from, end);
        if (hole->end > r.end) break;  // it goes on
      }
      add(from, r.end, true);
    }
  }
};

Columns read_columns(const BoundProgram& mask,
                     const Sequence& s,
                     std::int64_t batch,
                     std::int64_t head,
                     std::int64_t first,
                     std::int64_t end) {
  Columns out;
  out.rises.assign(at(s.q_len + 1), 0);
  Stretches stretches(mask, s, batch, head);
  Cover kept, masked;
  for (std::int64_t b = first; b < end; ++b) {
    kept.clear();
    masked.clear();
    const auto count = static_cast<int>(std::min(block_size, s.k_len - b * block_size));
    stretches.keys(s.k_origin + b * block_size, count);
    for (int lane = 0; lane < count; ++lane)
      stretches.read(lane, [&](bool keep, std::int64_t from, std::int64_t to) {
        if (!keep) return masked.add(from, to);
        kept.add(from, to);
        ++out.rises[at(from)];
        --out.rises[at(to)];
        out.kept_pairs += to - from;
      });
    out.close(kept, masked);
  }
  return out;
}

/// A set of small numbers that is walked in order.
class Marks {
 public:
  explicit Marks(std::int64_t count) : words_(at(count / 64 + 1)), filled_(at(count / 4096 + 1)) {}
  void set(std::int64_t i, bool on) {
    std::uint64_t& word = words_[at(i / 64)];
    const std::uint64_t bit = std::uint64_t{1} << i % 64;
    word = on ? word | bit : word & ~bit;
    std::uint64_t& filled = filled_[at(i / 4096)];
    const std::uint64_t above = std::uint64_t{1} << i / 64 % 64;
    filled = word ? filled | above : filled & ~above;
  }
  template <class F>
  void each(F&& f) const {
    for (std::size_t j = 0; j < filled_.size(); ++j)
      for (std::uint64_t above = filled_[j]; above; above &= above - 1) {
        const std::size_t w = 64 * j + static_cast<std::size_t>(std::countr_zero(above));
        for (std::uint64_t word = words_[w]; word; word &= word - 1)
          f(static_cast<std::int64_t>(64 * w) + std::countr_zero(word));
      }
  }

 private:
  std::vector<std::uint64_t> words_, filled_;  // bit i of filled_: word i holds something
};

/// One row of blocks after the other: the classes along it, and where they change.
class Rows {
 public:
  explicit Rows(std::int64_t columns) : classes_(at(columns), empty), changes_(columns) {}

  void set(std::int64_t column, BlockClass to) {
    classes_[at(column)] = to;
    mark(column);
    if (column + 1 < columns()) mark(column + 1);
  }
  /// The runs of the row, at most `most`: then in groups of 2, 4, ... blocks.
  const std::vector<MaskPlan::Run>& runs(std::size_t most) {
    runs_.clear();
    std::int64_t from = 0;
    changes_.each([&](std::int64_t column) {
      add(from, column);
      from = column;
    });
    add(from, columns());
    for (std::int64_t group = 2; runs_.size() > most; group *= 2) {
      runs_.clear();
      for (std::int64_t c = 0; c < columns(); c += group) {
        const std::int64_t end = std::min(c + group, columns());
        const auto differ = [&](BlockClass x) { return x != classes_[at(c)]; };
        const bool mixed = std::any_of(classes_.begin() + c, classes_.begin() + end, differ);
        put(c, end, mixed ? BlockClass::partial : classes_[at(c)]);
      }
    }
    return runs_;
  }

 private:
  static constexpr BlockClass empty = BlockClass::empty;
  std::int64_t columns() const { return std::ssize(classes_); }
  void mark(std::int64_t c) { changes_.set(c, c > 0 && classes_[at(c)] != classes_[at(c - 1)]); }
  void add(std::int64_t from, std::int64_t to) {
    if (from < to) put(from, to, classes_[at(from)]);
  }
  void put(std::int64_t from, std::int64_t to, BlockClass c) {
    if (c == empty) return;
    const std::int32_t tiles = c == BlockClass::full ? -1 : 0;
    if (!runs_.empty() && runs_.back().end == from && runs_.back().tiles == tiles)
      runs_.back().end = static_cast<std::int32_t>(to);
    else
      runs_.push_back({static_cast<std::int32_t>(from), static_cast<std::int32_t>(to), tiles});
  }

  std::vector<BlockClass> classes_;
  Marks changes_;
  std::vector<MaskPlan::Run> runs_;
};

void add_rows(MaskPlan& plan, const MaskPlan::Entry& entry, const std::vector<Columns>& parts) {
  struct Change {
    std::int32_t column;
    BlockClass to;
  };
  // Changes sorted by row: counted, then placed. What follows a run comes before what begins there.
  std::vector<std::int64_t> place(at(entry.q_blocks) + 2);
  const auto each_change = [&](auto&& f) {
    std::int32_t column = 0;
    for (const Columns& part : parts) {
      const MaskPlan::Run* run = part.runs.data();
      for (const std::int32_t count : part.count) {
        for (const MaskPlan::Run* end = run + count; run != end; ++run) {
          f(run->begin, column, run->tiles < 0 ? BlockClass::full : BlockClass::partial);
          if (run + 1 == end || run[1].begin != run->end) f(run->end, column, BlockClass::empty);
        }
        ++column;
      }
    }
  };
  each_change([&](std::int32_t row, std::int32_t, BlockClass) { ++place[at(row) + 1]; });
  for (std::size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
  std::vector<Change> changes(at(place.back()));
  std::vector<std::int64_t> next(place);
  each_change([&](std::int32_t row, std::int32_t column, BlockClass to) {
    changes[at(next[at(row)]++)] = {column, to};
  });
  // 4 runs a token are 48 bytes, no more than a few times the columns themselves.
  const auto most = at(std::max<std::int64_t>(
      4 * block_size, 4 * (entry.q_len + entry.k_len) / std::max(entry.q_blocks, 1)));
  Rows rows(entry.k_blocks);
  for (std::int32_t row = 0; row < entry.q_blocks; ++row) {
    for (std::int64_t i = place[at(row)]; i < place[at(row) + 1]; ++i)
      rows.set(changes[at(i)].column, changes[at(i)].to);
    plan.run_offsets.push_back(checked_offset(plan.runs.size()));
    const auto& runs = rows.runs(most);
    plan.runs.insert(plan.runs.end(), runs.begin(), runs.end());
  }
  plan.run_offsets.push_back(checked_offset(plan.runs.size()));
}

}  // namespace

void add_columns(MaskPlan& plan,
                 MaskPlan::Entry& entry,
                 const BoundProgram& mask,
                 const Sequence& s,
                 std::int64_t batch,
                 std::int64_t head,
                 Executor& executor) {
  const std::int64_t count =
      std::max<std::int64_t>(1, std::min<std::int64_t>(executor.workers(), entry.k_blocks / 64));
  std::vector<Columns> parts(at(count));
  executor.parallel_for(count, [&](std::int64_t i, int) {
    parts[at(i)] = read_columns(
        mask, s, batch, head, entry.k_blocks * i / count, entry.k_blocks * (i + 1) / count);
  });
  entry.key_runs = checked_offset(plan.run_offsets.size());
  for (const Columns& part : parts) {
    const MaskPlan::Run* run = part.runs.data();
    for (const std::int32_t n : part.count) {
      plan.run_offsets.push_back(checked_offset(plan.runs.size()));
      for (const MaskPlan::Run* end = run + n; run != end; ++run) {
        (run->tiles < 0 ? entry.full : entry.partial) += run->end - run->begin;
        plan.runs.push_back(*run);
      }
    }
    entry.kept_pairs += part.kept_pairs;
  }
  plan.run_offsets.push_back(checked_offset(plan.runs.size()));
  entry.empty = std::int64_t{entry.q_blocks} * entry.k_blocks - entry.partial - entry.full;
  entry.query_runs = checked_offset(plan.run_offsets.size());
  add_rows(plan, entry, parts);
  std::int64_t kept = 0;
  for (std::int64_t q = 0; q < entry.q_len; ++q) {
    for (const Columns& part : parts) kept += part.rises[at(q)];
    entry.rows_without_key += kept == 0;
  }
}

void drop_bits(MaskPlan& plan) {
  plan.inside = Inside::program;
  for (MaskPlan::Run& run : plan.runs) run.tiles = std::min(run.tiles, 0);
  plan.tile_ids = {};
  plan.tiles_by_query = {};
  plan.tiles_by_key = {};
}

}  // namespace undivided::masks
