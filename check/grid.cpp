// SPDX-License-Identifier: Apache-2.0
// The covering set: greedy pairwise design for each operation and dtype, plus single-axis extremes.
#include <algorithm>
#include <array>
#include <set>

#include "check/case.hpp"
#include "check/gallery.hpp"
#include "check/random.hpp"

namespace undivided::check {
namespace {

/// The largest cost of a case of the set: half a second of the oracle. The longest pairs of lengths
/// are left to the forward.
double most_cost(const Case& c) { return c.backward() ? 2.5e7 : 6.5e7; }

/// Which pairs of values of two axes have not occurred yet, for one operation and dtype.
class Uncovered {
 public:
  Uncovered(std::size_t first_axis, const Case& base) : first_(first_axis) {
    const auto& all = axes();
    std::size_t size = 0;
    for (std::size_t a = first_; a < all.size(); ++a) {
      offset_.push_back(size);
      size += all[a].values.size();
    }
    size_ = size;
    open_.assign(size * size, false);
    for (std::size_t a = first_; a < all.size(); ++a)
      for (std::size_t b = a + 1; b < all.size(); ++b)
        for (std::size_t i = 0; i < all[a].values.size(); ++i)
          for (std::size_t j = 0; j < all[b].values.size(); ++j)
            if (possible(base, a, i, b, j)) {
              at(a, i, b, j) = true;
              ++left_;
            }
  }

  static bool possible(
      const Case& base, std::size_t a, std::size_t i, std::size_t b, std::size_t j) {
    const auto& all = axes();
    const std::string &va = all[a].values[i], &vb = all[b].values[j];
    if (impossible_pair(a, va, b, vb)) return false;
    for (std::size_t fixed = 0; fixed < 2; ++fixed)
      if (impossible_pair(fixed, get(base, fixed), a, va) ||
          impossible_pair(fixed, get(base, fixed), b, vb))
        return false;
    return true;
  }

  std::size_t left() const { return left_; }
  std::vector<bool>::reference at(std::size_t a, std::size_t i, std::size_t b, std::size_t j) {
    return open_[(offset_[a - first_] + i) * size_ + offset_[b - first_] + j];
  }
  /// How many open pairs value (a, i) makes with the values chosen so far (-1: not chosen).
  int gain(std::size_t a, std::size_t i, const std::vector<int>& chosen) {
    int n = 0;
    for (std::size_t b = first_; b < chosen.size(); ++b)
      if (b != a && chosen[b] >= 0) {
        const auto j = static_cast<std::size_t>(chosen[b]);
        n += a < b ? at(a, i, b, j) : at(b, j, a, i);
      }
    return n;
  }
  void cover(const std::vector<int>& chosen) {
    for (std::size_t a = first_; a < chosen.size(); ++a)
      for (std::size_t b = a + 1; b < chosen.size(); ++b) {
        auto open =
            at(a, static_cast<std::size_t>(chosen[a]), b, static_cast<std::size_t>(chosen[b]));
        if (open) {
          open = false;
          --left_;
        }
      }
  }
  /// The first open pair, from a random place on.
  std::array<std::size_t, 4> pick(Random& random) {
    const auto& all = axes();
    const std::size_t start = random.below(open_.size());
    for (std::size_t step = 0; step < open_.size(); ++step) {
      const std::size_t p = (start + step) % open_.size();
      if (!open_[p]) continue;
      const auto axis_of = [&](std::size_t index) {
        std::size_t a = 0;
        while (a + 1 < offset_.size() && offset_[a + 1] <= index) ++a;
        return a;
      };
      const std::size_t a = axis_of(p / size_), b = axis_of(p % size_);
      return {a + first_, p / size_ - offset_[a], b + first_, p % size_ - offset_[b]};
    }
    return {all.size(), 0, 0, 0};
  }

