// SPDX-License-Identifier: Apache-2.0
// Byte-code, run by a plain interpreter, gives the scalar reading's values on every pair of a tile.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <limits>

#include "expr/bytecode.hpp"
#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using namespace testing;
using expr::ByteCode;
using expr::Instruction;
using expr::Rate;

// Runs one instruction by making a one-node program of it: the operations are those of evaluate().
struct Interpreter {
  const ByteCode& code;
  const Program& p;
  Bound bound;
  std::array<std::vector<double>, expr::rates> file;

  Interpreter(const ByteCode& c, const Program& program, Bound b)
      : code(c), p(program), bound(std::move(b)) {
    for (std::size_t r = 0; r < expr::rates; ++r)
      file[r].assign(static_cast<std::size_t>(code.file_size[r]),
                     std::numeric_limits<double>::quiet_NaN());
  }
  double& at(std::int32_t r) {
    const auto global = static_cast<std::size_t>(r);
    return file[static_cast<std::size_t>(code.rate_of[global])]
               [static_cast<std::size_t>(code.index_of[global])];
  }
  void run_list(Rate rate, const Point& point) {
    const std::vector<Instruction>& list = code.part[static_cast<std::size_t>(rate)];
    for (const Instruction& in : list) {
      ASSERT_EQ(in.rate, rate);
      ASSERT_EQ(code.rate_of[static_cast<std::size_t>(in.result)], rate);
      Program one;
      one.slots = p.slots;
      Bound mine = bound;
      expr::Node n;
      n.op = in.op;
      n.type = in.type;
      n.slot = in.slot;
      n.integer = in.integer;
      n.real = in.real;
      for (std::size_t j = 0; j < 4; ++j) {
        if (in.operand[j] < 0) continue;
        ASSERT_NE(in.operand[j], in.result);
        expr::Node input;  // a parameter that holds the operand
        input.op = Op::param;
        input.type = in.op == Op::select && j == 0 ? Type::boolean : in.operand_type;
        input.slot = static_cast<std::int32_t>(mine.params.size());
        mine.params.push_back(at(in.operand[j]));
        n.operand[j] = static_cast<std::int32_t>(one.nodes.size());
        one.nodes.push_back(input);
      }
      one.roots = {static_cast<std::int32_t>(one.nodes.size())};
      one.nodes.push_back(n);
      at(in.result) = testing::run(one, mine, point);
    }
  }
};

void compare(const Program& p,
             const Contents& contents,
             const std::vector<std::array<std::int32_t, 4>>& keep,
             bool diagonals) {
  const ByteCode code = expr::compile(p, keep, diagonals);
  const Bound bound = contents.bound(p);
  Interpreter machine(code, p, bound);
  // What a rate must not read is poisoned.
  const std::int64_t poison = 1000003;
  const Point base{1, 2, poison, poison, 7, 6, std::numeric_limits<double>::quiet_NaN()};
  machine.run_list(Rate::uniform, base);
  for (std::int64_t k = 0; k < 6; ++k) {
    Point at = base;
    at.k = k;
    machine.run_list(Rate::key, at);
    for (std::int64_t q = 0; q < 7; ++q) {
      Point query = base;
      query.q = q;
      machine.run_list(Rate::query, query);
      Point diagonal = base;  // any pair of the diagonal
      diagonal.q = q + std::max<std::int64_t>(0, 3 - k);
      diagonal.k = k + std::max<std::int64_t>(0, 3 - k);
      machine.run_list(Rate::diagonal, diagonal);
      Point pair = base;
      pair.score = 0.3 * static_cast<double>(q - k);
      machine.run_list(Rate::element, pair);
      Point whole{1, 2, q, k, 7, 6, pair.score};
      std::vector<double> scratch(p.nodes.size()), results(p.roots.size());
      expr::evaluate(p, bound, whole, scratch.data(), results.data());
      for (std::size_t r = 0; r < results.size(); ++r)
        ASSERT_TRUE(same_value(results[r], machine.at(code.roots[r])))
            << expr::print(p) << " at q=" << q << " k=" << k;
      for (std::size_t t = 0; t < keep.size(); ++t)
        for (std::size_t j = 0; j < 4; ++j)
          if (keep[t][j] >= 0)
            ASSERT_EQ(scratch[static_cast<std::size_t>(keep[t][j])], machine.at(code.keep[t][j]));
    }
  }
}

