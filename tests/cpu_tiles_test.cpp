// SPDX-License-Identifier: Apache-2.0
// The tiles themselves: exp2, byte-code against the scalar reading, dropout, choice of the
// instruction set, peaks.
#include <bit>

#include "core/philox.hpp"
#include "cpu/peak.hpp"
#include "cpu/programs.hpp"
#include "cpu_support.hpp"

namespace undivided::test {
namespace {

class CpuTiles : public ::testing::TestWithParam<std::string> {
 protected:
  const cpu::Kernels& kernels_ = cpu::kernels_of(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuTiles, ::testing::ValuesIn(cpu::available_isas()));

TEST_P(CpuTiles, Exp2IsAccurateAndExactAtItsEnds) {
  std::vector<float> x;
  for (float v = -125.0f; v < 10.0f; v += 0.0137f) x.push_back(v);
  std::vector<float> y = x;
  kernels_.exp2(y.data(), static_cast<std::int64_t>(y.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp2(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i] / want, 1.0, 2.5e-7) << x[i];
  }
  const float infinity = std::numeric_limits<float>::infinity();
  float ends[] = {
      0.0f, -infinity, std::numeric_limits<float>::quiet_NaN(), -1000.0f, -140.0f, 1.0f};
  kernels_.exp2(ends, 6);
  EXPECT_EQ(ends[0], 1.0f);
  EXPECT_EQ(ends[1], 0.0f);
  EXPECT_TRUE(std::isnan(ends[2]));
  EXPECT_EQ(ends[3], 0.0f);
  EXPECT_NEAR(ends[4], std::exp2(-140.0), 1e-44);
  EXPECT_EQ(ends[5], 2.0f);
}

/// Runs a program over a tile and compares each element with the scalar reading.
void expect_same_reading(const cpu::Kernels& k,
                         const expr::Program& p,
                         const expr::Bound& bound,
                         const cpu::Flatten& how) {
  using expr::Rate;
  const int rows = 13;
  const cpu::FlatCode code = cpu::flatten(p, how);
  std::vector<float> memory(1 << 20);
  cpu::Arena arena(memory.data());
  const auto contents = cpu::Contents::layout(arena, code);
  contents.fill(code, bound);
  auto* q = arena.take<std::int32_t>(k.lanes);
  auto* score = arena.take<float>(cpu::key_block * k.lanes);
  const auto files = cpu::WorkerFiles::layout(arena, code, k, 1).at(0, score);
  auto* out = arena.take<float>(cpu::key_block * k.lanes);
  ASSERT_LT(arena.used(), memory.size() * 4);
  std::mt19937 engine(7);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  for (int i = 0; i < k.lanes; ++i) q[i] = 17 + i;
  for (int i = 0; i < rows * k.lanes; ++i) score[i] = normal(engine);
  const std::vector<float> before(score, score + rows * k.lanes);
  cpu::Environment at;
  at.arrays = contents.arrays;
  at.params = contents.params;
  at.batch = 2, at.head = 3, at.q_len = 100, at.k_len = 90, at.q = q, at.k = 11;
  const auto execute = [&](Rate rate, int first, int n) { code.run(k, rate, first, n, files, at); };
  execute(Rate::uniform, 0, 1);
  execute(Rate::key, 0, rows);
  execute(Rate::query, 0, 1);
  execute(Rate::diagonal, 0, 0);
  for (int r = 0; r < rows; r += cpu::chunk_rows) {
    const int n = std::min(cpu::chunk_rows, rows - r);
    execute(Rate::element, r, n);
    k.read(code.roots[0], r, n, files, out + r * k.lanes);
  }
  std::vector<double> scratch(p.nodes.size());
  for (int r = 0; r < rows; ++r)
    for (int lane = 0; lane < k.lanes; ++lane) {
      const float got = out[r * k.lanes + lane];
      double want = 0;
      expr::evaluate(p,
                     bound,
                     {2, 3, q[lane], 11 + r, 100, 90, before[r * k.lanes + lane]},
                     scratch.data(),
                     &want);
      switch (p.root().type) {
        case expr::Type::boolean:
          ASSERT_EQ(std::bit_cast<std::int32_t>(got), want != 0 ? -1 : 0);
          break;
        case expr::Type::i32:
          ASSERT_EQ(std::bit_cast<std::int32_t>(got), want);
          break;
        default:
          if (std::isnan(want)) {
            ASSERT_TRUE(std::isnan(got));
          } else if (std::isinf(want)) {
            ASSERT_EQ(got, want);
          } else {
            ASSERT_NEAR(got, want, 3e-6 * std::fabs(want) + 1e-6);
          }
      }
    }
}

void expect_same_reading(const cpu::Kernels& k, const expr::Program& p, const expr::Bound& bound) {
  const bool score = p.root().type == expr::Type::f32;
  for (const bool diagonals : {false, true})
    for (const bool in_place : {false, score}) {
      SCOPED_TRACE(testing::Message() << "diagonals " << diagonals << " in place " << in_place);
      expect_same_reading(k, p, bound, {.diagonals = diagonals, .in_place = in_place});
    }
}

TEST_P(CpuTiles, ByteCodeReadsLikeTheOracle) {
  const Array table(std::vector<float>{0.5f, -1.5f, 2.25f, 0.125f, 9.0f}, "table");
  const Array line(std::vector<float>(100, 0.75f), "line");
  const Array ids(std::vector<std::int32_t>{5, 4, 3, 2, 1, 0, -7}, "ids");
  Tensor flags = Tensor::empty(DType::boolean, {4, 6});
  for (int i = 0; i < 24; ++i) flags.ptr<bool>()[i] = i % 5 == 2;
  const Captures captures{{table, line, ids, Array(flags, "flags")}, {{"w", 3}}};
  const char* masks[] = {"k <= q",
                         "(q - k) % 5 == 2 || (k - q) / 7 < -1",
                         "ids[k % 7] == ids[q % 7]",
                         "flags[head, (q + k) % 6]",
                         "((q ^ k) & 3) == 1",
                         "(((q - 40) << 2) | (k >> 1)) != 6 && !(min(q, k) > max(k - 3, 20))",
                         "abs(q - k) < w && batch == 2 && q_len > k_len",
                         "(q < k) == (k < 30)",
                         "trunc(q * 0.37) == trunc(k * 0.91)",
                         "q % (k + 1) == 0",
                         "(q - k) % 8 == 3 || (k - q) / 4 == -2 || (q - k * 2) / 16 == -1",
                         "(q + k * 2 - 80) % 16 < 5 && (k - q) / w != (k + q) % w",
                         "(q > 20 ? k : q) > 18",
                         "flags[head, abs(k - q) % 6]",
                         "ids[min(abs(q - 3 - k), 6)] > (q < k ? 3 : 0)"};
  for (const char* text : masks) {
    SCOPED_TRACE(text);
    const Mask m = Mask::parse(text, captures);
    const auto bound = bind(m, Positions{4, 4, 0, 99, 0, 89, 100, 90});
    expect_same_reading(kernels_, *bound->program, bound->bound);
  }
  const char* scores[] = {"30.0 * tanh(score / 30.0)",
                          "tanh(score * 0.01) + tanh(score)",
                          "score + table[abs(k - q) % 5]",
                          "exp(score) - exp(-abs(score) * 9.0)",
                          "log(abs(score)) + log(score)",
                          "sqrt(abs(score)) * (q < k ? 1.0 : -2.5)",
                          "min(score, 1.5) + max(score, -0.5) - abs(score)",
                          "score / (k - q)",
                          "score / 1e-25 + score / 0.0 + score / 3.0e38",
                          "line[k] * 2.0",
                          "w * 1.5",
                          "0.25 * sqrt(abs(q - k)) - 1.0",
                          "tanh(score * 1e-4) + tanh(score * 1e30)",
                          "(q <= k ? score : 2.0) + table[min(max(k - q, 0), 4)]",
                          "score > 0.0 ? score : score * 0.1",
                          "-score * table[abs(ids[k % 7]) % 5] + w"};
  for (const char* text : scores) {
    SCOPED_TRACE(text);
    const Score s = Score::parse(text, captures);
    const auto bound = bind(s, Positions{4, 4, 0, 99, 0, 89, 100, 90});
    expect_same_reading(kernels_, *bound->program, bound->bound);
  }
}

TEST_P(CpuTiles, DropoutIsPhiloxByPosition) {
  std::vector<std::int32_t> q(kernels_.lanes), head(kernels_.lanes);
  for (int i = 0; i < kernels_.lanes; ++i) q[i] = 1000 + 3 * i, head[i] = i % 5;
  const int rows = 19;
  std::vector<float> p(rows * kernels_.lanes, 1.0f);
  const std::uint64_t seed = 0x123456789abcdefull;
  cpu::DropoutTile at{q.data(),
                      head.data(),
                      6,
                      4093,
                      philox::dropout_threshold(0.4),
                      static_cast<std::uint32_t>(seed),
                      static_cast<std::uint32_t>(seed >> 32),
                      2.0f};
  kernels_.drop(p.data(), rows, at);
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < kernels_.lanes; ++i) {
      const bool keep = philox::keep(seed, at.threshold, 6, head[i], q[i], 4093 + r);
      ASSERT_EQ(p[r * kernels_.lanes + i], keep ? 2.0f : 0.0f);
    }
}

TEST_P(CpuTiles, ProductsReadPackedBlocks) {
  const int rows = 21, first = 8, d = 19, dv = 11, lanes = kernels_.lanes;
  const Tensor k = random_tensor(DType::f32, {rows, d}, 1),
               v = random_tensor(DType::f32, {rows, dv}, 2);
  const Tensor q = random_tensor(DType::f32, {lanes, d}, 3);
  const auto bytes = [](const Tensor& t, std::int64_t row) {
    return static_cast<const std::byte*>(t.data) + row * t.size(1) * 4;
  };
  const auto at = [](const Tensor& t, int row, int column) {
    return static_cast<double>(t.ptr<float>()[row * t.size(1) + column]);
  };
  std::vector<float> k_blocks(3 * cpu::block_column), v_blocks(2 * cpu::block_column);
  std::vector<const std::byte*> row(std::max(lanes, rows));
  for (const auto& [from, columns, to] : {std::tuple{&k, d, &k_blocks}, {&v, dv, &v_blocks}}) {
    for (int i = 0; i < rows; ++i) row[i] = bytes(*from, i);
    kernels_.pack_blocks(row.data(), rows, DType::f32, columns, to->data());
  }
  for (int i = 0; i < lanes; ++i) row[i] = bytes(q, i);
  std::vector<float> q_t(cpu::whole_blocks(d) * lanes, NAN), s(cpu::key_block * lanes);
  kernels_.pack(row.data(), lanes - 1, DType::f32, d, 0.5f, q_t.data());
  kernels_.f32.scores(k_blocks.data(), first, rows - first, d, q_t.data(), 3.0f, s.data(), 2);
  for (int r = first; r < rows; ++r)
    for (int lane = 0; lane < lanes; ++lane) {
      double want = 0;
      for (int i = 0; lane + 1 < lanes && i < d; ++i) want += 1.5 * at(k, r, i) * at(q, lane, i);
      ASSERT_NEAR(s[(r - first) * lanes + lane], want, 1e-5);
    }
  if (kernels_.f32.scores_of_two) {  // the bits are those of one
    const std::int64_t apart = static_cast<std::int64_t>(q_t.size());
    std::vector<float> both = q_t, two(2 * s.size(), NAN);
    both.insert(both.end(), q_t.rbegin(), q_t.rend());
    kernels_.f32.scores_of_two(k_blocks.data(),
                               first,
                               rows - first,
                               d,
                               both.data(),
                               apart,
                               3.0f,
                               two.data(),
                               static_cast<std::int64_t>(s.size()));
    for (int part = 0; part < 2; ++part) {
      std::vector<float> one(s.size());
      kernels_.f32.scores(
          k_blocks.data(), first, rows - first, d, both.data() + part * apart, 3.0f, one.data(), 2);
      for (int i = 0; i < (rows - first) * lanes; ++i)
        ASSERT_EQ(two[part * s.size() + i], one[i]) << part << ' ' << i;
    }
  }
  std::vector<float> o_t(cpu::whole_blocks(dv) * lanes, 2.0f), alpha(lanes);
  for (int lane = 0; lane < lanes; ++lane) alpha[lane] = 0.25f * static_cast<float>(lane % 3);
  kernels_.f32.accumulate(
      v_blocks.data(), first, rows - first, dv, s.data(), alpha.data(), o_t.data(), 2);
  for (int c = 0; c < dv; ++c)
    for (int lane = 0; lane < lanes; ++lane) {
      double want = 2.0 * alpha[lane];
      for (int r = first; r < rows; ++r) want += at(v, r, c) * s[(r - first) * lanes + lane];
      ASSERT_NEAR(o_t[c * lanes + lane], want, 2e-4);
    }
  std::vector<float> zero(o_t.size()), fresh(o_t.size(), NAN);  // without alpha nothing was there
  kernels_.f32.accumulate(
      v_blocks.data(), first, rows - first, dv, s.data(), alpha.data(), zero.data(), 2);
  kernels_.f32.accumulate(
      v_blocks.data(), first, rows - first, dv, s.data(), nullptr, fresh.data(), 2);
  for (int i = 0; i < dv * lanes; ++i) ASSERT_EQ(fresh[i], zero[i]) << i;
}

TEST_P(CpuTiles, SoftmaxMovesItsReferenceOnlyPastTheSlack) {
  const int lanes = kernels_.lanes, rows = 5;
  std::vector<float> m(lanes, -INFINITY), l(lanes), alpha(lanes);
  std::vector<float> s(rows * lanes, 0.0f);
  kernels_.softmax(s.data(), rows, 1.0f, 8.0f, m.data(), l.data(), alpha.data(), 2, s.data());
  for (int lane = 0; lane < lanes; ++lane) {
    ASSERT_EQ(m[lane], 0.0f);
    ASSERT_EQ(alpha[lane], 0.0f);
    ASSERT_EQ(l[lane], 5.0f);
  }
  std::vector<float> x(rows * lanes);
  for (int r = 0; r < rows; ++r)
    for (int lane = 0; lane < lanes; ++lane)
      x[r * lanes + lane] = static_cast<float>(lane - r);  // at most `lane`
  s = x;
  kernels_.softmax(s.data(), rows, 1.0f, 3.0f, m.data(), l.data(), alpha.data(), 2, s.data());
  for (int lane = 0; lane < lanes; ++lane) {
    const float want = lane > 3 ? static_cast<float>(lane) : 0.0f;
    ASSERT_EQ(m[lane], want);
    ASSERT_NEAR(alpha[lane], std::exp2(-want), 1e-6);
    float sum = 5 * std::exp2(-want);
    for (int r = 0; r < rows; ++r) {
      const float weight = std::exp2(x[r * lanes + lane] - want);
      ASSERT_NEAR(s[r * lanes + lane], weight, 1e-6 * weight);
      sum += weight;
    }
    ASSERT_NEAR(l[lane], sum, 1e-6 * sum);
  }
  if (!kernels_.dots) return;
  for (int n = 1; n <= rows; ++n) {  // weights in pairs are the same, paired, here or elsewhere
    std::vector<float> in_rows = x, pairs = x, scores = x, elsewhere(x.size());
    const auto softmax = [&](cpu::Softmax* with, std::vector<float>& at, std::vector<float>& to) {
      std::fill(m.begin(), m.end(), -INFINITY);
      std::fill(l.begin(), l.end(), 0.0f);
      with(at.data(), n, 1.0f, 0.0f, m.data(), l.data(), alpha.data(), 2, to.data());
    };
    softmax(kernels_.softmax, in_rows, in_rows);
    softmax(kernels_.dots->softmax, pairs, pairs);
    softmax(kernels_.dots->softmax, scores, elsewhere);
    kernels_.dots->pair_rows(in_rows.data(), n, 2);
    for (int i = 0; i < (n + 1) / 2 * lanes; ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(pairs[i]), std::bit_cast<std::uint32_t>(in_rows[i]));
      ASSERT_EQ(std::bit_cast<std::uint32_t>(pairs[i]), std::bit_cast<std::uint32_t>(elsewhere[i]));
    }
    ASSERT_EQ(scores, x);
  }
}

TEST_P(CpuTiles, ConversionsRoundOnceToNearestEven) {
  std::mt19937 engine(3);
  std::vector<float> x;
  for (int i = 0; i < 1000; ++i)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(engine())));
  for (const DType t : {DType::f16, DType::bf16}) {
    std::vector<std::uint16_t> out(x.size());
    kernels_.store_row(x.data(),
                       1.0f,
                       t,
                       static_cast<int>(x.size()),
                       reinterpret_cast<std::byte*>(out.data()),
                       cpu::Write::over);
    std::vector<float> back(x.size());
    kernels_.copy_rows(reinterpret_cast<std::byte*>(out.data()),
                       0,
                       t,
                       1,
                       static_cast<int>(x.size()),
                       back.data(),
                       0,
                       static_cast<int>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        ASSERT_TRUE(std::isnan(back[i]));
        continue;
      }
      const float want = t == DType::f16 ? to_float(to_half(x[i])) : to_float(to_bfloat16(x[i]));
      ASSERT_EQ(back[i], want) << x[i];
    }
  }
}

