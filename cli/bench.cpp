// SPDX-License-Identifier: Apache-2.0
// undivided bench: how fast, and which part of the machine's own peak that is.
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <vector>

#include "cli/bench_overhead.hpp"
#include "cli/bench_rows.hpp"
#include "cli/common.hpp"
#include "cli/device.hpp"
#include "cli/measure.hpp"
#include "core/build_info.hpp"
#include "core/environment.hpp"
#include "core/generator.hpp"
#include "cpu/isa.hpp"
#include "cuda/driver.hpp"

namespace undivided::cli {
namespace {

/// Forces an instruction set while it lives.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& name) : forced_(!name.empty()) {
    if (!forced_) return;
    before_ = environment::isa();
    ::setenv("UNDIVIDED_ISA", name.c_str(), 1);
  }
  ~ForcedIsa() {
    if (!forced_) return;
    if (before_.empty())
      ::unsetenv("UNDIVIDED_ISA");
    else
      ::setenv("UNDIVIDED_ISA", before_.c_str(), 1);
  }
  ForcedIsa(const ForcedIsa&) = delete;

 private:
  bool forced_;
  std::string before_;
};

/// A process that never sleeps.
class BusyProcess {
 public:
  BusyProcess() : child_(::fork()) {
    if (child_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (volatile unsigned spin = 0;;) spin = spin + 1;
    }
  }
  ~BusyProcess() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  BusyProcess(const BusyProcess&) = delete;

 private:
  pid_t child_;
};

struct Figures {
  double seconds = 0, flops = 0, gflops = 0, of_peak = 0, peak = 0;  // of one thread
  std::optional<double> rate_ratio, gbytes, of_read, p90_ratio;

  double named(const std::string& name) const {
    if (name == "of_peak") return of_peak;
    if (name == "of_read") return of_read.value_or(0);
    if (name == "rate_ratio") return rate_ratio.value_or(0);
    return name == "p90_ratio" ? p90_ratio.value_or(0) : seconds;
  }
};

double percentile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(part * static_cast<double>(values.size() - 1))];
}

/// Calls until the budget is spent, at least `least` times.
template <class F>
void repeat(double budget, int least, F&& once) {
  const double start = now();
  for (int i = 0; i < least || (now() - start < budget && i < 10000); ++i) once();
}

