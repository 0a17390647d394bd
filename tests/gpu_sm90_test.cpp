// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: pages, packed rows and split keys against the oracle, with garbage
// wherever no key lies; and rows that keep their bits whatever holds their keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};
constexpr std::int64_t batch = 2, kv_heads = 2;

Tensor random(DType dtype, std::initializer_list<std::int64_t> shape, unsigned seed) {
  Tensor t = Tensor::empty(dtype, shape);
  std::uint64_t state = seed * 2654435761u + 1;
  for (std::int64_t i = 0; i < t.count(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    store_element(dtype,
                  static_cast<std::byte*>(t.data) + static_cast<std::size_t>(i) * size_of(dtype),
                  static_cast<double>(state >> 40) * 0x1p-23 - 1.0);
  }
  return t;
}

Tensor on_host(const Tensor& t) {
  return t.device.kind == Device::Kind::cuda ? cuda::to_host(t) : t;
}

double difference(const Tensor& got, const Tensor& want) {
  const Tensor a = converted(on_host(got), DType::f64), b = converted(want, DType::f64);
  double worst = a.count() == b.count() ? 0 : INFINITY;
  for (std::int64_t i = 0; i < a.count() && std::isfinite(worst); ++i) {
    const double x = a.ptr<double>()[i], y = b.ptr<double>()[i];
    if (x != y) worst = std::isfinite(x - y) ? std::max(worst, std::abs(x - y)) : INFINITY;
  }
  return worst;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = on_host(a), y = on_host(b);
  return x.count() == y.count() && x.dtype == y.dtype &&
         std::memcmp(x.data, y.data, static_cast<std::size_t>(x.count()) * size_of(x.dtype)) == 0;
}

/// Keys of shape [batch, kv_heads, length, d] in shuffled pages; all else in the pool is NaN, and
/// the table ends in numbers that no page has.
struct Pool {
  Tensor k, v;
  std::vector<std::int32_t> table;
  std::int64_t slots;

  Pool(const Tensor& keys,
       const Tensor& values,
       std::int64_t page,
       const std::vector<std::int32_t>& used) {
    const std::int64_t d = keys.size(3), most = *std::max_element(used.begin(), used.end());
    const std::int64_t taken = (most + page - 1) / page;
    slots = taken + 2;
    const std::int64_t pages = batch * taken + 3;
    k = filled({pages, kv_heads, page, d});
    v = filled({pages, kv_heads, page, d});
    table.assign(static_cast<std::size_t>(batch * slots), -7);
    const auto width = static_cast<std::size_t>(d) * 2;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t j = 0; j < used[static_cast<std::size_t>(b)]; ++j) {
        const std::int64_t at = 1 + (taken - 1 - j / page) * batch + b;  // falling, in turns
        table[static_cast<std::size_t>(b * slots + j / page)] = static_cast<std::int32_t>(at);
        for (std::int64_t h = 0; h < kv_heads; ++h)
          for (const auto& [to, from] : {std::pair{&k, &keys}, std::pair{&v, &values}})
            std::memcpy(
                static_cast<std::byte*>(to->data) +
                    static_cast<std::size_t>(((at * kv_heads + h) * page + j % page) * d) * 2,
                static_cast<const std::byte*>(from->data) +
                    static_cast<std::size_t>(((b * kv_heads + h) * from->size(2) + j) * d) * 2,
                width);
      }
  }

 private:
  static Tensor filled(std::initializer_list<std::int64_t> shape) {
    Tensor t = Tensor::empty(DType::bf16, shape);
    std::memset(t.data, 0xff, static_cast<std::size_t>(t.count()) * 2);  // NaN
    return t;
  }
};

Kv cut(const View& k, const View& v, const View& lengths) {
  Kv kv = dense(k, v);
  kv.lengths = lengths;
  return kv;
}
Tensor last_rows(const Tensor& t, std::int64_t rows, std::int64_t count) {
  return converted(t.sliced(2, rows - count, rows), t.dtype);
}

class GpuHopper : public testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

}  // namespace

