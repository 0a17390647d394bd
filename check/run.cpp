// SPDX-License-Identifier: Apache-2.0
// Runs one case: inputs, oracle, twin, backend, comparison.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "attention/execute.hpp"
#include "check/compare.hpp"
#include "check/device.hpp"
#include "check/evidence.hpp"
#include "cpu/isa.hpp"
#include "problem/bound.hpp"
#include "problem/sequence.hpp"

namespace undivided::check {
namespace {

std::string isa_absent(const std::string& isa) {
  const auto there = cpu::available_isas();
  const bool found = isa == "auto" || std::find(there.begin(), there.end(), isa) != there.end();
  return found ? "" : "ISA absent: " + isa;
}

/// Threads, forced ISA and a library of its own for each ISA: the environment is read when a plan
/// is prepared, and plans are cached. Cases run one at a time.
Context context_of(const Case& c, Backend backend) {
  static const auto one = make_executor(1), two = make_executor(2);
  static std::map<std::string, std::shared_ptr<Library>> libraries;
  Context context;
  context.backend = backend;
  context.executor = c.threads == "t2" ? two.get() : one.get();
  if (backend != Backend::cpu) return context;
  if (c.isa == "auto")
    unsetenv("UNDIVIDED_ISA");
  else
    setenv("UNDIVIDED_ISA", c.isa.c_str(), 1);
  auto& library = libraries[c.isa];
  if (!library) library = make_library();
  context.library = library.get();
  return context;
}

/// What a backend produced, with guards of strided outputs checked.
class Runner {
 public:
  Runner(const Case& c,
         const Inputs& host,
         const Problem& problem,
         Backend backend,
         const Fault& fault)
      : c_(c),
        problem_(problem),
        backend_(backend),
        context_(context_of(c, backend)),
        place_(backend, context_),
        in_(place_.bring(host)) {
    if (fault) fault(in_);
  }

  std::string kernel;
  double seconds = 0;
  std::string guard_broken;

  /// The forward of a backward too: what a sampled backward is compared by begins with it.
  Forward forward_on_host;
  Gradients gradients;
  void run() {
    const Forward f = forward();
    forward_on_host = to_host(f);
    if (c_.backward()) gradients = backward(f);
  }

 private:
  bool mask_planned() const { return c_.via == "maskplan" || c_.via == "inside"; }
  bool planned() const { return c_.via == "plan" || mask_planned(); }
  /// A forward for a gradient keeps no auxiliary outputs.
  Forward forward() {
    const auto start = std::chrono::steady_clock::now();
    Forward f;
    if (c_.via == "verb") {
      f = attention(in_.q, in_.kv, in_.options, context_);
      if (!c_.backward()) note_kernel(resolve(in_.q, in_.kv, in_.options));
    } else {
      f = forward_into();
    }
    seconds = since(start);
    return f;
  }

  Forward forward_into() {
    const Problem& p = problem_;
    const bool ragged = p.spec.rows == RowKind::ragged;
    std::vector<std::int64_t> o_shape = shape_of(p.args.q.data);
    o_shape.back() = p.spec.dv;
    const auto lse_shape = ragged ? std::vector<std::int64_t>{o_shape[1], o_shape[0]}
                                  : std::vector<std::int64_t>(o_shape.begin(), o_shape.end() - 1);
    const DType o_dtype = c_.result == "same" ? c_.dtype : DType::f32;
    const Buffer o(o_dtype, o_shape, c_.layout), lse(DType::f32, lse_shape);
    Outputs out{place_.bring(o), place_.bring(lse), {}, {}};
    std::vector<Buffer> written{o, lse};
    if (in_.options.max_logit) {
      written.emplace_back(DType::f32, std::vector<std::int64_t>{c_.batch, c_.heads});
      out.max_logit = place_.bring(written.back());
    }
    if (in_.options.key_mass) {
      written.emplace_back(DType::f32,
                           p.spec.kv == KvKind::ragged
                               ? std::vector<std::int64_t>{c_.heads, p.bounds.total_k}
                               : std::vector<std::int64_t>{c_.batch, c_.heads, p.bounds.max_k_len});
      out.key_mass = place_.bring(written.back());
    }
    if (planned()) {
      Problem problem = resolve(in_.q, in_.kv, in_.options, out);
      execute_plan(problem);
    } else {
      attention_into(out, in_.q, in_.kv, in_.options, context_);
      note_kernel(resolve(in_.q, in_.kv, in_.options, out));
    }
    for (const Buffer& b : written) check_guard("an output", b);
    Forward f;
    f.options = in_.options;
    std::size_t next = 0;
    const auto hold = [&](Tensor& t, const View& v) {
      static_cast<View&>(t) = v;
      t.owner = std::make_shared<Buffer>(written[next++]);
    };
    hold(f.o, out.o);
    hold(f.lse, out.lse);
    if (out.max_logit) hold(f.max_logit, out.max_logit);
    if (out.key_mass) hold(f.key_mass, out.key_mass);
    buffers_.insert(buffers_.end(), written.begin(), written.end());
    return f;
  }