TEST_P(CpuTiles, PeakIsAPositiveRate) {
  EXPECT_GT(cpu::fma_peak_gflops(GetParam(), 0.01), 0.1);
  EXPECT_EQ(cpu::bf16_dot_peak_gflops(GetParam(), 0.01) > 0, kernels_.dots != nullptr);
}

TEST(CpuIsa, TheProcessorHasScalarAndForcingIsHonoured) {
  EXPECT_EQ(cpu::available_isas().front(), "scalar");
  for (const std::string& isa : cpu::available_isas()) {
    const ForcedIsa forced(isa);
    EXPECT_STREQ(cpu::chosen_kernels().name, isa.c_str());
  }
}

TEST(CpuIsa, AnUnknownNameIsRefusedWithTheLegalOnes) {
  try {
    cpu::kernels_of("neon");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("'neon' is unknown"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr("scalar"));
  }
  const ForcedIsa forced("sse9");
  Data x = data_of({});
  const Problem p = resolve(x.q, x.kv, {});
  EXPECT_FALSE(cpu::support(p.spec, p.bounds, {}).ok);
}

TEST(CpuRun, RefusesContentsThatLeaveTheirTables) {
  Case c{.batch = 2, .kv = KvKind::paged};
  Data x = data_of(c);
  Problem p = resolve(x.q, x.kv, {});
  const Results r(p, DType::f32, DType::f32);
  r.attach(p.args);
  x.table.ptr<std::int64_t>()[1] = 99;
  try {
    run_cpu(p);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.stage(), Stage::run);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("page_table[0, 1] is 99"));
  }
}

