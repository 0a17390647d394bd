// SPDX-License-Identifier: Apache-2.0
// Peak loops: the best of many short slices, so that a busy neighbour does not count.
#include "cpu/peak.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/isa.hpp"

namespace undivided::cpu {
namespace {

/// Wall time: a virtual machine takes back the time that its host stole from a thread's own clock,
/// sometimes more than was stolen. The best of many slices needs no such favour.
double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double best_rate(double seconds, F&& work) {
  double best = 0;
  const double start = seconds_now();
  do {
    const double before = seconds_now();
    const double done = work();
    const double spent = seconds_now() - before;
    if (spent > 0) best = std::max(best, done / spent);
  } while (seconds_now() - start < seconds);
  return best;
}

}  // namespace

double fma_peak_gflops(std::string_view isa, double seconds) {
  const Kernels& k = isa.empty() ? chosen_kernels() : kernels_of(isa);
  return best_rate(seconds, [&] { return k.fma_loop(20000); }) * 1e-9;
}

double bf16_dot_peak_gflops(std::string_view isa, double seconds) {
  const Kernels& k = isa.empty() ? chosen_kernels() : kernels_of(isa);
  return k.dots ? best_rate(seconds, [&] { return k.dots->bf16_loop(20000); }) * 1e-9 : 0;
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
