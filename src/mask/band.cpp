// SPDX-License-Identifier: Apache-2.0
// Blocks of a band without looking at elements: only blocks that an edge crosses hold bits.
#include <algorithm>
#include <bit>

#include "mask/plan.hpp"

namespace undivided::masks {
namespace {

/// Bits [low, high) of a word.
std::uint64_t bit_range(std::int64_t low, std::int64_t high) {
  low = std::clamp<std::int64_t>(low, 0, 64);
  high = std::clamp<std::int64_t>(high, 0, 64);
  if (low >= high) return 0;
  const std::uint64_t ones =
      high - low == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << (high - low)) - 1;
  return ones << low;
}

}  // namespace

void BlockRow::add_full(std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  if (!runs.empty() && runs.back().tiles < 0 && runs.back().end == begin)
    runs.back().end = static_cast<std::int32_t>(end);
  else
    runs.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), -1});
}

void BlockRow::add_partial(std::int64_t at, const MaskPlan::Tile& tile) {
  if (!runs.empty() && runs.back().tiles >= 0 && runs.back().end == at)
    ++runs.back().end;
  else
    runs.push_back({static_cast<std::int32_t>(at),
                    static_cast<std::int32_t>(at + 1),
                    static_cast<std::int32_t>(tiles.size())});
  tiles.push_back(tile);
}

BlockRow band_row(const LocalBand& band, std::int64_t q_block) {
  BlockRow out;
  const std::int64_t q0 = q_block * block_size, q1 = std::min(q0 + block_size, band.q_len);
  // Keys of row q: [q - left, q + right] within [0, k_len). Every bound rises with q.
  const auto first = [&](std::int64_t q) {
    return std::clamp<std::int64_t>(q - band.left, 0, band.k_len);
  };
  const auto last = [&](std::int64_t q) {
    return std::clamp<std::int64_t>(q + band.right + 1, 0, band.k_len);
  };
  for (std::int64_t q = q0; q < q1; ++q) {
    const std::int64_t count = std::max<std::int64_t>(0, last(q) - first(q));
    out.kept_pairs += count;
    out.rows_without_key += count == 0;
  }
  const std::int64_t begin = first(q0), end = last(q1 - 1);
  // Full blocks lie between the first key of the last row and the end of the first row.
  const std::int64_t full_begin = first(q1 - 1), full_end = last(q0);
  for (std::int64_t k = begin / block_size; k * block_size < end; ++k) {
    const std::int64_t k0 = k * block_size, k1 = std::min(k0 + block_size, band.k_len);
    if (k0 >= full_begin && k1 <= full_end) {
      std::int64_t stop = full_end == band.k_len ? (band.k_len + block_size - 1) / block_size
                                                 : full_end / block_size;
      stop = std::max(stop, k + 1);
      out.add_full(k, stop);
      k = stop - 1;
      continue;
    }
    MaskPlan::Tile tile{};
    std::uint64_t any = 0;
    for (std::int64_t q = q0; q < q1; ++q) {
      const std::uint64_t word = bit_range(first(q) - k0, last(q) - k0);
      tile[static_cast<std::size_t>(q - q0)] = word;
      any |= word;
    }
    if (any) out.add_partial(k, tile);
  }
  return out;
}

// Swaps off-diagonal squares, then those inside each square, down to single bits.
MaskPlan::Tile transposed(const MaskPlan::Tile& tile) {
  MaskPlan::Tile t = tile;
  std::uint64_t mask = 0x00000000FFFFFFFFull;
  for (unsigned width = 32; width != 0; width >>= 1, mask ^= mask << width) {
    for (std::size_t i = 0; i < 64; i = ((i | width) + 1) & ~std::size_t{width}) {
      const std::uint64_t swap = ((t[i] >> width) ^ t[i | width]) & mask;
      t[i] ^= swap << width;
      t[i | width] ^= swap;
    }
  }
  return t;
}

}  // namespace undivided::masks
