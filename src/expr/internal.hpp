// SPDX-License-Identifier: Apache-2.0
// What the readings of the language share: names, exact integer operations, pruning.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "expr/builder.hpp"
#include "expr/program.hpp"
#include "undivided/error.hpp"

namespace undivided::expr {

/// A program larger than this is refused: it is a runaway trace or a hostile text.
inline constexpr std::size_t max_nodes = 1 << 15;

[[noreturn]] void refuse(Stage stage, const std::string& message);

const char* type_name(Type type);   // "bool", "i32", "f32": as declarations spell them
Type type_of(DType dtype);          // i32, f32, boolean
std::string_view symbol_of(Op op);  // "+", "&&", "tanh": as texts spell it
bool is_identifier(std::string_view text);
bool is_reserved(std::string_view name);  // leaves, functions, keywords
bool is_lifted_name(std::string_view name);
/// Raises Error{bind} unless `name` can be written in a text. `what` is "array" or "parameter".
void check_name(std::string_view name, const char* what);
void check_param_name(std::string_view name);  // also keeps _c0, _c1, ... for lift()

// Integers. Values outside int32 never reach a proved program; every reading still defines them.
inline std::int64_t wrap(std::int64_t x) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(static_cast<std::uint64_t>(x)));
}
inline bool fits_int32(std::int64_t x) { return x >= INT32_MIN && x <= INT32_MAX; }
inline std::int64_t floor_div(std::int64_t a, std::int64_t b) {  // b == 0 gives 0
  if (b == 0) return 0;
  const std::int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}
inline std::int64_t floor_mod(std::int64_t a, std::int64_t b) {  // b == 0 gives 0
  return b == 0 ? 0 : a - floor_div(a, b) * b;
}
/// One integer operation on int32 values, before wrapping. Shift counts are taken modulo 32.
std::int64_t integer_result(Op op, std::int64_t a, std::int64_t b);
bool compare_result(Op op, double a, double b);
inline std::int64_t saturating_trunc(double x) {  // NaN gives 0
  if (std::isnan(x)) return 0;
  if (x >= 2147483647.0) return INT32_MAX;
  if (x <= -2147483648.0) return INT32_MIN;
  return static_cast<std::int64_t>(x);
}

inline bool is_compare(Op op) { return op >= Op::lt && op <= Op::ne; }
inline bool same_bits(double a, double b) {  // tells -0.0 from 0.0
  return a == b && std::signbit(a) == std::signbit(b);
}
bool same_node(const Node& a, const Node& b);

/// The value of `n` on constants x and y (y is x if it has one operand), if it is exact everywhere.
std::optional<Node> folded_constant(const Node& n, const Node& x, const Node& y);

/// Nodes reachable from the roots and from `extra`, in depth-first order; `extra` is renumbered.
/// Slots and parameters that are no longer read are dropped and the others ordered by first use
/// (lifted ones last), unless `keep_tables`.
Program compact(const Program& p,
                std::vector<std::int32_t>* extra = nullptr,
                bool keep_tables = false);
/// simplify() that keeps the tables of slots and parameters and follows the nodes in `extra`.
Program simplify_keeping(const Program& p, std::vector<std::int32_t>& extra);

/// The text of one node, without declarations. Long ones are cut.
std::string print_node(const Program& p, std::int32_t id);

/// The captures that the slots and parameters of `p` name, in their order.
Captures captures_for(const Program& p, const Captures& from);
/// Same memory, read the same way?
bool same_storage(const Array& a, const Array& b);
/// Same program by structure, same parameter values, same storage per slot.
bool same_meaning(const Program& a, const Captures& ca, const Program& b, const Captures& cb);

}  // namespace undivided::expr