 private:
  std::size_t first_, size_ = 0, left_ = 0;
  std::vector<std::size_t> offset_;
  std::vector<bool> open_;
};

bool acceptable(const Case& c) { return impossible(c).empty() && c.cost() <= most_cost(c); }

/// One greedy row: starts from an open pair, then gives each axis the value that covers most among
/// those that keep the case possible and affordable.
bool greedy_row(const Case& base, Uncovered& open, Random& random, Case& out) {
  const auto& all = axes();
  const auto [pa, pi, pb, pj] = open.pick(random);
  if (pa == all.size()) return false;
  Case c = base;
  // Cheap until chosen otherwise, so that the partial case says what is affordable.
  c.q_len = c.k_len = 1;
  c.d = c.dv = 8;
  c.heads = c.kv_heads = 1;
  std::vector<int> chosen(all.size(), -1);
  chosen[0] = chosen[1] = 0;
  const auto choose = [&](std::size_t a, std::size_t i) {
    set(c, a, all[a].values[i]);
    chosen[a] = static_cast<int>(i);
  };
  choose(pa, pi);
  choose(pb, pj);
  std::vector<std::size_t> order;
  for (std::size_t a = 2; a < all.size(); ++a)
    if (a != pa && a != pb) order.push_back(a);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  for (const std::size_t a : order) {
    int best_gain = -1;
    std::size_t best = 0;
    const std::size_t n = all[a].values.size(), start = random.below(n);
    for (std::size_t step = 0; step < n; ++step) {
      const std::size_t i = (start + step) % n;
      Case t = c;
      set(t, a, all[a].values[i]);
      bool fits = t.cost() <= most_cost(t);
      // Words that later axes could still repair are judged by pairs; lengths need the whole.
      for (std::size_t b = 0; fits && b < all.size(); ++b)
        if (chosen[b] >= 0) fits = !impossible_pair(a, all[a].values[i], b, get(t, b));
      fits = fits && impossible(t).empty();
      const int gain = fits ? open.gain(a, i, chosen) : -1;
      if (gain > best_gain) {
        best_gain = gain;
        best = i;
      }
    }
    if (best_gain < 0) return false;
    choose(a, best);
  }
  if (!acceptable(c)) return false;
  chosen[0] = chosen[1] = 0;
  open.cover(chosen);
  out = c;
  return true;
}

void cover(const Case& base, std::uint64_t seed, std::vector<Case>& out) {
  Uncovered open(2, base);
  Random random(seed);
  for (int failures = 0; open.left() > 0 && failures < 2000;) {
    Case c;
    if (greedy_row(base, open, random, c)) {
      c.seed = 1 + out.size() % 997;
      out.push_back(c);
    } else {
      ++failures;
    }
  }
}

/// Each value of each axis alone, from three simple cases.
void extremes(const Case& base, std::vector<Case>& out) {
  for (std::size_t a = 2; a < axes().size(); ++a)
    for (const std::string& value : axes()[a].values) {
      Case c = base;
      set(c, a, value);
      if (acceptable(c)) out.push_back(c);
    }
}

std::vector<Case> make_all() {
  std::vector<Case> out;
  std::uint64_t seed = 20240;
  for (const char* op : {"forward", "backward"})
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      Case base;
      base.op = op;
      base.dtype = dtype;
      cover(base, seed++, out);
      base.q_len = 65;
      base.k_len = 129;
      base.mask = "causal";
      base.align = "end";
      base.kv_heads = 1;
      extremes(base, out);
      if (dtype == DType::f32) {
        base.q_len = 1;
        base.k_len = 511;
        base.heads = 3;
        base.kv_heads = 1;
        base.mask = "full";
        base.kv = "page16";
        extremes(base, out);
      }
    }
  const std::size_t count = out.size();
  for (std::size_t i = 0; i < count; i += 7)
    if (!out[i].backward() && out[i].cost() < 1e7) {
      Case c = out[i];
      c.precision = i % 2 ? "i8/bf16" : "i8/f32";
      out.push_back(c);
    }
  std::set<std::string> seen;
  std::erase_if(out, [&](const Case& c) { return !seen.insert(c.name()).second; });
  return out;
}

}  // namespace

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = make_all();
  return cases;
}

std::vector<Case> gallery_cases() {
  std::vector<Case> out;
  for (const GalleryMask& m : gallery_masks())
    for (const char* op : {"forward", "backward"})
      for (const char* via : {"maskplan", "inside"}) {
        Case c;
        c.op = op;
        c.dtype = DType::bf16;
        c.q_len = m.q_len;
        c.k_len = m.k_len;
        c.heads = c.kv_heads = 1;
        c.mask = "gallery/" + m.name;
        c.via = via;
        out.push_back(c);
      }
  return out;
}

std::vector<Case> large_cases() {
  std::vector<Case> out;
  for (const char* name : {
           "forward.bf16.d128.q8192.k8192.h8x2.b1.mask=causal",
           "forward.f16.d64.q8192.k8192.h2.b2.rows=ragged.kv=ragged.mask=window.align=end",
           "forward.bf16.d64.q8192.k8192.h4x1.b1.mask=blocks.score=softcap.dropout=some",
           "forward.bf16.d256.q4096.k16384.h2.b1.mask=causal.align=end.result=f32",
           "forward.bf16.d128.q1.k65536.h16x4.b1.kv=page64",
           "forward.bf16.d128.q4.k65536.h8x1.b1.mask=causal.align=end",
           "forward.f16.d128.q1.k65536.h16x2.b1.determinism=invariant",
           "backward.bf16.d128.q8192.k8192.h4x2.b1.mask=causal",
           "backward.f16.d64.q8192.k8192.h4.b1.mask=window.determinism=reproducible",
           "backward.bf16.d256.q4096.k4096.h2x1.b1.mask=causal.sink=given",
           "backward.bf16.d64.q4096.k4096.h2.b2.rows=ragged.kv=ragged.mask=documents",
           "backward.bf16.d64.q4096.k4096.h2.b1.mask=causal.score=alibi.determinism=reproducible",
       })
    out.push_back(Case::parse(name));
  return out;
}

std::vector<Case> some_cases(std::size_t count) {
  std::vector<Case> cheap, out;
  for (const Case& c : all_cases())
    if (c.cost() < 2e6) cheap.push_back(c);
  for (std::size_t i = 0; i < count && !cheap.empty(); ++i)
    out.push_back(cheap[i * cheap.size() / count]);
  return out;
}

std::uint64_t product_size() {
  std::uint64_t n = 1;
  for (const Axis& a : axes()) n *= a.values.size();
  return n;
}

Case product_case(std::uint64_t number) {
  Case c;
  for (std::size_t a = 0; a < axes().size(); ++a) {
    const auto n = axes()[a].values.size();
    set(c, a, axes()[a].values[static_cast<std::size_t>(number % n)]);
    number /= n;
  }
  return c;
}

}  // namespace undivided::check
