// SPDX-License-Identifier: Apache-2.0
// Claims: attention in chunks equals the oracle for ragged chunks too, holds exactly the bytes that
// its formula says, and its gradient by recomputation is that of attention.
#include <new>

#include "variants_support.hpp"

namespace undivided {
namespace {

class CountingAllocator final : public Allocator {
 public:
  std::size_t now = 0, peak = 0;
  void* allocate(std::size_t bytes, Device, void*) override {
    now += bytes;
    peak = std::max(peak, now);
    return ::operator new(bytes, std::align_val_t{256});
  }
  void deallocate(void* data, std::size_t bytes, Device, void*) override {
    now -= bytes;
    ::operator delete(data, std::align_val_t{256});
  }
};

Tensor zeros(std::int64_t n, std::int64_t d) { return Tensor::zeros(DType::f32, {1, 1, n, d}); }

TEST(Chunked, RaggedChunksEqualTheOracle) {
  for (std::int64_t n = 1; n <= 70; n += n < 12 ? 1 : 7) {
    const Tensor q = wave(f64, {1, 2, n, 3}, 0), k = wave(f64, {1, 1, n, 3}, 1),
                 v = wave(f64, {1, 1, n, 2}, 2), dout = wave(f64, {1, 2, n, 2}, 3);
    Options options;
    options.mask = causal();
    const Tensor o = reference(q, dense(k, v), options).o;
    const Gradients g = reference_backward(dout, q, dense(k, v), options);
    for (std::int64_t size = 1; size <= 16; ++size)
      for (const Accumulate accumulate : {Accumulate::summaries, Accumulate::running}) {
        const Chunks chunks{size, 17 - size, accumulate};
        const Forward f = chunked_attention(q, k, v, options, chunks);
        ASSERT_LT(largest_difference(o, f.o), 1e-13) << n << " tokens, chunks of " << size;
        if (size % 5 != 0) continue;
        const Gradients h = chunked_attention_backward(dout, q, k, v, options, chunks);
        ASSERT_LT(largest_difference(g.q, h.q), 1e-12) << n << " tokens, chunks of " << size;
        ASSERT_LT(largest_difference(g.k, h.k), 1e-12) << n << " tokens, chunks of " << size;
        ASSERT_LT(largest_difference(g.v, h.v), 1e-12) << n << " tokens, chunks of " << size;
      }
  }
}

TEST(Chunked, GradientsAreFiniteDifferences) {
  const Tensor q = wave(f64, {1, 2, 4, 3}, 0), k = wave(f64, {1, 1, 7, 3}, 1),
               v = wave(f64, {1, 1, 7, 2}, 2), dout = wave(f64, {1, 2, 4, 2}, 3);
  Options options;
  options.mask = causal() && mask([](auto, auto h, auto q_at, auto k_at) {
                   return (q_at + k_at + h) % 3 != 0;
                 });
  options.align = Align::end;
  options.score = softcap(2);
  const Chunks chunks{3, 2};
  const auto loss = [&] { return inner(dout, chunked_attention(q, k, v, options, chunks).o); };
  const Gradients g = chunked_attention_backward(dout, q, k, v, options, chunks);
  expect_gradient(q, g.q, loss, "Q");
  expect_gradient(k, g.k, loss, "K");
  expect_gradient(v, g.v, loss, "V");
}

TEST(Chunked, FloatAgreesWithTheOracleAndWithItselfOverChunks) {
  const Tensor q = wave(DType::f32, {2, 2, 33, 20}, 0), k = wave(DType::f32, {2, 1, 45, 20}, 1),
               v = wave(DType::f32, {2, 1, 45, 24}, 2), dout = wave(DType::f32, {2, 2, 33, 24}, 3);
  const Forward exact = reference(q, dense(k, v));
  const Gradients g = reference_backward(dout, q, dense(k, v));
  for (const Accumulate accumulate : {Accumulate::summaries, Accumulate::running}) {
    const Chunks chunks{16, 10, accumulate};
    const Forward f = chunked_attention(q, k, v, {}, chunks);
    EXPECT_LT(largest_difference(exact.o, f.o), 1e-6);
    EXPECT_LT(largest_difference(exact.lse, f.lse), 1e-5);
    EXPECT_LT(largest_difference(f.o, chunked_attention(q, k, v).o), 1e-6);
    const Gradients h = chunked_attention_backward(dout, q, k, v, {}, chunks);
    EXPECT_LT(largest_difference(g.q, h.q), 1e-5);
    EXPECT_LT(largest_difference(g.k, h.k), 2e-5);
    EXPECT_LT(largest_difference(g.v, h.v), 2e-5);
  }
}

TEST(Chunked, AShiftOfAllScoresChangesNothing) {
  const Tensor q = wave(f64, {2, 9, 4}, 0), k = wave(f64, {2, 9, 4}, 1),
               v = wave(f64, {2, 9, 4}, 2);
  Options shifted;
  shifted.score = score([](auto s, auto, auto, auto, auto) { return s + 10000; });
  const Tensor plain = chunked_attention(q, k, v, {}, {4, 4}).o;
  EXPECT_EQ(plain.rank, 3);
  EXPECT_LT(largest_difference(plain, chunked_attention(q, k, v, shifted, {4, 4}).o), 1e-10);
}

TEST(Chunked, RowsWithoutKeysAreZeroWithAnLseOfMinusInfinity) {
  const Tensor q = wave(DType::f32, {1, 1, 5, 4}, 0);
  Options options;
  options.mask = mask([](auto, auto, auto q_at, auto k_at) { return k_at < q_at; });
  const Forward f = chunked_attention(q, q, q, options, {2, 2});
  EXPECT_EQ(value(f.o, 0), 0);
  EXPECT_EQ(value(f.lse, 0), -std::numeric_limits<double>::infinity());
  const Gradients g = chunked_attention_backward(q, q, q, q, options, {2, 2});
  EXPECT_EQ(value(g.q, 0), 0);
}

TEST(Chunked, TheAllocatorSeesTheBytesOfTheFormula) {
  const std::int64_t n = 100, d = 8;
  const Tensor x = zeros(n, d);
  for (const Accumulate accumulate : {Accumulate::summaries, Accumulate::running}) {
    const Chunks chunks{16, 24, accumulate};
    CountingAllocator counter;
    Context context;
    context.allocator = &counter;
    const std::size_t results = (n * d + n) * 4;
    {
      const Forward f = chunked_attention(x, x, x, {}, chunks, context);
    }
    EXPECT_EQ(counter.peak - results, chunked_bytes(n, n, d, chunks));
    EXPECT_EQ(counter.now, 0);
    counter.peak = 0;
    {
      const Gradients g = chunked_attention_backward(x, x, x, x, {}, chunks, context);
    }
    EXPECT_EQ(counter.peak - 3 * n * d * 4, chunked_backward_bytes(n, n, d, chunks));
  }
}

TEST(Chunked, MemoryAtSixteenThousandTokensIsASixtiethOfTheScores) {
  const std::int64_t n = 16384;
  const std::size_t scores = std::size_t{4} * n * n, mib = std::size_t{1} << 20;
  EXPECT_EQ(chunked_bytes(n, n, 64, {}), 16 * mib + 4 * 1024 * 66 * 4);
  EXPECT_NEAR(
      static_cast<double>(scores) / static_cast<double>(chunked_bytes(n, n, 64, {})), 60.1, .05);
  // The running form does not grow with the number of keys.
  const Chunks running{1024, 4096, Accumulate::running};
  EXPECT_EQ(chunked_bytes(1 << 20, 1 << 20, 64, running), chunked_bytes(n, n, 64, running));
  EXPECT_LT(chunked_bytes(n, n, 64, running), 17 * mib);
}

TEST(Chunked, RefusesByName) {
  const Tensor x = zeros(4, 4), half = Tensor::zeros(DType::f16, {1, 1, 4, 4});
  const auto with = [&](auto change) {
    return [&, change] {
      Options options;
      change(options);
      chunked_attention(x, x, x, options);
    };
  };
  const Tensor sink = Tensor::zeros(DType::f32, {1});
  expect_refused([&] { chunked_attention(x, x, x, {}, {0, 4}); }, {"q 0 and k 4", "at least 1"});
  expect_refused([&] { chunked_attention(half, half, half); }, {"dtype f16", "f32 or f64"});
  expect_refused(with([&](Options& o) { o.sink = sink; }), {"sink", "attention() has it"});
  expect_refused(with([&](Options& o) { o.dropout = .5; }), {"dropout"});
  expect_refused(with([&](Options& o) { o.max_logit = true; }), {"max_logit"});
  expect_refused(with([&](Options& o) { o.determinism = Determinism::invariant; }), {"invariant"});
  expect_refused([&] { chunked_attention_backward(zeros(3, 4), x, x, x); },
                 {"gradient of O is f32 [1, 1, 3, 4]", "[1, 1, 4, 4]"});
  const Tensor wide = Tensor::zeros(DType::f64, {1, 1, 4, 4});
  Options single;
  single.out_dtype = DType::f32;
  expect_refused([&] { chunked_attention(wide, wide, wide, single); },
                 {"out_dtype is f32", "f64 like the inputs"});
  for (const Backend backend : {Backend::cuda, Backend::reference}) {
    Context context;
    context.backend = backend;
    expect_refused([&] { chunked_attention(x, x, x, {}, {}, context); },
                   {name_of(backend), "on the CPU", "automatic or cpu"});
  }
  const View there = elsewhere(x);
  expect_refused([&] { chunked_attention(there, there, there); },
                 {"Q is on cuda:0", "attention() is for devices"});
}

}  // namespace
}  // namespace undivided
