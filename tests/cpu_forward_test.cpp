// SPDX-License-Identifier: Apache-2.0
// The CPU forward equals the oracle on every instruction set, for every kind of input.
#include "cpu_support.hpp"

namespace undivided::test {
namespace {

class CpuForward : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedIsa forced_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuForward, ::testing::ValuesIn(cpu::available_isas()));

TEST_P(CpuForward, ShapesThatFillNoTile) {
  for (const auto& [nq, nk] :
       {std::pair{1, 1}, {3, 7}, {7, 63}, {64, 64}, {65, 129}, {257, 130}, {1, 511}})
    for (const auto& [d, dv] : {std::pair{8, 8}, {40, 40}, {1, 3}, {64, 32}, {19, 72}}) {
      SCOPED_TRACE(testing::Message() << nq << "x" << nk << " d" << d << " dv" << dv);
      Case c{.nq = nq, .nk = nk, .d = d, .dv = dv};
      expect_forward(c);
      c.options.mask = causal();
      c.options.align = Align::end;
      expect_forward(c);
    }
}

TEST_P(CpuForward, LargeHeads) {
  expect_forward({.hq = 1, .hkv = 1, .nq = 40, .nk = 90, .d = 512, .dv = 512});
  expect_forward({.hq = 1, .hkv = 1, .nq = 40, .nk = 90, .d = 192, .dv = 128});
}

TEST_P(CpuForward, SixteenBitInputs) {
  for (const DType t : {DType::f16, DType::bf16}) {
    SCOPED_TRACE(name_of(t));
    Case c{.dtype = t, .hq = 4, .hkv = 2, .nq = 70, .nk = 131, .d = 40, .dv = 24};
    expect_forward(c);
    c.options.out_dtype = DType::f32;
    expect_forward(c);
  }
}

TEST_P(CpuForward, SixteenBitInputsOfEveryShape) {
  for (const DType t : {DType::f16, DType::bf16})
    for (const auto& [d, dv] : {std::pair{1, 3}, {19, 72}, {64, 33}, {130, 64}})
      for (const auto& [nq, nk] : {std::pair{1, 1}, {5, 63}, {65, 129}, {40, 131}}) {
        SCOPED_TRACE(testing::Message() << name_of(t) << " " << nq << "x" << nk << " d" << d);
        Case c{.dtype = t, .nq = nq, .nk = nk, .d = d, .dv = dv};
        expect_forward(c);
        c.options.mask = causal();
        c.options.align = Align::end;
        expect_forward(c);
      }
}

TEST_P(CpuForward, SixteenBitInputsOfEveryKind) {
  for (const DType t : {DType::f16, DType::bf16})
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged})
      for (const std::int64_t page : {1, 7, 16}) {
        if (kv != KvKind::paged && page > 1) continue;
        SCOPED_TRACE(testing::Message() << name_of(t) << int(kv) << " page " << page);
        Case c{.dtype = t, .batch = 3, .nq = 50, .nk = 147, .d = 24, .kv = kv, .page = page};
        c.lengths = true;
        c.options.mask = window(30, 0) || Mask::parse("k % 5 == 3");
        c.options.score = softcap(5.0);
        c.options.align = Align::start;
        c.options.dropout = 0.2;
        c.options.max_logit = c.options.key_mass = true;
        expect_forward(c);
      }
}

TEST_P(CpuForward, ScalesThatAreNotPositive) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16})
    for (const double scale : {0.0, -0.3}) {
      SCOPED_TRACE(testing::Message() << name_of(t) << " scale " << scale);
      Case c{.dtype = t, .nq = 40, .nk = 90};
      c.options.scale = scale;
      c.options.max_logit = true;
      expect_forward(c);
    }
}

TEST_P(CpuForward, ExplainNamesTheProducts) {
  const auto tiles_of = [](DType t, Precision precision) {
    Case c{.dtype = t, .d = 64, .dv = 64};
    c.options.precision = precision;
    const Data x = data_of(c);
    const Problem p = resolve(x.q, x.kv, c.options);
    return cpu::prepare(p.spec, p.bounds, cpu_device, {})->explanation.tiles;
  };
  const char* products = GetParam() == "amx"           ? "products of bf16 pairs on tile registers"
                         : GetParam() == "avx512_bf16" ? "products of bf16 pairs"
                                                       : "products of f32";
  EXPECT_THAT(tiles_of(DType::f32, {}), ::testing::HasSubstr("products of f32"));
  EXPECT_THAT(tiles_of(DType::f16, {}), ::testing::HasSubstr("products of f32"));
  EXPECT_THAT(tiles_of(DType::bf16, {}), ::testing::HasSubstr(products));
  EXPECT_THAT(tiles_of(DType::bf16, {DType::f32, DType::f32, false}),
              ::testing::HasSubstr("products of f32"));
}

