// SPDX-License-Identifier: Apache-2.0
// Dense, packed and blocked masks as loads, slices as compares.
#include "mask/intervals.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided {

using masks::check_block;
using masks::check_size;
using masks::refuse_input;
using masks::table_of;

namespace {

void check_lengths(std::int64_t q_len, std::int64_t k_len) {
  if (q_len < 1 || k_len < 1)
    refuse_input("a mask wants at least one query and one key; got {} and {}", q_len, k_len);
}

// Writes `value` at each listed block of `table`.
void mark(std::vector<std::int32_t>& table,
          std::int64_t row,
          std::int64_t columns,
          std::span<const std::int32_t> blocks,
          std::int32_t value) {
  for (const std::int32_t b : blocks) {
    if (b < 0 || b >= columns)
      refuse_input("row of blocks {} names block {}; allowed are 0 to {}", row, b, columns - 1);
    auto& place = table[static_cast<std::size_t>(row * columns + b)];
    if (place) refuse_input("row of blocks {} names block {} twice", row, b);
    place = value;
  }
}

}  // namespace

Mask import_dense(std::span<const std::uint8_t> keep, std::int64_t q_len, std::int64_t k_len) {
  check_lengths(q_len, k_len);
  check_size("a dense mask", keep.size(), q_len * k_len);
  const Array table = table_of("keep", DType::boolean, q_len, k_len, keep.data());
  return mask([&](auto, auto, auto q, auto k) { return table(q, k); });
}

Mask import_bits(std::span<const std::uint8_t> bits, std::int64_t q_len, std::int64_t k_len) {
  check_lengths(q_len, k_len);
  check_size("a packed mask", bits.size(), (q_len * k_len + 7) / 8);
  const std::int64_t words = (k_len + 31) / 32;  // rows start at a word, so that indices stay small
  std::vector<std::int32_t> packed(static_cast<std::size_t>(q_len * words));
  for (std::int64_t q = 0; q < q_len; ++q)
    for (std::int64_t k = 0; k < k_len; ++k) {
      const std::int64_t at = q * k_len + k;
      const auto bit =
          static_cast<std::uint32_t>(bits[static_cast<std::size_t>(at / 8)] >> (at % 8) & 1);
      auto& word = packed[static_cast<std::size_t>(q * words + k / 32)];
      word = static_cast<std::int32_t>(static_cast<std::uint32_t>(word) | bit << (k % 32));
    }
  const Array table = table_of("bits", DType::i32, q_len, words, packed.data());
  return mask([&](auto, auto, auto q, auto k) { return (table(q, k / 32) >> (k % 32) & 1) == 1; });
}

Mask import_flex_blocks(const FlexBlocks& b, const Mask& inside) {
  check_lengths(b.q_len, b.k_len);
  check_block(b.q_block, b.k_block);
  const std::int64_t rows = b.q_blocks(), columns = b.k_blocks();
  std::vector<std::int32_t> table(static_cast<std::size_t>(rows * columns));
  const auto read = [&](const std::vector<std::int32_t>& counts,
                        const std::vector<std::int32_t>& indices,
                        const char* name,
                        std::int32_t value) {
    if (counts.empty() && indices.empty()) return;
    check_size(name, counts.size(), rows);
    check_size(name, indices.size(), rows * columns);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int32_t count = counts[static_cast<std::size_t>(r)];
      if (count < 0 || count > columns)
        refuse_input("{} of row {} is {}; allowed are 0 to {}", name, r, count, columns);
      mark(table,
           r,
           columns,
           {indices.data() + r * columns, static_cast<std::size_t>(count)},
           value);
    }
  };
  read(b.kv_num_blocks, b.kv_indices, "kv_num_blocks", 1);
  read(b.full_kv_num_blocks, b.full_kv_indices, "full_kv_num_blocks", 2);
  const Array kind = table_of("block_kind", DType::i32, rows, columns, table.data());
  const auto at_least = [&](int value) {
    return mask(
        [&](auto, auto, auto q, auto k) { return kind(q / b.q_block, k / b.k_block) >= value; });
  };
  return at_least(2) || (at_least(1) && inside);
}

Mask import_bsr(const BlockSparseRows& b) {
  check_lengths(b.q_len, b.k_len);
  check_block(b.rows, b.columns);
  const std::int64_t rows = (b.q_len + b.rows - 1) / b.rows,
                     columns = (b.k_len + b.columns - 1) / b.columns;
  check_size("indptr", b.indptr.size(), rows + 1);
  std::vector<std::int32_t> table(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int32_t begin = b.indptr[static_cast<std::size_t>(r)],
                       end = b.indptr[static_cast<std::size_t>(r) + 1];
    if (begin < 0 || end < begin || static_cast<std::size_t>(end) > b.indices.size())
      refuse_input("indptr of row {} is [{}, {}); allowed is a rising range within {}",
                   r,
                   begin,
                   end,
                   b.indices.size());
    mark(table, r, columns, {b.indices.data() + begin, static_cast<std::size_t>(end - begin)}, 1);
  }
  const Array kept = table_of("block_kept", DType::i32, rows, columns, table.data());
  return mask([&](auto, auto, auto q, auto k) { return kept(q / b.rows, k / b.columns) == 1; });
}

Mask import_slices(std::span<const MaskSlice> slices) {
  constexpr std::size_t most = 1024;
  if (slices.size() > most)
    refuse_input(
        "{} slices came; a mask holds at most {}: pass packed bits instead", slices.size(), most);
  for (const MaskSlice& s : slices)
    if (s.q0 < 0 || s.k0 < 0 || s.q1 < s.q0 || s.k1 < s.k0)
      refuse_input(
          "slice [{}, {}) x [{}, {}) runs backwards or starts below 0", s.q0, s.q1, s.k0, s.k1);
  return mask([&](auto, auto, auto q, auto k) -> Expr {
    using Kind = MaskSlice::Kind;
    std::vector<Expr> any;
    for (const MaskSlice& s : slices) {
      Expr one = q >= s.q0 && q < s.q1 && k >= s.k0 && k < s.k1;
      if (s.kind == Kind::causal || s.kind == Kind::both) one = one && k - q <= s.k1 - s.q1;
      if (s.kind == Kind::inverse_causal || s.kind == Kind::both) one = one && k - q >= s.k0 - s.q0;
      any.push_back(one);
    }
    if (any.empty()) return q < q;
    for (; any.size() > 1;) {  // in pairs, so that the tree stays flat
      std::vector<Expr> next;
      for (std::size_t i = 0; i < any.size(); i += 2)
        next.push_back(i + 1 < any.size() ? any[i] || any[i + 1] : any[i]);
      any = std::move(next);
    }
    return any[0];
  });
}

}  // namespace undivided
