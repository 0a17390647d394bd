// SPDX-License-Identifier: Apache-2.0
// An executor on plain std::thread: a fixed set of threads that take the next index in turn.
#include <atomic>
#include <condition_variable>
#include <string>
#include <thread>
#include <vector>

#include "core/failure.hpp"
#include "undivided/context.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int threads) : workers_(threads) {
    threads_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int worker = 1; worker < threads; ++worker)
        threads_.emplace_back([this, worker] { serve(worker); });
    } catch (...) {  // the system has no more threads: stop those that run
      stop();
      throw Error(Code::driver,
                  Stage::plan,
                  "the system refused to start " + std::to_string(threads) + " threads");
    }
  }
  ~ThreadExecutor() override { stop(); }

  int workers() const override { return workers_; }

  void run(std::int64_t n, Task task, void* state) override {
    if (n <= 0) return;
    Failure failure;
    if (inside == this) {  // called from one of our own tasks: all threads are taken
      for (std::int64_t i = 0; i < n; ++i) failure.guard(task, state, i, inside_worker);
      return failure.rethrow();
    }
    const std::lock_guard one_caller(callers_);
    {
      const std::lock_guard lock(mutex_);
      task_ = task;
      state_ = state;
      failure_ = &failure;
      count_ = n;
      next_.store(0, std::memory_order_relaxed);
      busy_ = workers_ - 1;
      ++round_;
    }
    start_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    lock.unlock();
    failure.rethrow();
  }

 private:
  void serve(int worker) {
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        start_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
      }
      work(worker);
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void work(int worker) {
    const ThreadExecutor* const outer = inside;
    const int outer_worker = inside_worker;
    inside = this;
    inside_worker = worker;
    for (;;) {
      const std::int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count_) break;
      failure_->guard(task_, state_, i, worker);
    }
    inside = outer;
    inside_worker = outer_worker;
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    start_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  static thread_local const ThreadExecutor* inside;
  static thread_local int inside_worker;

  const int workers_;
  std::vector<std::thread> threads_;
  std::mutex callers_;  // one call at a time
  std::mutex mutex_;    // guards what follows, except the counter
  std::condition_variable start_, done_;
  Task task_ = nullptr;
  void* state_ = nullptr;
  Failure* failure_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::uint64_t round_ = 0;
  int busy_ = 0;
  bool stopping_ = false;
};

thread_local const ThreadExecutor* ThreadExecutor::inside = nullptr;
thread_local int ThreadExecutor::inside_worker = 0;

}  // namespace

std::shared_ptr<Executor> make_thread_executor(int threads) {
  if (threads < 1 || threads > 1024)
    throw Error(Code::invalid_argument,
                Stage::plan,
                "threads: got " + std::to_string(threads) + "; allowed: 1 to 1024");
  return std::make_shared<ThreadExecutor>(threads);
}

}  // namespace undivided
