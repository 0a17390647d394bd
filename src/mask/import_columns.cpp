// SPDX-License-Identifier: Apache-2.0
// FlashMask columns and packed lengths as programs over captured columns.
#include "mask/intervals.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided {

Mask import_flashmask(const FlashMask& m, std::int64_t group) {
  using masks::refuse_input;
  const bool known = m.causal ? m.columns == 1 || m.columns == 2 : m.columns == 2 || m.columns == 4;
  if (!known)
    refuse_input(
        "FlashMask has {} columns and causal = {}; allowed are 1 or 2 with causal, 2 or 4 "
        "without",
        m.columns,
        m.causal);
  if (m.heads < 1 || m.keys < 1 || group < 1)
    refuse_input(
        "FlashMask wants at least one head, one key and one query head for each; got {}, "
        "{} and {}",
        m.heads,
        m.keys,
        group);
  masks::check_size("FlashMask", m.values.size(), m.heads * m.keys * m.columns);
  std::vector<Array> columns;
  for (int c = 0; c < m.columns; ++c) {
    std::vector<std::int32_t> values;
    for (std::int64_t i = 0; i < m.heads * m.keys; ++i)
      values.push_back(m.values[static_cast<std::size_t>(i * m.columns + c)]);
    const std::string name = fmt::format("column{}", c);
    columns.push_back(m.heads == 1
                          ? Array(std::move(values), name)
                          : masks::table_of(name, DType::i32, m.heads, m.keys, values.data()));
  }
  const auto share = static_cast<std::int32_t>(group);
  return mask([&](auto, auto head, auto q, auto k) -> Expr {
    const auto at = [&](std::size_t c) {
      return m.heads == 1 ? columns[c][k] : columns[c](share == 1 ? head : head / share, k);
    };
    if (m.causal && m.columns == 1) return k <= q && q < at(0);
    if (m.causal) return k <= q && !(at(0) <= q && q < at(1));
    if (m.columns == 2) return q < at(0) && q >= at(1);
    return !(at(0) <= q && q < at(1)) && !(at(2) <= q && q < at(3));
  });
}

Mask import_cu_seqlens(const PackedLengths& lengths) {
  const auto ids = [](const std::vector<std::int32_t>& offsets, const char* name) {
    if (offsets.size() < 2 || offsets.front() != 0)
      masks::refuse_input("{} must start with 0 and name at least one piece", name);
    std::vector<std::int32_t> out(static_cast<std::size_t>(std::max(offsets.back(), 0)));
    for (std::size_t p = 0; p + 1 < offsets.size(); ++p) {
      if (offsets[p + 1] < offsets[p] || offsets[p + 1] > offsets.back())
        masks::refuse_input("{}[{}] is {} after {}; offsets must not fall",
                            name,
                            p + 1,
                            offsets[p + 1],
                            offsets[p]);
      std::fill(
          out.begin() + offsets[p], out.begin() + offsets[p + 1], static_cast<std::int32_t>(p));
    }
    return out;
  };
  if (lengths.cu_seqlens_q.size() != lengths.cu_seqlens_k.size())
    masks::refuse_input("cu_seqlens_q names {} pieces and cu_seqlens_k {}; they must pair up",
                        lengths.cu_seqlens_q.size(),
                        lengths.cu_seqlens_k.size());
  const Array q_piece(ids(lengths.cu_seqlens_q, "cu_seqlens_q"), "q_piece"),
      k_piece(ids(lengths.cu_seqlens_k, "cu_seqlens_k"), "k_piece");
  return mask([&](auto, auto, auto q, auto k) { return q_piece[q] == k_piece[k]; });
}

}  // namespace undivided