/// The time of this thread, so that a busy neighbour does not count; of the wall for several.
double time_of(const std::function<void()>& work, int threads = 1) {
  const auto clock = [threads] {
    timespec t{};
    ::clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double before = clock();
  work();
  return clock() - before;
}

/// Reads the bytes that a decode must read: the keys and values of a row.
double read_seconds(const Workload& w) {
  [[maybe_unused]] static volatile float sink;
  return time_of([&] {
    for (const View* v : {&w.kv.k, &w.kv.v})
      sink = cpu::chosen_kernels().read_loop(
          static_cast<const float*>(v->data),
          v->count() * static_cast<std::int64_t>(size_of(v->dtype)) / 4);
  });
}

/// Differential attention, first version: pairs of heads of width d over values of 2 d, as the verb
/// computes them, in turns with the row beside it.
Figures differential_figures(const Row& r, double budget, const Peak& peak) {
  Context context;
  context.backend = Backend::cpu;
  context.executor = &inline_executor();
  const auto tensor = [&](std::int64_t heads, std::int64_t d, std::uint64_t seed) {
    return random_normal(r.dtype, {r.batch, heads, r.k_len, d}, seed);
  };
  const Tensor q = tensor(r.heads, r.d, 1), k = tensor(r.heads, r.d, 2),
               v = tensor(r.heads / 2, 2 * r.d, 3),
               lambda = random_normal(DType::f32, {r.d}, 4, .1);
  DifferentialV1 p;
  p.q1 = p.k1 = p.q2 = p.k2 = lambda;
  const Job other(workload_of(*r.beside), false, context);
  const double other_flops = other.forward_flops();
  Options options = workload_of(*r.beside).options;
  std::vector<double> own, others, peaks;
  repeat(2 * budget, 4, [&] {
    peaks.push_back(peak.now());
    own.push_back(time_of([&] { differential(q, dense(k, v), p, options, context); }));
    others.push_back(time_of([&] { other.run_forward(); }));
  });
  Figures f;
  f.seconds = median(own);
  // A branch sees the pairs of the row beside, with queries of d and values of 2 d.
  f.flops = static_cast<double>(r.heads) / static_cast<double>(r.beside->heads) *
            static_cast<double>(other.kept_pairs()) * 2 * 3 * static_cast<double>(r.d);
  f.gflops = f.flops / f.seconds * 1e-9;
  f.peak = median(peaks);
  f.of_peak = f.gflops / f.peak;
  f.rate_ratio = f.flops / f.seconds / (other_flops / median(others));
  return f;
}

Figures measured(const Row& r, Backend backend, double budget, const Peak& peak) {
  if (r.direction == "differential") return differential_figures(r, budget, peak);
  const Threads threads(r.threads);
  Context context;
  const auto plans = make_library();  // a plan is made for the instruction set of its day
  context.library = plans.get();
  context.backend = backend;
  context.executor = r.threads == 1 ? &inline_executor() : threads.executor;
  const bool backward = r.direction == "backward";
  const Workload work = workload_of(r);
  const Job job(work, backward, context);
  Figures f;
  f.flops = backward ? job.backward_flops() : job.forward_flops();
  f.peak = peak.gflops;
  if (!r.step.empty()) {
    f.seconds = overhead_seconds(r, context);
  } else if (backend == Backend::cuda) {
    f.seconds = backward ? job.backward_seconds(budget) : job.forward_seconds(budget);
  } else {
    // Scaling is a matter of the wall on both sides.
    const int clocks = std::max(r.threads, r.beside ? r.beside->threads : 1);
    const auto run = [=](const Job& j) {
      return time_of([&] { backward ? j.run_backward() : j.run_forward(); }, clocks);
    };
    std::unique_ptr<Job> other;
    if (r.beside) {
      Context c = context;
      if (r.beside->threads == 1) c.executor = &inline_executor();
      other = std::make_unique<Job>(workload_of(*r.beside), backward, c);
    }
    std::vector<double> own, others, read, peaks, shares;
    run(job);  // warm
    if (other) run(*other);
    double before = peak.now();
    repeat(other ? 2 * budget : budget, 3, [&] {
      own.push_back(run(job));
      // Under 512-bit work the clock moves by a quarter within a millisecond: the peak that counts
      // is that of the moments before and after.
      const double after = peak.now();
      peaks.push_back((before + after) / 2);
      shares.push_back(f.flops * 1e-9 / (own.back() * peaks.back() * r.threads));
      if (other) others.push_back(run(*other));
      if (r.direction == "decode") read.push_back(read_seconds(work));
      before = other || !read.empty() ? peak.now() : after;
    });
    f.seconds = median(own);
    f.of_peak = median(shares);
    if (other) {
      const double flops = backward ? other->backward_flops() : other->forward_flops();
      f.rate_ratio = f.flops / f.seconds / (flops / median(others));
    }
    if (!read.empty()) {
      const double bytes = 2.0 * static_cast<double>(r.batch * r.kv_heads * r.k_len * r.d) *
                           static_cast<double>(size_of(r.dtype));
      f.gbytes = bytes / f.seconds * 1e-9;
      f.of_read = median(read) / f.seconds;
    }
    if (r.contended) {
      const BusyProcess busy;
      std::vector<double> disturbed;
      repeat(4 * budget, 20, [&] { disturbed.push_back(run(job)); });
      f.p90_ratio = percentile(disturbed, .9) / f.seconds;
    }
  }
  f.gflops = f.flops / f.seconds * 1e-9;
  if (f.of_peak > 0)
    f.peak = f.gflops / (f.of_peak * r.threads);  // of the moments that the share is of
  else if (f.peak > 0)
    f.of_peak = f.gflops / (f.peak * r.threads);
  return f;
}

std::string remarks(const Row& r, const Figures& f, bool missed) {
  std::string text;
  if (f.rate_ratio) text += fmt::format("  x{:.3f} of {}", *f.rate_ratio, r.beside->name);
  if (f.of_read)
    text += fmt::format("  {:.1f} GB/s, {:.0f}% of a read", *f.gbytes, 100 * *f.of_read);
  if (f.p90_ratio) text += fmt::format("  p90 x{:.2f} of the quiet median", *f.p90_ratio);
  if (r.bar)
    text += fmt::format("  bar {} {} {:.3g}{}",
                        r.bar->of,
                        r.bar->at_most ? "<=" : ">=",
                        r.bar->value,
                        missed ? " missed" : "");
  return text;
}

nlohmann::ordered_json json_of(
    const Row& r, const Figures& f, Backend backend, const Peak& peak, const std::string& machine) {
  nlohmann::ordered_json row = {{"name", r.name},
                                {"backend", name_of(backend)},
                                {"direction", r.direction},
                                {"dtype", name_of(r.dtype)},
                                {"batch", r.batch},
                                {"heads", r.heads},
                                {"kv_heads", r.kv_heads},
                                {"q_len", r.q_len},
                                {"k_len", r.k_len},
                                {"d", r.d},
                                {"dv", r.direction == "differential" ? 2 * r.d : r.d},
                                {"mask", mask_text(r)},
                                {"score", r.score},
                                {"threads", r.threads},
                                {"seconds", f.seconds},
                                {"flops", f.flops},
                                {"gflops", f.gflops},
                                {"peak_gflops", f.peak * r.threads},
                                {"peak_of", peak.of},
                                {"of_peak", f.of_peak},
                                {"machine", machine},
                                {"compiler", build_info().compiler},
                                {"commit", build_info().commit}};
  if (backend == Backend::cuda) row["threads"] = nullptr;
  if (r.page) row["page"] = r.page;
  if (!r.precision.empty()) row["precision"] = r.precision;
  if (r.beside) row["beside"] = r.beside->name;
  if (f.rate_ratio) row["rate_ratio"] = *f.rate_ratio;
  if (f.gbytes) row["gbytes_per_second"] = *f.gbytes;
  if (f.of_read) row["of_read"] = *f.of_read;
  if (f.p90_ratio) row["p90_ratio"] = *f.p90_ratio;
  if (r.bar) row["bar"] = r.bar->value, row["bar_of"] = r.bar->of;
  return row;
}

struct BenchFlags {
  std::string backend = "cpu", filter;
  double budget = 0.4;
  bool json = false, gate = false, list = false, all = false;
};

int run(const BenchFlags& f) {
  const Backend backend =
      choose("bench", f.backend, {"cpu", "cuda"}) == 0 ? Backend::cpu : Backend::cuda;
  device_of(backend);
  std::vector<Row> rows = rows_of(backend);
  if (!f.filter.empty()) {
    std::regex pattern;
    try {
      pattern = std::regex(f.filter);
    } catch (const std::regex_error& e) {
      refuse(fmt::format("--filter '{}' is not a regular expression: {}", f.filter, e.what()));
    }
    std::erase_if(rows, [&](const Row& r) { return !std::regex_search(r.name, pattern); });
    if (rows.empty())
      refuse(
          fmt::format("--filter '{}' matches no row; undivided bench --list shows them", f.filter));
  } else if (!f.all && !f.list) {
    std::erase_if(rows, [](const Row& r) { return !r.usual; });
  }
  if (f.list) {
    for (const Row& r : rows) fmt::print("{}\n", r.name);
    return exit_done;
  }
  const std::string machine =
      backend == Backend::cuda ? cuda::driver().device(0).name : cpu::processor_name();
  const std::vector<std::string> isas = cpu::available_isas();
  int missed = 0;
  Progress progress("bench", rows.size());
  if (!f.json) fmt::print("{:<40}{:>12}{:>12}{:>10}\n", "row", "seconds", "GFLOP/s", "of peak");
  for (const Row& r : rows) {
    progress.step(r.name);
    if (!r.isa.empty() && std::find(isas.begin(), isas.end(), r.isa) == isas.end()) {
      progress.clear();
      fmt::print(stderr, "{}: left out, this processor runs {}\n", r.name, fmt::join(isas, ", "));
      continue;
    }
    const ForcedIsa forced(r.isa);
    const Peak peak = measured_peak(backend, r.dtype, !r.isa.empty() || !r.precision.empty());
    const Figures figures = measured(r, backend, f.budget, peak);
    const bool low = r.bar && (r.bar->at_most ? figures.named(r.bar->of) > r.bar->value
                                              : figures.named(r.bar->of) < r.bar->value);
    missed += low;
    progress.clear();
    if (f.json)
      fmt::print("{}\n", json_of(r, figures, backend, peak, machine).dump());
    else
      fmt::print("{:<40}{:>12.3e}{:>12.1f}{:>9.1f}%{}\n",
                 r.name,
                 figures.seconds,
                 figures.gflops,
                 100 * figures.of_peak,
                 remarks(r, figures, low));
    std::fflush(stdout);
  }
  if (!f.json) fmt::print("{}; {}\n", machine, tool_line());
  return f.gate && missed ? exit_failed : exit_done;
}

}  // namespace

Command add_bench(CLI::App& main) {
  CLI::App* app = main.add_subcommand("bench", "How fast, beside the machine's own peak");
  auto f = std::make_shared<BenchFlags>();
  app->add_option("backend", f->backend, "cpu (default) or cuda");
  app->add_option("--filter", f->filter, "regular expression on the names of all rows");
  app->add_flag("--all",
                f->all,
                "the long list: 4096 tokens, small sizes, pages, score programs,\n"
                "forced instruction sets, the cost of a call (about 5 minutes)");
  app->add_option("--seconds", f->budget, "time spent on a row (default 0.4)");
  app->add_flag("--list", f->list, "prints the names of the rows and stops");
  app->add_flag("--gate", f->gate, "exits 1 if a row misses its stated bar");
  app->add_flag("--json", f->json, "one JSON object a row on stdout");
  app->footer(
      "examples:\n"
      "  undivided bench\n"
      "  undivided bench --all --json > rows.jsonl\n"
      "  undivided bench cpu --filter 'forward f32 d128' --gate\n"
      "  undivided bench cuda --json > rows.jsonl");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
