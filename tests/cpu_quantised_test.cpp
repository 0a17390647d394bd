// SPDX-License-Identifier: Apache-2.0
// Scores of int8 equal the oracle on inputs that a plain loop rounded the same way, on every
// instruction set; how far that is from exact attention; what is refused.
#include "check/quantised.hpp"
#include "cpu_support.hpp"

namespace undivided::test {
namespace {

double get(const View& v, std::int64_t i) {
  return load_element(
      v.dtype, static_cast<std::byte*>(v.data) + i * static_cast<std::int64_t>(size_of(v.dtype)));
}

Precision int8(DType pv = DType::bf16) { return {DType::i8, pv, false}; }

Tensor random_mean(const Case& c, double size = 1) {
  Tensor mean = random_tensor(DType::f32, {c.hkv, c.d}, 99);
  for (std::int64_t i = 0; i < mean.count(); ++i) mean.ptr<float>()[i] *= static_cast<float>(size);
  return mean;
}

Results run(const Case& c, const Data& x, const Context& context = {}) {
  Problem p = resolve(x.q, x.kv, c.options);
  if (c.mask_plan) add_mask_plan(p);
  Results got(p, p.spec.out_dtype, DType::f32);
  got.attach(p.args);
  run_cpu(p, context);
  return got;
}

Results oracle_of(const Problem& p) {
  Results want(p, DType::f64, DType::f64);
  Args args = p.args;
  want.attach(args);
  ref::forward(p.spec, args);
  return want;
}

/// With and without a mean.
void expect_twin(Case c, const Context& context = {}) {
  for (const bool smooth : {false, true}) {
    SCOPED_TRACE(smooth ? "k_mean" : "plain");
    Data x = data_of(c);
    const Tensor mean = smooth ? random_mean(c) : Tensor{};
    x.kv.k_mean = mean;
    const Results got = run(c, x, context);
    const auto twin = check::quantised(x.q, x.kv, c.options);
    const Results want = oracle_of(resolve(twin.q, twin.kv, twin.options));
    const DType out = c.options.out_dtype.value_or(c.dtype);
    // P is rounded to bf16 before it meets V.
    const double limit = limit_of(out) + (c.options.precision.pv == DType::bf16 ? 3e-3 : 0);
    EXPECT_LE(relative_error(got.o, want.o), limit);
    EXPECT_LE(relative_error(got.lse, want.lse, 1), 1e-5);
    if (c.options.max_logit) {
      EXPECT_LE(relative_error(got.max_logit, want.max_logit, 1), 1e-5);
    }
    if (c.options.key_mass) {
      EXPECT_LE(relative_error(got.key_mass, want.key_mass), 3e-5);
    }
  }
}

class CpuQuantised : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedIsa forced_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuQuantised, ::testing::ValuesIn(cpu::available_isas()));

TEST_P(CpuQuantised, ShapesThatFillNoTile) {
  for (int number = 0;
       const auto& [nq, nk] : {std::pair{1, 1}, {3, 7}, {64, 64}, {65, 129}, {97, 130}, {1, 311}})
    for (const auto& [d, dv] :
         {std::pair{8, 8}, {1, 3}, {64, 33}, {19, 72}, {130, 64}, {64, 64}, {192, 32}, {96, 32}})
      for (const DType pv : {DType::bf16, DType::f32}) {
        if (!taken(number++, 5)) continue;
        SCOPED_TRACE(testing::Message()
                     << nq << "x" << nk << " d" << d << " dv" << dv << " pv " << name_of(pv));
        Case c{.nq = nq, .nk = nk, .d = d, .dv = dv};
        c.options.precision = int8(pv);
        c.options.mask = causal();
        c.options.align = Align::end;
        expect_twin(c);
      }
}

TEST_P(CpuQuantised, EveryTypeRowsAndKeys) {
  for (int number = 0; const DType t : {DType::f32, DType::f16, DType::bf16})
    for (const RowKind rows : {RowKind::dense, RowKind::ragged})
      for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged}) {
        if (!taken(number++, 4)) continue;
        SCOPED_TRACE(testing::Message() << name_of(t) << int(rows) << int(kv));
        Case c{.dtype = t, .batch = 3, .hq = 4, .nq = 50, .nk = 147};
        c.d = t == DType::f32 ? 64 : 40;  // 64: on tile registers, where there are any
        c.dv = t == DType::f32 ? 32 : 24;
        c.rows = rows;
        c.kv = kv;
        c.page = 7;
        c.lengths = true;
        c.options.precision = int8(t == DType::f16 ? DType::f32 : DType::bf16);
        c.options.out_dtype = DType::f32;
        c.options.mask = window(30, 0) || Mask::parse("k % 5 == 3");
        c.options.score = softcap(5.0);  // bends: it must see q.mean
        c.options.align = Align::start;
        c.options.dropout = 0.2;
        c.options.max_logit = c.options.key_mass = true;
        expect_twin(c);
      }
}

