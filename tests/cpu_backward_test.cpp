// SPDX-License-Identifier: Apache-2.0
// The CPU backward equals the oracle on every instruction set, with every gradient there is.
#include "cpu_support.hpp"

namespace undivided::test {
namespace {

/// Gradients of one problem in one dtype.
struct GradientViews {
  Tensor dq, dk, dv, dsink, params;
  std::vector<Tensor> arrays;
  GradientViews(const Problem& p, DType dtype, DType scalar) {
    dq = Tensor::empty_like(p.args.q.data, dtype);
    dk = Tensor::empty_like(p.args.kv.k, dtype);
    dv = Tensor::empty_like(p.args.kv.v, dtype);
    dsink = Tensor::zeros(scalar, {p.args.q.data.size(1)});
    const auto& score = *p.args.score;
    params = Tensor::zeros(scalar, {static_cast<std::int64_t>(score.bound.params.size()) + 1});
    for (std::size_t i = 0; i < score.bound.arrays.size(); ++i) {
      View like;
      like.rank = score.program->slots[i].rank;
      for (int axis = 0; axis < like.rank; ++axis)
        like.shape[axis] = score.bound.arrays[i].shape[axis];
      arrays.push_back(Tensor::empty_like(like, scalar));
    }
  }
  void attach(Problem& p) const {
    p.args.dq = dq;
    p.args.dk = dk;
    p.args.dv = dv;
    if (p.spec.sink) p.args.dsink = dsink;
    if (!p.spec.captured) return;
    p.args.d_params = params.sliced(0, 0, params.size(0) - 1);
    p.args.d_arrays.assign(arrays.begin(), arrays.end());
  }
};

Rows like_rows(const Rows& q, const View& data) {
  Rows r = q;
  r.data = data;
  return r;
}

void expect_backward(const Case& c,
                     bool with_dlse = false,
                     const Context& context = {},
                     std::optional<DType> dout_dtype = {}) {
  const Data x = data_of(c);
  Problem f = resolve(x.q, x.kv, c.options);
  const Results forward(f, f.spec.out_dtype, DType::f32);
  forward.attach(f.args);
  if (c.mask_plan) add_mask_plan(f);
  run_cpu(f, context);
  Tensor dout =
      random_tensor(dout_dtype.value_or(f.spec.out_dtype), {f.args.o.count()}, c.seed + 9);
  View d = f.args.o;
  d.data = dout.data;
  d.dtype = dout.dtype;
  for (int axis = d.rank - 1, step = 1; axis >= 0; --axis) {
    d.stride[axis] = step;
    step *= static_cast<int>(d.shape[axis]);
  }
  BackwardOptions options;
  Tensor dlse = random_tensor(DType::f32, {f.args.lse.count()}, c.seed + 10);
  if (with_dlse) {
    options.dlse = f.args.lse;
    options.dlse.data = dlse.data;
  }
  options.gradient_dtype = DType::f32;
  Problem p =
      resolve_backward(like_rows(x.q, d), x.q, x.kv, f.args.o, f.args.lse, c.options, options);
  Problem oracle = p;
  if (c.mask_plan) add_mask_plan(p);
  const GradientViews got(p, DType::f32, DType::f32), want(p, DType::f64, DType::f64);
  want.attach(oracle);
  ref::backward(oracle.spec, oracle.args);
  got.attach(p);
  run_cpu(p, context);
  // 16-bit O makes delta inexact for both alike; the oracle reads the same O.
  // With one key dQ and dK are differences that cancel: there is nothing to be relative to.
  // Dots of bf16 pairs round P, dS and a float32 dO to 8 bits.
  const bool pairs = c.dtype == DType::bf16 && cpu::chosen_kernels().dots;
  const double limit = pairs ? 1e-2 : 3e-5;
  EXPECT_LE(relative_error(got.dq, want.dq, 0.1), limit);
  EXPECT_LE(relative_error(got.dk, want.dk, 0.1), limit);
  EXPECT_LE(relative_error(got.dv, want.dv), limit);
  if (p.spec.sink) {
    EXPECT_LE(relative_error(got.dsink, want.dsink), 3e-5);
  }
  if (!p.spec.captured) return;
  for (std::size_t i = 0; i < got.arrays.size(); ++i)
    if (p.args.score->program->slots[i].dtype == DType::f32) {
      EXPECT_LE(relative_error(got.arrays[i], want.arrays[i]), 5e-5);
    }
  EXPECT_LE(relative_error(got.params, want.params), 5e-5);
}

class CpuBackward : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedIsa forced_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Isa, CpuBackward, ::testing::ValuesIn(cpu::available_isas()));

TEST_P(CpuBackward, Shapes) {
  for (int number = 0;
       const auto& [nq, nk] : {std::pair{1, 1}, {7, 63}, {65, 129}, {300, 130}, {40, 600}})
    for (const auto& [d, dv] : {std::pair{8, 8}, {40, 72}, {64, 32}, {3, 5}}) {
      if (!taken(number++, 3)) continue;
      SCOPED_TRACE(testing::Message() << nq << "x" << nk << " d" << d << " dv" << dv);
      Case c{.hq = 4, .hkv = 2, .nq = nq, .nk = nk, .d = d, .dv = dv};
      expect_backward(c);
      c.options.mask = window(50, 0);
      c.options.align = Align::end;
      expect_backward(c, true);
    }
}

std::string form_of(const Problem& p, const Context& context) {
  const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, context);
  std::string all;
  for (const std::string& note : prepared->explanation.notes) all += note + "\n";
  return all;
}

