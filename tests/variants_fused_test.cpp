// SPDX-License-Identifier: Apache-2.0
// Claims: the sweep that reads V once for both branches of differential attention gives the bits of
// its branches computed one by one, for every kind of mask, rows and keys, and near float64.
#include <cstring>
#include <memory>

#include "variants_support.hpp"

namespace undivided {
namespace {

/// Head first, first + step, ... of axis 1.
View heads(const View& v, std::int64_t first, std::int64_t step) {
  View some = v;
  some.data = static_cast<std::byte*>(v.data) +
              first * v.stride[1] * static_cast<std::int64_t>(size_of(v.dtype));
  some.shape[1] = v.shape[1] / step;
  some.stride[1] *= step;
  return some;
}

void expect_same_bits(const View& a, const View& b, const char* what) {
  const Tensor x = converted(a, a.dtype), y = converted(b, b.dtype);
  ASSERT_EQ(x.count(), y.count()) << what;
  EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<std::size_t>(x.count()) * size_of(x.dtype)), 0)
      << what << ", off by " << largest_difference(a, b);
}

Context alone() {
  Context c;
  c.executor = &inline_executor();
  return c;
}

struct Form {
  std::string name;
  Options options;
};
std::vector<Form> forms(std::int64_t tokens) {
  std::vector<Form> all(6);
  all[0].name = "full";
  all[1] = {"causal", {}};
  all[1].options.mask = causal();
  all[2] = {"window", {}};
  all[2].options.mask = window(40, 3);
  std::vector<std::int32_t> id(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::int32_t>(i / 70);
  all[3] = {"documents", {}};
  all[3].options.mask = documents(Array(std::move(id), "id"));
  all[4] = {"softcap", {}};
  all[4].options.score = softcap(3);
  all[4].options.mask = causal();
  all[5] = {"a window for each head", {}};
  all[5].options.mask = mask([](auto, auto h, auto q, auto k) { return q - k <= 30 * h + 7; });
  for (Form& f : all) f.options.align = Align::end;
  return all;
}

struct V1 {
  V1() {
    for (int i = 0; i < 4; ++i) vectors.push_back(wave(DType::f64, {5}, 9 + i, .2));
    p.q1 = vectors[0];
    p.k1 = vectors[1];
    p.q2 = vectors[2];
    p.k2 = vectors[3];
  }
  std::vector<Tensor> vectors;
  DifferentialV1 p;
};

TEST(DifferentialFused, FirstVersionHasTheBitsOfItsBranches) {
  const V1 v1;
  for (const DType t : {DType::f32, DType::f16})
    for (const std::int64_t kv_heads : {1, 2})
      for (Form& form : forms(150)) {
        SCOPED_TRACE(form.name + " " + std::string(name_of(t)));
        const Tensor q = wave(t, {1, 4, 130, 12}, 0), k = wave(t, {1, 2 * kv_heads, 150, 12}, 1),
                     v = wave(t, {1, kv_heads, 150, 20}, 2);
        const DifferentialForward f = differential(q, dense(k, v), v1.p, form.options, alone());
        Options same = form.options;
        same.out_dtype = DType::f32;
        ASSERT_EQ(f.branches.size(), 2u);
        for (int c = 0; c < 2; ++c) {
          const Forward one =
              attention(Rows(heads(q, c, 2)), dense(heads(k, c, 2), v), same, alone());
          expect_same_bits(f.branches[static_cast<std::size_t>(c)].o, one.o, "O");
          expect_same_bits(f.branches[static_cast<std::size_t>(c)].lse, one.lse, "LSE");
        }
        const auto f64 = [](const Tensor& x) { return converted(x, DType::f64); };
        const Tensor qd = f64(q), kd = f64(k), vd = f64(v);
        const DifferentialForward exact = differential(qd, dense(kd, vd), v1.p, form.options);
        EXPECT_LT(largest_difference(f.o, exact.o), t == DType::f32 ? 3e-5 : 4e-3);
        EXPECT_EQ(f.o.dtype, t);
      }
}

TEST(DifferentialFused, SecondVersionHasTheBitsOfOneAttention) {
  const Tensor logits = wave(DType::f32, {1, 4, 130}, 5);
  DifferentialV2 p;
  p.logits = logits;
  for (const std::int64_t kv_heads : {1, 2, 4})
    for (Form& form : forms(150)) {
      SCOPED_TRACE(form.name);
      const Tensor q = wave(DType::f32, {1, 8, 130, 12}, 0),
                   k = wave(DType::f32, {1, kv_heads, 150, 12}, 1),
                   v = wave(DType::f32, {1, kv_heads, 150, 20}, 2);
      const DifferentialForward f = differential(q, dense(k, v), p, form.options, alone());
      const Forward one = attention(q, k, v, form.options, alone());
      ASSERT_EQ(f.branches.size(), 1u);
      expect_same_bits(f.branches[0].o, one.o, "O");
      expect_same_bits(f.branches[0].lse, one.lse, "LSE");
      const auto f64 = [](const Tensor& x) { return converted(x, DType::f64); };
      const Tensor qd = f64(q), kd = f64(k), vd = f64(v);
      EXPECT_LT(largest_difference(f.o, differential(qd, dense(kd, vd), p, form.options).o), 1e-5);
    }
}

TEST(DifferentialFused, PackedRowsAndPagesAreTheSequencesOneByOne) {
  const V1 v1;
  constexpr std::int64_t page = 16;
  const std::int32_t q_at[] = {0, 90, 190}, lengths[] = {100, 120};
  const std::int32_t table[] = {3, 9, 1, 7, 5, 11, 13, 0, 2, 4, 6, 8, 10, 12, 14, 15};
  const Tensor q = wave(DType::f32, {195, 4, 8}, 0),  // the last 5 rows belong to nobody
      pool_k = wave(DType::f32, {16, 2, page, 8}, 1),
               pool_v = wave(DType::f32, {16, 1, page, 16}, 2);
  const Rows rows = ragged(q, view(const_cast<std::int32_t*>(q_at), {3}));
  const Kv kv = paged(pool_k,
                      pool_v,
                      view(const_cast<std::int32_t*>(table), {2, 8}),
                      view(const_cast<std::int32_t*>(lengths), {2}));
  Options options;
  options.mask = causal();
  options.align = Align::end;
  const DifferentialForward f = differential(rows, kv, v1.p, options, alone());
  for (int b = 0; b < 2; ++b) {
    Tensor k = Tensor::empty(DType::f32, {2, lengths[b], 8}),
           v = Tensor::empty(DType::f32, {1, lengths[b], 16});
    for (std::int64_t i = 0; i < lengths[b]; ++i) {
      const std::int32_t at = table[b * 8 + i / page];
      copy(pool_k.selected(0, at).sliced(1, i % page, i % page + 1), k.sliced(1, i, i + 1));
      copy(pool_v.selected(0, at).sliced(1, i % page, i % page + 1), v.sliced(1, i, i + 1));
    }
    const Tensor mine =
        converted(q.sliced(0, q_at[b], q_at[b + 1]).permuted({1, 0, 2}), DType::f32);
    const DifferentialForward one = differential(mine, dense(k, v), v1.p, options, alone());
    expect_same_bits(f.o.sliced(0, q_at[b], q_at[b + 1]).permuted({1, 0, 2}), one.o, "O");
  }
  EXPECT_EQ(largest_difference(f.o.sliced(0, 190, 195), Tensor::zeros(DType::f32, {5, 2, 16})), 0);
}

TEST(DifferentialFused, ThreadsDoNotChangeTheBits) {
  const V1 v1;
  const Tensor q = wave(DType::f32, {1, 6, 300, 16}, 0), k = wave(DType::f32, {1, 6, 300, 16}, 1),
               v = wave(DType::f32, {1, 3, 300, 32}, 2);
  const auto three = make_thread_executor(3);
  Context shared;
  shared.executor = three.get();
  expect_same_bits(differential(q, dense(k, v), v1.p, {}, alone()).o,
                   differential(q, dense(k, v), v1.p, {}, shared).o,
                   "O");
}

TEST(DifferentialFused, ItsBackwardIsThatOfFloat64) {
  const V1 v1;
  const auto make = [](DType t) {
    return std::vector<Tensor>{wave(t, {1, 4, 90, 8}, 0),
                               wave(t, {1, 2, 90, 8}, 1),
                               wave(t, {1, 1, 90, 16}, 2),
                               wave(t, {1, 2, 90, 16}, 3)};
  };
  const std::vector<Tensor> fast = make(DType::f32), exact = make(DType::f64);
  Options options;
  options.mask = causal();
  const auto run = [&](const std::vector<Tensor>& x) {
    const DifferentialForward f = differential(x[0], dense(x[1], x[2]), v1.p, options, alone());
    return differential_backward(x[3], x[0], dense(x[1], x[2]), v1.p, f, alone());
  };
  const DifferentialGradients a = run(fast), b = run(exact);
  EXPECT_LT(largest_difference(a.q, b.q), 1e-4);
  EXPECT_LT(largest_difference(a.k, b.k), 1e-4);
  EXPECT_LT(largest_difference(a.v, b.v), 1e-4);
  EXPECT_NEAR(a.lambda, b.lambda, 1e-3);
}

}  // namespace
}  // namespace undivided