TEST_P(CpuForward, AFormatOfProductsIsHonouredOrRefused) {
  const auto support_of = [](DType t, DType qk, DType pv) {
    Case c{.dtype = t};
    c.options.precision = {qk, pv, false};
    const Data x = data_of(c);
    const Problem p = resolve(x.q, x.kv, c.options);
    return cpu::support(p.spec, p.bounds, {});
  };
  const bool pairs = GetParam() == "avx512_bf16" || GetParam() == "amx";
  EXPECT_TRUE(support_of(DType::f32, DType::f32, DType::f32).ok);
  EXPECT_TRUE(support_of(DType::f16, DType::f32, DType::f32).ok);
  EXPECT_EQ(support_of(DType::bf16, DType::bf16, DType::bf16).ok, pairs);
  EXPECT_FALSE(support_of(DType::f16, DType::f16, DType::f16).ok);
  EXPECT_FALSE(support_of(DType::f32, DType::bf16, DType::bf16).ok);
  const Support mixed = support_of(DType::bf16, DType::bf16, DType::f32);
  EXPECT_FALSE(mixed.ok);
  EXPECT_EQ(mixed.got, "qk bf16, pv f32");
}

TEST_P(CpuForward, GroupsShareKeysInLanes) {
  for (const int nq : {1, 4, 20, 100}) {
    SCOPED_TRACE(nq);
    Case c{.batch = 2, .hq = 6, .hkv = 2, .nq = nq, .nk = 150};
    expect_forward(c);
    c.options.mask = window(20, 0);
    c.options.align = Align::end;
    expect_forward(c);
    c.options.dropout = 0.3;
    c.options.seed = 77;
    c.options.max_logit = true;
    expect_forward(c);
  }
}

TEST_P(CpuForward, EveryKindOfRowsAndKeys) {
  for (const RowKind rows : {RowKind::dense, RowKind::ragged})
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged})
      for (const std::int64_t page : {1, 16, 64}) {
        if (kv != KvKind::paged && page > 1) continue;
        SCOPED_TRACE(testing::Message() << int(rows) << int(kv) << " page " << page);
        Case c{.batch = 4, .nq = 90, .nk = 150, .rows = rows, .kv = kv, .page = page};
        expect_forward(c);
        c.lengths = true;
        c.options.mask = causal();
        c.options.align = Align::start;
        c.options.max_logit = c.options.key_mass = true;
        expect_forward(c);
      }
}

TEST_P(CpuForward, MasksByProgramAndByPlan) {
  const Mask masks[] = {prefix(20),
                        window(5, 3) || Mask::parse("k % 7 == 3"),
                        Mask::parse("head == 0 || q % 3 != k % 5"),
                        Mask::parse("k < 0")};
  for (const Mask& m : masks)
    for (const bool plan : {false, true}) {
      SCOPED_TRACE(m.text());
      Case c{.batch = 2, .hq = 4, .hkv = 2, .nq = 140, .nk = 200, .mask_plan = plan};
      c.options.mask = m;
      c.options.align = Align::end;
      c.options.key_mass = true;
      expect_forward(c);
    }
}

TEST_P(CpuForward, ScorePrograms) {
  std::vector<float> slopes{0.5f, 0.25f, -0.125f, 1.0f}, table(200 * 64);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = std::sin(0.1f * static_cast<float>(i));
  Tensor grid = Tensor::empty(DType::f32, {64, 200});
  std::copy(table.begin(), table.end(), grid.ptr<float>());
  const Score scores[] = {
      softcap(5.0f),
      alibi(Array(slopes, "slope")),
      bias(Array(grid, "table")),
      softcap(3.0f) | alibi(Array(slopes, "slope")),
      Score::parse("score * exp(-abs(q - k) * 0.01) + log(1.0 + k) - sqrt(q + 1.0)"),
      Score::parse("q > k ? score : -score")};
  for (const Score& s : scores) {
    SCOPED_TRACE(s.text());
    Case c{.hq = 4, .hkv = 2, .nq = 60, .nk = 190};
    c.options.score = s;
    c.options.align = Align::start;
    c.options.mask = window(100, 50);
    expect_forward(c);
  }
}