void expect_same_bits(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<std::size_t>(a.count()) * 4), 0);
}

TEST_P(CpuBackward, AllFormsAndAnyNumberOfWorkersGiveTheSameBits) {
  const auto two = make_thread_executor(2), four = make_thread_executor(4);
  Case c{.hq = 4, .hkv = 2, .nq = 150, .nk = 1100, .d = 24, .dv = 24};
  for (const Mask& mask : {Mask(), causal(), window(600, 0)})
    for (const Determinism determinism : {Determinism::reproducible, Determinism::invariant}) {
      c.options.mask = mask;
      c.options.align = Align::end;
      c.options.determinism = determinism;
      const Data x = data_of(c);
      Problem f = resolve(x.q, x.kv, c.options);
      const Results forward(f, DType::f32, DType::f32);
      forward.attach(f.args);
      run_cpu(f);
      struct Way {
        Executor* executor;
        bool wide_bounds;
        const char* form;
      };
      std::vector<Tensor> first;
      for (const Way& way : {Way{&inline_executor(), false, nullptr},
                             {two.get(), false, "chunks"},
                             {four.get(), false, "chunks"},
                             {four.get(), true, "two passes"}}) {
        Context context;
        context.executor = way.executor;
        Problem p = resolve_backward(Rows(x.qt), x.q, x.kv, forward.o, forward.lse, c.options, {});
        if (way.wide_bounds) p.bounds.max_q_len = std::int64_t{1} << 18;
        if (way.form) EXPECT_THAT(form_of(p, context), testing::HasSubstr(way.form));
        const GradientViews g(p, DType::f32, DType::f32);
        g.attach(p);
        run_cpu(p, context);
        if (first.empty()) first = {g.dq, g.dk, g.dv};
        expect_same_bits(first[0], g.dq);
        expect_same_bits(first[1], g.dk);
        expect_same_bits(first[2], g.dv);
      }
    }
}