TEST_P(CpuQuantised, MasksByPlanGroupsAndScales) {
  for (const double scale : {0.3, -0.3, 0.0}) {
    SCOPED_TRACE(scale);
    Case c{.batch = 2, .hq = 6, .hkv = 2, .nq = 140, .nk = 200, .mask_plan = true};
    c.options.precision = int8(DType::f32);
    c.options.scale = scale;
    c.options.mask = window(5, 3) || Mask::parse("k % 7 == 3");
    c.options.align = Align::end;
    expect_twin(c);
    c.mask_plan = false;
    c.nq = 3;  // the heads of a group share lanes
    c.options.mask = {};
    expect_twin(c);
  }
}

TEST_P(CpuQuantised, SumsOfTheLargestHeadsAreExact) {
  Case c{.hq = 1, .hkv = 1, .nq = 33, .nk = 70, .d = 512, .dv = 8};
  c.options.precision = int8(DType::f32);
  Data x = data_of(c);
  for (std::int64_t i = 0; i < x.qt.count(); ++i) x.qt.ptr<float>()[i] = i % 3 ? 0.25f : -0.25f;
  for (std::int64_t i = 0; i < x.k.count(); ++i) x.k.ptr<float>()[i] = i % 3 ? 0.25f : -0.25f;
  // Each product is 127 * 127, which float32 sums of 512 hold, and so is the score: 32 * scale.
  c.options.scale = 1.0;
  c.options.max_logit = true;
  const Results got = run(c, x);
  EXPECT_NEAR(*got.max_logit.ptr<float>(), 32, 1e-5);
}

TEST_P(CpuQuantised, RowsOfZerosAreZeroAndBadOnesStayAlone) {
  Case c{.nq = 40, .nk = 90, .d = 24, .dv = 8};
  c.options.precision = int8(DType::f32);
  Data x = data_of(c);
  for (std::int64_t e = 0; e < c.d; ++e) {
    *static_cast<float*>(x.k.at({0, 0, 5, e})) = 0;
    *static_cast<float*>(x.k.at({0, 0, 6, e})) = 1e-35f;  // too small to count
    *static_cast<float*>(x.qt.at({0, 0, 7, e})) = 0;
  }
  Results got = run(c, x);
  const auto twin = check::quantised(x.q, x.kv, c.options);
  const Results want = oracle_of(resolve(twin.q, twin.kv, twin.options));
  EXPECT_LE(relative_error(got.o, want.o), 1e-5);
  EXPECT_NEAR(*static_cast<float*>(got.lse.at({0, 0, 7})), std::log(90.0), 1e-5);

  *static_cast<float*>(x.qt.at({0, 1, 9, 3})) = std::numeric_limits<float>::quiet_NaN();
  got = run(c, x);
  EXPECT_TRUE(std::isnan(*static_cast<float*>(got.o.at({0, 1, 9, 0}))));
  EXPECT_FALSE(std::isnan(*static_cast<float*>(got.o.at({0, 1, 8, 0}))));
  *static_cast<float*>(x.k.at({0, 1, 11, 3})) = std::numeric_limits<float>::infinity();
  got = run(c, x);
  EXPECT_TRUE(std::isnan(*static_cast<float*>(got.o.at({0, 1, 8, 0}))));
  EXPECT_FALSE(std::isnan(*static_cast<float*>(got.o.at({0, 0, 8, 0}))));
}