  Gradients backward(const Forward& f) {
    const auto start = std::chrono::steady_clock::now();
    Gradients g;
    if (planned()) {
      g = backward_plan(f);
    } else {
      g = c_.via == "verb"
              ? attention_backward(in_.dout, in_.q, in_.kv, f, in_.backward, context_)
              : attention_backward(
                    in_.dout, in_.q, in_.kv, f.o, f.lse, in_.options, in_.backward, context_);
      note_kernel(resolve_backward(in_.dout, in_.q, in_.kv, f.o, f.lse, in_.options, in_.backward));
      for (Tensor* t : {&g.q, &g.k, &g.v, &g.sink})
        if (*t) *t = place_.host(*t);
      for (auto& [name, t] : g.captured) t = place_.host(t);
    }
    seconds = since(start);
    return g;
  }

  Gradients backward_plan(const Forward& f) {
    Problem p = resolve_backward(in_.dout, in_.q, in_.kv, f.o, f.lse, in_.options, in_.backward);
    std::vector<Buffer> written;
    const auto make = [&](const char*,
                          View& to,
                          DType dtype,
                          std::vector<std::int64_t> shape,
                          const std::string& layout) {
      written.emplace_back(dtype, std::move(shape), layout);
      to = place_.bring(written.back());
      Tensor t;
      static_cast<View&>(t) = written.back().view();
      t.owner = std::make_shared<Buffer>(written.back());
      return t;
    };
    Gradients g;
    const DType dtype = p.spec.out_dtype;
    if (p.spec.want_dq) g.q = make("dq", p.args.dq, dtype, shape_of(p.args.q.data), c_.layout);
    if (p.spec.want_dk) g.k = make("dk", p.args.dk, dtype, shape_of(p.args.kv.k), c_.layout);
    if (p.spec.want_dv) g.v = make("dv", p.args.dv, dtype, shape_of(p.args.kv.v), c_.layout);
    if (p.spec.sink) g.sink = make("dsink", p.args.dsink, DType::f32, {c_.heads}, "packed");
    if (p.spec.captured) {
      const expr::Program& score = *p.spec.score;
      p.args.d_arrays.resize(score.slots.size());
      for (std::size_t i = 0; i < score.slots.size(); ++i) {
        if (score.slots[i].dtype != DType::f32) continue;
        const auto& shape = p.args.score->bound.arrays[i].shape;
        g.captured.emplace_back(score.slots[i].name,
                                make("array",
                                     p.args.d_arrays[i],
                                     DType::f32,
                                     {shape.begin(), shape.begin() + score.slots[i].rank},
                                     "packed"));
      }
      std::vector<std::size_t> wanted;
      for (std::size_t i = 0; i < score.params.size(); ++i)
        if (score.params[i].type == expr::Type::f32 && !score.params[i].lifted) wanted.push_back(i);
      if (!wanted.empty()) {
        const Tensor all = make("params",
                                p.args.d_params,
                                DType::f32,
                                {static_cast<std::int64_t>(score.params.size())},
                                "packed");
        for (const std::size_t i : wanted) {
          Tensor one = all;
          const auto at = static_cast<std::int64_t>(i);
          static_cast<View&>(one) = all.sliced(0, at, at + 1);
          g.captured.emplace_back(score.params[i].name, one);
        }
      }
    }
    execute_plan(p);
    for (const Buffer& b : written) check_guard("a gradient", b);
    return g;
  }

