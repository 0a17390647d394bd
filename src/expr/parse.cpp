// SPDX-License-Identifier: Apache-2.0
// Text to program: declarations, then one expression with the precedences of C.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>

#include "expr/builder.hpp"
#include "expr/internal.hpp"
#include "expr/lexer.hpp"

namespace undivided::expr {
namespace {

struct Binary {
  std::string_view symbol;
  int precedence;
  Op op;
};
constexpr std::array<Binary, 18> binaries{{
    {"||", 1, Op::logical_or},
    {"&&", 2, Op::logical_and},
    {"|", 3, Op::bit_or},
    {"^", 4, Op::bit_xor},
    {"&", 5, Op::bit_and},
    {"==", 6, Op::eq},
    {"!=", 6, Op::ne},
    {"<", 7, Op::lt},
    {"<=", 7, Op::le},
    {">", 7, Op::gt},
    {">=", 7, Op::ge},
    {"<<", 8, Op::shl},
    {">>", 8, Op::shr},
    {"+", 9, Op::add},
    {"-", 9, Op::sub},
    {"*", 10, Op::mul},
    {"/", 10, Op::div},
    {"%", 10, Op::mod},
}};

struct Function {
  std::string_view name;
  int arguments;
  Op op;
};
constexpr std::array<Function, 11> functions{{
    {"abs", 1, Op::abs},
    {"min", 2, Op::min},
    {"max", 2, Op::max},
    {"clamp", 3, Op::min},
    {"select", 3, Op::select},
    {"tanh", 1, Op::tanh},
    {"exp", 1, Op::exp},
    {"log", 1, Op::log},
    {"sqrt", 1, Op::sqrt},
    {"trunc", 1, Op::trunc},
    {"float", 1, Op::to_float},
}};

constexpr std::array<Op, 7> positions{
    Op::batch, Op::head, Op::q, Op::k, Op::q_len, Op::k_len, Op::score};

class Parser {
 public:
  Parser(std::string_view text, Type wanted, const Captures& captures)
      : lexer_(text), wanted_(wanted), captures_(captures) {}

  Program run() {
    while (declaration()) {
    }
    const std::size_t start = lexer_.token().at;
    std::int32_t root = expression();
    lexer_.accept(";");
    if (lexer_.token().kind != Token::Kind::end)
      lexer_.fail_found("an operator or the end of the text");
    if (wanted_ == Type::boolean && build_.type(root) != Type::boolean)
      lexer_.fail(start,
                  fmt::format("a mask must be a condition (bool), but this is {}; compare it with "
                              "something",
                              type_name(build_.type(root))));
    if (wanted_ != Type::boolean && build_.type(root) == Type::boolean)
      lexer_.fail(start, "a score must be a number, but this is bool; write c ? a : b");
    if (wanted_ == Type::f32) root = build_.to_float(root);
    Program p = build_.program();
    p.roots = {root};
    return simplify(p);
  }

 private:
  // A complaint of the builder gets the place in the text.
  template <class F>
  auto guarded(std::size_t at, F&& make) {
    try {
      return make();
    } catch (const Error& e) {
      lexer_.fail(at, e.what());
    }
  }

  // --- declarations ------------------------------------------------------------------------------
  bool declaration() {
    const Token word = lexer_.token();
    if (word.kind != Token::Kind::name) return false;
    if (word.text == "array")
      array_declaration();
    else if (word.text == "param")
      param_declaration();
    else if (word.text == "let")
      let_declaration();
    else
      return false;
    lexer_.expect(";");
    return true;
  }

  std::string new_name(const char* what) {
    lexer_.next();
    const Token name = lexer_.token();
    if (name.kind != Token::Kind::name) lexer_.fail_found(fmt::format("the name of {}", what));
    if (is_reserved(name.text))
      lexer_.fail(
          name.at,
          fmt::format("\"{}\" is a word of the language and cannot name {}", name.text, what));
    if (!is_identifier(name.text)) lexer_.fail(name.at, "a name has at most 64 letters");
    if (lets_.count(name.text) || params_.count(name.text) || arrays_.count(name.text))
      lexer_.fail(name.at, fmt::format("\"{}\" is declared twice", name.text));
    lexer_.next();
    return std::string(name.text);
  }

  Type type_word(bool allow_bool) {
    const Token word = lexer_.token();
    Type type = Type::i32;
    if (word.text == "f32")
      type = Type::f32;
    else if (allow_bool && (word.text == "bool" || word.text == "boolean"))
      type = Type::boolean;
    else if (word.text != "i32")
      lexer_.fail_found(allow_bool ? "a type: i32, f32 or bool" : "a type: i32 or f32");
    lexer_.next();
    return type;
  }