TEST_P(CpuForward, SinksAndRowsWithoutKeys) {
  Tensor sink = Tensor::empty(DType::f32, {2});
  sink.ptr<float>()[0] = -3;
  sink.ptr<float>()[1] = 9;
  Case c{.nq = 100, .nk = 30};
  c.options.mask = causal();
  c.options.align = Align::end;  // the first 70 rows see nothing
  expect_forward(c);
  c.options.sink = sink;
  expect_forward(c);
  c.nk = 0;
  c.options.mask = full();
  c.options.align.reset();
  expect_forward(c);
}

TEST_P(CpuForward, HugeScoresNegativeScaleAndNan) {
  Case c{.nq = 40, .nk = 80};
  c.options.scale = 1000.0;
  expect_forward(c);
  c.options.scale = -2.0;
  expect_forward(c);
  c.options.scale = 0.0;
  expect_forward(c);
  const Data x = data_of(c);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  *static_cast<float*>(x.qt.at({0, 1, 5, 2})) = nan;
  Problem p = resolve(x.q, x.kv, {});
  const Results got(p, DType::f32, DType::f32);
  got.attach(p.args);
  run_cpu(p);
  EXPECT_TRUE(std::isnan(*static_cast<float*>(got.o.at({0, 1, 5, 0}))));
  EXPECT_TRUE(std::isnan(*static_cast<float*>(got.lse.at({0, 1, 5}))));
  EXPECT_FALSE(std::isnan(*static_cast<float*>(got.o.at({0, 1, 4, 0}))));
}

TEST_P(CpuForward, SplitKeysMergeToTheSame) {
  const auto four = make_thread_executor(4);
  Context context;
  context.executor = four.get();
  Case c{.hq = 1, .hkv = 1, .nq = 3, .nk = 2000};
  c.options.dropout = 0.2;
  c.options.seed = 5;
  c.options.max_logit = true;
  c.options.align = Align::end;
  expect_forward(c, context);
  const Data x = data_of(c);
  const Problem p = resolve(x.q, x.kv, c.options);
  EXPECT_GT(cpu::prepare(p.spec, p.bounds, cpu_device, context)->explanation.splits, 1);
}

TEST_P(CpuForward, BitsDoNotDependOnWhichKeyBlocksWaitForEachOther) {
  // Rows from 32 on meet all blocks but the first, which others of their macro-tile meet. Alone
  // with their keys they meet the same blocks, paired otherwise; large scores move the references.
  for (const std::int64_t nk : {192, 250, 320}) {
    SCOPED_TRACE(nk);
    Case c{.dtype = DType::bf16, .hq = 1, .hkv = 1, .nq = 96, .nk = nk, .d = 64};
    c.options.scale = 3.0;
    c.options.out_dtype = DType::f32;
    c.options.mask = Mask::parse("q < 32 || k >= 64");
    c.options.align = Align::start;
    const Data x = data_of(c);
    Problem whole = resolve(x.q, x.kv, c.options);
    const Results all(whole, DType::f32, DType::f32);
    all.attach(whole.args);
    run_cpu(whole);
    c.options.mask = {};
    Problem tail = resolve(Rows(x.qt.sliced(2, 32, c.nq)),
                           dense(x.k.sliced(2, 64, nk), x.v.sliced(2, 64, nk)),
                           c.options);
    const Results part(tail, DType::f32, DType::f32);
    part.attach(tail.args);
    run_cpu(tail);
    for (std::int64_t i = 32; i < c.nq; ++i)
      for (std::int64_t e = 0; e < c.dv; ++e)
        ASSERT_EQ(*static_cast<float*>(part.o.at({0, 0, i - 32, e})),
                  *static_cast<float*>(all.o.at({0, 0, i, e})))
            << i << ' ' << e;
  }
}

