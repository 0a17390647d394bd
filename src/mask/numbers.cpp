// SPDX-License-Identifier: Apache-2.0
// Open-addressing tables of tiles, lanes and pairs.
#include <cstring>

#include "mask/tiles.hpp"

namespace undivided::masks {
namespace {

std::uint64_t mixed(std::uint64_t h) {
  h *= 0x9E3779B97F4A7C15ull;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93ull;
  return h ^ h >> 29;
}

}  // namespace

Numbers::Cell& Numbers::find(std::uint64_t a, std::uint64_t b) {
  std::size_t at = mixed(a ^ mixed(b)) & (cells_.size() - 1);
  while (cells_[at].used && (cells_[at].a != a || cells_[at].b != b))
    at = (at + 1) & (cells_.size() - 1);
  return cells_[at];
}

std::int32_t& Numbers::at(std::uint64_t a, std::uint64_t b) {
  Cell* cell = &find(a, b);
  if (cell->used) return cell->value;
  if (2 * ++count_ > cells_.size()) {
    std::vector<Cell> old(cells_.size() * 2);
    old.swap(cells_);
    for (const Cell& c : old)
      if (c.used) find(c.a, c.b) = c;
    cell = &find(a, b);
  }
  *cell = {a, b, -1, true};
  return cell->value;
}

template <class T>
std::int32_t Pool<T>::id_of(const T& x) {
  constexpr std::size_t words = sizeof(T) / 8;
  std::uint64_t word[words], a = 1, b = 2, c = 3, d = 4;
  std::memcpy(word, &x, sizeof x);
  // Four chains, so that multiplies overlap.
  for (std::size_t i = 0; i < words; i += 4) {
    a = (a ^ word[i]) * 0x9E3779B97F4A7C15ull;
    b = (b ^ word[i + 1]) * 0xD6E8FEB86659FD93ull;
    c = (c ^ word[i + 2]) * 0xC2B2AE3D27D4EB4Full;
    d = (d ^ word[i + 3]) * 0x165667B19E3779F9ull;
    a ^= a >> 31, b ^= b >> 30, c ^= c >> 29, d ^= d >> 32;
  }
  const std::uint64_t hash = mixed(a ^ mixed(b ^ mixed(c ^ mixed(d))));
  std::size_t at = hash & (cells_.size() - 1);
  for (; cells_[at] >= 0; at = (at + 1) & (cells_.size() - 1)) {
    const auto id = static_cast<std::size_t>(cells_[at]);
    if (hashes_[id] == hash && items_[id] == x) return cells_[at];
  }
  const auto id = static_cast<std::int32_t>(items_.size());
  cells_[at] = id;
  items_.push_back(x);
  hashes_.push_back(hash);
  if (2 * items_.size() > cells_.size()) {
    cells_.assign(cells_.size() * 2, -1);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      std::size_t to = hashes_[i] & (cells_.size() - 1);
      while (cells_[to] >= 0) to = (to + 1) & (cells_.size() - 1);
      cells_[to] = static_cast<std::int32_t>(i);
    }
  }
  return id;
}

template class Pool<MaskPlan::Tile>;
template class Pool<Lanes>;

}  // namespace undivided::masks
