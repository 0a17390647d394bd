// SPDX-License-Identifier: Apache-2.0
// Claims: a sample of a long case has the numbers of the whole, and its comparison can fail.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "check/check.hpp"
#include "check/evidence.hpp"
#include "check/inputs.hpp"
#include "undivided/error.hpp"

namespace undivided::check {
namespace {

constexpr Sample ninth{9};

TEST(Sample, TakesAboutOneOfStepAndSomeEdges) {
  int taken = 0, first = 0, last = 0;
  for (int h = 0; h < 8; ++h) {
    for (int i = 0; i < 900; ++i) taken += ninth.takes(1, h, i, 900);
    first += ninth.takes(1, h, 0, 900);
    last += ninth.takes(1, h, 899, 900);
  }
  EXPECT_NEAR(taken, 800, 8);
  EXPECT_GE(first, 2);
  EXPECT_GE(last, 2);
  EXPECT_TRUE(Sample{}.takes(0, 3, 5, 9));
}

TEST(Sample, BeginsWhereACaseIsTooMuchForTheWhole) {
  EXPECT_TRUE(sample_of(Case::parse("forward.bf16.d64.q1001.k1001.h8.b1")).whole());
  const Case c = Case::parse("backward.bf16.d128.q8192.k8192.h4x2.b1.mask=causal");
  const Sample s = sample_of(c);
  EXPECT_FALSE(s.whole());
  EXPECT_NEAR(c.cost() / static_cast<double>(s.step), sampled_cost, sampled_cost / 100);
  for (const Case& each : all_cases()) ASSERT_TRUE(sample_of(each).whole()) << each.name();
  int sampled = 0;
  for (const Case& each : large_cases()) {
    EXPECT_LE(each.cost() / static_cast<double>(sample_of(each).step), whole_cost) << each.name();
    sampled += !sample_of(each).whole();
  }
  EXPECT_GE(sampled, 6);
}

void expect_equal(const Reading& a, const Reading& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_GT(a.values.size(), 0u);
  EXPECT_EQ(a.values, b.values) << a.name;
}

TEST(Sample, HasTheNumbersOfTheWholeOracle) {
  for (const char* name :
       {"forward.f32.d40.q65.k129.h4x2.b2.mask=causal.align=end.score=softcap.dropout=some",
        "forward.bf16.d64.q63.k65.h2.b3.rows=ragged.kv=ragged.mask=window.sink=given",
        "forward.f16.d64.q7.k257.h3x1.b2.rows=lengths.kv=page16"}) {
    const Case c = Case::parse(name);
    const Inputs in = make_inputs(c);
    const Forward whole = reference(in.q, in.kv, in.options);
    const Evidence e = of_forward(c, in, whole, ninth);
    ASSERT_EQ(e.got.size(), 2u) << name;  // O and LSE
    ASSERT_EQ(e.oracle.size(), 2u) << name;
    for (std::size_t i = 0; i < 2; ++i) {
      expect_equal(e.oracle[i], e.got[i]);
      ASSERT_FALSE(e.twins.empty());
      EXPECT_EQ(e.twins[0][i].values.size(), e.oracle[i].values.size()) << name;
    }
  }
}

TEST(Sample, HasTheGradientsOfTheWholeOracle) {
  for (const char* name :
       {"backward.f32.d40.q65.k129.h4x2.b2.mask=causal.align=end.score=softcap.dropout=some",
        "backward.bf16.d64.q63.k65.h2.b3.rows=ragged.kv=ragged.mask=window.sink=given.want=dlse",
        "backward.bf16.d64.q63.k65.h4x1.b1.score=bias.kv=lengths"}) {
    const Case c = Case::parse(name);
    const Inputs in = make_inputs(c);
    const Forward f = reference(in.q, in.kv, in.options);
    const Gradients whole = reference_backward(in.dout, in.q, in.kv, in.options, in.backward);
    const Evidence e = of_backward(c, in, f, whole, ninth);
    ASSERT_EQ(e.got.size(), 3u) << name;  // dQ, dK, dV
    ASSERT_EQ(e.oracle.size(), 3u) << name;
    for (std::size_t i = 0; i < 3; ++i) {
      expect_equal(e.oracle[i], e.got[i]);
      ASSERT_FALSE(e.twins.empty());
      EXPECT_EQ(e.twins[0][i].values.size(), e.oracle[i].values.size()) << name;
    }
    const Evidence all = of_backward(c, in, f, whole, {});
    EXPECT_GT(all.oracle[1].values.size(), 4 * e.oracle[1].values.size());
  }
}

/// Negates token `token` of head 0 in a copy: the oracle keeps the true one.
void negate(View& v, std::int64_t token, std::vector<Tensor>& keep) {
  Tensor t = Tensor::empty_like(v, v.dtype);
  copy(v, t);
  for (std::int64_t x = 0; x < t.size(3); ++x) {
    void* at = t.at({0, 0, token, x});
    store_element(t.dtype, at, -load_element(t.dtype, at));
  }
  keep.push_back(t);
  v = t;
}

TEST(Sample, AFaultInASampledRowIsCaught) {
  std::int64_t in_sample = 0, outside = 0;
  for (std::int64_t i = 1; i + 1 < 129; ++i) (ninth.takes(0, 0, i, 129) ? in_sample : outside) = i;
  ASSERT_GT(in_sample, 0);
  std::int64_t key_outside = 1;
  while (ninth.takes(0, 0, key_outside, 257)) ++key_outside;
  std::vector<Tensor> keep;
  const auto of_q = [&](std::int64_t token) {
    return [&keep, token](Inputs& in) { negate(in.q.data, token, keep); };
  };
  const auto of_v = [&](std::int64_t token) {
    return [&keep, token](Inputs& in) { negate(in.kv.v, token, keep); };
  };
  const auto of_dout = [&](std::int64_t token) {
    return [&keep, token](Inputs& in) { negate(in.dout.data, token, keep); };
  };
  for (const char* dtype : {"f32", "bf16"}) {
    const std::string rest = std::string(".") + dtype + ".d64.q129.k257.h2x2.b1";
    const Case forward = Case::parse("forward" + rest), backward = Case::parse("backward" + rest);
    const auto passes = [&](const Case& c, const Fault& fault) {
      const Result r = run_case(c, Backend::cpu, fault, ninth);
      EXPECT_FALSE(r.skipped) << r.reason;
      EXPECT_LT(r.rows_compared, r.rows / 6);
      EXPECT_EQ(r.rows, 2 * 129);
      return r.passed;
    };
    EXPECT_TRUE(passes(forward, {})) << dtype;
    EXPECT_TRUE(passes(backward, {})) << dtype;
    EXPECT_FALSE(passes(forward, of_q(in_sample))) << dtype;
    EXPECT_TRUE(passes(forward, of_q(outside))) << "nothing looks at this row";
    EXPECT_FALSE(passes(forward, of_v(key_outside))) << "every row reads every key";
    // A wrong row outside the sample is part of every dK and dV inside it.
    EXPECT_FALSE(passes(backward, of_dout(outside))) << dtype;
    EXPECT_FALSE(passes(backward, of_v(key_outside))) << dtype;
  }
}

TEST(Sample, TheResultSaysHowManyRows) {
  const Case c = Case::parse("forward.f32.d8.q129.k65.h2x2.b1");
  const Result whole = run_case(c), some = run_case(c, Backend::cpu, {}, ninth);
  EXPECT_EQ(whole.rows_compared, whole.rows);
  EXPECT_NE(some.json().find("\"rows\":258"), std::string::npos) << some.json();
  EXPECT_NE(some.json().find("\"rows_compared\":" + std::to_string(some.rows_compared)),
            std::string::npos);
}

}  // namespace
}  // namespace undivided::check