TEST_P(CpuBackward, ASequenceHasTheSameBitsAloneAndInABatch) {
  // Many sequences take one task a KV head; one sequence is cut into chunks of keys.
  const std::int64_t batch = 4 * default_executor().workers();
  Case c{.batch = batch, .hq = 2, .hkv = 2, .nq = 40, .nk = 1050};
  c.options.determinism = Determinism::invariant;  // else the forward splits the keys of one
  const Data x = data_of(c);
  const auto gradients = [&](std::int64_t count, const char* form) {
    const auto head = [&](const Tensor& t) { return t.sliced(0, 0, count); };
    Problem f = resolve(Rows(head(x.qt)), dense(head(x.k), head(x.v)), c.options);
    const Results forward(f, DType::f32, DType::f32);
    forward.attach(f.args);
    run_cpu(f);
    Problem p = resolve_backward(Rows(head(x.qt)),
                                 Rows(head(x.qt)),
                                 dense(head(x.k), head(x.v)),
                                 forward.o,
                                 forward.lse,
                                 c.options,
                                 {});
    if (form) EXPECT_THAT(form_of(p, {}), testing::HasSubstr(form));
    GradientViews g(p, DType::f32, DType::f32);
    g.attach(p);
    run_cpu(p);
    return g;
  };
  const GradientViews all = gradients(batch, "by one task"), one = gradients(1, nullptr);
  for (const auto& [a, b] : {std::pair{&one.dq, &all.dq}, {&one.dk, &all.dk}, {&one.dv, &all.dv}})
    EXPECT_EQ(std::memcmp(a->data, b->data, static_cast<std::size_t>(a->count()) * 4), 0);
}

TEST_P(CpuBackward, GradientsOfCapturedArraysDoNotDependOnWorkers) {
  const auto two = make_thread_executor(2), four = make_thread_executor(4);
  Tensor slopes = random_tensor(DType::f32, {4}, 3);
  Case c{.batch = 2, .hq = 4, .hkv = 2, .nq = 90, .nk = 700};
  c.options.score = Score::parse("param w: f32 = 0.7; score * w - slope[head] * abs(q - k) / 100",
                                 {{Array(slopes, "slope")}, {{"w", 0.7}}});
  c.options.align = Align::start;
  const Data x = data_of(c);
  Problem f = resolve(x.q, x.kv, c.options);
  const Results forward(f, DType::f32, DType::f32);
  forward.attach(f.args);
  run_cpu(f);
  std::vector<Tensor> first;
  for (Executor* executor : {&inline_executor(), two.get(), four.get()}) {
    Context context;
    context.executor = executor;
    Problem p = resolve_backward(Rows(x.qt), x.q, x.kv, forward.o, forward.lse, c.options, {});
    EXPECT_THAT(form_of(p, context), testing::HasSubstr("8 groups"));
    const GradientViews g(p, DType::f32, DType::f32);
    g.attach(p);
    run_cpu(p, context);
    if (first.empty()) first = {g.dq, g.arrays[0], g.params};
    expect_same_bits(first[0], g.dq);
    expect_same_bits(first[1], g.arrays[0]);
    expect_same_bits(first[2], g.params);
  }
}

TEST_P(CpuBackward, ACapturedTableThatGroupsCannotHold) {
  Tensor table = random_tensor(DType::f32, {100, 700}, 4);
  Case c{.nq = 100, .nk = 700};
  c.options.score = bias(Array(table, "table"));
  c.options.align = Align::start;
  expect_backward(c);
}

TEST_P(CpuBackward, ChunksOfKeysInEveryKindOfRows) {
  for (const RowKind rows : {RowKind::dense, RowKind::ragged})
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged}) {
      SCOPED_TRACE(testing::Message() << int(rows) << int(kv));
      Case c{.batch = 3, .hq = 2, .hkv = 1, .nq = 20, .nk = 1100, .rows = rows, .kv = kv};
      c.lengths = true;
      c.options.mask = window(700, 0);
      c.options.align = Align::end;
      expect_backward(c);
    }
}

TEST_P(CpuBackward, EveryKindOfRowsAndKeys) {
  for (const RowKind rows : {RowKind::dense, RowKind::ragged})
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged}) {
      SCOPED_TRACE(testing::Message() << int(rows) << int(kv));
      Case c{.batch = 4, .nq = 90, .nk = 150, .rows = rows, .kv = kv};
      c.lengths = true;
      c.options.mask = causal();
      c.options.align = Align::start;
      c.options.dropout = 0.25;
      c.options.seed = 3;
      expect_backward(c, true);
    }
}