void compare(const Program& p,
             const Contents& contents,
             const std::vector<std::array<std::int32_t, 4>>& keep = {}) {
  for (const bool diagonals : {false, true}) compare(p, contents, keep, diagonals);
}

TEST(ByteCode, EqualsTheScalarReadingOnRandomPrograms) {
  const Contents contents;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe, bool mask) {
    const Program p = random_program(recipe, mask ? Type::boolean : Type::f32);
    compare(p, contents);
    compare(expr::lift(expr::simplify(p)), contents);
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  }));
}

TEST(ByteCode, KeepsGradientRootsAndIndicesReadable) {
  const Contents contents;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe) {
    const auto g = expr::differentiate(expr::simplify(random_program(recipe, Type::f32)));
    std::vector<std::array<std::int32_t, 4>> keep;
    for (const auto& term : g.terms) keep.push_back(term.index);
    compare(g.program, contents, keep);
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  }));
}

const std::vector<Instruction>& part_of(const ByteCode& code, Rate rate) {
  return code.part[static_cast<std::size_t>(rate)];
}

Program parsed(const char* text, Type type = Type::boolean) { return expr::parse(text, type, {}); }

TEST(ByteCode, HoistsByRate) {
  const auto code = expr::compile(parsed("array doc: i32[1]; doc[q] == doc[k] && head < 3"));
  EXPECT_EQ(part_of(code, Rate::uniform).size(), 3U);  // head, 3, the compare
  EXPECT_EQ(part_of(code, Rate::key).size(), 2U);      // k, doc[k]
  EXPECT_EQ(part_of(code, Rate::query).size(), 2U);    // q, doc[q]
  EXPECT_EQ(part_of(code, Rate::element).size(), 2U);  // ==, &&
  EXPECT_FALSE(code.reads_score);
}

TEST(ByteCode, WhatDependsOnTheDistanceAloneRunsOncePerDiagonal) {
  const auto elements = [](const char* text, bool diagonals = true) {
    return part_of(expr::compile(parsed(text, Type::f32), {}, diagonals), Rate::element).size();
  };
  const char* t5 =
      "array b: f32[2]; array at: i32[1]; score + b[at[min(abs(k - q), 9)] + (q < k ? 4 : 0), "
      "head]";
  EXPECT_EQ(elements(t5), 2U);  // score, +
  EXPECT_GT(elements(t5, false), 8U);
  EXPECT_EQ(elements("score + 0.5 * (k - q)"), 2U);
  EXPECT_EQ(elements("score + 0.5 * (q - 3 - (k + head))"), 2U);
  EXPECT_EQ(elements("q + 2 <= k ? score : 0.0"), 2U);
  EXPECT_EQ(elements("score + 0.5 * (k + q)"), 5U);
  EXPECT_EQ(elements("score + 0.5 * (k - q - q)"), 5U);
}

TEST(ByteCode, LoadsRunAtTheRateOfTheirIndices) {
  const auto code = expr::compile(
      parsed("array m: f32[1]; array b: f32[3]; score + m[head] * 2.0 + b[head, q, k]", Type::f32));
  int uniform = 0, element = 0;
  for (const auto& in : part_of(code, Rate::uniform)) uniform += in.op == Op::load;
  for (const auto& in : part_of(code, Rate::element)) element += in.op == Op::load;
  EXPECT_EQ(uniform, 1);
  EXPECT_EQ(element, 1);
  EXPECT_TRUE(code.reads_score);
}

TEST(ByteCode, ReusesElementRegisters) {
  std::string text = "score";
  for (int i = 0; i < 100; ++i) text = "tanh(" + text + " + 1.5)";
  // Each level is an add and a tanh; two registers take turns; the score has its own.
  std::string lets = "let x0 = score; ";
  for (int i = 0; i < 100; ++i)
    lets += "let x" + std::to_string(i + 1) + " = tanh(x" + std::to_string(i) + " + 1.5); ";
  const auto code = expr::compile(parsed((lets + "x100").c_str(), Type::f32));
  EXPECT_EQ(part_of(code, Rate::element).size(), 201U);
  EXPECT_EQ(code.file_size[static_cast<std::size_t>(Rate::element)], 3);
}

TEST(ByteCode, AUniformRootIsAllowed) {
  const auto code = expr::compile(parsed("head < 3"));
  EXPECT_TRUE(part_of(code, Rate::element).empty());
  EXPECT_EQ(code.rate_of[static_cast<std::size_t>(code.roots[0])], Rate::uniform);
}

}  // namespace
}  // namespace undivided
