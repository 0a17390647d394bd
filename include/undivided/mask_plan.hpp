// SPDX-License-Identifier: Apache-2.0
// A mask, classed exactly at 64 x 64 blocks: what kernels skip, what they mask, what they take
// whole.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace undivided {

enum class BlockClass : std::uint8_t { empty, partial, full };

/// How the pairs of a Partial block are decided: by bit tiles of the plan, or by the mask's
/// program, which costs the plan no memory. `automatic` takes the program for masks by key columns
/// (FlashMask and its like), whose every Partial block would have bits of its own, and bits for the
/// rest.
enum class Inside : std::uint8_t { automatic, bits, program };

/// Immutable once made. Blocks start at local index 0 of each sequence and are clipped to its
/// lengths.
class MaskPlan {
 public:
  static constexpr int block = 64;
  using Tile = std::array<std::uint64_t, block>;

  /// Blocks [begin, end) of one row (or column) of blocks, all Full when tiles < 0; else all
  /// Partial, and block i has bit tile tile_ids[tiles + i - begin] (Inside::program: no tile).
  struct Run {
    std::int32_t begin = 0, end = 0, tiles = -1;
  };
  /// One distinct (lengths, origins, batch and head where the program reads them).
  struct Entry {
    std::int64_t q_len = 0, k_len = 0;
    std::int32_t q_blocks = 0, k_blocks = 0;
    std::int32_t query_runs =
        0;  ///< runs of query block i: run_offsets[query_runs + i] .. [query_runs + i + 1]
    std::int32_t key_runs = 0;  ///< the same for key block i
    std::int64_t empty = 0, partial = 0, full = 0, kept_pairs = 0, rows_without_key = 0;
  };

  Inside inside = Inside::bits;  ///< bits or program
  std::vector<Entry> entries;
  std::int64_t batch = 0, heads = 0;
  std::vector<std::int32_t> entry_of;  ///< [batch * heads]
  std::vector<std::int32_t> run_offsets;
  std::vector<Run> runs;
  std::vector<std::int32_t> tile_ids;
  std::vector<Tile> tiles_by_query;  ///< word = query row, bit = key; the same ids as by key
  std::vector<Tile> tiles_by_key;    ///< word = key row, bit = query
  /// Array::version() of each captured array when the plan was made: Plan::run refuses a plan whose
  /// arrays have changed since.
  std::vector<std::uint64_t> versions;

  const Entry& entry(std::int64_t b, std::int64_t h) const {
    return entries[static_cast<std::size_t>(entry_of[static_cast<std::size_t>(b * heads + h)])];
  }
  std::int64_t kept_pairs() const;  ///< over all batches and heads
  std::size_t bytes() const;        ///< of its arrays
  /// Class of the part of the plan that covers queries [q0, q1) and keys [k0, k1) of an entry.
  /// Raises Error{plan} where that needs bits and the plan holds none.
  BlockClass classify(
      const Entry& e, std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const;
  /// The same arrays on a CUDA device, when the plan was made for one.
  struct DeviceCopy {
    const Entry* entries = nullptr;
    const std::int32_t* entry_of = nullptr;
    const std::int32_t* run_offsets = nullptr;
    const Run* runs = nullptr;
    const std::int32_t* tile_ids = nullptr;
    const Tile* tiles_by_query = nullptr;
    std::int64_t reach =
        0;  ///< keys that a query of the densest entry meets in the mean, by blocks; 0: not known
    std::shared_ptr<void> owner;
  };
  DeviceCopy device;
};

/// Answers about any rectangle of one entry of a plan in O(log) steps: what balancing work over
/// ranks asks. Building it takes O(n log k_blocks) time and memory for n changes of class or bits
/// along the rows of blocks. Copies share it; threads may.
class MaskIndex {
 public:
  /// Raises Error{plan} for a batch or head outside the plan, and for a plan without bits.
  explicit MaskIndex(std::shared_ptr<const MaskPlan> plan,
                     std::int64_t batch = 0,
                     std::int64_t head = 0);
  /// How many pairs of queries [q0, q1) and keys [k0, k1) are kept; clipped to the lengths.
  std::int64_t kept_pairs(std::int64_t q0, std::int64_t q1, std::int64_t k0, std::int64_t k1) const;
  /// The smallest range [first, end) of keys that holds every key that queries [q0, q1) keep; {0,
  /// 0} when they keep none.
  std::pair<std::int64_t, std::int64_t> key_range(std::int64_t q0, std::int64_t q1) const;
  /// Ranges [first, end) of queries that keep no key, in order.
  const std::vector<std::pair<std::int64_t, std::int64_t>>& rows_without_key() const;

 private:
  class State;
  std::shared_ptr<const State> state_;
};

}  // namespace undivided