  void array_declaration() {
    const std::size_t start = lexer_.token().at;
    Slot slot;
    slot.name = new_name("an array");
    lexer_.expect(":");
    const Type type = type_word(true);
    slot.dtype = type == Type::i32 ? DType::i32 : type == Type::f32 ? DType::f32 : DType::boolean;
    lexer_.expect("[");
    const Token rank = lexer_.token();
    if (rank.kind != Token::Kind::number || rank.is_real || rank.integer < 1 ||
        rank.integer > max_rank)
      lexer_.fail_found("a rank from 1 to 4");
    slot.rank = static_cast<int>(rank.integer);
    lexer_.next();
    lexer_.expect("]");
    if (const Array* held = captured_array(slot.name)) {
      if (held->view().dtype != slot.dtype || held->view().rank != slot.rank)
        lexer_.fail(start,
                    fmt::format("array \"{}\" is declared {} of rank {}, but {} came",
                                slot.name,
                                type_name(type),
                                slot.rank,
                                held->view().describe()));
    }
    arrays_[slot.name] = guarded(start, [&] { return slot_of(slot); });
  }

  void param_declaration() {
    const std::size_t start = lexer_.token().at;
    const std::string name = new_name("a parameter");
    lexer_.expect(":");
    const Type type = type_word(false);
    const double* given = captured_param(name);
    double value = given ? *given : 0;
    if (lexer_.accept("=")) {
      const bool minus = lexer_.accept("-");
      const Token number = lexer_.token();
      double written = number.is_real ? number.real : static_cast<double>(number.integer);
      if (number.text == "inf" && number.kind == Token::Kind::name)
        written = std::numeric_limits<double>::infinity();
      else if (number.kind != Token::Kind::number)
        lexer_.fail_found("a number");
      if (type == Type::i32 && (number.is_real || number.kind != Token::Kind::number))
        lexer_.fail_found("a whole number, because the parameter is i32");
      lexer_.next();
      if (!given) value = minus ? -written : written;
    } else if (!given) {
      lexer_.fail_found(fmt::format("\"=\" and the value of \"{}\"", name));
    }
    params_[name] = guarded(start, [&] { return build_.param(name, type, value); });
  }

  void let_declaration() {
    const std::string name = new_name("a part");
    lexer_.expect("=");
    lets_[name] = expression();
  }

  // --- expressions -------------------------------------------------------------------------------
  std::int32_t expression() {
    const Lexer::Nesting nesting(lexer_);
    const std::int32_t condition = binary(1);
    const std::size_t at = lexer_.token().at;
    if (!lexer_.accept("?")) return condition;
    const std::int32_t a = expression();
    lexer_.expect(":");
    const std::int32_t b = expression();
    return guarded(at, [&] { return build_.apply(Op::select, condition, a, b); });
  }

  std::int32_t binary(int least) {
    std::int32_t left = unary();
    for (;;) {
      const Token token = lexer_.token();
      const auto* found =
          token.kind != Token::Kind::symbol
              ? binaries.end()
              : std::find_if(binaries.begin(), binaries.end(), [&](const Binary& b) {
                  return b.symbol == token.text;
                });
      if (found == binaries.end() || found->precedence < least) return left;
      lexer_.next();
      const std::int32_t right = binary(found->precedence + 1);
      left = guarded(token.at, [&] { return build_.apply(found->op, left, right); });
    }
  }

  std::int32_t unary() {
    const Lexer::Nesting nesting(lexer_);
    const std::size_t at = lexer_.token().at;
    if (lexer_.accept("!")) {
      const std::int32_t a = unary();
      return guarded(at, [&] { return build_.apply(Op::logical_not, a); });
    }
    if (lexer_.accept("-")) {
      if (lexer_.token().kind == Token::Kind::number) return number(true);
      if (lexer_.token().text == "inf" && lexer_.token().kind == Token::Kind::name) {
        lexer_.next();
        return build_.constant(-std::numeric_limits<double>::infinity());
      }
      const std::int32_t a = unary();
      return guarded(at, [&] { return build_.apply(Op::neg, a); });
    }
    if (lexer_.accept("+")) return unary();
    return primary();
  }

  std::int32_t number(bool minus) {
    const Token t = lexer_.token();
    lexer_.next();
    return guarded(t.at, [&] {
      if (t.is_real) return build_.constant(minus ? -t.real : t.real);
      return build_.constant(minus ? -t.integer : t.integer);
    });
  }

