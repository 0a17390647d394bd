// SPDX-License-Identifier: Apache-2.0
// Time to plan each mask of the catalogue, one core, beside its budget and brute force.
//
// bench_mask_plan [longest = 1048576] [shortest = 8192] writes JSON. Best of several; arrays and
// binding are made before the clock starts, range tables after it.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cpu/isa.hpp"
#include "mask/abstract.hpp"
#include "mask/plan.hpp"
#include "tests/mask_catalogue.hpp"
#include "undivided/plan.hpp"

using namespace undivided;

namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

template <class F>
double best_ms(F&& f, int most) {
  double best = 1e300, total = 0;
  for (int i = 0; i < most && total < 2; ++i) {
    const double start = seconds();
    f();
    const double t = seconds() - start;
    best = std::min(best, t);
    total += t;
  }
  return 1e3 * best;
}

/// What splitting the Partial blocks down to 8 x 8 would cost, and what it would leave undecided.
struct Leaves {
  double ms = 0;
  std::int64_t leaves = 0, undecided = 0;
};
Leaves split_partial_blocks(const BoundProgram& p, const MaskPlan& plan, std::int64_t n) {
  Leaves out;
  const auto tables = masks::range_tables(*p.program, p.bound);
  masks::AbstractMask mask(*p.program, p.bound, tables, 8);
  mask.begin(0, 0, n, n);
  const double start = seconds();
  for (std::int64_t row = 0; row * 64 < n; ++row) {
    for (int i = 0; i < 8; ++i) mask.query(i, row * 64 + 8 * i, row * 64 + 8 * i + 7);
    const auto at = static_cast<std::size_t>(plan.entries[0].query_runs + row);
    for (std::int32_t r = plan.run_offsets[at]; r < plan.run_offsets[at + 1]; ++r) {
      const MaskPlan::Run& run = plan.runs[static_cast<std::size_t>(r)];
      for (std::int64_t k = run.begin; run.tiles >= 0 && k < run.end; ++k) {
        for (int j = 0; j < 8; ++j) mask.key(j, k * 64 + 8 * j, k * 64 + 8 * j + 7);
        for (int leaf = 0; leaf < 64; ++leaf)
          out.undecided += !mask.evaluate(leaf / 8, leaf % 8).single();
        out.leaves += 64;
      }
    }
  }
  out.ms = 1e3 * (seconds() - start);
  return out;
}

}  // namespace

int main(int count, char** arguments) {
  const std::int32_t longest = count > 1 ? std::atoi(arguments[1]) : 1 << 20;
  const std::int32_t shortest = count > 2 ? std::atoi(arguments[2]) : 8192;
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  fmt::print(
      "{{\n \"what\": \"milliseconds to plan a mask on one core\",\n \"processor\": "
      "\"{}\",\n \"commit\": \"{}\",\n \"rows\": [\n",
      cpu::processor_name(),
      commit ? commit : "unknown");
  bool first = true;
  for (const std::int32_t s : {8192, 32768, 131072, 1048576}) {
    if (s > longest) break;
    if (s < shortest) continue;
    const testing::MaskCatalogue catalogue(s);
    const double budget = s <= 8192 ? 0 : s <= 32768 ? 10 : s <= 131072 ? 25 : 250;
    Sequence one;
    one.q_len = one.k_len = s;
    Positions reach;
    reach.q_high = reach.k_high = s - 1;
    reach.max_q_len = reach.max_k_len = s;
    std::vector<testing::CatalogueMask> masks = catalogue.masks();
    masks.push_back({27, "decay, by floats", "k <= q && exp(float(k - q) * 0.01) > 0.001"});
    masks.push_back(
        {28, "cone, by floats", "abs(float(q) * 0.5 - float(k)) <= sqrt(float(q)) + 64.0"});
    for (const testing::CatalogueMask& m : masks) {
      if (!m.structured && s > 131072) continue;  // billions of Partial blocks
      BoundProgram p = *bind(catalogue.mask(m), reach);
      const std::vector<Sequence> sequences{one};
      std::shared_ptr<MaskPlan> plan;
      const double ms =
          best_ms([&] { plan = make_mask_plan(p, 1, sequences, inline_executor()); }, 7);
      const bool band = p.band.is_band;
      p.band = {};
      const double analysed =
          band ? best_ms([&] { make_mask_plan(p, 1, sequences, inline_executor()); }, 7) : ms;
      double brute = 0;
      if (s <= 32768)
        brute =
            best_ms([&] { masks::exhaustive_mask_plan(p, 1, sequences, inline_executor()); }, 1);
      const Leaves split = s <= 32768 ? split_partial_blocks(p, *plan, s) : Leaves{};
      const auto& e = plan->entries[0];
      fmt::print(
          "{}  {{\"tokens\": {}, \"mask\": {}, \"name\": \"{}\", \"ms\": {:.3f}, "
          "\"analysed_ms\": {:.3f}, \"budget_ms\": {}, \"brute_ms\": {:.1f}, \"times_brute\": "
          "{:.0f}, \"empty\": {}, \"partial\": {}, \"full\": {}, \"runs\": {}, \"tiles\": {}, "
          "\"leaves_of_8_ms\": {:.3f}, \"leaves\": {}, \"undecided_leaves\": {}}}",
          first ? "" : ",\n",
          s,
          m.number,
          m.name,
          ms,
          analysed,
          m.structured ? budget : 0,
          brute,
          brute / ms,
          e.empty,
          e.partial,
          e.full,
          plan->runs.size(),
          plan->tiles_by_query.size(),
          split.ms,
          split.leaves,
          split.undecided);
      std::fflush(stdout);
      first = false;
    }
  }
  fmt::print("\n]}}\n");
}
