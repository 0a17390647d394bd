// SPDX-License-Identifier: Apache-2.0
// Time of each mask of the catalogue on the CPU kernels, beside what its kept tiles would cost at
// the dense rate.
//
// bench_mask_kernels [tokens = 8192] [rounds = 2] writes JSON. One core, d = 128, float32, one
// head. `forward` and `backward` are time / (kept 64 x 64 tiles at the rate of the full mask); the
// full mask is timed again before every mask, so that both meet the same machine.
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "cpu/isa.hpp"
#include "cpu/peak.hpp"
#include "tests/mask_catalogue.hpp"
#include "timed_plan.hpp"

using namespace undivided;

int main(int count, char** arguments) {
  const std::int32_t s = count > 1 ? std::atoi(arguments[1]) : 8192;
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 2;
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  const double peak = cpu::fma_peak_gflops("", 0.2);
  const auto blocks = static_cast<double>(s / MaskPlan::block);
  const double all = blocks * blocks;
  // A shorter full mask has the same rate and leaves time for the masks.
  const std::int64_t full_tokens = std::min(s, 4096);
  bench::TimedPlan full(full_tokens, 128, 1, {});
  const double scale = static_cast<double>(s) / static_cast<double>(full_tokens);
  fmt::print(
      "{{\n \"what\": \"time of a mask over its kept 64 x 64 tiles at the dense rate, and its rate "
      "counting kept pairs over the dense rate\",\n \"processor\": \"{}\",\n \"commit\": "
      "\"{}\",\n \"tokens\": {},\n \"d\": 128,\n \"peak_gflops\": {:.1f},\n \"rows\": [\n",
      cpu::processor_name(),
      commit ? commit : "unknown",
      s,
      peak);
  const testing::MaskCatalogue catalogue(s);
  bool first = true;
  for (const testing::CatalogueMask& m : catalogue.masks()) {
    bench::TimedPlan masked(s, 128, 1, {.mask = catalogue.mask(m)});
    full.forward_seconds = full.backward_seconds = std::numeric_limits<double>::infinity();
    for (int i = 0; i < rounds; ++i)
      for (const bool backward : {false, true}) {
        full.time(backward);
        masked.time(backward);
      }
    const auto& e = masked.analysis->entries[0];
    const double tiles = static_cast<double>(e.partial + e.full) / all;
    const double pairs = static_cast<double>(e.kept_pairs) / static_cast<double>(s) / s;
    const double forward = masked.forward_seconds / (full.forward_seconds * scale * scale);
    const double backward = masked.backward_seconds / (full.backward_seconds * scale * scale);
    fmt::print(
        "{}  {{\"mask\": {}, \"name\": \"{}\", \"partial\": {}, \"full\": {}, \"kept_pairs\": {}, "
        "\"forward_ms\": {:.2f}, \"backward_ms\": {:.2f}, \"forward\": {:.3f}, \"backward\": "
        "{:.3f}, \"forward_pairs\": {:.3f}, \"backward_pairs\": {:.3f}, \"dense_of_peak\": "
        "{:.3f}}}",
        first ? "" : ",\n",
        m.number,
        m.name,
        e.partial,
        e.full,
        e.kept_pairs,
        1e3 * masked.forward_seconds,
        1e3 * masked.backward_seconds,
        forward / tiles,
        backward / tiles,
        pairs / forward,
        pairs / backward,
        4e-9 * 128 * static_cast<double>(full_tokens) * static_cast<double>(full_tokens) /
            full.forward_seconds / peak);
    std::fflush(stdout);
    first = false;
  }
  fmt::print("\n]}}\n");
}