TEST_F(GpuHopper, PackedRowsAndSplitKeysInPagesAgreeWithTheOracle) {
  constexpr std::int64_t capacity = 3000;
  std::vector<std::int32_t> lengths{2999, 1030};
  const View used = view(lengths.data(), {batch});
  for (const std::int64_t d : {64, 128, 256}) {
    const Tensor k = random(DType::bf16, {batch, kv_heads, capacity, d}, 2);
    const Tensor v = random(DType::bf16, {batch, kv_heads, capacity, d}, 3);
    const Tensor dk = cuda::to_device(k, gpu), dv = cuda::to_device(v, gpu);
    for (const std::int64_t q_len : {1, 2, 5, 40})
      for (const std::int64_t group : {1, 4, 7}) {
        const Tensor q = random(DType::bf16, {batch, kv_heads * group, q_len, d}, 1);
        const Tensor dq = cuda::to_device(q, gpu);
        Options o{.mask = causal(), .align = Align::end};
        o.max_logit = true;
        const Forward want = reference(q, cut(k, v, used), o);
        const auto agrees = [&](const char* what, const Forward& got) {
          SCOPED_TRACE(testing::Message()
                       << what << " d " << d << " queries " << q_len << " group " << group);
          EXPECT_LT(difference(got.o, want.o), 6e-3);
          EXPECT_LT(difference(got.lse, want.lse), 1e-3);
          EXPECT_LT(difference(got.max_logit, want.max_logit), 1e-3);
        };
        agrees("dense", attention(dq, cut(dk, dv, used), o));
        for (const std::int64_t page : {1, 12, 16, 64, 256}) {
          if (page == 1 && d != 128) continue;
          const Pool pool(k, v, page, lengths);
          SCOPED_TRACE(testing::Message() << "page " << page);
          const View table = view(pool.table.data(), {batch, pool.slots});
          agrees("pages",
                 attention(
                     dq,
                     paged(cuda::to_device(pool.k, gpu), cuda::to_device(pool.v, gpu), table, used),
                     o));
        }
      }
  }
}

TEST_F(GpuHopper, AnInvariantRowKeepsItsBits) {
  constexpr std::int64_t length = 700, rows = 300;
  std::vector<std::int32_t> lengths{length, length};
  const View used = view(lengths.data(), {batch});
  for (const std::int64_t d : {64, 128, 256}) {
    const Tensor k = random(DType::bf16, {batch, kv_heads, length, d}, 2);
    const Tensor v = random(DType::bf16, {batch, kv_heads, length, d}, 3);
    const Tensor q = random(DType::bf16, {batch, kv_heads * 4, rows, d}, 1);
    const Tensor dk = cuda::to_device(k, gpu), dv = cuda::to_device(v, gpu),
                 dq = cuda::to_device(q, gpu);
    Options o{.mask = causal(), .align = Align::end};
    o.determinism = Determinism::invariant;
    const Forward whole = attention(dq, dense(dk, dv), o);
    EXPECT_LT(difference(whole.o, reference(q, dense(k, v), o).o), 6e-3);
    for (const std::int64_t page : {16, 36, 128}) {
      SCOPED_TRACE(testing::Message() << "d " << d << " page " << page);
      const Pool pool(k, v, page, lengths);
      const View table = view(pool.table.data(), {batch, pool.slots});
      const Forward got = attention(
          dq, paged(cuda::to_device(pool.k, gpu), cuda::to_device(pool.v, gpu), table, used), o);
      EXPECT_TRUE(same_bits(got.o, whole.o));
      EXPECT_TRUE(same_bits(got.lse, whole.lse));
    }
    const Tensor all = on_host(whole.o);
    for (const std::int64_t chunk : {1, 3, 30, 170}) {  // the last rows alone: packed
      SCOPED_TRACE(testing::Message() << "d " << d << " chunk " << chunk);
      const Tensor some = last_rows(q, rows, chunk);
      const Forward got = attention(cuda::to_device(some, gpu), dense(dk, dv), o);
      EXPECT_TRUE(same_bits(got.o, last_rows(all, rows, chunk)));
    }
  }
}

