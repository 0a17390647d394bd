// SPDX-License-Identifier: Apache-2.0
// Builds the prefix sums and cuts rectangles into whole blocks, edges and corners.
#include "mask/index.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "mask/plan.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace masks {
namespace {

std::size_t place(std::int64_t i) { return static_cast<std::size_t>(i); }

std::uint64_t bits_between(std::int64_t low, std::int64_t high) {  // 0 <= low < high <= 64
  return (~std::uint64_t{0} >> (64 + low - high)) << low;
}

/// A range of queries or keys: whole blocks [begin, end) and at most two blocks that it cuts.
struct Cut {
  struct Edge {
    std::int64_t block = 0, low = 0, high = 0;  // lines of the block
  };
  std::int64_t begin = 0, end = 0;
  std::vector<Edge> edges;

  Cut(std::int64_t from, std::int64_t to, std::int64_t length)
      : begin(from / block_size), end((to - 1) / block_size + 1) {
    const auto edge = [&](std::int64_t b) {
      const Edge e{b,
                   std::max<std::int64_t>(from - b * block_size, 0),
                   std::min(to - b * block_size, block_size)};
      const bool whole = e.low == 0 && e.high == std::min(block_size, length - b * block_size);
      if (!whole) edges.push_back(e);
      return !whole;
    };
    if (edge(begin)) ++begin;
    if (begin < end && end - 1 > from / block_size && edge(end - 1)) --end;
  }
};

}  // namespace

RunOrder::RunOrder(const MaskPlan& plan,
                   std::int32_t first_offset,
                   std::int64_t lines,
                   std::int64_t columns,
                   const std::vector<MaskPlan::Tile>& tiles)
    : plan_(&plan), first_offset_(first_offset), columns_(columns), tiles_(&tiles) {
  first_run_ = plan.run_offsets[place(first_offset)];
  bool any = false;
  for (std::int64_t line = 0; line < lines; ++line) {
    std::int64_t full = 0;
    for (const MaskPlan::Run* r = begin(line); r != end(line); ++r) {
      full_.push_back(full);
      slot_.push_back(slots_);
      (r->tiles < 0 ? full : slots_) += r->end - r->begin;
      if (r->tiles >= 0 && !any) first_slot_ = r->tiles, any = true;
    }
  }
  std::array<std::uint32_t, 64> sum{};
  for (std::int64_t s = 0; s <= slots_; ++s) {
    if (s % spacing == 0) counts_.push_back(sum);
    if (s < slots_)
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += static_cast<std::uint32_t>(std::popcount(tile(s)[i]));
  }
}

const MaskPlan::Run* RunOrder::begin(std::int64_t line) const {
  return plan_->runs.data() + plan_->run_offsets[place(first_offset_ + line)];
}

const MaskPlan::Tile& RunOrder::tile(std::int64_t slot) const {
  return (*tiles_)[place(plan_->tile_ids[place(first_slot_ + slot)])];
}

const MaskPlan::Run* RunOrder::run_before(std::int64_t line,
                                          std::int64_t block_at,
                                          std::int64_t& steps) const {
  const MaskPlan::Run* found = std::partition_point(begin(line), end(line), [&](const auto& r) {
    ++steps;
    return r.begin < block_at;
  });
  return found == begin(line) ? end(line) : found - 1;
}

RunOrder::Before RunOrder::before(std::int64_t line,
                                  std::int64_t block_at,
                                  std::int64_t& steps) const {
  if (begin(line) == end(line)) return {};
  const MaskPlan::Run* run = run_before(line, block_at, steps);
  const bool none = run == end(line);
  if (none) run = begin(line);
  const std::size_t i = place(run - plan_->runs.data() - first_run_);
  Before out{full_[i], slot_[i]};
  if (!none)
    (run->tiles < 0 ? out.full : out.slot) +=
        std::min<std::int64_t>(block_at, run->end) - run->begin;
  return out;
}

