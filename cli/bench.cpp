// SPDX-License-Identifier: Apache-2.0
// undivided bench: how fast, and which part of the machine's own peak that is.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>

#include "cli/common.hpp"
#include "cli/device.hpp"
#include "cli/measure.hpp"
#include "core/build_info.hpp"
#include "core/generator.hpp"
#include "cuda/driver.hpp"

namespace undivided::cli {
namespace {

struct Row {
  std::string name, direction, mask;  // mask: full, causal, window, documents
  DType dtype = DType::f32;
  std::int64_t batch = 1, heads = 2, kv_heads = 2, q_len = 2048, k_len = 2048, d = 128;
  int threads = 1;
  std::optional<double> bar;  // part of the peak that must be reached
};

constexpr std::int64_t window_width = 512, document_length = 300;

std::vector<Row> rows_of(Backend backend) {
  const bool gpu = backend == Backend::cuda;
  const int all = gpu ? 1 : default_executor().workers();
  std::vector<Row> rows;
  const auto add = [&](Row r) {
    r.name = fmt::format("{} {} d{} n{} {}", r.direction, name_of(r.dtype), r.d, r.k_len, r.mask);
    if (r.threads > 1) r.name += fmt::format(" t{}", r.threads);
    rows.push_back(r);
  };
  for (const char* direction : {"forward", "backward", "decode"})
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      if (gpu && dtype == DType::f32) continue;
      for (const std::int64_t d : {64, 128})
        for (const char* mask : {"full", "causal", "window", "documents"}) {
          Row r;
          r.direction = direction;
          r.mask = mask;
          r.dtype = dtype;
          r.d = d;
          if (gpu) {
            r.batch = 2;
            r.heads = r.kv_heads = 16;
            r.q_len = r.k_len = 4096;
          }
          if (r.direction == "decode") {
            if (r.mask == "documents" || r.mask == "window") continue;
            r.q_len = 1;
            r.k_len = gpu ? 8192 : 4096;
            r.batch = gpu ? 16 : 2;
            r.heads = gpu ? 32 : 8;
            r.kv_heads = gpu ? 8 : 2;
          }
          if (!gpu && r.direction == "forward" && dtype == DType::f32 && d == 128 &&
              r.mask == "full")
            r.bar = 0.5;
          add(r);
          if (all > 1 && dtype == DType::f32 && d == 128 &&
              (r.mask == "full" || r.mask == "causal")) {
            r.threads = all;
            if (r.kv_heads < all) r.heads = r.kv_heads = all;
            r.bar.reset();
            add(r);
          }
        }
    }
  return rows;
}

std::string mask_text(const Row& r) {
  if (r.mask == "window") return fmt::format("window({}, 0)", window_width);
  return r.mask == "documents" ? "documents(id)" : r.mask;
}

Workload workload_of(const Row& r) {
  Workload w;
  const auto tensor = [&](std::int64_t heads, std::int64_t tokens, std::uint64_t seed) {
    return w.keep.emplace_back(random_normal(r.dtype, {r.batch, heads, tokens, r.d}, seed));
  };
  w.q = Rows(tensor(r.heads, r.q_len, 1));
  const Tensor k = tensor(r.kv_heads, r.k_len, 2), v = tensor(r.kv_heads, r.k_len, 3);
  w.kv = dense(k, v);
  w.dout = tensor(r.heads, r.q_len, 4);
  w.options.align = Align::end;
  if (r.mask == "causal") w.options.mask = causal();
  if (r.mask == "window") w.options.mask = window(window_width, 0);
  if (r.mask == "documents") {
    std::vector<std::int32_t> id(static_cast<std::size_t>(r.k_len));
    for (std::size_t i = 0; i < id.size(); ++i)
      id[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / document_length);
    w.options.mask = documents(Array(std::move(id), "id"));
  }
  return w;
}

struct Flags {
  std::string backend = "cpu", filter;
  double budget = 0.4;
  bool json = false, gate = false, list = false;
};

int run(const Flags& f) {
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
  }
  if (f.list) {
    for (const Row& r : rows) fmt::print("{}\n", r.name);
    return exit_done;
  }
  const std::string machine =
      backend == Backend::cuda ? cuda::driver().device(0).name : processor_name();
  int missed = 0;
  Progress progress("bench", rows.size());
  if (!f.json) fmt::print("{:<36}{:>12}{:>12}{:>10}\n", "row", "seconds", "GFLOP/s", "of peak");
  for (const Row& r : rows) {
    progress.step(r.name);
    const Peak peak = measured_peak(backend);
    const Threads threads(r.threads);
    Context context;
    context.backend = backend;
    context.executor = threads.executor;
    const bool backward = r.direction == "backward";
    const Job job(workload_of(r), backward, context);
    const double seconds =
        backward ? job.backward_seconds(f.budget) : job.forward_seconds(f.budget);
    const double flops = backward ? job.backward_flops() : job.forward_flops();
    const double gflops = flops / seconds * 1e-9, best = peak.gflops * r.threads;
    const double of_peak = best > 0 ? gflops / best : 0;
    const bool low = r.bar && of_peak < *r.bar;
    missed += low;
    progress.clear();
    if (f.json) {
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
                                    {"dv", r.d},
                                    {"mask", mask_text(r)},
                                    {"score", "identity"},
                                    {"threads", r.threads},
                                    {"seconds", seconds},
                                    {"flops", flops},
                                    {"gflops", gflops},
                                    {"peak_gflops", best},
                                    {"peak_of", peak.of},
                                    {"of_peak", of_peak},
                                    {"machine", machine},
                                    {"compiler", build_info().compiler}};
      if (backend == Backend::cuda) row["threads"] = nullptr;
      if (r.bar) row["bar"] = *r.bar;
      fmt::print("{}\n", row.dump());
      std::fflush(stdout);
    } else {
      fmt::print("{:<36}{:>12.3e}{:>12.1f}{:>9.1f}%{}\n",
                 r.name,
                 seconds,
                 gflops,
                 100 * of_peak,
                 r.bar ? fmt::format("  bar {:.0f}%{}", 100 * *r.bar, low ? " missed" : "") : "");
      std::fflush(stdout);
    }
  }
  if (!f.json) fmt::print("{}; {}\n", machine, tool_line());
  return f.gate && missed ? exit_failed : exit_done;
}

}  // namespace

Command add_bench(CLI::App& main) {
  CLI::App* app = main.add_subcommand("bench", "How fast, beside the machine's own peak");
  auto f = std::make_shared<Flags>();
  app->add_option("backend", f->backend, "cpu (default) or cuda");
  app->add_option("--filter", f->filter, "regular expression on the names of rows");
  app->add_option("--seconds", f->budget, "time spent on a row (default 0.4)");
  app->add_flag("--list", f->list, "prints the names of the rows and stops");
  app->add_flag("--gate", f->gate, "exits 1 if a row misses its stated bar");
  app->add_flag("--json", f->json, "one JSON object a row on stdout");
  app->footer(
      "examples:\n"
      "  undivided bench\n"
      "  undivided bench cpu --filter 'forward f32 d128' --gate\n"
      "  undivided bench cuda --json > rows.jsonl");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
