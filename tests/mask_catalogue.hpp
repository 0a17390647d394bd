// SPDX-License-Identifier: Apache-2.0
// Twenty-six masks from the literature, with the arrays that they capture, at any length.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "undivided/expr.hpp"

namespace undivided::testing {

struct CatalogueMask {
  int number = 0;
  std::string name, text;
  bool structured = true;      ///< Partial blocks are a vanishing share of all blocks
  bool sampled_wrong = false;  ///< five samples a block are known to misjudge it
};

/// The masks for sequences of `s` tokens, a multiple of 1024.
class MaskCatalogue {
 public:
  explicit MaskCatalogue(std::int32_t s) : s_(s) {
    const auto n = static_cast<std::size_t>(s);
    documents(n);
    images(n);
    eviction(n);
    spans(n);
    sparse(n);
    list();
  }
  const std::vector<CatalogueMask>& masks() const { return masks_; }
  Mask mask(const CatalogueMask& m) const { return Mask::parse(m.text, captures_); }

 private:
  using Ints = std::vector<std::int32_t>;
  void add(const char* name, Ints values) {
    captures_.arrays.emplace_back(std::move(values), name);
  }

  void documents(std::size_t n) {
    std::mt19937 random(1);
    const std::int32_t average = s_ <= 8192     ? 1500
                                 : s_ <= 32768  ? 3000
                                 : s_ <= 131072 ? 8000
                                                : 20000;
    Ints doc(n), start(n), off{0}, head;
    std::int32_t at = 0;
    for (std::int32_t id = 0; at < s_; ++id) {
      const auto draw = static_cast<std::int32_t>(random() % (2u * static_cast<unsigned>(average)));
      const std::int32_t end = std::min(s_, at + std::max(1, draw));
      for (std::int32_t i = at; i < end; ++i) {
        doc[static_cast<std::size_t>(i)] = id;
        start[static_cast<std::size_t>(i)] = at;
      }
      head.push_back(id - id % 4);
      off.push_back(at = end);
    }
    Ints glob(n);
    for (int i = 0; i < 16; ++i) glob[random() % n] = 1;
    add("doc", doc);
    add("start", start);
    add("off", off);
    add("first_of", head);
    add("glob", glob);
  }
  void images(std::size_t n) {
    Ints img(n), first(n), last(n);
    for (std::int32_t i = 0; i < s_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      img[at] = i / 576;
      first[at] = static_cast<std::int32_t>(std::int64_t{400} * i % s_);
      last[at] = std::min(s_, first[at] + 900);
    }
    add("img", img);
    add("first", first);
    add("last", last);
  }
  void eviction(std::size_t n) {
    std::mt19937 random(2);
    Ints order(n), gone(n);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (std::int32_t i = 0; i < s_; ++i) {
      const std::int32_t p = order[static_cast<std::size_t>(i)];
      gone[static_cast<std::size_t>(p)] = i < s_ / 2 ? std::max(s_ / 2 + i, p + 1) : s_;
    }
    add("gone", gone);
  }
  void spans(std::size_t n) {
    Ints lts(n, s_), lte(n, s_);
    const std::int64_t s = s_;
    for (const auto& [from, length] :
         {std::pair{s / 8, s / 15}, std::pair{2358 * s / 8192, 1700 * s / 8192}})
      for (std::int64_t k = from; k < from + length; ++k) {
        lts[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k);
        lte[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(from + length);
      }
    add("lts", lts);
    add("lte", lte);
  }
  void sparse(std::size_t n) {
    std::mt19937 random(3);
    const auto survivors = [&] {
      Ints out;
      for (std::int32_t t = 0; out.size() < n; ++t)
        if (random() & 1) out.push_back(t);
      return out;
    };
    add("tk", survivors());
    add("tq", survivors());
    for (const char side : {'q', 'k'}) {
      Ints hash(n), time(n), sorted(n);
      for (auto& h : hash) h = static_cast<std::int32_t>(random() % 16);
      std::iota(time.begin(), time.end(), 0);
      const auto key = [&](std::int32_t t) {
        return std::pair(hash[static_cast<std::size_t>(t)], t);
      };
      std::sort(time.begin(), time.end(), [&](auto a, auto b) { return key(a) < key(b); });
      for (std::size_t i = 0; i < n; ++i) sorted[i] = hash[static_cast<std::size_t>(time[i])];
      add(side == 'q' ? "bq" : "bk", time);
      add(side == 'q' ? "hq" : "hk", sorted);
    }
  }

  void list() {
    const std::int32_t s = s_, n = s_ / 2;
    const auto add_mask = [&](std::string name, std::string text) {
      masks_.push_back({static_cast<int>(masks_.size()) + 1, std::move(name), std::move(text)});
    };
    add_mask("causal", "k <= q");
    add_mask("window", "abs(q - k) <= 512");
    add_mask("causal window", "k <= q && q - k <= 1024");
    add_mask("sink and window", "k <= q && (q - k <= 256 || k < 4)");
    add_mask("prefix LM", "k < 1024 || k <= q");
    add_mask("documents", "doc[q] == doc[k]");
    add_mask("causal documents, by id", "k <= q && doc[q] == doc[k]");
    add_mask("causal documents, by start", "start[q] <= k && k <= q");
    add_mask("shared prefix",
             "(start[q] <= k && k <= q) || (doc[q] != first_of[doc[q]] && "
             "off[first_of[doc[q]]] <= k && k < off[first_of[doc[q]] + 1])");
    add_mask("global and window", "abs(q - k) <= 512 || glob[q] > 0 || glob[k] > 0");
    add_mask("dilated window", "abs(q - k) <= 512 && abs(q - k) % 2 == 0");
    add_mask("far dilated window", "abs(q - k) <= 4096 && abs(q - k) % 512 == 0");
    add_mask("batchify, causal", "q / 1000 == k / 1000 && k % 1000 <= q % 1000");
    add_mask("chunk causal", "k / 96 <= q / 96");
    add_mask("block diffusion",
             fmt::format("let uq = q % {0} / 16; let uk = k % {0} / 16;"
                         "(uq == uk && (q < {0}) == (k < {0})) || (uq > uk && q < {0} && k >= {0})"
                         " || (uq >= uk && q >= {0} && k >= {0})",
                         n));
    add_mask("NATTEN, width 128",
             fmt::format("abs(clamp(q / 128, 6, {}) - k / 128) <= 6 && "
                         "abs(clamp(q % 128, 6, 121) - k % 128) <= 6",
                         s / 128 - 7));
    add_mask("NATTEN, width 96",
             fmt::format("abs(clamp(q / 96, 6, {}) - k / 96) <= 6 && "
                         "abs(clamp(q % 96, 6, 89) - k % 96) <= 6",
                         s / 96 - 7));
    add_mask("NATTEN, 8 x 16 tiles",
             fmt::format("let yq = q / 1024 * 8 + q % 128 / 16; let yk = k / 1024 * 8 + k % 128 / "
                         "16; let xq = q / 128 % 8 * 16 + q % 16; let xk = k / 128 % 8 * 16 + k % "
                         "16; abs(clamp(yq, 6, {}) - yk) <= 6 && abs(clamp(xq, 6, 121) - xk) <= 6",
                         s / 128 - 7));
    const auto even = [](const std::string& x) {  // packs the even bits
      return fmt::format(
          "let {0}1 = {0} & 1431655765; let {0}2 = ({0}1 | {0}1 >> 1) & 858993459;"
          "let {0}3 = ({0}2 | {0}2 >> 2) & 252645135; let {0}4 = ({0}3 | {0}3 >> 4) "
          "& 16711935; let {0}5 = ({0}4 | {0}4 >> 8) & 65535;",
          x);
    };
    add_mask("NATTEN, Morton order",
             "let a = q; let b = q >> 1; let c = k; let d = k >> 1;" + even("a") + even("b") +
                 even("c") + even("d") +
                 "abs(clamp(a5, 6, 1000) - c5) <= 6 && abs(clamp(b5, 6, 1000) - d5) <= 6");
    add_mask("sliding tile",
             fmt::format("abs(clamp(q / 1024, 1, {}) - k / 1024) <= 1 && "
                         "abs(clamp(q / 128 % 8, 1, 6) - k / 128 % 8) <= 1",
                         s / 1024 - 2));
    add_mask("image and text", "first[img[k]] <= q && q < last[img[k]]");
    add_mask("random eviction", "k <= q && q < gone[k]");
    add_mask("dropped spans", "k <= q && !(lts[k] <= q && q < lte[k])");
    add_mask("SCFA, QK-sparse", "tk[k] <= tq[q]");
    add_mask("SCFA, hash-sparse", "bq[q] > bk[k] && hq[q] == hk[k]");
    add_mask("strided causal", "k <= q && (q - k < 64 || (q - k) % 64 == 0)");
    for (const int i : {22, 26}) masks_[static_cast<std::size_t>(i) - 1].structured = false;
    for (const int i : {4, 10, 17, 18, 19, 22, 25})
      masks_[static_cast<std::size_t>(i) - 1].sampled_wrong = true;
  }

  std::int32_t s_;
  Captures captures_;
  std::vector<CatalogueMask> masks_;
};

}  // namespace undivided::testing
