// SPDX-License-Identifier: Apache-2.0
// Splits a text into words; every byte is either understood or named in an error.
#include "expr/lexer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "expr/internal.hpp"

namespace undivided::expr {
namespace {

constexpr int deepest = 400;
constexpr std::size_t longest = 1 << 20;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_plain(char c) { return c >= ' ' && c <= '~'; }

std::string shown(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, 40)) {
    if (is_plain(c))
      out += c;
    else
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return text.size() > 40 ? out + "..." : out;
}

}  // namespace

Lexer::Lexer(std::string_view text) : text_(text) {
  if (text.size() > longest)
    refuse(Stage::parse,
           fmt::format("the text has {} bytes; at most {} are allowed", text.size(), longest));
  next();
}

void Lexer::fail(std::size_t at, const std::string& message) const {
  at = std::min(at, text_.size());
  const auto line =
      std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at), '\n');
  std::size_t begin = at;
  while (begin > 0 && text_[begin - 1] != '\n') --begin;
  const std::size_t column = at - begin + 1;
  std::size_t stop = at;
  while (stop < text_.size() && text_[stop] != '\n') ++stop;
  const std::size_t from = at - begin > 60 ? at - 60 : begin;  // a window of a long line
  std::string excerpt(text_.substr(from, std::min<std::size_t>(stop - from, 100)));
  for (char& c : excerpt)
    if (!is_plain(c)) c = c == '\t' ? ' ' : '?';
  refuse(Stage::parse,
         fmt::format("line {}, column {}: {}\n  {}\n  {}^",
                     line + 1,
                     column,
                     message,
                     excerpt,
                     std::string(at - from, ' ')));
}

void Lexer::fail_found(const std::string& expected) const {
  if (token_.kind == Token::Kind::end)
    fail(token_.at, fmt::format("found the end of the text, but expected {}", expected));
  fail(token_.at, fmt::format("found \"{}\", but expected {}", shown(token_.text), expected));
}

bool Lexer::accept(std::string_view symbol) {
  if (!token_.is(symbol)) return false;
  next();
  return true;
}

void Lexer::expect(std::string_view symbol) {
  if (!accept(symbol)) fail_found(fmt::format("\"{}\"", symbol));
}

void Lexer::next() {
  std::size_t i = end_;
  while (i < text_.size() && is_blank(text_[i])) ++i;
  token_ = Token{};
  token_.at = i;
  end_ = i;
  if (i == text_.size()) return;
  const char c = text_[i];
  if (is_digit(c) || (c == '.' && i + 1 < text_.size() && is_digit(text_[i + 1]))) {
    number();
    return;
  }
  if (is_letter(c)) {
    while (end_ < text_.size() && (is_letter(text_[end_]) || is_digit(text_[end_]))) ++end_;
    token_.kind = Token::Kind::name;
    token_.text = text_.substr(i, end_ - i);
    return;
  }
  static constexpr std::array<std::string_view, 8> pairs{
      "&&", "||", "==", "!=", "<=", ">=", "<<", ">>"};
  static constexpr std::string_view singles = "+-*/%<>!&|^?:()[],;=";
  token_.kind = Token::Kind::symbol;
  const std::string_view two = text_.substr(i, 2);
  if (std::find(pairs.begin(), pairs.end(), two) != pairs.end()) {
    token_.text = two;
  } else if (singles.find(c) != std::string_view::npos) {
    token_.text = text_.substr(i, 1);
  } else {
    fail(i, fmt::format("unexpected character \"{}\"", shown(text_.substr(i, 1))));
  }
  end_ = i + token_.text.size();
}

void Lexer::number() {
  const std::size_t start = token_.at;
  const char* const first = text_.data() + start;
  const char* const last = text_.data() + text_.size();
  token_.kind = Token::Kind::number;
  const char* end = first;
  std::errc problem{};
  if (text_.substr(start, 2) == "0x" || text_.substr(start, 2) == "0X") {
    const auto r = std::from_chars(first + 2, last, token_.integer, 16);
    if (r.ptr == first + 2) fail(start, "a hexadecimal number needs digits after 0x");
    end = r.ptr;
    problem = r.ec;
  } else {
    while (end != last && is_digit(*end)) ++end;
    const bool exponent = end != last && (*end == 'e' || *end == 'E');
    token_.is_real = end != last && (*end == '.' || exponent);
    if (token_.is_real) {
      const auto r = std::from_chars(first, last, token_.real);
      end = r.ptr;
      problem = r.ec;
    } else {
      problem = std::from_chars(first, end, token_.integer).ec;
    }
    if (end != last && *end == 'f') {
      if (!token_.is_real) token_.real = static_cast<double>(token_.integer);
      token_.is_real = true;
      ++end;
    }
  }
  end_ = static_cast<std::size_t>(end - text_.data());
  token_.text = text_.substr(start, end_ - start);
  if (problem != std::errc{})
    fail(start,
         fmt::format("the number {} does not fit {}",
                     shown(token_.text),
                     token_.is_real ? "float32" : "int32"));
  if (end != last && (is_letter(*end) || is_digit(*end)))
    fail(end_, fmt::format("unexpected \"{}\" after a number", shown(text_.substr(end_, 1))));
}

Lexer::Nesting::Nesting(Lexer& lexer) : lexer_(lexer) {
  if (++lexer_.nesting_ > deepest) {
    --lexer_.nesting_;
    lexer_.fail(lexer_.token().at,
                fmt::format("nested deeper than {} levels; name a part with let", deepest));
  }
}

}  // namespace undivided::expr
