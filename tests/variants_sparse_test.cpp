// SPDX-License-Identifier: Apache-2.0
// Claims: dropping rows or sorting them into buckets is attention under a mask, forward and
// backward, for any head dim and grouping; dropped rows have no output and no gradient; and what is
// not honoured is refused by name.
#include <gmock/gmock.h>

#include <limits>
#include <vector>

#include "attention/execute.hpp"
#include "sparse_support.hpp"

namespace undivided {
namespace {

void expect_equal(const SparseForm& c,
                  bool buckets,
                  std::uint64_t share,
                  const Options& options = {},
                  const Context& context = {}) {
  const Tensor q = wave(c.dtype, {2, c.heads, c.nq, c.d}, 0),
               k = wave(c.dtype, {2, c.kv_heads, c.nk, c.d}, 1),
               v = wave(c.dtype, {2, c.kv_heads, c.nk, c.dv}, 2),
               dout = wave(c.dtype, {2, c.heads, c.nq, c.dv}, 3);
  const Tensor on_q = numbers({2, c.heads, c.nq}, 7, 5, share),
               on_k = numbers({2, c.kv_heads, c.nk}, 8, 5, share);
  const MaskedAttention want = masked_attention(c, q, k, v, dout, on_q, on_k, buckets, options);
  Options o = options;
  o.align = c.align;
  const SparseForward f =
      buckets ? sparse_attention(q, k, v, HashSparse{on_q, on_k, c.order}, o, context)
              : sparse_attention(q, k, v, QkSparse{on_q, on_k, c.order}, o, context);
  const double gate = c.dtype == DType::f32 ? 1e-5 : 2e-2;
  EXPECT_LT(largest_difference(want.f.o, f.o), gate);
  for (std::int64_t i = 0; i < f.lse.count(); ++i) {
    const double x = value(want.f.lse, i), y = value(f.lse, i);
    if (x == -std::numeric_limits<double>::infinity())
      EXPECT_EQ(y, x);
    else
      EXPECT_NEAR(y, x, gate);
  }
  const Gradients g = sparse_attention_backward(dout, q, k, v, f, context);
  EXPECT_LT(largest_difference(want.g.q, g.q), 10 * gate);
  EXPECT_LT(largest_difference(want.g.k, g.k), 10 * gate);
  EXPECT_LT(largest_difference(want.g.v, g.v), 10 * gate);
  for (std::int64_t row = 0; !buckets && row < on_q.count(); ++row)
    for (std::int64_t d = 0; d < c.d && on_q.ptr<std::int32_t>()[row] == 0; ++d)
      EXPECT_EQ(value(g.q, row * c.d + d), 0);
}

TEST(Sparse, KeptRowsAreAMask) {
  expect_equal({4, 2, 150, 150, 24, 16, Order::causal}, false, 50);
  expect_equal({2, 2, 70, 133, 64, 64, Order::causal, Align::end}, false, 30);
  expect_equal({3, 1, 65, 65, 7, 9, Order::none}, false, 80);
  expect_equal({2, 1, 40, 90, 8, 8, Order::strict}, false, 100);
  expect_equal({2, 1, 150, 150, 32, 32, Order::causal, Align::start, DType::bf16}, false, 50);
}

TEST(Sparse, BucketsAreAMask) {
  expect_equal({4, 2, 150, 150, 24, 16, Order::strict}, true, 0);
  expect_equal({2, 2, 70, 133, 64, 64, Order::strict, Align::end}, true, 0);
  expect_equal({3, 1, 65, 65, 7, 9, Order::none}, true, 0);
  expect_equal({2, 1, 150, 150, 32, 32, Order::causal, Align::start, DType::f16}, true, 0);
}

TEST(Sparse, AnyNumberOfWorkersAndTheOracleReadTheSameLists) {
  const auto four = make_thread_executor(4);
  for (const int workers : {1, 4}) {
    Context context;
    context.executor = workers == 1 ? &inline_executor() : four.get();
    expect_equal({2, 1, 700, 700, 8, 8, Order::causal}, false, 60, {}, context);
    expect_equal({1, 1, 700, 700, 8, 16, Order::strict}, true, 0, {}, context);
    // Several tiles of rows and chunks of keys; lines that go past the caches.
    expect_equal({1, 1, 1605, 1590, 16, 16, Order::causal, Align::end}, false, 60, {}, context);
  }
  Context oracle;
  oracle.backend = Backend::reference;
  expect_equal({4, 2, 60, 60, 8, 8, Order::causal}, false, 50, {}, oracle);
  expect_equal({2, 2, 60, 60, 8, 8, Order::strict}, true, 0, {}, oracle);
}

TEST(Sparse, WhatIsDroppedMayHoldAnything) {
  const Tensor on_q = numbers({1, 2, 100}, 7, 5, 40), on_k = numbers({1, 1, 100}, 8, 5, 40);
  Tensor x[4];
  for (int i = 0; i < 4; ++i)
    x[i] = wave(DType::f32, {1, i == 1 || i == 2 ? 1 : 2, 100, 16}, static_cast<std::uint64_t>(i));
  const auto run = [&] {
    const SparseForward f = sparse_attention(x[0], x[1], x[2], QkSparse{on_q, on_k});
    return std::pair{f, sparse_attention_backward(x[3], x[0], x[1], x[2], f)};
  };
  const auto [f, g] = run();
  for (int i = 0; i < 4; ++i) {
    const Tensor& on = i == 1 || i == 2 ? on_k : on_q;
    for (std::int64_t row = 0; row < on.count(); ++row)
      if (on.ptr<std::int32_t>()[row] == 0)
        std::fill_n(x[i].ptr<float>() + row * 16, 16, std::numeric_limits<float>::quiet_NaN());
  }
  const auto [odd_f, odd_g] = run();
  EXPECT_EQ(largest_difference(f.o, odd_f.o), 0);
  for (const auto& [one, other] : {std::pair{&g.q, &odd_g.q}, {&g.k, &odd_g.k}, {&g.v, &odd_g.v}})
    EXPECT_EQ(largest_difference(*one, *other), 0);
}

TEST(Sparse, RowsMayLieApart) {
  const Tensor x = wave(DType::f32, {1, 90, 2, 16}, 1),
               same = Tensor::empty(DType::f32, {1, 2, 90, 16});
  View apart = x;
  std::swap(apart.shape[1], apart.shape[2]);
  std::swap(apart.stride[1], apart.stride[2]);
  copy(apart, same);
  const Tensor on = numbers({1, 2, 90}, 7, 5, 60);
  const QkSparse rule{on, on};
  const SparseForward f = sparse_attention(apart, apart, apart, rule),
                      want = sparse_attention(same, same, same, rule);
  EXPECT_EQ(largest_difference(want.o, f.o), 0);
  const Gradients g = sparse_attention_backward(apart, apart, apart, apart, f),
                  want_g = sparse_attention_backward(same, same, same, same, want);
  EXPECT_EQ(largest_difference(want_g.q, g.q), 0);
  EXPECT_EQ(largest_difference(want_g.k, g.k), 0);
}

TEST(Sparse, AScoreOfTheScoreIsHonoured) {
  Options options;
  options.score = softcap(2);
  expect_equal({4, 2, 90, 90, 16, 16, Order::causal}, false, 60, options);
  expect_equal({4, 2, 90, 90, 16, 16, Order::strict}, true, 0, options);
}

TEST(Sparse, NobodyLeftGivesZeros) {
  const Tensor q = wave(DType::f32, {1, 2, 5, 4}, 0), k = wave(DType::f32, {1, 1, 6, 4}, 1);
  const Tensor all = Tensor::zeros(DType::i32, {1, 2, 5}),
               keys = Tensor::zeros(DType::i32, {1, 1, 6});
  std::fill_n(all.ptr<std::int32_t>(), all.count(), 1);
  for (const bool no_queries : {false, true}) {
    if (no_queries) std::fill_n(all.ptr<std::int32_t>(), all.count(), 0);
    const SparseForward f = sparse_attention(q, k, k, QkSparse{all, keys, Order::none});
    const Gradients g = sparse_attention_backward(q, q, k, k, f);
    for (std::int64_t i = 0; i < f.o.count(); ++i) EXPECT_EQ(value(f.o, i), 0);
    for (std::int64_t i = 0; i < f.lse.count(); ++i)
      EXPECT_EQ(value(f.lse, i), -std::numeric_limits<double>::infinity());
    for (const View& t : {View(g.q), View(g.k), View(g.v)})
      for (std::int64_t i = 0; i < t.count(); ++i) EXPECT_EQ(value(t, i), 0);
  }
}

TEST(Sparse, KeptRowsStayInTheOrderOfTime) {
  const Tensor q = wave(DType::f32, {1, 1, 6, 4}, 0);
  const Tensor bucket = Tensor::empty(DType::i32, {1, 1, 6});
  const std::int32_t values[] = {2, -1, 2, 0, -1, 2}, sorted[] = {1, 4, 3, 0, 2, 5};
  std::copy_n(values, 6, bucket.ptr<std::int32_t>());
  const SparseForward f = sparse_attention(q, q, q, HashSparse{bucket, bucket});
  for (int i = 0; i < 6; ++i) EXPECT_EQ(f.q_rows.ptr<std::int32_t>()[i], sorted[i]);
}

TEST(Sparse, ListsThatDoNotHoldTogetherAreRefused) {
  using Numbers = std::vector<std::int32_t>;
  const Tensor x = wave(DType::f32, {1, 1, 4, 8}, 0);
  const auto attend = [&](Numbers q, Numbers k, Numbers first, Numbers end, const Options& o = {}) {
    Numbers q_length{static_cast<std::int32_t>(q.size())},
        k_length{static_cast<std::int32_t>(k.size())};
    const auto list = [](Numbers& n) {
      return view(n.data(), {1, 1, static_cast<std::int64_t>(n.size())});
    };
    const RowLists lists{list(q),
                         list(k),
                         view(q_length.data(), {1, 1}),
                         view(k_length.data(), {1, 1}),
                         list(first),
                         list(end)};
    attention_with({nullptr, lists}, x, dense(x, x), o, {});
  };
  EXPECT_NO_THROW(attend({1, 3}, {0, 2}, {0, 1}, {1, 2}));
  expect_refused([&] { attend({3, 1}, {0, 2}, {0, 1}, {1, 2}); },
                 {"the list of Q holds 2 of 4 rows", "ascend, or hold all"});
  expect_refused([&] { attend({1, 3}, {0, 4}, {0, 1}, {1, 2}); },
                 {"the list of K holds 0 to 4", "rows 0 to 3 exist"});
  expect_refused([&] { attend({1, 3}, {0, 2}, {1, 0}, {1, 2}); }, {"ascend within the 2 keys"});
  expect_refused([&] { attend({1, 3}, {0, 2}, {0, 1}, {1, 3}); }, {"ascend within the 2 keys"});
  expect_refused([&] { attend({1, 3}, {0, 2}, {0, 1}, {1, 2}, {.mask = causal()}); },
                 {"rows by lists say themselves which keys they keep"});
}

TEST(Sparse, WhatIsNotHonouredIsRefusedByName) {
  const Tensor x = wave(DType::f32, {1, 2, 5, 4}, 0), longer = wave(DType::f32, {1, 2, 9, 4}, 0);
  const Tensor flags = Tensor::zeros(DType::i32, {1, 2, 5}),
               more = Tensor::zeros(DType::i32, {1, 2, 9});
  const QkSparse keep{flags, flags};
  const auto message = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing was refused";
  };
  const auto with = [&](auto&& change) {
    Options o;
    change(o);
    return message([&] { sparse_attention(x, x, x, keep, o); });
  };
  using testing::HasSubstr;
  EXPECT_THAT(with([](Options& o) { o.mask = causal(); }), HasSubstr("a mask is given"));
  EXPECT_THAT(with([](Options& o) { o.score = alibi(Array(std::vector<float>{1, 2}, "slope")); }),
              HasSubstr("the score reads"));
  EXPECT_THAT(with([](Options& o) { o.dropout = .5; }), HasSubstr("dropout is 0.5"));
  EXPECT_THAT(with([](Options& o) { o.key_mass = true; }), HasSubstr("key_mass is asked for"));
  EXPECT_THAT(with([](Options& o) { o.sink = Tensor::zeros(DType::f32, {2}); }),
              HasSubstr("a sink is given"));
  EXPECT_THAT(message([&] { sparse_attention(x, longer, longer, QkSparse{flags, more}); }),
              HasSubstr("align must say start or end"));
  EXPECT_THAT(message([&] { sparse_attention(x, x, x, QkSparse{flags, more}); }),
              HasSubstr("k_keep is i32 [1, 2, 9]; bool or i32 [1, 2, 5] is expected"));
  EXPECT_THAT(message([&] { sparse_attention(x, x, x, HashSparse{flags, {}}); }),
              HasSubstr("k_bucket is not given"));
  EXPECT_THAT(message([&] { sparse_attention(x, x, longer, keep); }),
              HasSubstr("K and V of the same heads and tokens"));
  EXPECT_THAT(message([&] {
                const Tensor on = numbers({1, 2, 9}, 1, 1);
                std::fill_n(on.ptr<std::int32_t>(), on.count(), 1);
                const SparseForward f =
                    sparse_attention(longer, longer, longer, QkSparse{on, on, Order::none});
                sparse_attention_backward(longer, longer, x, x, f);
              }),
              HasSubstr("K is f32 [1, 2, 5, 4] on cpu; the forward listed rows of i32 [1, 2, 9]"));
  View there = x;
  there.device = {Device::Kind::cuda, 0};
  EXPECT_THAT(message([&] { sparse_attention(there, x, x, keep); }),
              HasSubstr("K is on cpu and Q on cuda:0; one device is needed"));
  View flags_there = flags;
  flags_there.device = there.device;
  EXPECT_THAT(
      message([&] { sparse_attention(x, x, x, QkSparse{flags_there, flags}); }),
      HasSubstr("q_keep is on cuda:0 and Q on cpu; the host or the device of Q is allowed"));
  Options bits;
  bits.inside = Inside::bits;
  EXPECT_THAT(message([&] { sparse_attention(there, there, there, keep, bits); }),
              HasSubstr("automatic or program is allowed"));
  const SparseForward f = sparse_attention(x, x, x, keep);
  EXPECT_THAT(message([&] { sparse_attention_backward(there, x, x, x, f); }),
              HasSubstr("dO is f32 [1, 2, 5, 4] on cuda:0"));
}

}  // namespace
}  // namespace undivided