TEST_P(CpuBackward, SixteenBitInputs) {
  for (const DType t : {DType::f16, DType::bf16})
    for (const auto& [nq, nk] : {std::pair{45, 131}, {3, 5}})
      for (const auto& [d, dv] : {std::pair{40, 24}, {7, 5}}) {
        SCOPED_TRACE(testing::Message() << name_of(t) << nq << "x" << nk << " d" << d);
        Case c{.dtype = t, .hq = 4, .hkv = 2, .nq = nq, .nk = nk, .d = d, .dv = dv};
        expect_backward(c);
        c.options.mask = window(50, 0);
        c.options.align = Align::end;
        c.options.score = softcap(5.0f);
        c.options.dropout = 0.2;
        c.options.out_dtype = DType::f32;
        expect_backward(c, true);
        expect_backward(c, true, {}, t);  // dO like the inputs, O in float32
      }
}

TEST_P(CpuBackward, SixteenBitPagesOfOddLengths) {
  for (const DType t : {DType::f16, DType::bf16}) {
    Case c{.dtype = t, .batch = 3, .nq = 61, .nk = 151, .kv = KvKind::paged, .page = 5};
    c.lengths = true;
    c.options.mask = causal();
    c.options.align = Align::start;
    expect_backward(c);
  }
}

TEST_P(CpuBackward, ScoreProgramsAndWhatTheyCapture) {
  std::vector<float> slopes{0.5f, 0.25f, -0.125f, 1.0f};
  Tensor grid = random_tensor(DType::f32, {64, 200}, 4);
  const Array buckets(std::vector<float>{0.5f, -1.0f, 2.0f, 0.25f}, "bucket");
  const Score scores[] = {
      softcap(5.0f),
      alibi(Array(slopes, "slope")),
      bias(Array(grid, "table")),
      softcap(3.0f) | alibi(Array(slopes, "slope")),
      Score::parse("param w: f32 = 0.7; score * w + bucket[min(abs(q - k) / 40, 3)]",
                   {{buckets}, {{"w", 0.7}}}),
  };
  for (const Score& s : scores) {
    SCOPED_TRACE(s.text());
    Case c{.hq = 4, .hkv = 2, .nq = 60, .nk = 190};
    c.options.score = s;
    c.options.align = Align::start;
    c.options.mask = window(100, 50);
    expect_backward(c);
  }
}

TEST_P(CpuBackward, MaskPlansSinksAndRowsWithoutKeys) {
  Tensor sink = Tensor::empty(DType::f32, {2});
  sink.ptr<float>()[0] = -3;
  sink.ptr<float>()[1] = 2;
  Case c{.nq = 140, .nk = 100};
  c.options.mask = causal() && Mask::parse("k % 7 != 3");
  c.options.align = Align::end;
  c.mask_plan = true;
  expect_backward(c, true);
  c.options.sink = sink;
  expect_backward(c, true);
  c.mask_plan = false;
  expect_backward(c, true);
}

TEST_P(CpuBackward, PagesSharedBySequencesAddUp) {
  Case c{.batch = 2, .nq = 20, .nk = 64, .kv = KvKind::paged};
  Data x = data_of(c);
  auto* table = x.table.ptr<std::int64_t>();
  table[4] = table[0];  // the second sequence begins with the first one's page
  Problem f = resolve(x.q, x.kv, {});
  const Results forward(f, DType::f32, DType::f32);
  forward.attach(f.args);
  run_cpu(f);
  Problem p = resolve_backward(Rows(x.qt), x.q, x.kv, forward.o, forward.lse, {}, {});
  Problem oracle = p;
  const GradientViews got(p, DType::f32, DType::f32), want(p, DType::f64, DType::f64);
  want.attach(oracle);
  ref::backward(oracle.spec, oracle.args);
  got.attach(p);
  run_cpu(p);
  EXPECT_LE(relative_error(got.dk, want.dk), 3e-5);
  EXPECT_LE(relative_error(got.dv, want.dv), 3e-5);
}

}  // namespace
}  // namespace undivided::test
