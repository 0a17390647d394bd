// SPDX-License-Identifier: Apache-2.0
// Time of sparse_attention beside dense causal attention, over what is dropped.
//
// bench_sparse [cpu | cuda] [rounds = 3] [d = 64] writes JSON. On the CPU two heads in float32 on
// one core, by the time of the thread, results in memory that the caller keeps; on CUDA 16 heads in
// bfloat16, by events on the stream. Dense and sparse are timed in turns of equal length, the best
// turn of each counts. `of_ideal` is the gain over dense, times the share of the causal pairs that
// meet: 1 is a cost that follows the pairs.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "core/generator.hpp"
#include "cpu/isa.hpp"
#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "sparse_rows.hpp"
#include "timed_plan.hpp"
#include "undivided/undivided.hpp"

using namespace undivided;

namespace {

struct Setting {
  Device device;
  DType dtype = DType::f32;
  std::int64_t heads = 2, dim = 64;
  int rounds = 3;
  Context context;
};

Tensor placed(Tensor t, const Setting& s) {
  return s.device.kind == Device::Kind::cpu ? t : cuda::to_device(t, s.device, s.context);
}

double seconds_of(const Setting& s, int runs, const std::function<void()>& work) {
  if (s.device.kind != Device::Kind::cpu)
    return cuda::time_on_stream(s.device, s.context, 1, work).front();
  return bench::mean_seconds(runs, work);
}

struct Times {
  double dense[2] = {1e300, 1e300}, sparse[2] = {1e300, 1e300};  // forward, backward
};

template <class Rule>
Times measure(const Setting& s, std::int64_t n, const Rule& rule, double share) {
  const auto x = [&](std::uint64_t seed) {
    return placed(random_normal(s.dtype, {1, s.heads, n, s.dim}, seed), s);
  };
  const Tensor q = x(1), k = x(2), v = x(3), dout = x(4);
  Options causally;
  causally.mask = causal();
  Times t;
  Forward f;
  SparseForward g;
  const int runs = bench::runs_beside_dense(share);
  const auto timed = [&](double& best, int times, auto&& run) {
    best = std::min(best, seconds_of(s, times, run));
  };
  for (int turn = 0; turn < s.rounds; ++turn) {
    timed(t.dense[0], 1, [&] { f = attention(q, k, v, causally, s.context); });
    timed(t.sparse[0], runs, [&] { g = sparse_attention(q, k, v, rule, {}, s.context); });
    timed(t.dense[1], 1, [&] { attention_backward(dout, q, k, v, f, {}, s.context); });
    timed(t.sparse[1], runs, [&] { sparse_attention_backward(dout, q, k, v, g, s.context); });
  }
  return t;
}

}  // namespace

int main(int count, char** arguments) {
  Setting s;
  const bool gpu = count > 1 && std::strcmp(arguments[1], "cuda") == 0;
  if (count > 2) s.rounds = std::atoi(arguments[2]);
  if (count > 3) s.dim = std::atoi(arguments[3]);
  s.context.executor = &inline_executor();
  bench::KeptMemory memory;
  if (!gpu) s.context.allocator = &memory;
  if (gpu) {
    s.device = {Device::Kind::cuda, 0};
    s.dtype = DType::bf16;
    s.heads = 16;
  }
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  fmt::print(
      "{{\n \"what\": \"sparse attention beside dense causal attention; of_ideal = gain times the "
      "share of the pairs\",\n \"processor\": \"{}\",\n \"commit\": \"{}\",\n \"heads\": {},\n "
      "\"d\": {},\n \"type\": \"{}\",\n \"rows\": [\n",
      gpu ? cuda::driver().device(0).name : cpu::processor_name(),
      commit ? commit : "unknown",
      s.heads,
      s.dim,
      name_of(s.dtype));
  bool first = true;
  for (const bool buckets : {false, true})
    for (const std::int64_t n : {8192, 16384})
      for (const int step : {0, 1, 2, 3}) {
        const int percent[] = {25, 50, 75, 90}, counts[] = {2, 4, 8, 16};
        Tensor on_q =
            bench::draw(s.heads, n, buckets ? static_cast<std::uint64_t>(counts[step]) : 100, 5);
        Tensor on_k = buckets ? on_q : bench::draw(s.heads, n, 100, 6);
        if (!buckets)
          for (Tensor* t : {&on_q, &on_k}) bench::keep_from(*t, percent[step]);
        const double share = bench::share_of(on_q, on_k, buckets);
        const Tensor a = placed(on_q, s), b = placed(on_k, s);
        const Times t =
            buckets ? measure(s, n, HashSparse{a, b}, share) : measure(s, n, QkSparse{a, b}, share);
        const auto gain = [&](int d) { return t.dense[d] / t.sparse[d]; };
        fmt::print(
            "{}  {{\"form\": \"{}\", \"tokens\": {}, \"{}\": {}, \"pairs\": {:.4f}, "
            "\"dense_ms\": [{:.3f}, {:.3f}], \"sparse_ms\": [{:.3f}, {:.3f}], \"gain\": [{:.2f}, "
            "{:.2f}], \"of_ideal\": [{:.3f}, {:.3f}]}}",
            first ? "" : ",\n",
            buckets ? "buckets" : "dropped",
            n,
            buckets ? "buckets" : "percent",
            buckets ? counts[step] : percent[step],
            share,
            1e3 * t.dense[0],
            1e3 * t.dense[1],
            1e3 * t.sparse[0],
            1e3 * t.sparse[1],
            gain(0),
            gain(1),
            gain(0) * share,
            gain(1) * share);
        std::fflush(stdout);
        first = false;
      }
  fmt::print("\n]}}\n");
}