  /// Through plan() and Plan::run, with the exact bounds of the problem.
  void execute_plan(Problem& p) {
    if (mask_planned()) {
      p.args.mask_plan = mask_plan(in_.q, in_.kv, in_.options, context_);
      p.spec.mask_plan = true;
    }
    std::vector<Tensor> keep;
    if (p.device.kind != Device::Kind::cpu) move_to_device(p, context_, keep);
    const Plan made = plan(p.spec, p.bounds, p.device, context_);
    kernel = made.explanation().kernel;
    Tensor room;
    if (made.workspace() > 0)
      room = allocate(context_, p.device, DType::i8, {static_cast<std::int64_t>(made.workspace())});
    if (room && p.device.kind == Device::Kind::cpu)  // whatever was there must not matter
      std::fill_n(room.ptr<std::uint8_t>(), made.workspace(), std::uint8_t{0xff});
    made.run(p.args, room.data, context_);
  }

  /// The kernel that a verb chose for this problem.
  void note_kernel(Problem p) {
    p.spec.mask_plan = !p.args.mask->band.is_band && !p.args.mask->on_device &&
                       p.bounds.max_q_len > MaskPlan::block && p.bounds.batch > 0 &&
                       backend_ != Backend::reference;
    if (backend_ != Backend::cuda)
      kernel = plan(p.spec, rounded(p.bounds), p.device, context_).explanation().kernel;
  }