struct Deviation {
  double relative_l1 = 0, gain = 0, lse = 0;
};
Deviation error_of(const Results& got, const Results& want) {
  Deviation e;
  double off = 0, size = 0, xo = 0, oo = 0;
  for (std::int64_t i = 0; i < want.o.count(); ++i) {
    const double x = get(got.o, i), y = get(want.o, i);
    off += std::fabs(x - y);
    size += std::fabs(y);
    xo += x * y;
    oo += y * y;
  }
  e.relative_l1 = off / size;
  e.gain = xo / oo;
  for (std::int64_t i = 0; i < want.lse.count(); ++i)
    e.lse = std::max(e.lse, std::fabs(get(got.lse, i) - get(want.lse, i)));
  return e;
}

/// The error against exact attention of the inputs as they are.
Deviation exact_error(const Case& c, const Data& x) {
  Data plain = x;
  plain.kv.k_mean = {};
  Options exact = c.options;
  exact.precision = {};
  return error_of(run(c, x), oracle_of(resolve(plain.q, plain.kv, exact)));
}

TEST_P(CpuQuantised, NormalInputsStayWithinAPercentOfExact) {
  for (const std::int64_t d : {64, 128}) {
    Case c{.hq = 1, .hkv = 1, .nq = 64, .nk = 700, .d = d, .dv = 64};
    c.options.precision = int8();
    const Deviation e = exact_error(c, data_of(c));
    EXPECT_LE(e.relative_l1, 1.6e-2);
    EXPECT_GE(e.relative_l1, 1e-3);  // or nothing was rounded
    EXPECT_NEAR(e.gain, 1, 1e-3);
    EXPECT_LE(e.lse, 5e-3);
  }
}

TEST_P(CpuQuantised, TheMeanOfKTakesABiasOfChannelsAway) {
  Case c{.hq = 2, .hkv = 1, .nq = 64, .nk = 500, .d = 64, .dv = 64};
  c.options.precision = int8();
  Data x = data_of(c);
  for (std::int64_t j = 0; j < c.nk; ++j)
    for (std::int64_t e = 0; e < c.d; e += 16)
      *static_cast<float*>(x.k.at({0, 0, j, e})) += static_cast<float>(12 + e);
  const Deviation raw = exact_error(c, x);
  const Tensor mean = key_mean(x.kv);
  x.kv.k_mean = mean;
  const Deviation smooth = exact_error(c, x);
  EXPECT_LE(smooth.relative_l1, 2e-2);
  EXPECT_GE(raw.relative_l1, 4 * smooth.relative_l1);
  EXPECT_LE(smooth.lse, 5e-3);
  EXPECT_GE(raw.lse, 4 * smooth.lse);
}

TEST_P(CpuQuantised, AnOutlierTokenSpoilsNoOther) {
  Case c{.hq = 1, .hkv = 1, .nq = 64, .nk = 400, .d = 64, .dv = 32};
  c.options.precision = int8();
  c.options.mask = Mask::parse("k != 17 && q != 9");
  c.options.align = Align::start;
  const Data x = data_of(c);
  const Results before = run(c, x);
  for (std::int64_t e = 0; e < c.d; ++e) {
    *static_cast<float*>(x.k.at({0, 0, 17, e})) *= 1000;
    *static_cast<float*>(x.qt.at({0, 0, 9, e})) *= 1000;
  }
  const Results after = run(c, x);
  EXPECT_EQ(relative_error(after.o, before.o), 0);
}

