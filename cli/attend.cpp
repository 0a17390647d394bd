// SPDX-License-Identifier: Apache-2.0
// undivided attend: attention of arrays in files, and its gradients.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"
#include "cli/device.hpp"
#include "cli/problem.hpp"
#include "expr/program.hpp"

namespace undivided::cli {
namespace {

struct AttendFlags {
  ProblemFlags problem;
  std::string out, lse, max_logit, key_mass;
  std::string dout, dlse, dq, dk, dv, dsink;
  std::vector<std::string> d_arrays;
  bool json = false;
};

struct Output {
  std::string flag, spec;
  DType dtype = DType::f32;
  std::string captured;  // of --d-array
};

std::vector<Output> outputs_of(const AttendFlags& f, DType out_dtype) {
  std::vector<Output> all;
  const auto add = [&](const char* flag, const std::string& spec, DType dtype = DType::f32) {
    if (!spec.empty()) all.push_back({flag, spec, dtype, ""});
  };
  add("--out", f.out, out_dtype);
  add("--lse", f.lse);
  add("--max-logit", f.max_logit);
  add("--key-mass", f.key_mass);
  add("--dq", f.dq);
  add("--dk", f.dk);
  add("--dv", f.dv);
  add("--dsink", f.dsink);
  for (const std::string& assignment : f.d_arrays) {
    const auto [name, spec] = split_assignment("--d-array", assignment);
    all.push_back({"--d-array", spec, DType::f32, name});
  }
  return all;
}

/// Arrays and parameters of the score that have a gradient.
std::vector<std::string> differentiable(const Score& score) {
  std::vector<std::string> names;
  for (const expr::Slot& s : score.program()->slots)
    if (s.dtype == DType::f32) names.push_back(s.name);
  for (const expr::ParamDecl& p : score.program()->params)
    if (p.type == expr::Type::f32 && !p.lifted) names.push_back(p.name);
  return names;
}

void check_gradients(const AttendFlags& f, const LoadedProblem& p) {
  const bool wanted =
      !f.dq.empty() || !f.dk.empty() || !f.dv.empty() || !f.dsink.empty() || !f.d_arrays.empty();
  if (f.dout.empty() && wanted)
    refuse("a gradient is asked for without --dout; give the gradient of O");
  if (!f.dout.empty() && !wanted)
    refuse(
        "--dout is given, but no gradient is asked for; add --dq, --dk, --dv, --dsink or "
        "--d-array");
  if (!f.dlse.empty() && f.dout.empty()) refuse("--dlse adds to a gradient; it needs --dout");
  if (!f.dsink.empty() && f.problem.sink.empty()) refuse("--dsink needs --sink");
  const auto names = differentiable(p.options.score);
  for (const std::string& assignment : f.d_arrays) {
    const std::string name = split_assignment("--d-array", assignment).first;
    if (std::find(names.begin(), names.end(), name) == names.end())
      refuse(fmt::format(
          "--d-array {}: --score reads no float array or parameter of that name; {}",
          name,
          names.empty() ? "it reads none" : fmt::format("allowed: {}", fmt::join(names, ", "))));
  }
}

const Tensor& result_of(const Run& run, const Output& o) {
  const Forward& f = run.forward;
  const Gradients& g = run.gradients;
  if (o.flag == "--out") return f.o;
  if (o.flag == "--lse") return f.lse;
  if (o.flag == "--max-logit") return f.max_logit;
  if (o.flag == "--key-mass") return f.key_mass;
  if (o.flag == "--dq") return g.q;
  if (o.flag == "--dk") return g.k;
  if (o.flag == "--dv") return g.v;
  if (o.flag == "--dsink") return g.sink;
  for (const auto& [name, tensor] : g.captured)
    if (name == o.captured) return tensor;
  throw Error(Code::unsupported, Stage::run, "no gradient of " + o.captured + " was made");
}

int run(const AttendFlags& f) {
  if (f.out.empty()) refuse("--out is not given; name the file for O, e.g. --out O.npy");
  const Backend backend = backend_of(f.problem.backend);
  device_of(backend);  // no GPU: say so before anything is read
  LoadedProblem p = load_problem(f.problem);
  check_gradients(f, p);
  p.options.max_logit = !f.max_logit.empty();
  p.options.key_mass = !f.key_mass.empty();
  Tensor dout, dlse;
  BackwardOptions backward;
  if (!f.dout.empty()) {
    dout = converted(read_named("--dout", f.dout), p.dtype);
    backward.q = !f.dq.empty();
    backward.k = !f.dk.empty();
    backward.v = !f.dv.empty();
    backward.captured = !f.d_arrays.empty();
    if (p.dtype != DType::f64) backward.gradient_dtype = DType::f32;
    if (!f.dlse.empty()) {
      dlse = converted(read_named("--dlse", f.dlse), DType::f32);
      backward.dlse = dlse;
    }
  }
  const std::vector<Output> wanted = outputs_of(f, p.out_dtype);
  Outputs files;
  for (const Output& o : wanted) {
    if (o.dtype == DType::bf16 && o.spec.ends_with(".npy"))
      refuse(fmt::format(
          "{} {}: .npy has no bf16; write to FILE.safetensors:NAME, or as f32", o.flag, o.spec));
    in_context(o.flag, [&] { files.open(o.spec); });
  }

  const Threads threads(f.problem.threads);
  Context context;
  context.backend = backend;
  context.executor = threads.executor;
  const auto start = std::chrono::steady_clock::now();
  const Run done = run_on_device(p.q, p.kv, p.options, dout, backward, context);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  nlohmann::ordered_json written = nlohmann::ordered_json::array();
  std::string sentence;
  for (const Output& o : wanted) {
    const Tensor& result = result_of(done, o);
    const Tensor file =
        result.dtype == o.dtype && result.contiguous() ? result : converted(result, o.dtype);
    files.set(o.spec, file);
    std::vector<std::int64_t> shape(file.shape.begin(), file.shape.begin() + file.rank);
    written.push_back(
        {{"flag", o.flag}, {"file", o.spec}, {"dtype", name_of(file.dtype)}, {"shape", shape}});
    sentence += fmt::format("{}  {} {}\n", o.flag, o.spec, file.describe());
  }
  files.publish();
  const char* where = name_of(backend == Backend::automatic ? Backend::cpu : backend);
  if (f.json)
    fmt::print("{}\n",
               nlohmann::ordered_json{
                   {"backend", where}, {"seconds", seconds.count()}, {"outputs", written}}
                   .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  else
    fmt::print("{}on {} in {:.3g} s\n", sentence, where, seconds.count());
  return exit_done;
}

}  // namespace

Command add_attend(CLI::App& main) {
  CLI::App* app = main.add_subcommand("attend", "Attention of arrays in files, and its gradients");
  auto f = std::make_shared<AttendFlags>();
  add_problem_flags(*app, f->problem);
  app->add_option("--out", f->out, "O: .npy or FILE.safetensors:NAME");
  app->add_option("--lse", f->lse, "log of the softmax denominator, per row");
  app->add_option("--max-logit", f->max_logit, "largest kept score, [batch, heads]");
  app->add_option("--key-mass", f->key_mass, "sum of the weights each key got");
  app->add_option("--dout", f->dout, "gradient of O");
  app->add_option("--dlse", f->dlse, "gradient of LSE");
  app->add_option("--dq", f->dq, "gradient of Q");
  app->add_option("--dk", f->dk, "gradient of K");
  app->add_option("--dv", f->dv, "gradient of V");
  app->add_option("--dsink", f->dsink, "gradient of the sink");
  app->add_option(
         "--d-array", f->d_arrays, "NAME=FILE: gradient of an array of the score; repeatable")
      ->allow_extra_args(false)
      ->expected(1, 1 << 20);
  app->add_flag("--json", f->json, "one JSON object on stdout");
  app->footer(
      "examples:\n"
      "  undivided attend --q Q.npy --k K.npy --v V.npy --mask 'k <= q' --out O.npy --lse L.npy\n"
      "  undivided attend --q Q.npy --k K.npy --v V.npy --score 'score + m[head] * (k - q)' \\\n"
      "      --array m=slopes.npy --dout DO.npy --dq DQ.npy --d-array m=dm.npy --out O.npy\n"
      "  undivided attend --q x.safetensors:q --k x.safetensors:k --v x.safetensors:v \\\n"
      "      --page-table T.npy --lengths N.npy --mask 'k <= q' --align end --out O.npy");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