TEST_P(CpuForward, InvariantRowsDoNotDependOnTheirNeighbours) {
  Case c{.hq = 4, .hkv = 2, .nq = 150, .nk = 300};
  c.options.mask = window(100, 0);
  c.options.score = Score::parse("score * 0.5 + 0.01 * (k - q)");
  c.options.align = Align::end;
  c.options.determinism = Determinism::invariant;
  const Data x = data_of(c);
  Problem whole = resolve(x.q, x.kv, c.options);
  const Results all(whole, DType::f32, DType::f32);
  all.attach(whole.args);
  run_cpu(whole);
  for (const std::int64_t n : {1, 17, 64}) {
    Problem tail = resolve(Rows(x.qt.sliced(2, c.nq - n, c.nq)), x.kv, c.options);
    const Results part(tail, DType::f32, DType::f32);
    part.attach(tail.args);
    run_cpu(tail);
    for (std::int64_t h = 0; h < c.hq; ++h)
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t e = 0; e < c.dv; ++e)
          ASSERT_EQ(*static_cast<float*>(part.o.at({0, h, i, e})),
                    *static_cast<float*>(all.o.at({0, h, c.nq - n + i, e})));
  }
}

TEST_P(CpuForward, ShortRowsSlideOverLargerTilesWithTheSameBits) {
  std::vector<std::int32_t> document(2300);
  for (std::size_t i = 0; i < document.size(); ++i)
    document[i] = static_cast<std::int32_t>(i / 130);
  const Mask masks[] = {window(90, 10), documents(Array(std::move(document), "document"))};
  for (const Mask& mask : masks) {
    Case c{.hq = 4, .hkv = 4, .nq = 2300, .nk = 2300};
    c.options.mask = mask;
    const Data x = data_of(c);
    const auto solve = [&](int workers, std::string* notes) {
      const auto threads = make_thread_executor(workers);
      Context context;
      context.executor = threads.get();
      Problem p = resolve(x.q, x.kv, c.options);
      if (!p.args.mask->band.is_band) add_mask_plan(p);
      const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, context);
      for (const std::string& note : prepared->explanation.notes) *notes += note + "\n";
      const Results r(p, DType::f32, DType::f32);
      r.attach(p.args);
      run_cpu(p, context);
      return r;
    };
    std::string some, many;
    const Results large = solve(default_executor().workers(), &some), small = solve(64, &many);
    // Eight workers share four heads in tiles that are large enough to slide.
    if (default_executor().workers() <= 8)
      EXPECT_THAT(some, testing::HasSubstr("queries a tile where the keys of a row are few"));
    EXPECT_THAT(many, testing::Not(testing::HasSubstr("queries a tile where the keys")));
    EXPECT_EQ(std::memcmp(large.o.data, small.o.data, sizeof(float) * 4 * 2300 * 16), 0);
    EXPECT_EQ(std::memcmp(large.lse.data, small.lse.data, sizeof(float) * 4 * 2300), 0);
  }
}

TEST_P(CpuForward, PartialBlocksReadOnlyTheChunksThatSomeQueryKeeps) {
  enum class By { bits, program, program_without_plan };
  for (const By by : {By::bits, By::program, By::program_without_plan}) {
    SCOPED_TRACE(static_cast<int>(by));
    Case c{.nq = 130, .nk = 200};
    c.options.mask = Mask::parse("k % 64 >= 16 && k % 64 < 21 && q % 128 < 120");
    c.options.align = Align::start;
    c.options.inside = by == By::program ? Inside::program : Inside::bits;
    const Data x = data_of(c);
    Problem p = resolve(x.q, x.kv, c.options);
    if (by != By::program_without_plan) add_mask_plan(p);
    const Results got(p, DType::f32, DType::f32), want(p, DType::f64, DType::f64);
    Args oracle = p.args;
    want.attach(oracle);
    ref::forward(p.spec, oracle);
    for (std::int64_t h = 0; h < c.hkv; ++h)
      for (std::int64_t j = 0; j < c.nk; ++j)
        if (j % 64 / cpu::chunk_rows != 2)
          *static_cast<float*>(x.v.at({0, h, j, 3})) = std::numeric_limits<float>::quiet_NaN();
    got.attach(p.args);
    run_cpu(p);
    EXPECT_LE(relative_error(got.o, want.o), 1e-5);
    EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
  }
}

}  // namespace
}  // namespace undivided::test
