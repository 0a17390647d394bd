// SPDX-License-Identifier: Apache-2.0
// What score programs cost on the CPU kernels, beside no program at all.
//
// bench_score_programs [tokens = 2048] [rounds = 5] writes JSON. One core, float32, four heads, no
// mask. `forward` and `backward` are time / time without a program, measured in turns.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cpu/isa.hpp"
#include "cpu/peak.hpp"
#include "timed_plan.hpp"

using namespace undivided;

int main(int count, char** arguments) {
  const std::int64_t n = count > 1 ? std::atoi(arguments[1]) : 2048;
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 5;
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  const double peak = cpu::fma_peak_gflops("", 0.2);
  std::vector<float> slope(4), line(static_cast<std::size_t>(n), 0.25f);
  for (std::size_t i = 0; i < slope.size(); ++i)
    slope[i] = std::exp2(-2.0f * static_cast<float>(i + 1));
  const Array t5(random_normal(DType::f32, {32, 4}, 8));
  const Captures captures{{Array(line, "line")}, {}};
  const std::pair<const char*, Score> scores[] = {
      {"softcap", softcap(30)},
      {"ALiBi", alibi(Array(slope))},
      {"T5 bias", t5_bias(t5)},
      {"T5 bias, one direction", t5_bias(t5, false)},
      {"bias of a key", Score::parse("score + line[k]", captures)},
      {"table of all pairs", bias(Array(random_normal(DType::f32, {n, n}, 9)))},
      {"gather, no diagonal", Score::parse("score + line[(q * 3 + k) % 1024]", captures)},
      {"ALiBi under a softcap",
       Score::parse("20.0 * tanh((score - 0.125 * abs(q - k)) / 20.0)", {})},
  };
  fmt::print(
      "{{\n \"what\": \"time with a score program over time without\",\n \"processor\": "
      "\"{}\",\n \"commit\": \"{}\",\n \"tokens\": {},\n \"heads\": 4,\n \"peak_gflops\": "
      "{:.1f},\n \"rows\": [\n",
      cpu::processor_name(),
      commit ? commit : "unknown",
      n,
      peak);
  bool first = true;
  for (const std::int64_t d : {64, 128}) {
    bench::TimedPlan none(n, d, 4, {});
    for (const auto& [name, score] : scores) {
      bench::TimedPlan scored(n, d, 4, {.score = score});
      for (int i = 0; i < rounds; ++i)
        for (const bool backward : {false, true}) {
          none.time(backward);
          scored.time(backward);
        }
      // 16 scores of one vector, over all vectors of the problem.
      const double vectors = 4.0 / 16 * static_cast<double>(n) * static_cast<double>(n);
      fmt::print(
          "{}  {{\"d\": {}, \"score\": \"{}\", \"forward\": {:.3f}, \"backward\": {:.3f}, "
          "\"forward_ns_per_16\": {:.2f}, \"backward_ns_per_16\": {:.2f}, \"none_of_peak\": "
          "{:.3f}}}",
          first ? "" : ",\n",
          d,
          name,
          scored.forward_seconds / none.forward_seconds,
          scored.backward_seconds / none.backward_seconds,
          1e9 * (scored.forward_seconds - none.forward_seconds) / vectors,
          1e9 * (scored.backward_seconds - none.backward_seconds) / vectors,
          16e-9 * static_cast<double>(n * n * d) / none.forward_seconds / peak);
      std::fflush(stdout);
      first = false;
    }
  }
  fmt::print("\n]}}\n");
}
