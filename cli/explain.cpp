// SPDX-License-Identifier: Apache-2.0
// undivided explain: what would run for a problem, why, and what was refused.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "attention/execute.hpp"
#include "cli/common.hpp"
#include "cli/problem.hpp"
#include "expr/program.hpp"

namespace undivided::cli {
namespace {

struct ExplainFlags {
  ProblemFlags problem;
  std::string shape;
  bool backward = false, max_logit = false, key_mass = false, json = false;
};

nlohmann::ordered_json json_of(const Explanation& e) {
  nlohmann::ordered_json refused = nlohmann::ordered_json::array();
  for (const Refusal& r : e.refused)
    refused.push_back(
        {{"backend", r.backend}, {"reason", r.reason}, {"limit", r.limit}, {"got", r.got}});
  return {{"backend", e.backend},
          {"kernel", e.kernel},
          {"tiles", e.tiles},
          {"splits", e.splits},
          {"determinism", e.determinism},
          {"flops", e.flops},
          {"bytes", e.bytes},
          {"floor_seconds", e.floor_seconds},
          {"workspace", e.workspace},
          {"notes", e.notes},
          {"refused", refused}};
}

int run(const ExplainFlags& f) {
  const Backend backend = backend_of(f.problem.backend);
  const Device device{backend == Backend::cuda ? Device::Kind::cuda : Device::Kind::cpu, 0};
  LoadedProblem p =
      f.shape.empty() ? load_problem(f.problem) : shape_problem(f.problem, f.shape, device);
  p.options.max_logit = f.max_logit;
  p.options.key_mass = f.key_mass;
  const Threads threads(f.problem.threads);
  Context context;
  context.backend = backend;
  context.executor = threads.executor;
  Problem problem = resolve(p.q, p.kv, p.options);
  if (f.backward) {
    // Only their shapes count: the results of a forward with these options.
    const View& q = problem.args.q.data;
    View o = q, lse;
    o.shape[static_cast<std::size_t>(q.rank - 1)] = problem.spec.dv;
    o = q.rank == 3
            ? View::of(
                  q.data, problem.spec.out_dtype, {q.size(0), q.size(1), problem.spec.dv}, q.device)
            : View::of(q.data,
                       problem.spec.out_dtype,
                       {q.size(0), q.size(1), q.size(2), problem.spec.dv},
                       q.device);
    lse = q.rank == 3 ? View::of(q.data, DType::f32, {q.size(1), q.size(0)}, q.device)
                      : View::of(q.data, DType::f32, {q.size(0), q.size(1), q.size(2)}, q.device);
    Rows dout = p.q;
    dout.data = o;
    problem = resolve_backward(dout, p.q, p.kv, o, lse, p.options, {});
  }
  problem.spec.mask_plan = makes_mask_plan(problem, context);  // as attend would
  const Plan chosen = plan(problem.spec, problem.bounds, device, context);
  if (f.json)
    fmt::print("{}\n", json_of(chosen.explanation()).dump());
  else
    fmt::print("{}", chosen.explain());
  return exit_done;
}

}  // namespace

Command add_explain(CLI::App& main) {
  CLI::App* app = main.add_subcommand("explain", "What would run, why, and what was refused");
  auto f = std::make_shared<ExplainFlags>();
  app->add_option("--shape", f->shape, "b,hq,hkv,nq,nk,d,dv instead of --q, --k and --v");
  app->add_flag("--backward", f->backward, "explains the gradient");
  app->add_flag("--max-logit", f->max_logit, "as if it were asked for");
  app->add_flag("--key-mass", f->key_mass, "as if it were asked for");
  add_problem_flags(*app, f->problem);
  app->add_flag("--json", f->json, "one JSON object on stdout");
  app->footer(
      "examples:\n"
      "  undivided explain --shape 1,8,2,2048,2048,128,128 --mask 'k <= q' --dtype bf16\n"
      "  undivided explain --shape 1,32,8,1,4096,128,128 --backend cuda --dtype f16 --json");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
