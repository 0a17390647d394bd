// SPDX-License-Identifier: Apache-2.0
// Words of a text, and errors that point at them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace undivided::expr {

struct Token {
  enum class Kind : std::uint8_t { end, name, number, symbol } kind = Kind::end;
  std::string_view text;
  std::size_t at = 0;  // offset in the text
  bool is_real = false;
  std::int64_t integer = 0;
  double real = 0;
  bool is(std::string_view symbol) const { return kind == Kind::symbol && text == symbol; }
};

class Lexer {
 public:
  explicit Lexer(std::string_view text);  // reads the first token
  const Token& token() const { return token_; }
  void next();
  bool accept(std::string_view symbol);
  void expect(std::string_view symbol);
  /// Raises Error{parse} with line, column and a line that points at the place.
  [[noreturn]] void fail(std::size_t at, const std::string& message) const;
  /// "found X, but expected Y" at the present token.
  [[noreturn]] void fail_found(const std::string& expected) const;

  /// Counts nesting, so that a hostile text cannot exhaust the stack.
  class Nesting {
   public:
    explicit Nesting(Lexer& lexer);
    ~Nesting() { --lexer_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Lexer& lexer_;
  };

 private:
  void number();
  std::string_view text_;
  std::size_t end_ = 0;  // just past the present token
  Token token_;
  int nesting_ = 0;
};

}  // namespace undivided::expr
