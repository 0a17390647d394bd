// SPDX-License-Identifier: Apache-2.0
// Proofs: a program that may leave int32 or an array is refused, with the interval and the extent.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "expr/internal.hpp"
#include "expr_random.hpp"

namespace undivided {
namespace {

using namespace testing;
using expr::Box;

const Box box{{0, 3}, {0, 7}, {0, 1023}, {0, 2047}, {1024, 1024}, {2048, 2048}};

Bound bound_for(const Program& p,
                std::int64_t extent,
                std::int64_t low = 0,
                std::int64_t high = 9) {
  Bound b;
  for (std::size_t i = 0; i < p.slots.size(); ++i) {
    Bound::ArrayRef a;
    a.dtype = p.slots[i].dtype;
    a.shape = {extent, extent, extent, extent};
    a.low = low;
    a.high = high;
    b.arrays.push_back(a);
  }
  for (const auto& d : p.params) b.params.push_back(d.value);
  return b;
}

std::string refusal(const std::string& text, std::int64_t extent = 2048) {
  const Program p = expr::parse("array a: i32[1]; array t: f32[2]; " + text, Type::boolean, {});
  try {
    expr::prove(p, bound_for(p, extent), box);
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::bind);
    return e.what();
  }
  return "";
}

TEST(Prove, AcceptsWhatIsSafe) {
  for (const char* text : {"k <= q && q - k < 1024",
                           "a[q] == a[k]",
                           "a[clamp(q - k, 0, 2047)] < 3",
                           "a[(q - k) % 2048] < 3",
                           "a[abs(q - k)] < 3",
                           "a[a[q]] == a[k]",
                           "a[q & 63] == 0",
                           "a[k >> 3] == a[q / 16]",
                           "t[head, min(k, 100)] < 1.0",
                           "a[q < k ? k : q] == 0",
                           "a[k - 1 < 0 ? 0 : k - 1] == 0",
                           "a[q - k >= 0 ? q - k : 0] == 0",
                           "(q | k) < 4096",
                           "a[clamp(trunc(sqrt(float(q))), 0, 31)] == 0",
                           "q / (k + 1) < 3",
                           "(1 << (q % 31)) > k"})
    EXPECT_EQ(refusal(text), "") << text;
}

TEST(Prove, RefusesIndicesThatLeaveTheArray) {
  EXPECT_EQ(refusal("a[q - k] == 0"),
            "index `q - k` of array \"a\" may reach [-2047, 1023], but the extent is 2048: allowed "
            "are 0 to 2047; pass a larger array or write clamp(q - k, 0, 2047)");
  EXPECT_EQ(
      refusal("a[q] == a[k]", 1500),
      "index `k` of array \"a\" may reach [0, 2047], but the extent is 1500: allowed are 0 to "
      "1499; pass a larger array or write clamp(k, 0, 1499)");
  EXPECT_EQ(refusal("t[head, k + 1] < 0.5"),
            "index `k + 1` of array \"t\" (axis 1) may reach [1, 2048], but the extent is 2048: "
            "allowed are 0 to 2047; pass a larger array or write clamp(k + 1, 0, 2047)");
  EXPECT_EQ(refusal("a[a[q]] == 0", 0), "array \"a\" has no elements, but index `q` reads it");
  EXPECT_NE(refusal("a[trunc(sqrt(float(q)))] == 0").find("[-2147483648, 2147483647]"),
            std::string::npos);
}

TEST(Prove, UsesTheRangeOfAnArraysValues) {
  const Program p = expr::parse("array a: i32[1]; a[a[q]] == 0", Type::boolean, {});
  EXPECT_NO_THROW(expr::prove(p, bound_for(p, 1024, 0, 1023), box));
  EXPECT_THROW(expr::prove(p, bound_for(p, 1024, 0, 1024), box), Error);
  EXPECT_THROW(expr::prove(p, bound_for(p, 1024, -1, 5), box), Error);
}

TEST(Prove, RefusesIntegersThatLeaveInt32) {
  EXPECT_EQ(refusal("q * k * 2000 < 7"),
            "`2000 * (q * k)` may reach [0, 4188162000], which leaves int32; allowed are "
            "-2147483648 to 2147483647: clamp its parts, or compute it in floats");
  EXPECT_NE(refusal("q + 2147483647 > 0"), "");
  EXPECT_NE(refusal("-2147483648 - q < k"), "");
  EXPECT_NE(refusal("abs(min(q, -2147483648)) < k"), "");
  EXPECT_NE(refusal("-min(q, -2147483648) < k"), "");
  EXPECT_NE(refusal("(q << 22) < k"), "");
}

TEST(Prove, RefusesZeroDivisorsAndWildShifts) {
  EXPECT_EQ(refusal("k / q < 3"),
            "`k / q` may divide by zero: its divisor reaches [0, 1023]; allowed is a range without "
            "0, for example max(..., 1)");
  EXPECT_NE(refusal("k % (q - 5) < 3"), "");
  EXPECT_NE(refusal("min(q, -2147483648) / (0 - 1) < 3"), "");
  EXPECT_EQ(refusal("(k >> q) < 3"),
            "`k >> q` shifts by [0, 1023]; allowed are 0 to 31, for example clamp(..., 0, 31)");
}

TEST(Prove, ReadsParametersAsTheyAreBound) {
  const Program p =
      expr::parse("param w: i32 = 5; array a: i32[1]; a[k + w] == 0", Type::boolean, {});
  Bound b = bound_for(p, 2053);
  b.params = {5};
  EXPECT_NO_THROW(expr::prove(p, b, box));
  b.params = {6};
  EXPECT_THROW(expr::prove(p, b, box), Error);
  b.params = {0.5};
  EXPECT_THROW(expr::prove(p, b, box), Error);
}

TEST(Prove, AnEmptyBoxNeedsNoProof) {
  const Program p = expr::parse("array a: i32[1]; a[k] == 0", Type::boolean, {});
  Box none = box;
  none.k = {0, -1};
  EXPECT_NO_THROW(expr::prove(p, bound_for(p, 0), none));
}

// What is proved never wraps and never needs a clamp: checked against exact arithmetic.
TEST(Prove, IsSoundOnRandomPrograms) {
  const Contents contents;
  const Box small{{0, 1}, {0, 2}, {0, 6}, {0, 5}, {7, 7}, {6, 6}};
  int proved = 0;
  EXPECT_TRUE(rc::check([&](const std::vector<std::uint32_t>& recipe) {
    const Program p = expr::simplify(random_program(recipe, Type::boolean));
    const Bound bound = contents.bound(p);
    try {
      expr::prove(p, bound, small);
    } catch (const Error&) {
      return;
    }
    ++proved;
    std::vector<double> scratch(p.nodes.size()), result(1);
    for (const Point& at : sample_points()) {
      expr::evaluate(p, bound, at, scratch.data(), result.data());
      for (const auto& n : p.nodes) {
        auto operand = [&](std::size_t j) {
          return static_cast<std::int64_t>(scratch[static_cast<std::size_t>(n.operand[j])]);
        };
        if (n.op == Op::load) {
          const auto& a = bound.arrays[static_cast<std::size_t>(n.slot)];
          for (std::size_t j = 0; j < 4 && n.operand[j] >= 0; ++j)
            RC_ASSERT(operand(j) >= 0 && operand(j) < a.shape[j]);
        } else if (n.type == Type::i32 && n.op >= Op::add && n.op <= Op::bit_xor) {
          const std::int64_t b = n.operand[1] >= 0 ? operand(1) : 0;
          RC_ASSERT(expr::fits_int32(expr::integer_result(n.op, operand(0), b)));
          if (n.op == Op::floordiv || n.op == Op::mod) RC_ASSERT(b != 0);
          if (n.op == Op::shl || n.op == Op::shr) RC_ASSERT(b >= 0 && b <= 31);
        }
      }
    }
  }));
  EXPECT_GT(proved, 20);
}

}  // namespace
}  // namespace undivided