  void check_guard(const char* what, const Buffer& b) {
    place_.fetch(b);
    if (!b.untouched_outside())
      guard_broken = fmt::format("memory around {} ({}) was written", what, b.view().describe());
  }
  Forward to_host(const Forward& f) {
    Forward out;
    const auto hold = [&](Tensor& to, const Tensor& from) {
      if (!from) return;
      for (const Buffer& b : buffers_)  // strided outputs were fetched whole
        if (place_.bring(b).data == from.data) {
          static_cast<View&>(to) = b.view();
          return;
        }
      to = place_.host(from);
    };
    hold(out.o, f.o);
    hold(out.lse, f.lse);
    hold(out.max_logit, f.max_logit);
    hold(out.key_mass, f.key_mass);
    return out;
  }
  static double since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  const Case& c_;
  const Problem& problem_;
  Backend backend_;
  Context context_;
  Place place_;
  Inputs in_;
  std::vector<Buffer> buffers_;
};

const Reading* find(const std::vector<Reading>& all, const std::string& name) {
  for (const Reading& r : all)
    if (r.name == name) return &r;
  return nullptr;
}

void judge(const Case& c,
           const Evidence& e,
           Backend backend,
           bool gradient,
           double& worst,
           Result& result) {
  for (const Reading& r : e.got) {
    const Reading* truth = find(e.oracle, r.name);
    if (!truth) throw Error(Code::invalid_argument, Stage::run, "the oracle has no " + r.name);
    std::vector<Reading> twin;
    for (const auto& run : e.twins)
      if (const Reading* t = find(run, r.name)) twin.push_back(*t);
    const bool bends = c.score == "softcap" || c.score == "chain";
    const DType inputs = multiplied_as(c);
    const Gate gate{
        inputs, gradient, bends, bends && inputs == DType::bf16 && backend == Backend::cuda};
    const Comparison one = compare(r, *truth, twin, gate);
    const double ratio = one.passed ? one.limit > 0 ? one.max_abs / one.limit : 0 : 1e9;
    if (ratio > worst) {
      worst = ratio;
      result.max_abs = one.max_abs;
      result.limit = one.limit;
      result.relative_l1 = one.relative_l1;
      result.gain = one.gain;
      result.bias = one.bias;
      if (!one.passed) result.reason = one.reason;
    }
    result.passed &= one.passed;
    result.tensors.push_back(one);
    if (const Reading* unrounded = find(e.exact, r.name); unrounded && r.name == "o")
      result.exact_relative_l1 = relative_l1(r, *unrounded);
  }
  if (e.got.size() != e.oracle.size()) {
    result.passed = false;
    result.reason =
        fmt::format("{} tensors came, the oracle has {}", e.got.size(), e.oracle.size());
  }
}

void run_and_judge(const Case& c,
                   const Inputs& in,
                   Backend backend,
                   const Fault& fault,
                   Sample sample,
                   Result& result) {
  const Problem problem = resolve(in.q, in.kv, in.options);
  // A page of two sequences has a place of its own in each: no sample of keys has all its terms.
  if (c.backward() && c.kv.starts_with("page")) sample = {};
  const RowCount rows = count_rows(problem, sample);
  result.rows_compared = rows.taken;
  result.rows = rows.all;
  Runner runner(c, in, problem, backend, fault);
  runner.run();
  result.kernel = runner.kernel;
  result.seconds = runner.seconds;
  result.passed = true;
  double worst = -1;
  // A sampled backward starts from the forward's O and LSE, so those are compared as well.
  if (!c.backward() || !sample.whole())
    judge(c, of_forward(c, in, runner.forward_on_host, sample), backend, false, worst, result);
  if (c.backward())
    judge(c,
          of_backward(c, in, runner.forward_on_host, runner.gradients, sample),
          backend,
          true,
          worst,
          result);
  if (!runner.guard_broken.empty()) {
    result.passed = false;
    result.reason = runner.guard_broken;
  }
}

}  // namespace

const std::vector<std::string>& legal_skips() {
  static const std::vector<std::string> reasons = {"no GPU", "no NVRTC", "ISA absent"};
  return reasons;
}

// What a backend refuses by name, and may: the rest of the grid it must run.
bool known_refusal(Backend backend, const Error& e) {
  if (backend != Backend::cuda || e.code() != Code::unsupported || e.stage() != Stage::plan)
    return false;
  const std::string_view text = e.what();
  for (const char* known : {"gradients of a page that two sequences share",
                            "CUDA kernels multiply in the type of the inputs"})
    if (text.find(known) != std::string_view::npos) return true;
  return false;
}

Result run_case(const Case& c,
                Backend backend,
                const Fault& fault,
                const std::optional<Sample>& sample) {
  static std::mutex one_at_a_time;  // the forced ISA is an environment variable
  const std::lock_guard lock(one_at_a_time);
  Result result;
  result.name = c.name();
  result.backend = name_of(backend);
  const auto skip = [&](const std::string& why) {
    result.skipped = true;
    result.reason = why;
    return result;
  };
  if (const std::string why = impossible(c); !why.empty()) return skip("impossible: " + why);
  if (const std::string why = missing(backend); !why.empty()) return skip(why);
  if (backend == Backend::cpu)
    if (const std::string why = isa_absent(c.isa); !why.empty()) return skip(why);
  try {
    const Inputs in = make_inputs(c);
    run_and_judge(c, in, backend, fault, sample.value_or(sample_of(c)), result);
  } catch (const Error& e) {
    if (known_refusal(backend, e)) return skip(fmt::format("refused by name: {}", e.what()));
    result.passed = false;
    result.reason =
        fmt::format("{} error in {}: {}", name_of(e.code()), name_of(e.stage()), e.what());
  } catch (const std::exception& e) {
    result.passed = false;
    result.reason = fmt::format("unexpected exception: {}", e.what());
  }
  return result;
}

std::string Result::json() const {
  const auto finite = [](double x) { return std::isfinite(x) ? nlohmann::json(x) : nullptr; };
  return nlohmann::json{{"name", name},
                        {"backend", backend},
                        {"kernel", kernel},
                        {"passed", passed},
                        {"skipped", skipped},
                        {"reason", reason},
                        {"max_abs", finite(max_abs)},
                        {"limit", finite(limit)},
                        {"relative_l1", finite(relative_l1)},
                        {"gain", finite(gain)},
                        {"bias", finite(bias)},
                        {"exact_relative_l1", finite(exact_relative_l1)},
                        {"rows_compared", rows_compared},
                        {"rows", rows}}
      .dump();
}

}  // namespace undivided::check