void RunOrder::add_lines(std::int64_t slot, std::array<std::uint32_t, 64>& lines) const {
  lines = counts_[place(slot / spacing)];
  for (std::int64_t s = slot / spacing * spacing; s < slot; ++s)
    for (std::size_t i = 0; i < lines.size(); ++i)
      lines[i] += static_cast<std::uint32_t>(std::popcount(tile(s)[i]));
}

std::int64_t RunOrder::strip(std::int64_t line,
                             std::int64_t low,
                             std::int64_t high,
                             std::int64_t from,
                             std::int64_t to,
                             std::int64_t& steps) const {
  if (from >= to) return 0;
  const Before a = before(line, from, steps), b = before(line, to, steps);
  std::int64_t sum = (b.full - a.full) * block_size * (high - low);
  if (a.slot != b.slot) {
    std::array<std::uint32_t, 64> x, y;
    add_lines(a.slot, x);
    add_lines(b.slot, y);
    steps += a.slot % spacing + b.slot % spacing;
    for (std::int64_t i = low; i < high; ++i)
      sum += static_cast<std::uint32_t>(y[place(i)] - x[place(i)]);
  }
  // The last block across may hold fewer columns than a block.
  const std::int64_t missing = to * block_size - columns_;
  if (missing > 0 && end(line) != begin(line)) {
    const MaskPlan::Run& last = *(end(line) - 1);
    if (last.tiles < 0 && last.end == to) sum -= missing * (high - low);
  }
  return sum;
}

std::int64_t RunOrder::corner(std::int64_t line,
                              std::int64_t low,
                              std::int64_t high,
                              std::int64_t across,
                              std::int64_t from,
                              std::int64_t to,
                              std::int64_t& steps) const {
  const MaskPlan::Run* run = run_before(line, across + 1, steps);
  if (run == end(line) || run->end <= across) return 0;
  if (run->tiles < 0) return (high - low) * (to - from);
  const MaskPlan::Tile& t =
      (*tiles_)[place(plan_->tile_ids[place(run->tiles + across - run->begin)])];
  std::int64_t sum = 0;
  for (std::int64_t i = low; i < high; ++i)
    sum += std::popcount(t[place(i)] & bits_between(from, to));
  return sum;
}

StepSums::StepSums(const std::vector<Step>& steps, std::int64_t columns) {
  if (steps.size() > std::numeric_limits<std::uint32_t>::max())
    throw Error(Code::unsupported,
                Stage::plan,
                "this mask changes at more than 2^32 blocks; index a plan of shorter sequences");
  std::vector<Step> now = steps, next(steps.size());
  levels_.resize(static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(columns))));
  for (std::size_t l = 0; l < levels_.size(); ++l) {
    const std::size_t shift = levels_.size() - 1 - l;
    Level& level = levels_[l];
    const auto clear = [&](const Step& s) { return (s.column >> shift & 1) == 0; };
    level.ones_begin = place(std::count_if(now.begin(), now.end(), clear));
    level.zeros.reserve(now.size() + 1);
    std::size_t zero = 0, one = level.ones_begin;
    for (const Step& s : now) {
      level.zeros.push_back(static_cast<std::uint32_t>(zero));
      next[clear(s) ? zero++ : one++] = s;
    }
    level.zeros.push_back(static_cast<std::uint32_t>(zero));
    now.swap(next);
    // Sums may wrap; their differences are exact.
    level.change.assign(now.size() + 1, 0);
    level.weighted.assign(now.size() + 1, 0);
    for (std::size_t i = 0; i < now.size(); ++i) {
      const auto change = static_cast<std::uint64_t>(now[i].change);
      level.change[i + 1] = level.change[i] + change;
      level.weighted[i + 1] = level.weighted[i] + change * now[i].column;
    }
  }
}

std::int64_t StepSums::integral(std::size_t first,
                                std::size_t last,
                                std::int64_t x,
                                std::int64_t& n) const {
  std::uint64_t change = 0, weighted = 0;
  const auto column = static_cast<std::uint64_t>(x);
  for (std::size_t l = 0; l < levels_.size(); ++l, ++n) {
    const Level& level = levels_[l];
    const std::size_t a = level.zeros[first], b = level.zeros[last];
    if (column >> (levels_.size() - 1 - l) & 1) {  // steps with a clear bit lie below x
      change += level.change[b] - level.change[a];
      weighted += level.weighted[b] - level.weighted[a];
      first += level.ones_begin - a;
      last += level.ones_begin - b;
    } else {
      first = a;
      last = b;
    }
  }
  return static_cast<std::int64_t>(change * column - weighted);
}

