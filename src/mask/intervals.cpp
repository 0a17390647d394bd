// SPDX-License-Identifier: Apache-2.0
// Reads one line of a plan.
#include "mask/intervals.hpp"

#include <algorithm>

#include "mask/plan.hpp"

namespace undivided::masks {

std::vector<Stretch> kept_by(const MaskPlan& plan,
                             const MaskPlan::Entry& entry,
                             bool query,
                             std::int64_t at) {
  constexpr std::int64_t block = MaskPlan::block;
  want_bits(plan, "an export");
  const std::int64_t length = query ? entry.k_len : entry.q_len;
  const auto line =
      static_cast<std::size_t>((query ? entry.query_runs : entry.key_runs) + at / block);
  const auto& tiles = query ? plan.tiles_by_query : plan.tiles_by_key;
  std::vector<Stretch> out;
  const auto add = [&](std::int64_t begin, std::int64_t end) {
    if (!out.empty() && out.back().end == begin)
      out.back().end = end;
    else
      out.push_back({begin, end});
  };
  for (std::int32_t r = plan.run_offsets[line]; r < plan.run_offsets[line + 1]; ++r) {
    const MaskPlan::Run& run = plan.runs[static_cast<std::size_t>(r)];
    if (run.tiles < 0) {
      add(run.begin * block, std::min(run.end * block, length));
      continue;
    }
    for (std::int32_t i = run.begin; i < run.end; ++i) {
      const std::int32_t id = plan.tile_ids[static_cast<std::size_t>(run.tiles + i - run.begin)];
      std::uint64_t word =
          tiles[static_cast<std::size_t>(id)][static_cast<std::size_t>(at % block)];
      std::int64_t from = i * block;
      while (word) {
        const int skip = __builtin_ctzll(word);
        word >>= skip;
        const int count = ~word == 0 ? 64 : __builtin_ctzll(~word);
        add(from + skip, from + skip + count);
        from += skip + count;
        word = count == 64 ? 0 : word >> count;
      }
    }
  }
  return out;
}

}  // namespace undivided::masks
