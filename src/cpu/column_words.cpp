// SPDX-License-Identifier: Apache-2.0
// The boolean tree of a mask over words of queries.
#include "cpu/column_words.hpp"

#include <algorithm>

namespace undivided::cpu {
namespace {

using expr::Op;

/// One value a key, whatever the rate of its register.
struct Column {
  const std::int32_t* first;
  std::int64_t step;
  std::int64_t operator[](int row) const { return first[row * step]; }
};

Column column_of(Register r, const Files& files, int width) {
  const auto* file = reinterpret_cast<const std::int32_t*>(files.file[static_cast<int>(r.rate)]);
  return r.rate == expr::Rate::uniform
             ? Column{file + std::int64_t{r.index} * width, 0}
             : Column{file + std::int64_t{r.index} * key_block * width, width};
}

/// Queries before the n-th.
std::uint64_t below(std::int64_t n) {
  return (std::uint64_t{1} << std::clamp<std::int64_t>(n, 0, 63)) - 1;
}

void leaf_words(Op op, const Column& x, std::int64_t q, int rows, std::uint64_t* out) {
  const auto each = [&](auto&& word) {
    for (int r = 0; r < rows; ++r) out[r] = word(x[r] - q);
  };
  switch (op) {
    case Op::constant:
      for (int r = 0; r < rows; ++r) out[r] = x[r] ? ~std::uint64_t{0} : 0;
      break;
    case Op::lt:
      each([](std::int64_t n) { return below(n); });
      break;
    case Op::le:
      each([](std::int64_t n) { return below(n + 1); });
      break;
    case Op::gt:
      each([](std::int64_t n) { return ~below(n + 1); });
      break;
    case Op::ge:
      each([](std::int64_t n) { return ~below(n); });
      break;
    case Op::eq:
      each([](std::int64_t n) { return below(n + 1) & ~below(n); });
      break;
    default:
      each([](std::int64_t n) { return ~below(n + 1) | below(n); });
  }
}

}  // namespace

std::vector<std::array<std::int32_t, 4>> leaves_of(const expr::ColumnTree& tree) {
  std::vector<std::array<std::int32_t, 4>> out;
  for (const expr::ColumnTree::Step& s : tree.steps)
    if (s.node >= 0) out.push_back({s.node, -1, -1, -1});
  return out;
}

void column_words(const expr::ColumnTree& tree,
                  const FlatCode& code,
                  const Files& files,
                  int width,
                  std::int64_t q,
                  int rows,
                  std::uint64_t* scratch,
                  std::uint64_t* words) {
  std::size_t leaf = 0;
  for (std::size_t i = 0; i < tree.steps.size(); ++i) {
    const expr::ColumnTree::Step& s = tree.steps[i];
    std::uint64_t* out = i + 1 == tree.steps.size() ? words : scratch + i * key_block;
    if (s.node >= 0) {
      leaf_words(s.op, column_of(code.keep[leaf++][0], files, width), q, rows, out);
      continue;
    }
    const auto of = [&](std::size_t j) {
      return scratch + static_cast<std::size_t>(std::max(0, s.from[j])) * key_block;
    };
    const std::uint64_t *a = of(0), *b = of(1), *c = of(2);
    const auto each = [&](auto&& word) {
      for (int r = 0; r < rows; ++r) out[r] = word(r);
    };
    switch (s.op) {
      case Op::logical_and:
        each([&](int r) { return a[r] & b[r]; });
        break;
      case Op::logical_or:
        each([&](int r) { return a[r] | b[r]; });
        break;
      case Op::logical_not:
        each([&](int r) { return ~a[r]; });
        break;
      case Op::eq:
        each([&](int r) { return ~(a[r] ^ b[r]); });
        break;
      case Op::ne:
        each([&](int r) { return a[r] ^ b[r]; });
        break;
      default:  // select
        each([&](int r) { return (a[r] & b[r]) | (~a[r] & c[r]); });
    }
  }
}

}  // namespace undivided::cpu