  std::int32_t primary() {
    const Token t = lexer_.token();
    if (t.kind == Token::Kind::number) return number(false);
    if (lexer_.accept("(")) {
      const std::int32_t inner = expression();
      lexer_.expect(")");
      return inner;
    }
    if (t.kind != Token::Kind::name) lexer_.fail_found("a value");
    lexer_.next();
    if (t.text == "true" || t.text == "false") return build_.constant(t.text == "true");
    if (t.text == "inf") return build_.constant(std::numeric_limits<double>::infinity());
    for (const Function& f : functions)
      if (f.name == t.text) return call(f, t.at);
    if (const auto let = lets_.find(t.text); let != lets_.end()) return let->second;
    for (Op leaf : positions)
      if (symbol_of(leaf) == t.text) {
        if (leaf == Op::score && wanted_ == Type::boolean)
          lexer_.fail(t.at, "a mask cannot read the score; use a score modification");
        return build_.leaf(leaf);
      }
    return captured(t);
  }

  std::int32_t call(const Function& f, std::size_t at) {
    lexer_.expect("(");
    std::vector<std::int32_t> a{expression()};
    while (lexer_.accept(",")) a.push_back(expression());
    lexer_.expect(")");
    if (static_cast<int>(a.size()) != f.arguments)
      lexer_.fail(at,
                  fmt::format("{} takes {} argument{}, but {} came",
                              f.name,
                              f.arguments,
                              f.arguments == 1 ? "" : "s",
                              a.size()));
    return guarded(at, [&] {
      if (f.name == "clamp") return build_.apply(Op::min, build_.apply(Op::max, a[0], a[1]), a[2]);
      a.resize(3, -1);
      return build_.apply(f.op, a[0], a[1], a[2]);
    });
  }

  std::int32_t captured(const Token& t) {
    const std::string name(t.text);
    const bool indexed = lexer_.token().is("[");
    if (lexer_.token().is("(") && !arrays_.count(name) && !captured_array(name))
      lexer_.fail(t.at,
                  fmt::format("unknown function \"{}\"; known are {}", name, function_names()));
    if (const auto p = params_.find(name); p != params_.end()) return p->second;
    if (const double* value = captured_param(name)) {
      // Without a declaration a whole number is an integer parameter.
      const Type type =
          *value == std::floor(*value) && std::fabs(*value) <= INT32_MAX ? Type::i32 : Type::f32;
      return params_[name] = guarded(t.at, [&] { return build_.param(name, type, *value); });
    }
    if (!arrays_.count(name)) {
      const Array* held = captured_array(name);
      if (!held) unknown(t);
      arrays_[name] = guarded(t.at, [&] { return build_.slot(*held); });
    }
    if (!indexed)
      lexer_.fail(t.at, fmt::format("array \"{0}\" needs an index: write {0}[...]", name));
    lexer_.next();
    std::vector<std::int32_t> index{expression()};
    while (lexer_.accept(",")) index.push_back(expression());
    lexer_.expect("]");
    return guarded(t.at, [&] { return build_.load(arrays_[name], index); });
  }

  [[noreturn]] void unknown(const Token& t) {
    std::vector<std::string> known;
    for (Op leaf : positions)
      if (leaf != Op::score || wanted_ != Type::boolean) known.emplace_back(symbol_of(leaf));
    for (const auto& item : lets_) known.push_back(item.first);
    for (const auto& item : params_) known.push_back(item.first);
    for (const auto& item : arrays_) known.push_back(item.first);
    for (const Array& a : captures_.arrays)
      if (!arrays_.count(a.name())) known.push_back(a.name());
    for (const auto& item : captures_.params)
      if (!params_.count(item.first)) known.push_back(item.first);
    if (known.size() > 32) known.resize(32);
    lexer_.fail(t.at,
                fmt::format("unknown name \"{}\"; known here are {}",
                            t.text.substr(0, 64),
                            fmt::join(known, ", ")));
  }

  static std::string function_names() {
    std::string text;
    for (const Function& f : functions) text += (text.empty() ? "" : ", ") + std::string(f.name);
    return text;
  }

  std::int32_t slot_of(const Slot& declared) {
    const Array* held = captured_array(declared.name);
    return held ? build_.slot(*held) : build_.slot(declared);
  }
  const Array* captured_array(std::string_view name) const {
    for (const Array& a : captures_.arrays)
      if (a.name() == name) return &a;
    return nullptr;
  }
  const double* captured_param(std::string_view name) const {
    for (const auto& item : captures_.params)
      if (item.first == name) return &item.second;
    return nullptr;
  }

  Lexer lexer_;
  Type wanted_;
  const Captures& captures_;
  Builder build_;
  std::map<std::string, std::int32_t, std::less<>> lets_, params_, arrays_;
};

}  // namespace

Program parse(std::string_view text, Type wanted, const Captures& captures) {
  return Parser(text, wanted, captures).run();
}

}  // namespace undivided::expr