TEST(CpuRun, RefusesAnExecutorWithMoreWorkersThanPlannedFor) {
  const auto many = make_thread_executor(64);
  Data x = data_of({});
  Problem p = resolve(x.q, x.kv, {});
  const Results r(p, DType::f32, DType::f32);
  r.attach(p.args);
  const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, {});
  std::vector<std::byte> workspace(prepared->workspace() + 64);
  Context context;
  context.executor = many.get();
  EXPECT_THROW(prepared->run(p.args, workspace.data(), context), Error);
}

TEST(CpuExplain, CountsABandExactly) {
  Case c{.hq = 1, .hkv = 1, .nq = 64, .nk = 64};
  c.options.mask = causal();
  const Data x = data_of(c);
  const Problem p = resolve(x.q, x.kv, c.options);
  const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, {});
  EXPECT_EQ(prepared->explanation.flops, 2.0 * (64 * 65 / 2) * (16 + 16));
  EXPECT_THAT(prepared->explanation.kernel, ::testing::HasSubstr("d16.band.identity.dense"));
}

TEST(CpuMerge, PartsOfTheKeysMakeTheWhole) {
  for (const std::string& isa : cpu::available_isas()) {
    const ForcedIsa forced(isa);
    Case c{.nq = 30, .nk = 100};
    const Data x = data_of(c);
    const auto partial = [&](std::int64_t begin, std::int64_t end) {
      Options options;
      options.partial = true;
      Problem p =
          resolve(x.q, dense(x.k.sliced(2, begin, end), x.v.sliced(2, begin, end)), options);
      const Results r(p, DType::f32, DType::f32);
      r.attach(p.args);
      run_cpu(p);
      return r;
    };
    const Results all = partial(0, 100), a = partial(0, 37), b = partial(37, 100),
                  none = partial(0, 0);
    const auto merged = [&](const Results& l, const Results& r) {
      Problem p = resolve(x.q, x.kv, {});
      p.spec.op = Operation::merge;
      const Results out(p, DType::f32, DType::f32);
      out.attach(p.args);
      p.args.a_o = l.o, p.args.a_lse = l.lse, p.args.b_o = r.o, p.args.b_lse = r.lse;
      run_cpu(p);
      return out;
    };
    const Results whole = merged(a, b), same = merged(none, a);
    EXPECT_LE(relative_error(whole.o, all.o), 1e-6);
    EXPECT_LE(relative_error(whole.lse, all.lse), 1e-6);
    EXPECT_LE(relative_error(same.o, a.o), 0.0);
    EXPECT_LE(relative_error(same.lse, a.lse), 1e-7);
  }
}

}  // namespace
}  // namespace undivided::test
