// SPDX-License-Identifier: Apache-2.0
// Claims: few queries give what the oracle gives on every instruction set, for every kind of input;
// a row computed beside many others has the bits it has alone; runs allocate nothing.
#include "cpu_support.hpp"

namespace undivided::test {
namespace {

/// By the instruction set in force, past the cache of plans.
Results forward_of(const View& q, const View& k, const View& v, const Options& options) {
  Problem p = resolve(Rows(q), dense(k, v), options);
  Results r(p, p.spec.out_dtype, DType::f32);
  r.attach(p.args);
  run_cpu(p, {});
  return r;
}

class CpuDecode : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedIsa forced_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuDecode, ::testing::ValuesIn(cpu::available_isas()));

TEST_P(CpuDecode, QueriesGroupsAndHeads) {
  for (int number = 0; const int nq : {1, 3, 8, 17})
    for (const int group : {1, 5, 8, 16})
      for (const DType t : {DType::f32, DType::f16, DType::bf16}) {
        if (!taken(number++, 5)) continue;
        SCOPED_TRACE(testing::Message() << nq << " queries, group " << group << " " << name_of(t));
        Case c{.dtype = t, .hq = 2 * group, .hkv = 2, .nq = nq, .nk = 203, .d = 32, .dv = 64};
        expect_forward(c);
        c.options.mask = causal();
        c.options.align = Align::end;
        c.options.max_logit = true;
        expect_forward(c);
      }
}

TEST_P(CpuDecode, HeadsThatFillNoVector) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16})
    for (const auto& [d, dv] :
         {std::pair{1, 9}, {3, 7}, {40, 24}, {63, 65}, {72, 80}, {96, 31}, {192, 128}, {512, 512}})
      for (const int nq : {1, 6}) {
        SCOPED_TRACE(testing::Message() << name_of(t) << " d" << d << " dv" << dv << " q" << nq);
        expect_forward({.dtype = t, .hq = 2, .hkv = 1, .nq = nq, .nk = 70 + nq, .d = d, .dv = dv});
      }
}

TEST_P(CpuDecode, EveryKindOfRowsAndKeys) {
  for (const RowKind rows : {RowKind::dense, RowKind::ragged})
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged})
      for (const std::int64_t page : {1, 5, 16, 64, 100}) {
        if (kv != KvKind::paged && page > 1) continue;
        SCOPED_TRACE(testing::Message() << int(rows) << int(kv) << " page " << page);
        Case c{.batch = 4, .hq = 4, .nq = 2, .nk = 300, .rows = rows, .kv = kv, .page = page};
        expect_forward(c);
        c.lengths = true;
        c.options.mask = window(70, 0);
        c.options.align = Align::end;
        c.options.max_logit = c.options.key_mass = true;
        expect_forward(c);
      }
}

void expect_softcapped(Case c, bool few = false) {
  c.options.score = softcap(20.0f);
  c.options.dropout = 0.3;
  c.options.seed = 5;
  c.options.max_logit = true;
  expect_forward(c, {}, few);
}

TEST_P(CpuDecode, MasksProgramsSinksAndDropout) {
  std::vector<float> slopes{0.5f, 0.25f, -0.125f, 1.0f};
  for (const Mask& m : {prefix(20),
                        window(5, 3) || Mask::parse("k % 7 == 3"),
                        Mask::parse("head == 0 || q % 3 != k % 5"),
                        Mask::parse("k < 0")})
    for (const bool plan : {false, true}) {
      SCOPED_TRACE(m.text());
      Case c{.batch = 2, .hq = 4, .hkv = 2, .nq = 5, .nk = 200, .mask_plan = plan};
      c.options.mask = m;
      c.options.align = Align::end;
      c.options.score = alibi(Array(slopes, "slope"));
      expect_forward(c);
      expect_softcapped(c);
    }
}

