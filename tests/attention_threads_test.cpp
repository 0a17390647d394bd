// SPDX-License-Identifier: Apache-2.0
// Claims: one plan runs from many threads at once, and so do the verbs that share the library.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "check/inputs.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

bool same(const Tensor& a, const Tensor& b) {
  return a.count() == b.count() &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.count()) * size_of(a.dtype)) == 0;
}

TEST(Threads, OnePlanRunsFromFourThreadsEachWithItsWorkspace) {
  const Tensor q = check::random_tensor(DType::f32, {1, 4, 70, 32}, 1);
  const Tensor k = check::random_tensor(DType::f32, {1, 2, 90, 32}, 2);
  const Options options{.mask = causal(), .align = Align::end};
  Context context;
  context.executor = &inline_executor();
  const Forward want = attention(q, k, k, options, context);
  const Problem p = resolve(q, dense(k, k), options);
  const Plan made = plan(p.spec, p.bounds, {}, context);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      const Tensor o = Tensor::empty_like(q, DType::f32);
      const Tensor room =
          Tensor::empty(DType::i8, {static_cast<std::int64_t>(made.workspace()) + 1});
      Args args = p.args;
      args.o = o;
      for (int run = 0; run < 20; ++run) {
        std::memset(o.data, 0, static_cast<std::size_t>(o.count()) * sizeof(float));
        made.run(args, room.data, context);
        wrong += !same(o, want.o);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, VerbsOfAColdLibraryMeetInItsCaches) {
  const auto library = make_library();
  const Tensor q = check::random_tensor(DType::f32, {1, 2, 80, 16}, 3);
  Context plain;
  plain.executor = &inline_executor();
  const Mask odd = Mask::parse("(q + k) % 3 != 1");
  const Forward want = attention(q, q, q, {.mask = odd}, plain);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      Context context = plain;
      context.library = library.get();
      for (int run = 0; run < 10; ++run) {
        const Forward f = attention(q, q, q, {.mask = odd}, context);
        wrong += !same(f.o, want.o);
        const Gradients g = attention_backward(f.o, q, q, q, f, {}, context);
        wrong += g.q.count() != q.count();
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Threads, AnExecutorOfPlainThreadsGivesTheSameBits) {
  const Tensor q = check::random_tensor(DType::f32, {2, 2, 130, 16}, 4);
  const auto four = make_thread_executor(4);
  Context plain, threaded;
  plain.executor = &inline_executor();
  threaded.executor = four.get();
  const Options options{.mask = causal(), .determinism = Determinism::invariant};
  EXPECT_TRUE(same(attention(q, q, q, options, plain).o, attention(q, q, q, options, threaded).o));
}

}  // namespace
}  // namespace undivided
