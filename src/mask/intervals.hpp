// SPDX-License-Identifier: Apache-2.0
// What one query (or key) of a plan keeps, as intervals; and refusals of the formats.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "undivided/error.hpp"
#include "undivided/expr.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/tensor.hpp"

namespace undivided::masks {

struct Stretch {
  std::int64_t begin = 0, end = 0;
  friend bool operator==(const Stretch&, const Stretch&) = default;
};

/// Keys that query `at` keeps, in order and apart; or queries that key `at` keeps.
std::vector<Stretch> kept_by(const MaskPlan& plan,
                             const MaskPlan::Entry& entry,
                             bool query,
                             std::int64_t at);

template <class... T>
[[noreturn]] void refuse_format(fmt::format_string<T...> text, T&&... args) {
  throw Error(Code::unsupported, Stage::plan, fmt::format(text, std::forward<T>(args)...));
}
template <class... T>
[[noreturn]] void refuse_input(fmt::format_string<T...> text, T&&... args) {
  throw Error(Code::invalid_argument, Stage::bind, fmt::format(text, std::forward<T>(args)...));
}
inline void check_block(std::int32_t rows, std::int32_t columns) {
  if (rows < 1 || columns < 1)
    refuse_input("a block wants at least one row and column; got {} x {}", rows, columns);
}
inline void check_size(const char* what, std::size_t got, std::int64_t wanted) {
  if (wanted < 0 || got != static_cast<std::size_t>(wanted))
    refuse_input("{} has {} values; this shape wants {}", what, got, wanted);
}

/// A captured array of rank 2 with these contents, row by row.
template <class T>
Array table_of(
    std::string name, DType dtype, std::int64_t rows, std::int64_t columns, const T* values) {
  Tensor t = Tensor::empty(dtype, {rows, columns});
  std::copy_n(values, rows * columns, static_cast<T*>(t.data));
  return Array(std::move(t), std::move(name));
}

}  // namespace undivided::masks