// Up to 16 rows of a KV head share one pass over K and V, on tile registers up to 64 if those are
// long.
TEST_P(CpuDecode, SeveralQueriesOfAGroup) {
  const bool dots = cpu::chosen_kernels().dots;
  Tensor sink = Tensor::empty(DType::f32, {4});
  for (int h = 0; h < 4; ++h) sink.ptr<float>()[h] = static_cast<float>(h) - 2;
  for (const int nq : {1, 2, 3, 4, 5, 8, 9, 12, 13, 16})  // times 4 heads
    for (const std::int64_t page : {0, 1, 16, 100})
      for (const Mask& m :
           {full(), causal(), causal() && window(40), Mask::parse("q % 3 != k % 5")}) {
        SCOPED_TRACE(testing::Message() << nq << " queries, page " << page << " " << m.text());
        Case c{.dtype = dots ? DType::bf16 : DType::f16,
               .batch = 2,
               .hq = 4,
               .hkv = 1,
               .nq = nq,
               .nk = 530,
               .d = 64};
        c.lengths = page == 0;
        if (page > 0) c.kv = KvKind::paged, c.page = page;
        c.options.mask = m;
        c.options.align = Align::end;
        c.options.sink = sink;
        expect_forward(c, {}, true);
        expect_softcapped(c, true);
      }
}

// Sequence 0 alone is a prefill of many rows; the same rows in calls of a few take the decode tile.
TEST_P(CpuDecode, BitsOfAPrefill) {
  // Heads that fill no vector, except for dots, which want 32.
  const bool dots = cpu::chosen_kernels().dots;
  for (const auto& [t, left] :
       {std::pair{DType::f32, 90}, {DType::f16, 90}, {DType::bf16, 90}, {DType::bf16, 300}}) {
    const bool whole_vectors = dots && t == DType::bf16;
    const std::int64_t d = whole_vectors ? 96 : 72, dv = whole_vectors ? 64 : 40;
    const std::int64_t n = 450;
    const Tensor q = random_tensor(t, {1, 4, n, d}, 1), k = random_tensor(t, {1, 2, n, d}, 2),
                 v = random_tensor(t, {1, 2, n, dv}, 3);
    const Options o{.mask = causal() && window(left),
                    .score = softcap(5.0f),
                    .align = Align::end,
                    .determinism = Determinism::invariant};
    const Results whole = forward_of(q, k, v, o);
    for (const std::int64_t rows : {1, 2, 3, 7, 13, 20, 31})
      for (std::int64_t i : {64, 127, 143, 419}) {
        const Results part = forward_of(
            q.sliced(2, i, i + rows), k.sliced(2, 0, i + rows), v.sliced(2, 0, i + rows), o);
        for (std::int64_t h = 0; h < 4; ++h)
          for (std::int64_t r = 0; r < rows; ++r) {
            SCOPED_TRACE(testing::Message() << name_of(t) << " row " << i + r << " of " << rows);
            EXPECT_EQ(0,
                      std::memcmp(whole.o.at({0, h, i + r, 0}),
                                  part.o.at({0, h, r, 0}),
                                  static_cast<std::size_t>(dv) * size_of(t)));
            EXPECT_EQ(0, std::memcmp(whole.lse.at({0, h, i + r}), part.lse.at({0, h, r}), 4));
          }
      }
  }
}

TEST_P(CpuDecode, KeysThatNoQueryKeepDoNoHarm) {
  const std::int64_t n = 130, dv = cpu::chosen_kernels().dots ? 64 : 40;
  for (const DType t : {DType::f32, DType::f16, DType::bf16}) {
    const Tensor q = random_tensor(t, {1, 2, 1, dv}, 1), k = random_tensor(t, {1, 1, n, dv}, 2),
                 v = random_tensor(t, {1, 1, n, dv}, 3);
    const Options o{.mask = Mask::parse("k < 60"), .align = Align::start};
    const Results before = forward_of(q, k, v, o);
    const Tensor huge = converted(k, t), other = converted(v, t);
    for (std::int64_t j = 60; j < n; ++j)
      for (std::int64_t c = 0; c < dv; ++c)
        for (const Tensor& x : {huge, other})
          if (t == DType::f32)
            *static_cast<float*>(x.at({0, 0, j, c})) = 1e30f;
          else
            *static_cast<std::uint16_t*>(x.at({0, 0, j, c})) = 0x7000;
    const Results after = forward_of(q, huge, other, o);
    EXPECT_EQ(
        0, std::memcmp(before.o.data, after.o.data, 2 * static_cast<std::size_t>(dv) * size_of(t)))
        << name_of(t);
  }
}

