// SPDX-License-Identifier: Apache-2.0
// Claims: the grid covers every pair of axis values, and the CPU agrees with the oracle on all of
// it.
#include <gtest/gtest.h>

#include <set>

#include "check/check.hpp"
#include "reduced.hpp"
#include "undivided/error.hpp"

namespace undivided::check {
namespace {

TEST(Grid, EveryPossiblePairOfAxisValuesOccurs) {
  std::set<std::pair<std::string, std::string>> seen;
  std::vector<std::vector<std::string>> rows;
  for (const Case& c : all_cases()) {
    std::vector<std::string> row;
    for (std::size_t a = 0; a < axes().size(); ++a) row.push_back(axes()[a].name + "=" + get(c, a));
    for (std::size_t a = 0; a < row.size(); ++a)
      for (std::size_t b = a + 1; b < row.size(); ++b) seen.emplace(row[a], row[b]);
  }
  std::size_t pairs = 0;
  for (std::size_t a = 0; a < axes().size(); ++a)
    for (std::size_t b = a + 1; b < axes().size(); ++b)
      for (const std::string& x : axes()[a].values)
        for (const std::string& y : axes()[b].values) {
          if (impossible_pair(a, x, b, y)) continue;
          ++pairs;
          EXPECT_TRUE(seen.contains({axes()[a].name + "=" + x, axes()[b].name + "=" + y}))
              << axes()[a].name << "=" << x << " with " << axes()[b].name << "=" << y;
        }
  EXPECT_GT(pairs, 3000u);
}

TEST(Grid, PairsCalledImpossibleHaveNoPossibleCase) {
  // Every case of the set is possible, so none may hold a pair that is said not to exist.
  for (const Case& c : all_cases()) {
    ASSERT_EQ(impossible(c), "") << c.name();
    for (std::size_t a = 0; a < axes().size(); ++a)
      for (std::size_t b = a + 1; b < axes().size(); ++b)
        ASSERT_FALSE(impossible_pair(a, get(c, a), b, get(c, b))) << c.name();
  }
}

TEST(Grid, HasAboutFifteenHundredCases) {
  EXPECT_GT(all_cases().size(), 1200u);
  EXPECT_LT(all_cases().size(), 2200u);
  EXPECT_EQ(some_cases(60).size(), 60u);
}

TEST(Grid, NamesReadBack) {
  for (const Case& c : all_cases()) ASSERT_EQ(Case::parse(c.name()), c) << c.name();
  const Case other =
      Case::parse("backward.bf16.d80x24.q33.k2000.h6x3.b5.rows=ragged.kv=page32.seed=9");
  EXPECT_EQ(other.d, 80);
  EXPECT_EQ(other.dv, 24);
  EXPECT_EQ(other.kv_heads, 3);
  EXPECT_EQ(other.name(), "backward.bf16.d80x24.q33.k2000.h6x3.b5.rows=ragged.kv=page32.seed=9");
}

void expect_refusal(const char* name, const char* says) {
  try {
    Case::parse(name);
    ADD_FAILURE() << name << " was read";
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::parse);
    EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
  }
}

TEST(Grid, NamesThatMeanNothingAreRefusedWithWhatIsAllowed) {
  expect_refusal("sideways.f32.d8.q1.k1.h1x1.b1", "forward or backward");
  expect_refusal("forward.i8.d8.q1.k1.h1x1.b1", "f32, f16 or bf16");
  expect_refusal("forward.f32.d8.q1.k1.h1x1.b1.mask=diagonal", "mask is one of full, causal");
  expect_refusal("forward.f32.d8.q1.k1.h1x1.b1.colour=red",
                 "'colour=' in a case name: axis=value has one of the axes rows, ");
  expect_refusal("forward.f32.d8.q1.k1.h1x1.b1.heads=2x2", "'heads=' in a case name");
  expect_refusal("forward.f32.d8.q1.k1.h1x1.b1.mask", "axis=value");
  expect_refusal("forward.f32.d8.x1.k1.h1x1.b1", "q<number>");
  expect_refusal("forward.f32.d8.q1.k1.h1x1.b1.want=q", "no gradients to choose");
}

TEST(Grid, TheProductWalksEveryValue) {
  EXPECT_EQ(get(product_case(0), 0), "forward");
  EXPECT_EQ(get(product_case(1), 0), "backward");
  const Case last = product_case(product_size() - 1);
  for (std::size_t a = 0; a < axes().size(); ++a) EXPECT_EQ(get(last, a), axes()[a].values.back());
}

TEST(Grid, ResultsPrintAsOneJsonLine) {
  const Result r = run_case(Case::parse("forward.f32.d8.q3.k7.h2x1.b1.mask=causal.align=end"));
  EXPECT_TRUE(r.passed) << r.reason;
  const std::string line = r.json();
  for (const char* key : {"\"name\"",
                          "\"backend\":\"cpu\"",
                          "\"kernel\"",
                          "\"passed\":true",
                          "\"skipped\":false",
                          "\"reason\"",
                          "\"max_abs\"",
                          "\"limit\"",
                          "\"relative_l1\"",
                          "\"gain\"",
                          "\"bias\""})
    EXPECT_NE(line.find(key), std::string::npos) << key << " in " << line;
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

/// One shard of the covering set: a failing case is named and can be run again alone.
class Cpu : public testing::TestWithParam<int> {};
constexpr int shards = 24;

TEST_P(Cpu, AgreesWithTheOracle) {
  const std::vector<Case> cases = reduced_grid() ? some_cases(60) : all_cases();
  std::set<std::string> skips;
  for (std::size_t i = static_cast<std::size_t>(GetParam()); i < cases.size(); i += shards) {
    const Result r = run_case(cases[i], Backend::cpu);
    if (r.skipped)
      skips.insert(r.reason);
    else
      EXPECT_TRUE(r.passed) << "undivided check " << r.name << "\n  kernel " << r.kernel << "\n  "
                            << r.reason;
  }
  for (const std::string& why : skips) {
    bool legal = false;
    for (const std::string& reason : legal_skips()) legal |= why.starts_with(reason);
    EXPECT_TRUE(legal) << why;
  }
}
INSTANTIATE_TEST_SUITE_P(Grid, Cpu, testing::Range(0, shards));

TEST(Reference, AgreesWithItselfThroughThePlan) {
  // The oracle as a backend stores what it computed in the types that were asked for.
  for (const Case& c : some_cases(reduced_grid() ? 10 : 60)) {
    if (c.quantised()) continue;  // which it refuses: it computes in float64
    const Result r = run_case(c, Backend::reference);
    EXPECT_TRUE(r.passed) << r.name << ": " << r.reason;
  }
}

}  // namespace
}  // namespace undivided::check
