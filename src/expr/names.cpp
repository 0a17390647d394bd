// SPDX-License-Identifier: Apache-2.0
// Names that a text may use, and the integer operations that every reading shares.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "expr/internal.hpp"

namespace undivided::expr {

void refuse(Stage stage, const std::string& message) {
  throw Error(Code::invalid_argument, stage, message);
}

const char* type_name(Type type) {
  switch (type) {
    case Type::boolean:
      return "bool";
    case Type::i32:
      return "i32";
    case Type::f32:
      return "f32";
  }
  return "?";
}

Type type_of(DType dtype) {
  if (dtype == DType::boolean) return Type::boolean;
  return dtype == DType::i32 ? Type::i32 : Type::f32;
}

bool is_identifier(std::string_view text) {
  if (text.empty() || text.size() > 64) return false;
  if (std::isdigit(static_cast<unsigned char>(text.front()))) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  });
}

bool is_reserved(std::string_view name) {
  static constexpr std::array<std::string_view, 25> words{
      "batch", "head",  "q",      "k",     "q_len", "k_len", "score", "abs",   "min",
      "max",   "clamp", "select", "tanh",  "exp",   "log",   "sqrt",  "trunc", "float",
      "true",  "false", "inf",    "array", "param", "let",   "bool"};
  return std::find(words.begin(), words.end(), name) != words.end();
}

bool is_lifted_name(std::string_view name) {
  return name.size() > 2 && name.substr(0, 2) == "_c" &&
         std::all_of(name.begin() + 2, name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

void check_name(std::string_view name, const char* what) {
  if (!is_identifier(name))
    refuse(Stage::bind,
           fmt::format("\"{}\" cannot name {} {}: a name is at most 64 letters, digits and "
                       "underscores and does not begin with a digit",
                       name,
                       *what == 'a' ? "an" : "a",
                       what));
  if (is_reserved(name))
    refuse(Stage::bind,
           fmt::format("\"{0}\" is a word of the language and cannot name {1} {2}; \"{0}_\" can",
                       name,
                       *what == 'a' ? "an" : "a",
                       what));
}

void check_param_name(std::string_view name) {
  check_name(name, "parameter");
  if (is_lifted_name(name))
    refuse(Stage::bind,
           fmt::format("\"{0}\" is kept for lifted literals and cannot name a parameter; \"c{1}\" "
                       "can",
                       name,
                       name.substr(2)));
}

std::int64_t integer_result(Op op, std::int64_t a, std::int64_t b) {
  switch (op) {
    case Op::add:
      return a + b;
    case Op::sub:
      return a - b;
    case Op::mul:
      return a * b;
    case Op::floordiv:
      return floor_div(a, b);
    case Op::mod:
      return floor_mod(a, b);
    case Op::abs:
      return a < 0 ? -a : a;
    case Op::neg:
      return -a;
    case Op::min:
      return a < b ? a : b;
    case Op::max:
      return a > b ? a : b;
    case Op::shl:
      return a * (std::int64_t{1} << (b & 31));
    case Op::shr:
      return a >> (b & 31);
    case Op::bit_and:
      return a & b;
    case Op::bit_or:
      return a | b;
    case Op::bit_xor:
      return a ^ b;
    default:
      return 0;
  }
}

bool compare_result(Op op, double a, double b) {
  switch (op) {
    case Op::lt:
      return a < b;
    case Op::le:
      return a <= b;
    case Op::gt:
      return a > b;
    case Op::ge:
      return a >= b;
    case Op::eq:
      return a == b;
    default:
      return a != b;
  }
}

}  // namespace undivided::expr
