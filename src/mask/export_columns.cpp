// SPDX-License-Identifier: Apache-2.0
// Plans as FlashMask columns, slices and packed lengths.
#include <algorithm>

#include "mask/intervals.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided {

using masks::kept_by;
using masks::refuse_format;
using masks::Stretch;

namespace {

// The rows of [from, length) that are not kept.
std::vector<Stretch> masked_rows(const std::vector<Stretch>& kept,
                                 std::int64_t from,
                                 std::int64_t length) {
  std::vector<Stretch> out;
  for (const Stretch& s : kept) {
    if (s.begin > from) out.push_back({from, s.begin});
    from = std::max(from, s.end);
  }
  if (from < length) out.push_back({from, length});
  return out;
}

std::int32_t narrow(std::int64_t x) { return static_cast<std::int32_t>(x); }

}  // namespace

FlashMask export_flashmask(const MaskPlan& plan, const MaskPlan::Entry& e) {
  std::vector<std::vector<Stretch>> columns;
  bool causal = true, suffix = true, one_run = true, ends = true;
  for (std::int64_t k = 0; k < e.k_len; ++k) {
    columns.push_back(kept_by(plan, e, false, k));
    const auto& kept = columns.back();
    causal &= kept.empty() || kept.front().begin >= k;
    const auto below = masked_rows(kept, std::min(k, e.q_len), e.q_len);
    suffix &= below.empty() || (below.size() == 1 && below[0].end == e.q_len);
    one_run &= below.size() <= 1;
    ends &= kept.size() <= 1;
    const auto all = masked_rows(kept, 0, e.q_len);
    if (all.size() > 2 && !(causal && below.size() <= 1))
      refuse_format(
          "FlashMask holds two runs of masked queries for each key; key {} has {}", k, all.size());
  }
  FlashMask out;
  out.keys = e.k_len;
  out.causal = causal && one_run;
  out.columns = out.causal ? (suffix ? 1 : 2) : ends ? 2 : 4;
  for (std::int64_t k = 0; k < e.k_len; ++k) {
    const auto& kept = columns[static_cast<std::size_t>(k)];
    if (out.causal) {
      const auto below = masked_rows(kept, std::min(k, e.q_len), e.q_len);
      out.values.push_back(narrow(below.empty() ? e.q_len : below[0].begin));
      if (out.columns == 2) out.values.push_back(narrow(below.empty() ? e.q_len : below[0].end));
    } else if (ends) {
      out.values.push_back(narrow(kept.empty() ? 0 : kept[0].end));
      out.values.push_back(narrow(kept.empty() ? 0 : kept[0].begin));
    } else {
      const auto all = masked_rows(kept, 0, e.q_len);
      // The run that reaches the last row is the lower one.
      const bool first_is_lower = all.size() == 1 && all[0].end == e.q_len;
      const Stretch none{e.q_len, e.q_len};
      const Stretch lower = all.size() == 2 ? all[1] : first_is_lower ? all[0] : none;
      const Stretch upper = all.empty() || first_is_lower ? none : all[0];
      for (const std::int64_t x : {lower.begin, lower.end, upper.begin, upper.end})
        out.values.push_back(narrow(x));
    }
  }
  return out;
}

std::vector<MaskSlice> export_slices(const MaskPlan& plan,
                                     const MaskPlan::Entry& e,
                                     std::size_t most) {
  struct Open {
    MaskSlice slice;
    Stretch last;               // keys of the last row
    int left = -1, right = -1;  // how far each end moves a row; -1: one row so far
  };
  std::vector<MaskSlice> out;
  std::vector<Open> open;
  const auto close = [&](const Open& o) {
    MaskSlice s = o.slice;
    s.k0 = narrow(o.last.begin - (o.left > 0 ? s.q1 - s.q0 - 1 : 0));
    s.k1 = narrow(o.last.end);
    using Kind = MaskSlice::Kind;
    s.kind = o.left > 0 ? (o.right > 0 ? Kind::both : Kind::inverse_causal)
                        : (o.right > 0 ? Kind::causal : Kind::full);
    out.push_back(s);
    if (out.size() > most)
      refuse_format(
          "this mask needs more than {} slices (at query {} of {}): pass packed bits or "
          "block lists",
          most,
          s.q1,
          e.q_len);
  };
  for (std::int64_t q = 0; q < e.q_len; ++q) {
    std::vector<Open> next;
    for (const Stretch& s : kept_by(plan, e, true, q)) {
      const auto fits = [&](const Open& o) {
        const std::int64_t left = s.begin - o.last.begin, right = s.end - o.last.end;
        if (left < 0 || left > 1 || right < 0 || right > 1) return false;
        return o.left < 0 || (o.left == left && o.right == right);
      };
      auto at = std::find_if(open.begin(), open.end(), fits);
      if (at == open.end()) {
        Open o;
        o.slice.q0 = narrow(q);
        o.slice.q1 = narrow(q + 1);
        o.last = s;
        next.push_back(o);
        continue;
      }
      at->left = narrow(s.begin - at->last.begin);
      at->right = narrow(s.end - at->last.end);
      at->last = s;
      at->slice.q1 = narrow(q + 1);
      next.push_back(*at);
      open.erase(at);
    }
    for (const Open& o : open) close(o);
    open = std::move(next);
  }
  for (const Open& o : open) close(o);
  return out;
}

PackedLengths export_cu_seqlens(const MaskPlan& plan, const MaskPlan::Entry& e) {
  PackedLengths out;
  out.cu_seqlens_q = {0};
  out.cu_seqlens_k = {0};
  Stretch piece;
  for (std::int64_t q = 0; q < e.q_len; ++q) {
    const auto kept = kept_by(plan, e, true, q);
    if (kept.size() != 1)
      refuse_format(
          "cu_seqlens keep one run of keys for each query; query {} keeps {}", q, kept.size());
    if (q > 0 && kept[0] == piece) continue;
    if (kept[0].begin != piece.end)
      refuse_format(
          "cu_seqlens pieces follow each other; the keys of query {} start at {} after a "
          "piece that ends at {}",
          q,
          kept[0].begin,
          piece.end);
    if (q > 0) {
      out.cu_seqlens_q.push_back(narrow(q));
      out.cu_seqlens_k.push_back(narrow(piece.end));
    }
    piece = kept[0];
  }
  if (piece.end != e.k_len)
    refuse_format("cu_seqlens cover every key; nobody keeps keys {} to {}", piece.end, e.k_len - 1);
  out.cu_seqlens_q.push_back(narrow(e.q_len));
  out.cu_seqlens_k.push_back(narrow(e.k_len));
  return out;
}

}  // namespace undivided