Index::Index(std::shared_ptr<const MaskPlan> plan, std::int64_t batch, std::int64_t head)
    : plan_(std::move(plan)),
      entry_(plan_->entry(batch, head)),
      by_query_(*plan_, entry_.query_runs, entry_.q_blocks, entry_.k_len, plan_->tiles_by_query),
      by_key_(*plan_, entry_.key_runs, entry_.k_blocks, entry_.q_len, plan_->tiles_by_key),
      sums_(steps_of_rows(), entry_.k_blocks) {
  find_ends();
  for (const auto* values : {&first_, &last_}) {
    expr::Bound::ArrayRef ref;
    ref.data = values->data();
    ref.shape[0] = entry_.q_len;
    ref.stride[0] = 1;
    ends_.emplace_back(ref);
  }
}

std::vector<StepSums::Step> Index::steps_of_rows() {
  std::vector<std::int64_t> pairs;
  for (const MaskPlan::Tile& tile : plan_->tiles_by_query) {
    pairs.push_back(0);
    for (const std::uint64_t word : tile) pairs.back() += std::popcount(word);
  }
  std::vector<StepSums::Step> steps;
  for (std::int64_t row = 0; row < entry_.q_blocks; ++row) {
    row_steps_.push_back(steps.size());
    const std::int64_t height = std::min(block_size, entry_.q_len - row * block_size);
    std::int64_t value = 0, reached = 0;
    const auto from = [&](std::int64_t column, std::int64_t next) {
      if (next != value) steps.push_back({static_cast<std::uint32_t>(column), next - value});
      value = next;
    };
    for (const MaskPlan::Run* r = by_query_.begin(row); r != by_query_.end(row); ++r) {
      if (r->begin > reached) from(reached, 0);
      for (std::int64_t k = r->begin; k < r->end; ++k) {
        const std::int64_t width = std::min(block_size, entry_.k_len - k * block_size);
        from(k,
             r->tiles < 0 ? height * width
                          : pairs[place(plan_->tile_ids[place(r->tiles + k - r->begin)])]);
        if (r->tiles < 0 && width == block_size)  // a Full run changes only at a ragged last block
          k = std::max(k, std::min<std::int64_t>(r->end, entry_.k_len / block_size) - 1);
      }
      reached = r->end;
    }
    if (reached < entry_.k_blocks) from(reached, 0);
  }
  row_steps_.push_back(steps.size());
  return steps;
}

void Index::find_ends() {
  first_.assign(place(entry_.q_len), static_cast<std::int32_t>(entry_.k_len));
  last_.assign(place(entry_.q_len), 0);
  for (std::int64_t row = 0; row < entry_.q_blocks; ++row) {
    const std::int64_t q0 = row * block_size, height = std::min(block_size, entry_.q_len - q0);
    const auto tile = [&](const MaskPlan::Run& r, std::int64_t k) -> const MaskPlan::Tile& {
      return plan_->tiles_by_query[place(plan_->tile_ids[place(r.tiles + k - r.begin)])];
    };
    // Visits the queries that have not met a key yet, with their keys of block k.
    const auto meet = [&](const MaskPlan::Run& r, std::int64_t k, std::uint64_t& open, auto&& f) {
      for (std::uint64_t left = open; left != 0; left &= left - 1) {
        const int i = std::countr_zero(left);
        const std::uint64_t keys = r.tiles < 0 ? ~std::uint64_t{0} : tile(r, k)[place(i)];
        if (keys == 0) continue;
        open &= ~(std::uint64_t{1} << i);
        f(place(q0 + i), keys);
      }
    };
    const std::uint64_t all = bits_between(0, height);
    std::uint64_t open = all;
    for (auto* r = by_query_.begin(row); r != by_query_.end(row) && open; ++r)
      for (std::int64_t k = r->begin; k < r->end && open; ++k)
        meet(*r, k, open, [&](std::size_t q, std::uint64_t keys) {
          first_[q] = static_cast<std::int32_t>(k * block_size + std::countr_zero(keys));
        });
    const std::uint64_t none = open;
    open = all & ~none;
    for (auto* r = by_query_.end(row); r != by_query_.begin(row) && open;) {
      --r;
      for (std::int64_t k = r->end; k-- > r->begin && open;)
        meet(*r, k, open, [&](std::size_t q, std::uint64_t keys) {
          last_[q] = static_cast<std::int32_t>(
              std::min(entry_.k_len, k * block_size + 64 - std::countl_zero(keys)));
        });
    }
    for (std::uint64_t left = none; left != 0; left &= left - 1) {
      const std::int64_t q = q0 + std::countr_zero(left);
      if (keyless_.empty() || keyless_.back().second != q) keyless_.emplace_back(q, q);
      ++keyless_.back().second;
    }
  }
}