TEST_P(CpuQuantised, BitsDependOnNothingButTheRow) {
  for (const DType pv : {DType::bf16, DType::f32}) {
    Case c{.hq = 4, .hkv = 2, .nq = 150, .nk = 300, .d = 24, .dv = 16};
    c.options.precision = int8(pv);
    c.options.mask = causal();
    c.options.align = Align::end;
    c.options.determinism = Determinism::invariant;
    const Tensor mean = random_mean(c);
    Data x = data_of(c);
    x.kv.k_mean = mean;
    const Results all = run(c, x);
    const auto expect_tail = [&](const Results& part, std::int64_t n) {
      for (std::int64_t h = 0; h < c.hq; ++h)
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t e = 0; e < c.dv; ++e)
            ASSERT_EQ(*static_cast<float*>(part.o.at({0, h, i, e})),
                      *static_cast<float*>(all.o.at({0, h, c.nq - n + i, e})));
    };
    for (const int threads : {2, 4}) {
      const auto executor = make_thread_executor(threads);
      Context context;
      context.executor = executor.get();
      expect_tail(run(c, x, context), c.nq);
    }
    for (const std::int64_t n : {1, 17, 64}) {  // as a decode or a chunk of a prefill
      Data tail = x;
      tail.q = Rows(x.qt.sliced(2, c.nq - n, c.nq));
      expect_tail(run(c, tail), n);
    }
    for (const std::int64_t page : {1, 16, 64}) {
      const std::int64_t pages = (c.nk + page - 1) / page;
      Data in_pages = x;
      const auto pool = [&](const Tensor& from, std::int64_t d) {
        Tensor to = Tensor::zeros(DType::f32, {pages, c.hkv, page, d});
        for (std::int64_t h = 0; h < c.hkv; ++h)
          for (std::int64_t j = 0; j < c.nk; ++j)
            std::copy_n(static_cast<const float*>(from.at({0, h, j, 0})),
                        d,
                        static_cast<float*>(to.at({j / page, h, j % page, 0})));
        return to;
      };
      in_pages.k = pool(x.k, c.d);
      in_pages.v = pool(x.v, c.dv);
      std::vector<std::int64_t> order;
      for (std::int64_t i = 0; i < pages; ++i) order.push_back(i);
      in_pages.table = index_tensor(order, {1, pages});
      in_pages.k_lengths = index_tensor({c.nk}, {1});
      in_pages.kv = paged(in_pages.k, in_pages.v, in_pages.table, in_pages.k_lengths);
      in_pages.kv.k_mean = mean;
      expect_tail(run(c, in_pages), c.nq);
    }
  }
}

TEST_P(CpuQuantised, SplitKeysAndPartsMergeToTheSame) {
  const auto four = make_thread_executor(4);
  Context context;
  context.executor = four.get();
  Case c{.hq = 1, .hkv = 1, .nq = 3, .nk = 1500};
  c.options.precision = int8(DType::f32);
  expect_twin(c, context);

  c.options.partial = true;
  Data x = data_of(c);
  const Tensor mean = random_mean(c);
  x.kv.k_mean = mean;
  const Results whole = run(c, x);
  const auto part = [&](std::int64_t low, std::int64_t high) {
    Kv keys = dense(x.k.sliced(2, low, high), x.v.sliced(2, low, high));
    keys.k_mean = mean;
    const Forward f = attention(x.q, keys, c.options);
    return Partial{f.o, f.lse, false};
  };
  const Partial merged = merge(part(0, 700), part(700, 1500));
  EXPECT_LE(relative_error(merged.o, whole.o), 1e-5);
  EXPECT_LE(relative_error(merged.lse, whole.lse), 1e-5);
}

