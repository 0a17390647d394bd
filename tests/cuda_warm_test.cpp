// SPDX-License-Identifier: Apache-2.0
// Claims about a warm Plan::run on CUDA: which driver calls it makes, to the last one, and that
// threads may run one plan side by side. The driver is a fake that remembers.
#include <gmock/gmock.h>

#include <array>
#include <map>
#include <thread>

#include "cuda_run_support.hpp"

namespace undivided::cuda {
namespace {

/// Calls by name that `work` makes.
std::map<std::string, std::uint64_t> calls_of(const Driver& driver,
                                              const std::function<void()>& work) {
  const auto before = driver.calls();
  work();
  std::map<std::string, std::uint64_t> made;
  for (const auto& [name, count] : driver.calls())
    if (const std::uint64_t more = count - before.at(name)) made[name] = more;
  return made;
}

class CudaWarm : public CudaRun {
 protected:
  using Calls = std::map<std::string, std::uint64_t>;
  void SetUp() override {
    CudaRun::SetUp();
    fake::contexts() = {driver_ ? driver_->device(0).context : nullptr};
  }
  void TearDown() override {
    fake::contexts().clear();
    CudaRun::TearDown();
  }
  void hopper() {
    unsetenv("UNDIVIDED_FAMILY");
    fake::state().maps = true;
  }
  /// Calls of 100 runs after the first.
  Calls warm(const Prepared& plan, const Args& args, const Context& context = {}) {
    std::vector<char> workspace(plan.workspace());
    plan.run(args, workspace.data(), context);
    return calls_of(*driver_, [&] {
      for (int i = 0; i < 100; ++i) plan.run(args, workspace.data(), context);
    });
  }
};

TEST_F(CudaWarm, APortableRunAsksForItsContextAndLaunches) {
  const Problem p = problem({.mask = causal(), .max_logit = true});
  Args args = p.args;
  args.max_logit = there(DType::f32, {2, 8}, 0x60000);
  int marker = 0;
  Context context;
  context.stream = &marker;
  EXPECT_EQ(warm(*prepared(p), args, context),
            (Calls{{"cuCtxGetCurrent", 100},
                   {"cuLaunchKernel", 100},  // init
                   {"cuLaunchKernelEx", 100}}));
  EXPECT_EQ(launched(1).stream, &marker);
}

// A driver that cannot record such launches in a graph, or has none, launches one after the other.
TEST_F(CudaWarm, AnOlderDriverLaunchesNothingEarly) {
  const Problem p = problem({.mask = causal(), .max_logit = true});
  Args args = p.args;
  args.max_logit = there(DType::f32, {2, 8}, 0x60000);
  for (const bool old : {true, false}) {
    fake::state() = {};
    if (old) fake::state().version = 12020;
    if (!old) fake::state().missing = "cuLaunchKernelEx";
    open();
    fake::contexts() = {driver_->device(0).context};
    EXPECT_EQ(warm(*prepared(p), args), (Calls{{"cuCtxGetCurrent", 100}, {"cuLaunchKernel", 200}}));
  }
}

TEST_F(CudaWarm, AnotherCurrentContextIsPutBack) {
  const Problem p = problem({.mask = causal()});
  int other = 0;
  fake::contexts() = {&other};
  EXPECT_EQ(warm(*prepared(p), p.args),
            (Calls{{"cuCtxGetCurrent", 100},
                   {"cuCtxPushCurrent_v2", 100},
                   {"cuCtxPopCurrent_v2", 100},
                   {"cuLaunchKernel", 100}}));
  EXPECT_EQ(fake::contexts(), std::vector<ContextHandle>{&other});
}

TEST_F(CudaWarm, AHopperRunWithATileACtaIsOneLaunch) {
  hopper();
  const Problem p = problem({.mask = causal()});
  const auto plan = prepared(p);
  ASSERT_EQ(plan->explanation.kernel.rfind("fwd.sm90a", 0), 0u) << plan->explanation.kernel;
  EXPECT_EQ(
      warm(*plan, p.args),
      (Calls{{"cuCtxGetCurrent", 100}, {"cuTensorMapEncodeTiled", 400}, {"cuLaunchKernel", 100}}));
  EXPECT_TRUE(fake::state().zeroed.empty());
}

TEST_F(CudaWarm, AHopperRunWithMoreTilesZeroesTheirCounter) {
  hopper();
  const Problem p = problem({.mask = causal()}, 4000, 4000);
  EXPECT_EQ(warm(*prepared(p), p.args),
            (Calls{{"cuCtxGetCurrent", 100},
                   {"cuTensorMapEncodeTiled", 400},
                   {"cuMemsetD32Async", 100},
                   {"cuLaunchKernel", 100}}));
  EXPECT_EQ(fake::state().zeroed.at(0).second, 4u);
}

TEST_F(CudaWarm, PagedKeysHaveALoaderForValues) {
  hopper();
  for (const std::int64_t page : {1, 16, 48, 64, 1000}) {
    const std::int64_t slots = 2000 / page + 1;
    Options o{.mask = causal()};
    o.align = Align::end;
    const Problem p = resolve(Rows(there(DType::bf16, {2, 8, 2000, 64}, 0x10000)),
                              paged(there(DType::bf16, {4 * slots, 2, page, 64}, 0x20000),
                                    there(DType::bf16, {4 * slots, 2, page, 64}, 0x30000),
                                    there(DType::i32, {2, slots}, 0x40000),
                                    there(DType::i32, {2}, 0x50000)),
                              o);
    Args args = p.args;
    args.o = there(DType::bf16, {2, 8, 2000, 64}, 0x60000);
    const auto plan = prepared(p);
    EXPECT_THAT(plan->explanation.notes.at(1),
                ::testing::HasSubstr(" and two loading warps, of K and of V; 4 stages of "))
        << page;
    const std::size_t before = fake::state().launches.size();
    std::vector<char> workspace(plan->workspace());
    plan->run(args, workspace.data(), {});
    ASSERT_EQ(fake::state().launches.size(), before + 1) << page;
  }
}

TEST_F(CudaWarm, AHopperBackwardIsThreeLaunchesAndNoMemset) {
  hopper();
  fake::state().maps = false;  // it has four
  const Problem f = problem({});
  for (const Determinism d : {Determinism::fast, Determinism::reproducible}) {
    Problem p = resolve_backward(Rows(there(DType::bf16, {2, 8, 300, 64}, 0x70000)),
                                 f.args.q,
                                 f.args.kv,
                                 f.args.o,
                                 f.args.lse,
                                 {.determinism = d},
                                 {});
    p.args.dq = there(DType::bf16, {2, 8, 300, 64}, 0x80000);
    p.args.dk = there(DType::bf16, {2, 2, 300, 64}, 0x90000);
    p.args.dv = there(DType::bf16, {2, 2, 300, 64}, 0xa0000);
    const auto plan = prepared(p);
    ASSERT_EQ(plan->explanation.kernel.rfind("bwd.sm90a", 0), 0u) << plan->explanation.kernel;
    EXPECT_EQ(plan->explanation.notes.at(1),
              std::string("2 warpgroups of 64 keys; a warp to find tiles, one to load, ") +
                  (d == Determinism::fast ? "one to add dQ" : "two to add dQ in order") +
                  "; 2 stages of 128 queries; registers 24 to load, 240 to compute");
    fake::state().launches.clear();
    EXPECT_EQ(warm(*plan, p.args),
              (Calls{{"cuCtxGetCurrent", 100},
                     {"cuTensorMapEncodeTiled", 400},
                     {"cuLaunchKernel", 100},
                     {"cuLaunchKernelEx", 200}}));
    // 128 rows of 64 floats a tile, the counter of tasks, and four turns a tile: of all who add, or
    // of who stores before the others add.
    const Params& first = launched(0).params;
    EXPECT_EQ(first.dq_tiles, 2 * 8 * 3);
    EXPECT_EQ(first.dq_floats, first.dq_tiles * 128 * 64);
    ASSERT_NE(first.dq_turns, nullptr);
    const auto end = reinterpret_cast<char*>(first.dq_turns) + 16 * first.dq_tiles;
    EXPECT_GE(reinterpret_cast<char*>(first.dq_turns),
              reinterpret_cast<char*>(first.dq_sum + first.dq_floats + 4));
    EXPECT_LE(end, reinterpret_cast<char*>(first.delta) + plan->workspace());
  }
}

TEST_F(CudaWarm, AnOrderAboveD128HasThreadsForItsTurns) {
  hopper();
  fake::state().maps = false;
  const Problem f = problem({});
  const View rows = there(DType::bf16, {2, 8, 300, 256}, 0x70000);
  const Kv kv = dense(there(DType::bf16, {2, 2, 300, 256}, 0x100000),
                      there(DType::bf16, {2, 2, 300, 256}, 0x200000));
  for (const Determinism d : {Determinism::fast, Determinism::reproducible}) {
    const Problem p =
        resolve_backward(Rows(rows), Rows(rows), kv, rows, f.args.lse, {.determinism = d}, {});
    const std::string note = prepared(p)->explanation.notes.at(1);
    EXPECT_EQ(note.find("two for the turns of dQ") != std::string::npos,
              d == Determinism::reproducible)
        << note;
  }
}

TEST_F(CudaWarm, TwoCtasTake128KeysTogetherAtD256) {
  hopper();
  fake::state().maps = false;
  const Problem f = problem({});
  const View rows = there(DType::bf16, {2, 8, 300, 256}, 0x70000);
  const View keys = there(DType::bf16, {2, 2, 300, 256}, 0x200000);
  Problem p = resolve_backward(Rows(rows), Rows(rows), dense(keys, keys), rows, f.args.lse, {}, {});
  p.args.dq = rows;
  p.args.dk = p.args.dv = keys;
  const auto plan = prepared(p);
  EXPECT_THAT(plan->explanation.notes.at(1),
              ::testing::HasSubstr("share 64 keys, two such CTAs that exchange dS; a warp to"));
  fake::state().launches.clear();
  std::vector<char> workspace(plan->workspace());
  plan->run(p.args, workspace.data(), {});
  // 300 keys are three tasks for each of 2 sequences and 2 heads of keys.
  EXPECT_EQ(fake::state().launches.at(1).blocks, 2u * 3 * 2 * 2);
}

TEST_F(CudaWarm, TheCounterOfTasksIsZeroedAlsoWithoutQueries) {
  KernelSpec k;
  const Params p{};
  k.kind = KernelKind::preprocess;
  EXPECT_EQ(grid_size(k, p), 0);
  k.kind = KernelKind::prepare_rows;
  EXPECT_EQ(grid_size(k, p), 1);
}

TEST_F(CudaWarm, MapsFollowTheTensors) {
  hopper();
  const Problem p = problem({.mask = causal()});
  const auto plan = prepared(p);
  std::vector<char> workspace(plan->workspace());
  using Begins = std::vector<std::uintptr_t>;
  for (const std::uintptr_t q : {0x10000, 0x7654000}) {
    Args args = p.args;
    args.q.data.data = reinterpret_cast<void*>(q);
    plan->run(args, workspace.data(), {});
    EXPECT_EQ(fake::state().launches.back().mapped, (Begins{q, 0x20000, 0x30000}));
  }
}

TEST_F(CudaWarm, ThreadsRunOnePlanSideBySide) {
  hopper();
  const Problem p = problem({.mask = causal()});
  const auto plan = prepared(p);
  constexpr int threads = 4, runs = 500, tensors = 100;
  std::array<char, threads> streams{};
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      std::vector<char> workspace(plan->workspace());
      Context context;
      context.stream = &streams[static_cast<std::size_t>(t)];
      Args args = p.args;
      for (int i = 0; i < runs; ++i) {
        const auto at = static_cast<std::uintptr_t>(1 + t * tensors + i % tensors) << 20;
        args.q.data.data = reinterpret_cast<void*>(at);
        args.kv.k.data = reinterpret_cast<void*>(at + 0x40000);
        plan->run(args, workspace.data(), context);
      }
    });
  for (std::thread& t : all) t.join();
  ASSERT_EQ(fake::state().launches.size(), static_cast<std::size_t>(threads * runs));
  std::map<void*, int> of_stream;
  for (const fake::Launch& l : fake::state().launches) {
    const auto q = reinterpret_cast<std::uintptr_t>(l.params.q.data);
    ASSERT_EQ(l.mapped, (std::vector<std::uintptr_t>{q, q + 0x40000, 0x30000}));
    ++of_stream[l.stream];
  }
  for (const char& stream : streams) EXPECT_EQ(of_stream[const_cast<char*>(&stream)], runs);
}

}  // namespace
}  // namespace undivided::cuda
