// SPDX-License-Identifier: Apache-2.0
// Prepares as the verbs do, then times Plan::run alone.
#include "cli/measure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "attention/execute.hpp"
#include "cli/device.hpp"
#include "cpu/isa.hpp"
#include "cpu/peak.hpp"
#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "cuda/peak.hpp"

namespace undivided::cli {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Job::Job(const Workload& work, bool backward, const Context& context)
    : context_(context), device_(device_of(context.backend)), keep_(work.keep) {
  Rows q = work.q;
  Kv kv = work.kv;
  Options options = work.options;
  const auto move = [&](View& v) {
    if (!v || device_.kind == Device::Kind::cpu) return;
    keep_.push_back(cuda::to_device(v, device_));
    v = keep_.back();
  };
  for (View* v : {&q.data, &kv.k, &kv.v, &options.sink}) move(*v);

  forward_.problem = resolve(q, kv, options);
  const Problem& p = forward_.problem;
  pairs_ = plan_of_mask(p, context_)->kept_pairs();
  std::vector<std::int64_t> o_shape = shape_of(p.args.q.data);
  o_shape.back() = p.spec.dv;
  const bool is_ragged = p.spec.rows == RowKind::ragged;
  const std::vector<std::int64_t> lse_shape =
      is_ragged ? std::vector<std::int64_t>{o_shape[1], o_shape[0]}
                : std::vector<std::int64_t>{o_shape[0], o_shape[1], o_shape[2]};
  o = allocate(context_, device_, p.spec.out_dtype, o_shape);
  lse = allocate(context_, device_, DType::f32, lse_shape);
  forward_.problem.args.o = o;
  forward_.problem.args.lse = lse;
  prepare(forward_);
  if (!backward) return;

  run_forward();  // the backward reads O and LSE
  Rows dout = q;
  keep_.push_back(converted(work.dout, o.dtype));
  dout.data = keep_.back();
  move(dout.data);
  BackwardOptions wanted;
  wanted.captured = false;
  Args& a = backward_.problem.args;
  backward_.problem = resolve_backward(dout, q, kv, o, lse, options, wanted);
  const DType dtype = backward_.problem.spec.out_dtype;
  a.dq = dq = allocate(context_, device_, dtype, shape_of(a.q.data));
  a.dk = dk = allocate(context_, device_, dtype, shape_of(a.kv.k));
  a.dv = dv = allocate(context_, device_, dtype, shape_of(a.kv.v));
  prepare(backward_);
}

void Job::prepare(Part& part) {
  Problem& p = part.problem;
  if (!p.args.mask->band.is_band && p.bounds.max_q_len > MaskPlan::block &&
      context_.backend != Backend::reference) {
    p.args.mask_plan = plan_of_mask(p, context_);
    p.spec.mask_plan = true;
  }
  if (device_.kind == Device::Kind::cuda) move_to_device(p, context_, keep_);
  part.plan = std::make_shared<Plan>(plan(p.spec, rounded(p.bounds), device_, context_));
  const auto bytes = static_cast<std::int64_t>(part.plan->workspace());
  if (bytes > 0) part.workspace = allocate(context_, device_, DType::i8, {bytes});
}

void Job::run(const Part& part) const {
  part.plan->run(part.problem.args, part.workspace.data, context_);
}
void Job::run_forward() const { run(forward_); }
void Job::run_backward() const { run(backward_); }

double Job::seconds(const Part& part, double budget) const {
  run(part);  // warm
  wait_for(device_);
  std::vector<double> times;
  if (device_.kind == Device::Kind::cuda)
    return median(cuda::time_on_stream(device_, context_, 20, [&] { run(part); }));
  const double start = now();
  while (times.size() < 3 || (now() - start < budget && times.size() < 1000)) {
    const double before = now();
    run(part);
    times.push_back(now() - before);
  }
  return median(times);
}
double Job::forward_seconds(double budget) const { return seconds(forward_, budget); }
double Job::backward_seconds(double budget) const { return seconds(backward_, budget); }

double Job::forward_flops() const {
  const Spec& s = forward_.problem.spec;
  return 2.0 * static_cast<double>(pairs_) * (s.dqk + s.dv);
}
double Job::backward_flops() const {
  const Spec& s = forward_.problem.spec;
  return 2.0 * static_cast<double>(pairs_) * (3 * s.dqk + 2 * s.dv);
}

Peak measured_peak(Backend backend, DType dtype, bool forced) {
  if (backend == Backend::cuda) {
    const DType multiplied = is_float16(dtype) ? dtype : DType::bf16;
    const cuda::MmaPeak peak = cuda::measured_mma_peak(0, multiplied);
    return {peak.flops * 1e-9,
            fmt::format("{}: measured mma peak ({}, {})",
                        cuda::driver().device(0).name,
                        peak.instruction,
                        name_of(multiplied))};
  }
  constexpr double moment = 0;  // one slice
  const char* isa = cpu::chosen_kernels().name;
  const Peak fma{cpu::fma_peak_gflops(), fmt::format("{} FMA, one thread", isa), [] {
                   return cpu::fma_peak_gflops({}, moment);
                 }};
  if (dtype != DType::bf16) return fma;
  const Peak dot{cpu::bf16_dot_peak_gflops(), fmt::format("{} bf16 dot, one thread", isa), [] {
                   return cpu::bf16_dot_peak_gflops({}, moment);
                 }};
  return dot.gflops > (forced ? 0 : fma.gflops) ? dot : fma;
}

}  // namespace undivided::cli
