// SPDX-License-Identifier: Apache-2.0
// Keeps the exception of the lowest task index until all tasks are done.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

#include "undivided/context.hpp"

namespace undivided {

class Failure {
 public:
  void guard(Executor::Task task, void* state, std::int64_t index, int worker) {
    try {
      task(state, index, worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (index < index_) {
        index_ = index;
        exception_ = std::current_exception();
      }
    }
  }
  /// Only after every task has returned.
  void rethrow() {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr exception_;
  std::int64_t index_ = std::numeric_limits<std::int64_t>::max();
};

}  // namespace undivided
