// SPDX-License-Identifier: Apache-2.0
// Any bytes given to the language's parser either become a program whose text parses back, or raise
// an Error that says why.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "expr/bytecode.hpp"
#include "expr/program.hpp"
#include "undivided/error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace undivided;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto wanted : {expr::Type::boolean, expr::Type::f32}) {
    try {
      const expr::Program p = expr::parse(text, wanted, {});
      if (p.root().type != wanted) std::abort();
      const expr::Program again = expr::parse(expr::print(p), wanted, {});
      if (!expr::same_structure(p, again)) std::abort();
      const expr::Program lifted = expr::lift(p);
      if (!expr::same_structure(lifted, expr::parse(expr::print(lifted), wanted, {}))) std::abort();
      if (expr::compile(p).roots.size() != 1) std::abort();
      expr::recognise_band(p, {});
      if (wanted == expr::Type::f32 && p.nodes.size() < 200) expr::differentiate(p);
    } catch (const Error& e) {
      if (e.code() != Code::invalid_argument || std::strlen(e.what()) < 10) std::abort();
    }
  }
  return 0;
}
