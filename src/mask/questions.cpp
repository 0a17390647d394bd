// SPDX-License-Identifier: Apache-2.0
// What a finished plan answers: one pair, a rectangle, the totals.
#include <fmt/format.h>

#include <algorithm>

#include "mask/plan.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

std::span<const MaskPlan::Run> runs_of(const MaskPlan& plan, std::int32_t first, std::int64_t row) {
  const auto at = static_cast<std::size_t>(first + row);
  const auto begin = static_cast<std::size_t>(plan.run_offsets[at]);
  const auto end = static_cast<std::size_t>(plan.run_offsets[at + 1]);
  return {plan.runs.data() + begin, end - begin};
}

std::uint64_t bits_between(std::int64_t low, std::int64_t high) {  // 0 <= low < high <= 64
  const std::uint64_t upto = high == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << high) - 1;
  return upto & ~((std::uint64_t{1} << low) - 1);
}

/// What was seen of a rectangle so far.
struct Verdict {
  bool kept = false, masked = false;
  bool mixed() const { return kept && masked; }
  void add(std::uint64_t word, std::uint64_t of) {
    kept |= (word & of) != 0;
    masked |= (~word & of) != 0;
  }
};

const MaskPlan::Tile& tile_of(const MaskPlan& plan, const MaskPlan::Run& run, std::int64_t at) {
  const auto id = plan.tile_ids[static_cast<std::size_t>(run.tiles + (at - run.begin))];
  return plan.tiles_by_query[static_cast<std::size_t>(id)];
}

}  // namespace

std::size_t MaskPlan::bytes() const {
  const auto of = [](const auto& v) { return v.size() * sizeof(v[0]); };
  return of(entries) + of(entry_of) + of(run_offsets) + of(runs) + of(tile_ids) +
         of(tiles_by_query) + of(tiles_by_key) + of(versions);
}

void masks::want_bits(const MaskPlan& plan, const char* what) {
  if (plan.inside != Inside::bits)
    throw Error(Code::invalid_argument,
                Stage::plan,
                fmt::format("{} reads the bits of Partial blocks, and this plan leaves them to the "
                            "program: make it with Inside::bits",
                            what));
}

std::int64_t MaskPlan::kept_pairs() const {
  std::int64_t sum = 0;
  for (const std::int32_t i : entry_of) sum += entries[static_cast<std::size_t>(i)].kept_pairs;
  return sum;
}

BlockClass MaskPlan::classify(
    const Entry& e, std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const {
  q0 = std::max<std::int64_t>(q0, 0);
  k0 = std::max<std::int64_t>(k0, 0);
  q1 = std::min(q1, e.q_len);
  k1 = std::min(k1, e.k_len);
  if (q0 >= q1 || k0 >= k1) return BlockClass::empty;
  Verdict seen;
  for (std::int64_t row = q0 / block; row * block < q1 && !seen.mixed(); ++row) {
    const auto row_runs = runs_of(*this, e.query_runs, row);
    const std::int64_t row_begin = std::max(q0 - row * block, std::int64_t{0});
    const std::int64_t row_end = std::min<std::int64_t>(q1 - row * block, block);
    auto run = std::partition_point(
        row_runs.begin(), row_runs.end(), [&](const Run& r) { return r.end * block <= k0; });
    std::int64_t at = k0;  // everything before this key is accounted for
    for (; run != row_runs.end() && run->begin * block < k1 && !seen.mixed(); ++run) {
      seen.masked |= run->begin * block > at;
      if (run->tiles < 0) {
        seen.kept = true;
      } else {
        const std::int64_t from = std::max<std::int64_t>(run->begin, k0 / block);
        if (inside == Inside::program) {
          // The part of a run inside the rectangle is Partial as a whole only if no edge cuts it.
          const std::int64_t to = std::min<std::int64_t>(run->end, (k1 + block - 1) / block);
          const bool cut = row_begin > 0 ||
                           row_end < std::min<std::int64_t>(block, e.q_len - row * block) ||
                           from * block < k0 || k1 < std::min<std::int64_t>(to * block, e.k_len);
          if (cut) masks::want_bits(*this, "a rectangle that cuts blocks");
          return BlockClass::partial;
        }
        for (std::int64_t k = from; k < run->end && k * block < k1 && !seen.mixed(); ++k) {
          const Tile& tile = tile_of(*this, *run, k);
          const std::uint64_t columns = bits_between(std::max<std::int64_t>(k0 - k * block, 0),
                                                     std::min<std::int64_t>(k1 - k * block, block));
          for (std::int64_t i = row_begin; i < row_end && !seen.mixed(); ++i)
            seen.add(tile[static_cast<std::size_t>(i)], columns);
        }
      }
      at = run->end * block;
    }
    seen.masked |= at < k1;
  }
  return seen.mixed() ? BlockClass::partial : seen.kept ? BlockClass::full : BlockClass::empty;
}

bool masks::keeps(const MaskPlan& plan,
                  const MaskPlan::Entry& entry,
                  std::int64_t q,
                  std::int64_t k) {
  return plan.classify(entry, q, q + 1, k, k + 1) == BlockClass::full;
}

}  // namespace undivided