// Sums, turns and counters are zeroed by the run itself: a workspace may hold anything before it.
TEST_F(GpuHopper, WhatAWorkspaceHeldChangesNothing) {
  constexpr std::int64_t heads = 4, d = 128;
  for (const std::int64_t length : {200, 3000})  // tiles: fewer than multiprocessors, and more
    for (const Determinism determinism : {Determinism::fast, Determinism::reproducible}) {
      SCOPED_TRACE(testing::Message() << length << " " << static_cast<int>(determinism));
      const auto there = [&](std::int64_t h, unsigned seed) {
        return cuda::to_device(random(DType::bf16, {batch, h, length, d}, seed), gpu);
      };
      const auto room = [&](std::int64_t h) {
        return cuda::empty(DType::bf16, {batch, h, length, d}, gpu);
      };
      const Tensor q = there(heads, 1), k = there(kv_heads, 2), v = there(kv_heads, 3),
                   dout = there(heads, 4), o = room(heads), dq = room(heads), dk = room(kv_heads),
                   dv = room(kv_heads);
      const Tensor lse = cuda::empty(DType::f32, {batch, heads, length}, gpu);
      const Options options{.mask = causal(), .align = Align::start, .determinism = determinism};
      Problem forward = resolve(Rows(q), dense(k, v), options);
      forward.args.o = o;
      forward.args.lse = lse;
      Problem backward = resolve_backward(Rows(dout), Rows(q), dense(k, v), o, lse, options, {});
      backward.args.dq = dq;
      backward.args.dk = dk;
      backward.args.dv = dv;
      const auto run = [&](const Problem& p, int held) {
        const Plan made = plan(p.spec, p.bounds, gpu);
        const auto bytes = static_cast<std::int64_t>(made.workspace());
        const Tensor host = Tensor::empty(DType::i8, {bytes});
        std::memset(host.data, held, static_cast<std::size_t>(bytes));
        made.run(p.args, cuda::to_device(host, gpu).data);
        std::vector<Tensor> results;
        for (const Tensor* t : {&o, &lse, &dq, &dk, &dv}) results.push_back(cuda::to_host(*t));
        return results;
      };
      const auto both = [&](int held) {
        run(forward, held);
        return run(backward, held);
      };
      const std::vector<Tensor> clean = both(0), dirty = both(0xff), odd = both(0x3f);
      for (std::size_t i = 0; i < clean.size(); ++i)
        for (const auto* other : {&dirty, &odd}) {
          SCOPED_TRACE(i);
          if (i == 2 && determinism == Determinism::fast)  // dQ is added in any order
            EXPECT_LT(difference((*other)[i], clean[i]), 0.1);
          else
            EXPECT_TRUE(same_bits((*other)[i], clean[i]));
        }
    }
}

// Above d 128 there are 128 keys a tile where dV is narrow: dP is made in two parts.
TEST_F(GpuHopper, BroadRowsHaveTheGradientsOfTheOracle) {
  if (cuda::driver().device(0).arch() != 90) GTEST_SKIP() << "no Hopper";
  constexpr std::int64_t heads = 4, length = 300;
  std::vector<std::int64_t> offsets{0, 170, 170, 171, 600};
  const View at = view(offsets.data(), {5});
  const auto agrees = [](const char* what, const Tensor& got, const Tensor& truth) {
    EXPECT_LT(difference(got, truth), 0.03) << what;
  };
  unsigned turn = 0;
  for (const auto& [d, dv] : {std::pair{192, 128}, {160, 128}, {192, 64}, {136, 40}})
    for (const Mask& mask : {full(), causal(), window(70, 30)}) {
      Options o{.mask = mask, .align = Align::end};
      o.determinism = turn++ % 2 ? Determinism::reproducible : Determinism::fast;
      const DType type = turn % 3 ? DType::bf16 : DType::f16;
      SCOPED_TRACE(testing::Message() << d << "/" << dv << " turn " << turn);
      for (const bool packed : {false, true}) {
        SCOPED_TRACE(packed ? "ragged" : "dense");
        const auto make = [&](std::int64_t h, std::int64_t dim, unsigned seed) {
          return packed ? random(type, {batch * length, h, dim}, seed)
                        : random(type, {batch, h, length, dim}, seed);
        };
        const auto rows = [&](const Tensor& t) { return packed ? ragged(t, at) : Rows(t); };
        const auto keys = [&](const Tensor& a, const Tensor& b) {
          return packed ? ragged(a, b, at) : dense(a, b);
        };
        const Tensor q = make(heads, d, 1), k = make(kv_heads, d, 2), v = make(kv_heads, dv, 3),
                     dout = make(heads, dv, 4);
        const Gradients want = reference_backward(rows(dout), rows(q), keys(k, v), o);
        const Tensor tq = cuda::to_device(q, gpu), tk = cuda::to_device(k, gpu),
                     tv = cuda::to_device(v, gpu), tout = cuda::to_device(dout, gpu);
        const Forward f = attention(rows(tq), keys(tk, tv), o);
        const Gradients got = attention_backward(rows(tout), rows(tq), keys(tk, tv), f);
        agrees("dQ", got.q, want.q);
        agrees("dK", got.k, want.k);
        agrees("dV", got.v, want.v);
      }
    }
}

