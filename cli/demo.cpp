// SPDX-License-Identifier: Apache-2.0
// undivided demo: every form there is, checked against the oracle and timed, in under a minute.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>

#include "attention/execute.hpp"
#include "cli/common.hpp"
#include "cli/device.hpp"
#include "cli/forms.hpp"
#include "cli/png.hpp"
#include "cli/report.hpp"
#include "cpu/isa.hpp"
#include "cuda/driver.hpp"
#include "mask/draw.hpp"

namespace undivided::cli {
namespace {

struct DemoFlags {
  std::string report = "undivided-report.html";
  std::int64_t heads = 8, tokens = 1024, dim = 64;
  int threads = 0;
  bool json = false;
};

/// The oracle's answer and how long its three loops took.
struct Truth {
  Tensor o, dq, dk, dv;
  double seconds = 0;
};

Truth truth_of(const Form& form) {
  const auto start = std::chrono::steady_clock::now();
  Truth t;
  if (form.backward) {
    BackwardOptions wanted;
    wanted.captured = false;
    const Tensor dout = converted(form.work.dout, DType::f64);
    const Gradients g =
        reference_backward(Rows(dout), form.work.q, form.work.kv, form.work.options, wanted);
    t.dq = g.q;
    t.dk = g.k;
    t.dv = g.v;
  } else {
    t.o = reference(form.work.q, form.work.kv, form.work.options).o;
  }
  t.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return t;
}

Workload in_dtype(const Workload& work, DType dtype) {
  Workload w = work;
  for (View* v : {&w.q.data, &w.kv.k, &w.kv.v}) {
    w.keep.push_back(converted(*v, dtype));
    *v = w.keep.back();
  }
  if (w.dout) w.dout = converted(w.dout, dtype);
  w.options.out_dtype = DType::f32;
  return w;
}

DemoRow row_of(const Form& form,
               const Truth& truth,
               const Workload& work,
               const Context& context,
               const Peak& peak,
               double limit) {
  const Job job(work, form.backward, context);
  DemoRow r;
  r.form = form.name;
  r.note = form.note;
  r.backend = name_of(context.backend);
  double flops = 0;
  if (form.backward) {
    job.run_backward();
    r.error = std::max(
        {error_of(job.dq, truth.dq), error_of(job.dk, truth.dk), error_of(job.dv, truth.dv)});
    r.seconds = job.backward_seconds(0.15);
    flops = job.backward_flops();
  } else {
    job.run_forward();
    r.error = error_of(job.o, truth.o);
    r.seconds = job.forward_seconds(0.15);
    flops = job.forward_flops();
  }
  r.passed = r.error <= (form.backward ? 3 : 1) * limit;
  r.gflops = flops / r.seconds * 1e-9;
  r.of_peak = peak.gflops > 0 ? r.gflops / peak.gflops : 0;
  r.speedup = truth.seconds / r.seconds;
  return r;
}

void add_pictures(DemoReport& report, const std::vector<Form>& forms, const Context& context) {
  for (const Form& form : forms)
    if (form.name == "causal" || form.name == "window" || form.name == "documents") {
      const Problem p = resolve(form.work.q, form.work.kv, form.work.options);
      const auto plan = plan_of_mask(p, context);
      report.pictures.push_back({fmt::format("{}: {}", form.name, form.note),
                                 png_of(masks::draw(*plan, plan->entry(0, 0)))});
    }
}

void print_row(const DemoRow& r, bool json) {
  if (json)
    fmt::print("{}\n",
               nlohmann::ordered_json{{"input", r.input},
                                      {"form", r.form},
                                      {"backend", r.backend},
                                      {"error", r.error},
                                      {"seconds", r.seconds},
                                      {"gflops", r.gflops},
                                      {"of_peak", r.of_peak},
                                      {"speedup", r.speedup},
                                      {"passed", r.passed}}
                   .dump());
  else
    fmt::print("  {:<11}{:<5}{:>10.1e}{:>11.3f}{:>10.1f}{:>8.1f} %{:>8.0f} x  {}{}\n",
               r.form,
               r.backend,
               r.error,
               r.seconds * 1e3,
               r.gflops,
               100 * r.of_peak,
               r.speedup,
               r.note,
               r.passed ? "" : "  WRONG");
  std::fflush(stdout);
}

int run(const DemoFlags& f) {
  if (f.heads < 1 || f.tokens < 1 || f.dim < 1 || f.heads > 1024 || f.tokens > 1 << 16 ||
      f.dim > 512)
    refuse("--heads, --tokens and --dim are at least 1 and at most 1024, 65536 and 512");
  if (!f.report.ends_with(".html"))
    refuse(fmt::format("--report is '{}'; a name that ends with .html is expected", f.report));
  const Threads threads(f.threads);
  const Input inputs[] = {real_input(), large_input(f.heads, f.tokens, f.dim)};
  const bool gpu = cuda::available();

  Context cpu;
  cpu.backend = Backend::cpu;
  cpu.executor = threads.executor;
  Context cuda_context;
  cuda_context.backend = Backend::cuda;
  Peak peak = measured_peak(Backend::cpu);
  peak.gflops *= threads.executor->workers();
  DemoReport report;
  report.machine = cpu::processor_name();
  report.tool = tool_line();
  report.peak = fmt::format("Peak: {} threads x {:.1f} GFLOP/s ({})",
                            threads.executor->workers(),
                            peak.gflops / threads.executor->workers(),
                            peak.of);
  Peak gpu_peak;
  if (gpu) {
    gpu_peak = measured_peak(Backend::cuda, DType::f16);
    report.machine += " with " + cuda::driver().device(0).name;
  }
  if (!f.json) {
    fmt::print("{}\n{}. {}\n", report.machine, report.tool, report.peak);
    if (!gpu) fmt::print("no CUDA rows: {}\n", cuda::availability().reason);
  }
  bool passed = true;
  for (const Input& input : inputs) {
    const std::vector<Form> forms = forms_of(input);
    if (!f.json) {
      fmt::print("\n{}\n", input.name);
      fmt::print("  {:<11}{:<5}{:>10}{:>11}{:>10}{:>10}{:>10}\n",
                 "form",
                 "on",
                 "error",
                 "ms",
                 "GFLOP/s",
                 "of peak",
                 "speed-up");
    }
    // The oracle runs first, a form a thread, so that it never disturbs what is timed.
    std::vector<Truth> truths(forms.size());
    {
      Progress progress("demo: float64 oracle", forms.size());
      std::mutex one;
      threads.executor->parallel_for(
          static_cast<std::int64_t>(forms.size()), [&](std::int64_t i, int) {
            const Form& form = forms[forms.size() - 1 - static_cast<std::size_t>(i)];
            {
              const std::lock_guard lock(one);
              progress.step(form.name);
            }
            truths[forms.size() - 1 - static_cast<std::size_t>(i)] = truth_of(form);
          });
    }
    Progress progress("demo", forms.size());
    const auto show = [&](DemoRow r) {
      r.input = input.name;
      passed = passed && r.passed;
      progress.clear();
      print_row(r, f.json);
      report.rows.push_back(std::move(r));
    };
    for (std::size_t i = 0; i < forms.size(); ++i) {
      const Form& form = forms[i];
      const Truth& truth = truths[i];
      progress.step(form.name);
      show(row_of(form, truth, form.work, cpu, peak, 1e-5));
      if (!gpu) continue;
      // The GPU computes in float16; its oracle sees the same rounded inputs.
      Form half = form;
      half.work = in_dtype(form.work, DType::f16);
      const bool same_values = &input != &inputs[0];
      show(row_of(
          half, same_values ? truth : truth_of(half), half.work, cuda_context, gpu_peak, 2e-3));
    }
    for (const DemoRow& r : variant_rows(input, cpu, peak)) show(r);
    add_pictures(report, forms, cpu);
  }
  write_file(f.report, html_of(report));
  if (!f.json)
    fmt::print(
        "\nerror: largest difference from the float64 oracle, as part of its largest value;\n"
        "speed-up: over the oracle's three loops on one thread\nwrote {}\n",
        f.report);
  return passed ? exit_done : exit_failed;
}

}  // namespace

Command add_demo(CLI::App& main) {
  CLI::App* app = main.add_subcommand("demo", "Every form on a real input, checked and timed");
  auto f = std::make_shared<DemoFlags>();
  app->add_option("--report", f->report, "the page to write (default undivided-report.html)");
  app->add_option("--heads", f->heads, "of the larger input (default 8)");
  app->add_option("--tokens", f->tokens, "of the larger input (default 1024)");
  app->add_option("--dim", f->dim, "of the larger input (default 64)");
  app->add_option("--threads", f->threads, "default: all cores");
  app->add_flag("--json", f->json, "one JSON object a row on stdout");
  app->footer(
      "examples:\n"
      "  undivided demo\n"
      "  undivided demo --tokens 2048 --report big.html");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
