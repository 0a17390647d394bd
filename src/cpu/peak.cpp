// SPDX-License-Identifier: Apache-2.0
// Peak loops: thread time, best of many short slices, so that a busy neighbour does not count.
#include "cpu/peak.hpp"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <vector>

#include "cpu/isa.hpp"

namespace undivided::cpu {
namespace {

double thread_seconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#else
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

template <class F>
double best_rate(double seconds, F&& work) {
  double best = 0;
  const double start = thread_seconds();
  do {
    const double before = thread_seconds();
    const double done = work();
    const double spent = thread_seconds() - before;
    if (spent > 0) best = std::max(best, done / spent);
  } while (thread_seconds() - start < seconds);
  return best;
}

}  // namespace

double fma_peak_gflops(std::string_view isa, double seconds) {
  const Kernels& k = isa.empty() ? chosen_kernels() : kernels_of(isa);
  return best_rate(seconds, [&] { return k.fma_loop(200000); }) * 1e-9;
}

double read_bandwidth(std::size_t bytes, double seconds) {
  const std::vector<float> buffer(bytes / sizeof(float), 1.0f);
  volatile float sink = 0;
  const double rate = best_rate(seconds, [&] {
    sink = chosen_kernels().read_loop(buffer.data(), static_cast<std::int64_t>(buffer.size()));
    return static_cast<double>(buffer.size() * sizeof(float));
  });
  (void)sink;
  return rate * 1e-9;
}

}  // namespace undivided::cpu
