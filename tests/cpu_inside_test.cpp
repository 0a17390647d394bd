// SPDX-License-Identifier: Apache-2.0
// Partial blocks decided by the program give the bits that bit tiles give, forward and backward.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "cpu_support.hpp"
#include "flashmask_kinds.hpp"

namespace undivided::test {
namespace {

class CpuInside : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedIsa forced_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuInside, ::testing::ValuesIn(cpu::available_isas()));

void expect_same_bits(const char* what, const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.count(), b.count()) << what;
  const auto bytes = static_cast<std::size_t>(a.count()) * size_of(a.dtype);
  EXPECT_EQ(std::memcmp(a.data, b.data, bytes), 0) << what;
}

// Both ways through the verbs, beside each other.
void expect_one_result(const Data& x, Options o) {
  if (!o.align) o.align = Align::start;
  const auto both = [&](auto&& run) {
    o.inside = Inside::bits;
    auto a = run();
    o.inside = Inside::program;
    return std::pair(std::move(a), run());
  };
  o.key_mass = o.max_logit = true;
  const auto [a, b] = both([&] { return attention(x.q, x.kv, o); });
  expect_same_bits("O", a.o, b.o);
  expect_same_bits("LSE", a.lse, b.lse);
  expect_same_bits("max_logit", a.max_logit, b.max_logit);
  expect_same_bits("key_mass", a.key_mass, b.key_mass);
  o.key_mass = o.max_logit = false;
  const Forward f = attention(x.q, x.kv, o);
  const Tensor dout =
      random_tensor(x.qt.dtype, {f.o.size(0), f.o.size(1), f.o.size(2), f.o.size(3)}, 9);
  const auto [g, h] = both(
      [&] { return attention_backward(Rows(dout), x.q, x.kv, f.o, f.lse, o, BackwardOptions{}); });
  expect_same_bits("dQ", g.q, h.q);
  expect_same_bits("dK", g.k, h.k);
  expect_same_bits("dV", g.v, h.v);
}

TEST_P(CpuInside, EveryKindOfFlashMask) {
  for (int number = 0; const int n : {130, 257})
    for (const flashmask::Kind& kind : flashmask::kinds(n)) {
      if (!taken(number++, 5)) continue;
      SCOPED_TRACE(kind.name);
      Options o;
      o.mask = import_flashmask(kind.mask);
      expect_one_result(data_of({.hq = 4, .hkv = 2, .nq = n, .nk = n}), o);
    }
}

TEST_P(CpuInside, TracedMasksRowsWithoutKeysAndHeads) {
  FlashMask heads;  // one head keeps nothing below row 100
  heads.causal = true;
  heads.columns = 2;
  heads.heads = 2;
  heads.keys = 200;
  for (int h = 0; h < 2; ++h)
    for (int j = 0; j < 200; ++j) {
      heads.values.push_back(h == 0 ? j + 40 : 0);
      heads.values.push_back(h == 0 ? 190 : 100);
    }
  for (const Mask& m : {import_flashmask(heads, 2),
                        prefix(20),
                        Mask::parse("head == 0 || q % 3 != k % 5"),
                        Mask::parse("k < 0"),
                        Mask::parse("(q / 10) % 2 == 0 && k % 64 == 3")})
    for (const DType t : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(m.text());
      Options o;
      o.mask = m;
      o.dropout = 0.2;
      o.score = softcap(3.0f);
      const Data x = data_of({.dtype = t, .hq = 4, .hkv = 2, .nq = 140, .nk = 200});
      o.key_mass = false;
      expect_one_result(x, o);
    }
}

TEST_P(CpuInside, MasksByColumnsOfEveryShape) {
  std::vector<std::int32_t> a, b;
  std::uint32_t state = 7;
  for (int j = 0; j < 200; ++j)
    for (std::vector<std::int32_t>* to : {&a, &b})
      to->push_back(static_cast<std::int32_t>((state = state * 1664525u + 1013904223u) >> 16) %
                    140);
  a[3] = std::numeric_limits<std::int32_t>::min();
  b[3] = std::numeric_limits<std::int32_t>::max();
  const Captures captures{{Array(a, "a"), Array(b, "b")}, {}};
  int number = 0;
  for (const char* text : {"a[k] < q || q == b[k]",
                           "q != a[k]",
                           "(q <= a[k]) == (k > 100)",
                           "(q > a[k]) != (q >= b[k])",
                           "k % 3 == 0 ? q < a[k] : b[k] <= q",
                           "!(a[k] >= q) && head == 0",
                           "a[k] > 70",
                           "a[k] <= q && q < b[k]"}) {
    SCOPED_TRACE(text);
    Options o;
    o.mask = Mask::parse(text, captures);
    for (const Align align : {Align::start, Align::end}) {
      if (!taken(number++, 3)) continue;
      o.align = align;
      expect_one_result(data_of({.hq = 4, .hkv = 2, .nq = 140, .nk = 200}), o);
    }
  }
}

TEST_P(CpuInside, TheOracleAgrees) {
  for (const flashmask::Kind& kind : flashmask::kinds(200)) {
    SCOPED_TRACE(kind.name);
    Case c{.batch = 2, .nq = 150, .nk = 200, .lengths = true, .mask_plan = true};
    c.options.mask = import_flashmask(kind.mask);
    c.options.align = Align::start;
    c.options.inside = Inside::program;
    expect_forward(c);
  }
}

TEST_P(CpuInside, APlanOfAnotherKindIsRefused) {
  const Data x = data_of({.nq = 130, .nk = 130});
  Options o;
  o.mask = prefix(20);
  Problem p = resolve(x.q, x.kv, o);
  o.inside = Inside::program;
  p.args.mask_plan = mask_plan(x.q, x.kv, o);
  p.spec.mask_plan = true;
  const Results got(p, DType::f32, DType::f32);
  got.attach(p.args);
  const Plan made = plan(p.spec, p.bounds);
  std::vector<std::byte> workspace(made.workspace() + 256);
  try {
    made.run(p.args, workspace.data());
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("Options::inside"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace undivided::test
