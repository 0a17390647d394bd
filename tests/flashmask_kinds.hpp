// SPDX-License-Identifier: Apache-2.0
// The benchmark kinds of FlashMask, made from their definitions.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "undivided/mask_formats.hpp"

namespace undivided::flashmask {

using Rule = std::function<bool(int, int)>;

// The benchmark kinds of FlashMask, from their definitions: columns and the rule that they mean.
/// Integers by int.
class Ints {
 public:
  explicit Ints(int n) : values_(static_cast<std::size_t>(n)) {}
  int& operator[](int i) { return values_[static_cast<std::size_t>(i)]; }
  int operator[](int i) const { return values_[static_cast<std::size_t>(i)]; }

 private:
  std::vector<int> values_;
};

struct Kind {
  const char* name;
  FlashMask mask;
  Rule keep;
};
inline std::vector<Kind> kinds(int n) {
  std::vector<Kind> out;
  const auto add = [&](const char* name,
                       bool causal,
                       int columns,
                       const std::function<std::vector<int>(int)>& column,
                       Rule keep) {
    FlashMask m;
    m.causal = causal;
    m.columns = columns;
    m.keys = n;
    for (int j = 0; j < n; ++j)
      for (const int x : column(j)) m.values.push_back(x);
    out.push_back({name, m, std::move(keep)});
  };
  const int w = 40, g = 17;
  Ints start(n), end(n);
  for (int at = 0, size = 23; at < n; size = size * 5 % 83 + 7) {
    const int stop = std::min(n, at + size);
    for (int i = at; i < stop; ++i) start[i] = at, end[i] = stop;
    at = stop;
  }
  const int last_block = start[n - 1];
  add("full", false, 2, [=](int) { return std::vector{n, 0}; }, [](int, int) { return true; });
  add("causal", true, 1, [=](int) { return std::vector{n}; }, [](int q, int k) { return k <= q; });
  add(
      "sliding window",
      true,
      1,
      [=](int j) { return std::vector{std::min(n, j + w)}; },
      [=](int q, int k) { return k <= q && q < k + w; });
  add(
      "causal document",
      true,
      1,
      [=](int j) { return std::vector{end[j]}; },
      [=](int q, int k) { return k <= q && start[q] == start[k]; });
  add(
      "document",
      false,
      2,
      [=](int j) { return std::vector{end[j], start[j]}; },
      [=](int q, int k) { return start[q] == start[k]; });
  const int question = end[0];
  add(
      "share question",
      true,
      1,
      [=](int j) { return std::vector{j < question ? n : end[j]}; },
      [=](int q, int k) { return k <= q && (k < question || start[q] == start[k]); });
  add(
      "global and sliding window",
      false,
      4,
      [=](int j) {
        return std::vector{j < g ? n : std::min(n, j + w + 1),
                           n,
                           j < g + w + 1 ? 0 : g,
                           j < g + w + 1 ? 0 : j - w};
      },
      [=](int q, int k) { return q < g || k < g || std::abs(q - k) <= w; });
  add(
      "causal blockwise",
      true,
      2,
      [=](int j) { return j >= last_block ? std::vector{n, n} : std::vector{end[j], last_block}; },
      [=](int q, int k) { return k <= q && (start[q] == start[k] || q >= last_block); });
  add(
      "prefix LM",
      false,
      2,
      [=](int j) { return std::vector{n, j < g ? 0 : j}; },
      [=](int q, int k) { return k < g || k <= q; });
  add(
      "prefix LM document",
      false,
      2,
      [=](int j) { return std::vector{end[j], j < start[j] + 5 ? start[j] : j}; },
      [=](int q, int k) { return start[q] == start[k] && (k < start[k] + 5 || k <= q); });
  const int drop = n / 4, length = n / 5;
  add(
      "QK-sparse",
      true,
      2,
      [=](int j) {
        return j >= drop && j < drop + length ? std::vector{j, drop + length} : std::vector{n, n};
      },
      [=](int q, int k) {
        return k <= q && !(k >= drop && k < drop + length && q < drop + length);
      });
  Ints gone(n);
  std::mt19937 random(4);
  for (int j = 0; j < n; ++j)
    gone[j] = j + 1 + static_cast<int>(random() % static_cast<unsigned>(n - j));
  add(
      "random eviction",
      true,
      1,
      [=](int j) { return std::vector{gone[j]}; },
      [=](int q, int k) { return k <= q && q < gone[k]; });
  return out;
}

}  // namespace undivided::flashmask
