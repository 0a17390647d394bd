// SPDX-License-Identifier: Apache-2.0
// FlashMask's kinds with and without bit tiles: time and memory of the plan, time of the kernels.
//
// bench_flashmask [longest = 1048576] writes JSON. One core. Planning: best of several. Kernels: d
// = 128, float32, one head, 8192 tokens, the better of three, the two kinds of plan in turn;
// `*_of_dense` is time / (kept 64 x 64 tiles at the rate of the full mask in the same run).
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "cpu/isa.hpp"
#include "cpu/peak.hpp"
#include "mask/plan.hpp"
#include "tests/flashmask_kinds.hpp"
#include "timed_plan.hpp"

using namespace undivided;

namespace {

template <class F>
double best_ms(F&& f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300, total = 0;
  for (int i = 0; i < 5 && total < 1; ++i) {
    const auto start = Clock::now();
    f();
    const double t = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, t);
    total += t;
  }
  return 1e3 * best;
}

std::string plan_row(const testing::Kind& kind, int n, bool with_bits) {
  Sequence s;
  s.q_len = s.k_len = n;
  Positions reach;
  reach.q_high = reach.k_high = n - 1;
  reach.max_q_len = reach.max_k_len = n;
  const auto bound = bind(import_flashmask(kind.mask), reach);
  std::shared_ptr<MaskPlan> plan;
  const auto timed = [&](Inside inside) {
    return best_ms([&] { plan = make_mask_plan(*bound, 1, {&s, 1}, inline_executor(), inside); });
  };
  std::string text = fmt::format("  {{\"tokens\": {}, \"kind\": \"{}\", \"ms\": {:.2f}, ",
                                 n,
                                 kind.name,
                                 timed(Inside::program));
  const MaskPlan::Entry& e = plan->entries[0];
  text += fmt::format("\"bytes\": {}, \"partial\": {}, \"full\": {}, \"empty\": {}",
                      plan->bytes(),
                      e.partial,
                      e.full,
                      e.empty);
  if (with_bits) {
    const double ms = timed(Inside::bits);
    text += fmt::format(", \"bits_ms\": {:.2f}, \"bits_bytes\": {}", ms, plan->bytes());
  }
  return text + "}";
}

std::string kernel_row(const testing::Kind& kind, int n, bench::TimedPlan& full) {
  Options o;
  o.mask = import_flashmask(kind.mask);
  o.inside = Inside::bits;
  bench::TimedPlan bits(n, 128, 1, o);
  o.inside = Inside::program;
  bench::TimedPlan program(n, 128, 1, o);
  for (int i = 0; i < 3; ++i)
    for (const bool backward : {false, true}) {
      full.time(backward);
      bits.time(backward);
      program.time(backward);
    }
  const auto& e = bits.analysis->entries[0];
  const double blocks = static_cast<double>(n / MaskPlan::block);
  const double tiles = static_cast<double>(e.partial + e.full) / (blocks * blocks);
  return fmt::format(
      "  {{\"tokens\": {}, \"kind\": \"{}\", \"forward_ms\": {:.2f}, \"backward_ms\": {:.2f}, "
      "\"bits_forward_ms\": {:.2f}, \"bits_backward_ms\": {:.2f}, \"forward_of_dense\": {:.3f}, "
      "\"backward_of_dense\": {:.3f}, \"partial\": {}, \"full\": {}}}",
      n,
      kind.name,
      1e3 * program.forward_seconds,
      1e3 * program.backward_seconds,
      1e3 * bits.forward_seconds,
      1e3 * bits.backward_seconds,
      program.forward_seconds / (full.forward_seconds * tiles),
      program.backward_seconds / (full.backward_seconds * tiles),
      e.partial,
      e.full);
}

}  // namespace

int main(int count, char** arguments) {
  const int longest = count > 1 ? std::atoi(arguments[1]) : 1 << 20;
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  fmt::print("{{\n \"processor\": \"{}\",\n \"commit\": \"{}\",\n \"peak_gflops\": {:.1f},\n",
             cpu::processor_name(),
             commit ? commit : "unknown",
             cpu::fma_peak_gflops("", 0.2));
  const auto rows = [](const char* name, const auto& list, auto&& row) {
    fmt::print(" \"{}\": [", name);
    for (std::size_t i = 0; i < list.size(); ++i) {
      fmt::print("{}\n{}", i ? "," : "", row(list[i]));
      std::fflush(stdout);
    }
    fmt::print("\n ]");
  };
  std::vector<std::pair<testing::Kind, int>> plans;
  for (const int n : {8192, 131072, 1 << 20})
    if (n <= longest)
      for (const testing::Kind& kind : testing::kinds(n)) plans.emplace_back(kind, n);
  // Millions of tiles of bits take gigabytes.
  rows("plans", plans, [](const auto& p) {
    return plan_row(p.first, p.second, p.second < 1 << 20);
  });
  fmt::print(",\n");
  const int n = 8192;
  bench::TimedPlan full(n, 128, 1, {});
  rows("kernels", testing::kinds(n), [&](const auto& kind) { return kernel_row(kind, n, full); });
  fmt::print("\n}}\n");
}
