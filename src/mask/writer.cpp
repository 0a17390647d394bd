// SPDX-License-Identifier: Apache-2.0
// Shares equal tiles and turns rows of blocks into flat runs.
#include "mask/writer.hpp"

#include <algorithm>
#include <limits>

#include "undivided/error.hpp"

namespace undivided::masks {
namespace {

std::uint64_t hash_of(const MaskPlan::Tile& tile) {
  std::uint64_t h = 0x9E3779B97F4A7C15ull;
  for (const std::uint64_t word : tile) {
    h = (h ^ word) * 0xD6E8FEB86659FD93ull;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace

std::int32_t checked_offset(std::size_t n) {
  if (n > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw Error(Code::unsupported,
                Stage::plan,
                "this mask leaves more than 2^31 runs or partial blocks; a plan holds fewer: plan "
                "shorter sequences, or run without a plan");
  return static_cast<std::int32_t>(n);
}

std::int32_t PlanWriter::next_offset() const { return checked_offset(plan_.run_offsets.size()); }

std::int32_t PlanWriter::id_of(const MaskPlan::Tile& by_query) {
  const std::uint64_t hash = hash_of(by_query);
  const auto [begin, end] = ids_.equal_range(hash);
  for (auto it = begin; it != end; ++it)
    if (plan_.tiles_by_query[static_cast<std::size_t>(it->second)] == by_query) return it->second;
  const std::int32_t id = checked_offset(plan_.tiles_by_query.size());
  plan_.tiles_by_query.push_back(by_query);
  plan_.tiles_by_key.push_back(transposed(by_query));
  ids_.emplace(hash, id);
  return id;
}

void PlanWriter::query_rows(MaskPlan::Entry& entry, const std::vector<BlockRow>& rows) {
  entry.query_runs = next_offset();
  for (const BlockRow& row : rows) {
    plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
    for (MaskPlan::Run run : row.runs) {
      const std::int64_t count = run.end - run.begin;
      (run.tiles < 0 ? entry.full : entry.partial) += count;
      if (run.tiles >= 0) {
        const auto first = row.tiles.begin() + run.tiles;
        run.tiles = checked_offset(plan_.tile_ids.size());
        for (auto tile = first; tile != first + count; ++tile)
          plan_.tile_ids.push_back(id_of(*tile));
      }
      plan_.runs.push_back(run);
    }
    entry.kept_pairs += row.kept_pairs;
    entry.rows_without_key += row.rows_without_key;
  }
  plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
  entry.empty = std::int64_t{entry.q_blocks} * entry.k_blocks - entry.partial - entry.full;
}

void PlanWriter::key_rows(MaskPlan::Entry& entry, const std::vector<BlockRow>& columns) {
  entry.key_runs = next_offset();
  for (const BlockRow& column : columns) {
    plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
    for (MaskPlan::Run run : column.runs) {
      if (run.tiles >= 0) {
        const auto first = column.tiles.begin() + run.tiles;
        run.tiles = checked_offset(plan_.tile_ids.size());
        for (auto tile = first; tile != first + (run.end - run.begin); ++tile)
          plan_.tile_ids.push_back(id_of(transposed(*tile)));
      }
      plan_.runs.push_back(run);
    }
  }
  plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
}

void PlanWriter::key_rows_from_query_rows(MaskPlan::Entry& entry) {
  struct Item {
    std::int32_t begin, end, id;  // id < 0: full
  };
  std::vector<std::vector<Item>> columns(static_cast<std::size_t>(entry.k_blocks));
  for (std::int32_t i = 0; i < entry.q_blocks; ++i) {
    const auto at = static_cast<std::size_t>(entry.query_runs + i);
    for (std::int32_t r = plan_.run_offsets[at]; r < plan_.run_offsets[at + 1]; ++r) {
      const MaskPlan::Run& run = plan_.runs[static_cast<std::size_t>(r)];
      for (std::int32_t k = run.begin; k < run.end; ++k) {
        auto& column = columns[static_cast<std::size_t>(k)];
        const std::int32_t id =
            run.tiles < 0 ? -1
                          : plan_.tile_ids[static_cast<std::size_t>(run.tiles + k - run.begin)];
        if (id < 0 && !column.empty() && column.back().id < 0 && column.back().end == i)
          ++column.back().end;
        else
          column.push_back({i, i + 1, id});
      }
    }
  }
  entry.key_runs = next_offset();
  for (const auto& column : columns) {
    const std::size_t first_run = plan_.runs.size();
    plan_.run_offsets.push_back(checked_offset(first_run));
    for (const Item& item : column) {
      if (item.id < 0) {
        plan_.runs.push_back({item.begin, item.end, -1});
        continue;
      }
      const bool extends = plan_.runs.size() > first_run && plan_.runs.back().tiles >= 0 &&
                           plan_.runs.back().end == item.begin;
      if (extends)
        ++plan_.runs.back().end;
      else
        plan_.runs.push_back({item.begin, item.end, checked_offset(plan_.tile_ids.size())});
      plan_.tile_ids.push_back(item.id);
    }
  }
  plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
}

void PlanWriter::strips(MaskPlan::Entry& entry, const std::vector<Strip>& strips) {
  struct Known {
    std::int32_t id = -1, pairs = 0;
    std::uint64_t rows = 0;  // bit i: row i keeps a key
  };
  std::vector<std::vector<Known>> known;
  for (const Strip& s : strips) known.emplace_back(s.tiles.size());
  constexpr std::int64_t block = MaskPlan::block;

  entry.query_runs = next_offset();
  for (std::size_t at = 0; at < strips.size(); ++at) {
    const Strip& strip = strips[at];
    for (std::size_t r = 0; r < strip.rows.size(); ++r) {
      const std::int64_t q0 = (strip.first_row + static_cast<std::int64_t>(r)) * block;
      const std::int64_t height = std::min(block, entry.q_len - q0);
      std::uint64_t with_key = 0;
      plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
      for (MaskPlan::Run run : strip.rows[r].runs) {
        const std::int64_t count = run.end - run.begin;
        if (run.tiles < 0) {
          entry.full += count;
          entry.kept_pairs +=
              height * (std::min<std::int64_t>(run.end * block, entry.k_len) - run.begin * block);
          with_key = ~std::uint64_t{0};
        } else {
          entry.partial += count;
          const std::int32_t* ids = strip.rows[r].ids.data() + run.tiles;
          run.tiles = checked_offset(plan_.tile_ids.size());
          for (std::int64_t i = 0; i < count; ++i) {
            Known& k = known[at][static_cast<std::size_t>(ids[i])];
            if (k.id < 0) {
              const MaskPlan::Tile& tile = strip.tiles[static_cast<std::size_t>(ids[i])];
              k.id = id_of(tile);
              for (std::size_t j = 0; j < tile.size(); ++j) {
                k.pairs += __builtin_popcountll(tile[j]);
                k.rows |= std::uint64_t{tile[j] != 0} << j;
              }
            }
            plan_.tile_ids.push_back(k.id);
            entry.kept_pairs += k.pairs;
            with_key |= k.rows;
          }
        }
        plan_.runs.push_back(run);
      }
      entry.rows_without_key +=
          height - std::min<std::int64_t>(height, __builtin_popcountll(with_key));
    }
  }
  plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
  entry.empty = std::int64_t{entry.q_blocks} * entry.k_blocks - entry.partial - entry.full;

  entry.key_runs = next_offset();
  for (std::int32_t c = 0; c < entry.k_blocks; ++c) {
    const std::size_t first_run = plan_.runs.size();
    plan_.run_offsets.push_back(checked_offset(first_run));
    for (std::size_t at = 0; at < strips.size(); ++at) {
      const Line& line = strips[at].columns[static_cast<std::size_t>(c)];
      for (MaskPlan::Run run : line.runs) {
        const bool partial = run.tiles >= 0;
        // A run that ends where a strip ends goes on in the next one.
        if (plan_.runs.size() > first_run && plan_.runs.back().end == run.begin &&
            (plan_.runs.back().tiles >= 0) == partial)
          plan_.runs.back().end = run.end;
        else
          plan_.runs.push_back(
              {run.begin, run.end, partial ? checked_offset(plan_.tile_ids.size()) : -1});
        for (std::int32_t i = 0; partial && i < run.end - run.begin; ++i)
          plan_.tile_ids.push_back(
              known[at][static_cast<std::size_t>(line.ids[static_cast<std::size_t>(run.tiles + i)])]
                  .id);
      }
    }
  }
  plan_.run_offsets.push_back(checked_offset(plan_.runs.size()));
}

}  // namespace undivided::masks