std::int64_t Index::kept_pairs(
    std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1, std::int64_t& steps) const {
  q0 = std::max<std::int64_t>(q0, 0);
  k0 = std::max<std::int64_t>(k0, 0);
  q1 = std::min(q1, entry_.q_len);
  k1 = std::min(k1, entry_.k_len);
  if (q0 >= q1 || k0 >= k1) return 0;
  const Cut q(q0, q1, entry_.q_len), k(k0, k1, entry_.k_len);
  std::int64_t sum = 0;
  if (q.begin < q.end && k.begin < k.end) {
    const std::size_t first = row_steps_[place(q.begin)], last = row_steps_[place(q.end)];
    sum = sums_.integral(first, last, k.end, steps) - sums_.integral(first, last, k.begin, steps);
  }
  for (const Cut::Edge& e : q.edges)
    sum += by_query_.strip(e.block, e.low, e.high, k.begin, k.end, steps);
  for (const Cut::Edge& e : k.edges)
    sum += by_key_.strip(e.block, e.low, e.high, q.begin, q.end, steps);
  for (const Cut::Edge& e : q.edges)
    for (const Cut::Edge& f : k.edges)
      sum += by_query_.corner(e.block, e.low, e.high, f.block, f.low, f.high, steps);
  return sum;
}

Span Index::key_range(std::int64_t q0, std::int64_t q1) const {
  q0 = std::max<std::int64_t>(q0, 0);
  q1 = std::min(q1, entry_.q_len);
  if (q0 >= q1) return {0, 0};
  const Span range{ends_[0].between(q0, q1 - 1).low, ends_[1].between(q0, q1 - 1).high};
  return range.first < range.second ? range : Span{0, 0};
}

}  // namespace masks

class MaskIndex::State : public masks::Index {
 public:
  using masks::Index::Index;
};

MaskIndex::MaskIndex(std::shared_ptr<const MaskPlan> plan, std::int64_t batch, std::int64_t head) {
  if (!plan || batch < 0 || batch >= plan->batch || head < 0 || head >= plan->heads)
    throw Error(Code::invalid_argument,
                Stage::plan,
                "an index wants a mask plan and a batch and head inside it");
  masks::want_bits(*plan, "an index");
  state_ = std::make_shared<const State>(std::move(plan), batch, head);
}

std::int64_t MaskIndex::kept_pairs(std::int64_t q0,
                                   std::int64_t q1,
                                   std::int64_t k0,
                                   std::int64_t k1) const {
  std::int64_t steps = 0;
  return state_->kept_pairs(q0, q1, k0, k1, steps);
}

std::pair<std::int64_t, std::int64_t> MaskIndex::key_range(std::int64_t q0, std::int64_t q1) const {
  return state_->key_range(q0, q1);
}

const std::vector<std::pair<std::int64_t, std::int64_t>>& MaskIndex::rows_without_key() const {
  return state_->rows_without_key();
}

}  // namespace undivided
