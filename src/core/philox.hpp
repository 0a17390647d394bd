// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), and the
// dropout decision built on it.
#pragma once

#include <array>
#include <cstdint>

namespace undivided::philox {

using Counter = std::array<std::uint32_t, 4>;
using Key = std::array<std::uint32_t, 2>;

inline constexpr std::uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
inline constexpr std::uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;

constexpr Counter random4(Counter c, Key key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(multiplier0) * c[0];
    const std::uint64_t p1 = static_cast<std::uint64_t>(multiplier1) * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key[0],
         static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key[1],
         static_cast<std::uint32_t>(p0)};
    key[0] += weyl0;
    key[1] += weyl1;
  }
  return c;
}

constexpr Key key_of(std::uint64_t seed) {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

/// The four words of keys 4 * (k / 4) + 0..3 in one row. Positions count as uint32.
constexpr Counter dropout_words(
    std::uint64_t seed, std::int64_t batch, std::int64_t head, std::int64_t q, std::int64_t k) {
  return random4({static_cast<std::uint32_t>(k) >> 2,
                  static_cast<std::uint32_t>(q),
                  static_cast<std::uint32_t>(head),
                  static_cast<std::uint32_t>(batch)},
                 key_of(seed));
}

/// floor(p * 2^32): a weight is kept iff its word is at least this. p is in [0, 1).
constexpr std::uint32_t dropout_threshold(double p) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(p * 4294967296.0));
}

/// Is this weight kept? One element at a time; tiles use dropout_words.
constexpr bool keep(std::uint64_t seed,
                    std::uint32_t threshold,
                    std::int64_t batch,
                    std::int64_t head,
                    std::int64_t q,
                    std::int64_t k) {
  return dropout_words(seed, batch, head, q, k)[static_cast<std::uint32_t>(k) & 3u] >= threshold;
}

}  // namespace undivided::philox
