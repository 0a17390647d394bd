// SPDX-License-Identifier: Apache-2.0
// Time to plan each mask of the catalogue, one core, beside its budget and brute force.
//
// bench_mask_plan [longest = 1048576] writes JSON. Best of several; arrays and binding are made
// before the clock starts, range tables after it.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

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

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

int main(int count, char** arguments) {
  const std::int32_t longest = count > 1 ? std::atoi(arguments[1]) : 1 << 20;
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  fmt::print(
      "{{\n \"what\": \"milliseconds to plan a mask on one core\",\n \"processor\": "
      "\"{}\",\n \"commit\": \"{}\",\n \"rows\": [\n",
      processor(),
      commit ? commit : "unknown");
  bool first = true;
  for (const std::int32_t s : {8192, 32768, 131072, 1048576}) {
    if (s > longest) break;
    const testing::MaskCatalogue catalogue(s);
    const double budget = s <= 8192 ? 0 : s <= 32768 ? 10 : s <= 131072 ? 25 : 250;
    Sequence one;
    one.q_len = one.k_len = s;
    Positions reach;
    reach.q_high = reach.k_high = s - 1;
    reach.max_q_len = reach.max_k_len = s;
    for (const testing::CatalogueMask& m : catalogue.masks()) {
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
      const auto& e = plan->entries[0];
      fmt::print(
          "{}  {{\"tokens\": {}, \"mask\": {}, \"name\": \"{}\", \"ms\": {:.3f}, "
          "\"analysed_ms\": {:.3f}, \"budget_ms\": {}, \"brute_ms\": {:.1f}, \"times_brute\": "
          "{:.0f}, \"empty\": {}, \"partial\": {}, \"full\": {}, \"runs\": {}, \"tiles\": {}}}",
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
          plan->tiles_by_query.size());
      std::fflush(stdout);
      first = false;
    }
  }
  fmt::print("\n]}}\n");
}
