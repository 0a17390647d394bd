// SPDX-License-Identifier: Apache-2.0
// Context: how a call runs (threads, stream, memory, backend), never what it computes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "undivided/tensor.hpp"

namespace undivided {

/// Runs independent tasks. Give your own to share a thread pool with the rest of your program.
class Executor {
 public:
  virtual ~Executor() = default;
  /// Number of workers; worker ids passed to tasks are below it.
  virtual int workers() const = 0;
  /// A task is plain function + state: nothing is allocated to call it.
  using Task = void (*)(void* state, std::int64_t index, int worker);
  /// Calls task(state, i, worker) once for each i in [0, n), from any thread; returns when all are
  /// done. An exception of a task is rethrown here once the others have finished.
  virtual void run(std::int64_t n, Task task, void* state) = 0;

  template <class F>
  void parallel_for(std::int64_t n, F&& fn) {
    run(
        n,
        [](void* state, std::int64_t i, int worker) {
          (*static_cast<std::remove_reference_t<F>*>(state))(i, worker);
        },
        &fn);
  }
};

Executor& inline_executor();                           ///< the calling thread only
Executor& default_executor();                          ///< oneTBB, all cores (or UNDIVIDED_THREADS)
std::shared_ptr<Executor> make_executor(int threads);  ///< oneTBB, limited to so many threads
std::shared_ptr<Executor> make_thread_executor(int threads);  ///< plain std::thread, no oneTBB

/// Where results and workspace of the verbs come from.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(std::size_t bytes, Device device, void* stream) = 0;  ///< 256-byte aligned
  virtual void deallocate(void* data, std::size_t bytes, Device device, void* stream) = 0;
};

enum class Backend : std::uint8_t { automatic, reference, cpu, cuda };
const char* name_of(Backend backend);

/// May a plan compile kernels? `never` uses only the prebuilt ones and the cache, and refuses by
/// name.
enum class Compile : std::uint8_t { allowed, never };

class Library;  ///< the one mutable process state: interned specs, plan cache, loaded modules

/// Last argument everywhere; the default runs on the device of the inputs with all cores.
struct Context {
  Backend backend = Backend::automatic;  ///< an explicit choice never falls back
  void* stream = nullptr;  ///< CUstream of the inputs' device; null is the legacy default stream
  Executor* executor = nullptr;    ///< null: default_executor()
  Allocator* allocator = nullptr;  ///< null: aligned host memory, cuMemAllocAsync on CUDA
  Compile compile = Compile::allowed;
  Library* library = nullptr;  ///< null: the process-wide one
};

/// Own state, for tests that count or clear it. Not needed otherwise.
std::shared_ptr<Library> make_library();

}  // namespace undivided