TEST_P(CpuDecode, ExplainNamesTheTileAndItsFloor) {
  const auto explained = [](std::int64_t nq, DType t = DType::bf16, Options o = {}) {
    const Data x = data_of({.dtype = t, .hq = 4, .hkv = 4, .nq = nq, .nk = 500, .d = 32});
    const Problem p = resolve(x.q, x.kv, o);
    return cpu::prepare(p.spec, p.bounds, cpu_device, {})->explanation;
  };
  const Explanation few = explained(1), many = explained(100);
  EXPECT_THAT(few.tiles, ::testing::StartsWith("decode: up to "));
  EXPECT_THAT(few.notes,
              ::testing::Contains("decode floor: one read of K and V, 0.3 MB at the bounds"));
  EXPECT_THAT(many.tiles, ::testing::Not(::testing::HasSubstr("decode")));
  const auto one_step = ::testing::Contains(
      "decode: scores, softmax and outputs of a tile are one step, but where a mask ends");
  EXPECT_THAT(explained(1, DType::f32).notes, one_step);
  EXPECT_THAT(explained(1, DType::f32, {.score = softcap(5.0f)}).notes, ::testing::Not(one_step));
  EXPECT_THAT(explained(1, DType::f32, {.determinism = Determinism::invariant}).notes,
              ::testing::Not(one_step));
}

// Rows that follow one another and rows that lie apart ask for different lines: the bits of a run
// of tiles are the same.
TEST_P(CpuDecode, ARunOfTilesIsTheSameFromAnyLayout) {
  const std::int64_t n = 64 * 5 + 37;
  for (const DType t : {DType::f32, DType::f16, DType::bf16})
    for (const std::int64_t heads : {1, 2, 4, 8}) {  // of one key head
      SCOPED_TRACE(testing::Message() << name_of(t) << ", " << heads << " queries");
      const Tensor q = random_tensor(t, {1, heads, 1, 64}, 1),
                   k = random_tensor(t, {1, 1, n, 64}, 2), v = random_tensor(t, {1, 1, n, 64}, 3);
      // As one of two heads whose tokens lie between those of the other.
      const Tensor apart_k = Tensor::empty(t, {1, n, 2, 64}),
                   apart_v = Tensor::empty(t, {1, n, 2, 64});
      const std::size_t bytes = 64 * size_of(t);
      for (std::int64_t j = 0; j < n; ++j)
        for (const auto& [from, to] : {std::pair{&k, &apart_k}, {&v, &apart_v}}) {
          std::memcpy(to->at({0, j, 1, 0}), from->at({0, 0, j, 0}), bytes);
          std::memset(to->at({0, j, 0, 0}), 0x7f, bytes);
        }
      const auto second = [](const Tensor& x) { return x.permuted({0, 2, 1, 3}).sliced(1, 1, 2); };
      const Results whole = forward_of(q, k, v, {}),
                    apart = forward_of(q, second(apart_k), second(apart_v), {});
      EXPECT_EQ(0,
                std::memcmp(whole.o.data, apart.o.data, static_cast<std::size_t>(heads) * bytes));
    }
}

TEST_P(CpuDecode, AScoreOrAValueThatIsNaNStaysWithItsQueries) {
  const Tensor q = random_tensor(DType::f32, {1, 3, 1, 32}, 1),
               k = random_tensor(DType::f32, {1, 1, 90, 32}, 2),
               v = random_tensor(DType::f32, {1, 1, 90, 32}, 3);
  *static_cast<float*>(q.at({0, 1, 0, 5})) = std::numeric_limits<float>::quiet_NaN();
  const Results f = forward_of(q, k, v, {});
  for (std::int64_t h = 0; h < 3; ++h)
    EXPECT_EQ(h == 1, std::isnan(*static_cast<float*>(f.o.at({0, h, 0, 7})))) << h;
}

}  // namespace
}  // namespace undivided::test