// dV = P^T dO and dP = dO V^T take dO rounded, delta takes it as it is.
TEST_F(GpuHopper, AFloat32GradientOfOIsRoundedForTheProducts) {
  if (cuda::driver().device(0).arch() != 90) GTEST_SKIP() << "no Hopper";
  constexpr std::int64_t heads = 4, length = 300;
  for (const std::int64_t d : {64, 128, 256}) {
    SCOPED_TRACE(testing::Message() << "d " << d);
    const auto there = [&](DType type, std::int64_t h, unsigned seed) {
      return cuda::to_device(random(type, {batch, h, length, d}, seed), gpu);
    };
    const Tensor q = there(DType::bf16, heads, 1), k = there(DType::bf16, kv_heads, 2),
                 v = there(DType::bf16, kv_heads, 3), wide = there(DType::f32, heads, 4);
    const Tensor narrow = cuda::to_device(converted(on_host(wide), DType::bf16), gpu);
    Options options{.mask = causal(), .align = Align::start};
    options.out_dtype = DType::f32;
    const Forward f = attention(q, k, v, options);
    const Problem p = resolve_backward(Rows(wide), Rows(q), dense(k, v), f.o, f.lse, options, {});
    const std::string kernel = plan(p.spec, p.bounds, gpu).explanation().kernel;
    EXPECT_NE(kernel.find(".sm90a."), std::string::npos) << kernel;
    const Gradients a = attention_backward(wide, q, k, v, f),
                    b = attention_backward(narrow, q, k, v, f);
    EXPECT_TRUE(same_bits(a.v, b.v));  // delta has no part in dV
    const Tensor hq = on_host(q), hk = on_host(k), hv = on_host(v);
    const Gradients want = reference_backward(on_host(wide), hq, dense(hk, hv), options);
    const auto agrees = [](const char* what, const Tensor& got, const Tensor& truth) {
      const Tensor all = converted(truth, DType::f64);
      double largest = 0;
      for (std::int64_t i = 0; i < all.count(); ++i)
        largest = std::max(largest, std::abs(all.ptr<double>()[i]));
      EXPECT_LT(difference(got, truth), 0.02 * largest) << what;
    };
    agrees("dQ", a.q, want.q);
    agrees("dK", a.k, want.k);
    agrees("dV", a.v, want.v);
  }
}

// Key tiles add to dQ in their order, of which a plan may hold any part: here runs of two rows of
// blocks meet in one tile, or leave some out.
TEST_F(GpuHopper, AReproducibleBackwardRepeatsItsBitsAndAgreesWithFast) {
  if (cuda::driver().device(0).arch() != 90) GTEST_SKIP() << "no Hopper";
  constexpr std::int64_t heads = 4, length = 1990;
  const Mask patches = Mask::parse("(q / 150 + k / 90) % 3 != 0 && k <= q + 70", {});
  for (const std::int64_t d : {64, 128, 256}) {
    const auto there = [&](std::int64_t h, unsigned seed) {
      return cuda::to_device(random(DType::bf16, {batch, h, length, d}, seed), gpu);
    };
    const Tensor q = there(heads, 1), k = there(kv_heads, 2), v = there(kv_heads, 3),
                 dout = there(heads, 4);
    int number = 0;
    for (const Mask& mask : {full(), causal(), patches}) {
      SCOPED_TRACE(testing::Message() << "d " << d << ", mask " << number++);
      Options options{.mask = mask, .align = Align::start};
      const Forward f = attention(q, k, v, options);
      const Gradients fast = attention_backward(dout, q, k, v, f);
      options.determinism = Determinism::reproducible;
      const Forward g = attention(q, k, v, options);
      const Gradients first = attention_backward(dout, q, k, v, g);
      EXPECT_LT(difference(first.q, on_host(fast.q)), 0.02);
      EXPECT_LT(difference(first.k, on_host(fast.k)), 0.02);
      EXPECT_LT(difference(first.v, on_host(fast.v)), 0.02);
      for (int run = 0; run < 4; ++run) {
        const Gradients again = attention_backward(dout, q, k, v, g);
        EXPECT_TRUE(same_bits(again.q, first.q)) << "run " << run;
        EXPECT_TRUE(same_bits(again.k, first.k)) << "run " << run;
        EXPECT_TRUE(same_bits(again.v, first.v)) << "run " << run;
      }
    }
  }
}

}  // namespace undivided