TEST_P(CpuQuantised, ExplainNamesTheFormats) {
  Case c{};
  c.options.precision = int8();
  const Data x = data_of(c);
  const auto explanation = [&] {
    const Problem p = resolve(x.q, x.kv, c.options);
    return cpu::prepare(p.spec, p.bounds, cpu_device, {})->explanation;
  };
  EXPECT_THAT(explanation().tiles,
              ::testing::HasSubstr(GetParam() == "avx512_bf16" ? "products of i8 and bf16 pairs"
                                                               : "products of i8 and bf16 as f32"));
  EXPECT_THAT(explanation().kernel, ::testing::HasSubstr(".f32.i8.d16"));
  c.options.precision = int8(DType::f32);
  EXPECT_THAT(explanation().tiles, ::testing::HasSubstr("products of i8 and f32"));
  if (GetParam() != "amx") return;
  c.options.precision = int8();
  for (const auto& [d, products] :
       {std::pair{64, "products of i8 and bf16 pairs on tile registers"},
        {96, "products of i8 on vectors and bf16 pairs on tile registers"}}) {
    const Data wide = data_of({.d = d, .dv = 32});
    const Problem p = resolve(wide.q, wide.kv, c.options);
    EXPECT_THAT(cpu::prepare(p.spec, p.bounds, cpu_device, {})->explanation.tiles,
                ::testing::HasSubstr(products));
  }
}

template <class F>
std::string message_of(F&& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(CpuQuantisedRefusals, SayWhatCameAndWhatIsAllowed) {
  using ::testing::AllOf;
  using ::testing::HasSubstr;
  Case c{};
  Data x = data_of(c);
  c.options.precision = int8();
  const Forward f = attention(x.q, x.kv, c.options);
  EXPECT_THAT(message_of([&] { attention_backward(Rows(f.o), x.q, x.kv, f); }),
              AllOf(HasSubstr("int8 scores have no backward"),
                    HasSubstr("a precision that follows the inputs"),
                    HasSubstr("qk i8, pv bf16")));
  Options o = c.options;
  o.precision.pv = DType::f16;
  EXPECT_THAT(message_of([&] { attention(x.q, x.kv, o); }),
              AllOf(HasSubstr("pv bf16 or f32"), HasSubstr("qk i8, pv f16")));
  const auto with_mean = [&](const View& mean, const Options& options) {
    return message_of([&] {
      Kv keys = x.kv;
      keys.k_mean = mean;
      attention(x.q, keys, options);
    });
  };
  EXPECT_THAT(with_mean(random_mean(c), {}), HasSubstr("ask for precision qk i8"));
  EXPECT_THAT(with_mean(random_tensor(DType::f32, {3, 16}, 1), c.options),
              HasSubstr("f32 [2, 16] or [1, 2, 16] is expected"));
  EXPECT_THAT(with_mean(random_tensor(DType::bf16, {2, 16}, 1), c.options),
              HasSubstr("f32 [2, 16]"));
  EXPECT_THAT(message_of([] { key_mean({}); }), HasSubstr("K is not given"));
  const Tensor exact = random_tensor(DType::f64, {1, 2, 3, 4}, 1);
  EXPECT_THAT(message_of([&] { key_mean(dense(exact, exact)); }), HasSubstr("f64"));
}

TEST(CpuQuantisedMean, IsThatOfTheTokensInUse) {
  for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged}) {
    SCOPED_TRACE(int(kv));
    Case c{.dtype = DType::bf16, .batch = 3, .nk = 90, .d = 19, .kv = kv, .page = 7};
    c.lengths = true;
    const Data x = data_of(c);
    const Tensor mean = key_mean(x.kv);
    ASSERT_EQ(mean.count(), c.batch * c.hkv * c.d);
    const Problem p = resolve(x.q, x.kv, {});
    for (std::int64_t b = 0; b < c.batch; ++b) {
      const Sequence s = sequence(p.spec, p.args, b);
      for (std::int64_t h = 0; h < c.hkv; ++h) {
        double sum = 0;
        for (std::int64_t j = 0; j < s.k_len; ++j)
          sum += load_element(c.dtype,
                              key_run(p.spec, p.args.kv, p.args.kv.k, s, b, h, j).data + 2 * 18);
        const double got = *static_cast<float*>(mean.at({b, h, 18}));
        EXPECT_NEAR(got, s.k_len ? sum / static_cast<double>(s.k_len) : 0, 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace undivided::test
