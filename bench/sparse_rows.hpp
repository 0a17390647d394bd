// SPDX-License-Identifier: Apache-2.0
// Rows to drop and buckets for the benches of sparse attention, the pairs that they leave, and how
// both sides are timed.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "bench/timed_plan.hpp"
#include "undivided/context.hpp"
#include "undivided/tensor.hpp"

namespace undivided::bench {

/// Numbers in [0, most), the same for each run.
inline Tensor draw(std::int64_t heads, std::int64_t n, std::uint64_t most, std::uint64_t seed) {
  const Tensor t = Tensor::empty(DType::i32, {1, heads, n});
  for (std::int64_t i = 0; i < t.count(); ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    t.ptr<std::int32_t>()[i] = static_cast<std::int32_t>((seed >> 33) % most);
  }
  return t;
}

/// Keeps what it gets back, as a caller in a loop has it: results of dense and sparse attention
/// alike then lie in memory that was touched before.
class KeptMemory final : public Allocator {
 public:
  void* allocate(std::size_t bytes, Device, void*) override {
    const auto found = spare_.find(bytes);
    Tensor t = found == spare_.end() ? Tensor::empty(DType::i8, {static_cast<std::int64_t>(bytes)})
                                     : found->second;
    if (found != spare_.end()) spare_.erase(found);
    void* memory = t.data;
    used_.emplace(memory, std::move(t));
    return memory;
  }
  void deallocate(void* memory, std::size_t bytes, Device, void*) override {
    spare_.emplace(bytes, std::move(used_.extract(memory).mapped()));
  }

 private:
  std::multimap<std::size_t, Tensor> spare_;
  std::map<void*, Tensor> used_;
};

/// Sparse runs that take about as long as one dense run: the clock of the processor follows the
/// load within milliseconds, so a short run alone would meet another clock.
inline int runs_beside_dense(double share) {
  return std::clamp(static_cast<int>(std::lround(1 / share)), 1, 32);
}
/// Time of this thread for one of `runs` runs.
template <class F>
double mean_seconds(int runs, F&& run) {
  const double before = thread_seconds();
  for (int i = 0; i < runs; ++i) run();
  return (thread_seconds() - before) / runs;
}

/// The share of the causal pairs that meet.
inline double share_of(const Tensor& q, const Tensor& k, bool buckets) {
  double kept = 0;
  const std::int64_t heads = q.size(1), n = q.size(2);
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<double> seen(64, 0);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto a = static_cast<std::size_t>(q.ptr<std::int32_t>()[h * n + i]),
                 b = static_cast<std::size_t>(k.ptr<std::int32_t>()[h * n + i]);
      if (buckets) {
        kept += seen[a];
        ++seen[b];
      } else {
        seen[0] += static_cast<double>(b);
        if (a != 0) kept += seen[0];
      }
    }
  }
  const auto tokens = static_cast<double>(n);
  return kept / (static_cast<double>(heads) * tokens * (tokens + 1) / 2);
}

/// Numbers below `percent` become flags that drop a row.
inline void keep_from(const Tensor& numbers, int percent) {
  for (std::int64_t i = 0; i < numbers.count(); ++i)
    numbers.ptr<std::int32_t>()[i] = numbers.ptr<std::int32_t>()[i] >= percent;
}

}  // namespace undivided::bench
