// SPDX-License-Identifier: Apache-2.0
// Executors: the calling thread, oneTBB. Every task runs; then the failure of the lowest index is
// rethrown, so that a failing call fails the same way on any number of threads.
#include <exception>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>

#include "core/environment.hpp"
#include "core/failure.hpp"
#include "undivided/context.hpp"
#include "undivided/error.hpp"

#ifdef UNDIVIDED_WITH_TBB
#include <tbb/blocked_range.h>
#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#endif

namespace undivided {
namespace {

class InlineExecutor final : public Executor {
 public:
  int workers() const override { return 1; }
  void run(std::int64_t n, Task task, void* state) override {
    Failure failure;
    for (std::int64_t i = 0; i < n; ++i) failure.guard(task, state, i, 0);
    failure.rethrow();
  }
};

#ifdef UNDIVIDED_WITH_TBB
int machine_threads() { return tbb::info::default_concurrency(); }

void check_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw Error(Code::invalid_argument,
                Stage::plan,
                "threads: got " + std::to_string(threads) + "; allowed: 1 to 1024");
}

class TbbExecutor final : public Executor {
 public:
  explicit TbbExecutor(int threads) : arena_(threads) {
    // oneTBB makes no more threads than there are cores unless it is told to.
    if (threads > machine_threads())
      more_threads_.emplace(tbb::global_control::max_allowed_parallelism,
                            static_cast<std::size_t>(threads));
  }
  int workers() const override { return arena_.max_concurrency(); }
  void run(std::int64_t n, Task task, void* state) override {
    if (n <= 0) return;
    Failure failure;
    const auto body = [&](const tbb::blocked_range<std::int64_t>& range) {
      const int worker = tbb::this_task_arena::current_thread_index();
      for (std::int64_t i = range.begin(); i < range.end(); ++i)
        failure.guard(task, state, i, worker);
    };
    // Isolated: a thread that waits here must not pick up a task of an outer call, whose scratch
    // memory is in use under the same worker id.
    arena_.execute([&] {
      tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(
            tbb::blocked_range<std::int64_t>(0, n, 1), body, tbb::simple_partitioner());
      });
    });
    failure.rethrow();
  }

 private:
  tbb::task_arena arena_;
  std::optional<tbb::global_control> more_threads_;
};
#else
int machine_threads() {
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}
#endif

}  // namespace

Executor& inline_executor() {
  static InlineExecutor executor;
  return executor;
}

std::shared_ptr<Executor> make_executor(int threads) {
#ifdef UNDIVIDED_WITH_TBB
  check_threads(threads);
  return std::make_shared<TbbExecutor>(threads);
#else
  return make_thread_executor(threads);
#endif
}

Executor& default_executor() {
  static const std::shared_ptr<Executor> executor = [] {
    const int asked = environment::threads();
    return make_executor(asked ? asked : machine_threads());
  }();
  return *executor;
}

}  // namespace undivided
