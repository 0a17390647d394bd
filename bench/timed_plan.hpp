// SPDX-License-Identifier: Apache-2.0
// A float32 problem of one sequence, made ready so that only Plan::run is timed.
#pragma once

#include <time.h>

#include <algorithm>
#include <limits>
#include <string>

#include "attention/execute.hpp"
#include "core/generator.hpp"
#include "undivided/undivided.hpp"

namespace undivided::bench {

/// Processor time of this thread: what a busy neighbour takes is not counted.
inline double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Forward and backward of q, k, v [1, heads, n, d] on one thread.
class TimedPlan {
 public:
  TimedPlan(std::int64_t n, std::int64_t d, std::int64_t heads, const Options& options) {
    context_.backend = Backend::cpu;
    context_.executor = &inline_executor();
    const auto tensor = [&](std::uint64_t seed) {
      return random_normal(DType::f32, {1, heads, n, d}, seed);
    };
    q_ = tensor(1), k_ = tensor(2), v_ = tensor(3), dout_ = tensor(4);
    o_ = tensor(5), dq_ = tensor(6), dk_ = tensor(7), dv_ = tensor(8);
    lse_ = Tensor::empty(DType::f32, {1, heads, n});
    forward_.problem = resolve(Rows(q_), dense(k_, v_), options);
    analysis = plan_of_mask(forward_.problem, context_);
    forward_.problem.args.o = o_;
    forward_.problem.args.lse = lse_;
    prepare(forward_);
    run(forward_);
    BackwardOptions wanted;
    wanted.captured = false;
    backward_.problem =
        resolve_backward(Rows(dout_), Rows(q_), dense(k_, v_), o_, lse_, options, wanted);
    backward_.problem.args.dq = dq_;
    backward_.problem.args.dk = dk_;
    backward_.problem.args.dv = dv_;
    prepare(backward_);
  }

  /// Runs once; the shortest time so far is kept.
  void time(bool backward) {
    const double before = thread_seconds();
    run(backward ? backward_ : forward_);
    double& best = backward ? backward_seconds : forward_seconds;
    best = std::min(best, thread_seconds() - before);
  }
  std::shared_ptr<const MaskPlan> analysis;  // of a band too, which needs no plan to run
  double forward_seconds = std::numeric_limits<double>::infinity();
  double backward_seconds = std::numeric_limits<double>::infinity();

 private:
  struct Part {
    Problem problem;
    std::shared_ptr<Plan> plan;
    Tensor workspace;
  };
  void prepare(Part& part) {
    Problem& p = part.problem;
    if (!p.args.mask->band.is_band) {
      p.args.mask_plan = analysis;
      p.spec.mask_plan = true;
    }
    part.plan = std::make_shared<Plan>(plan(p.spec, p.bounds, p.device, context_));
    part.workspace = Tensor::empty(
        DType::i8, {std::max<std::int64_t>(1, static_cast<std::int64_t>(part.plan->workspace()))});
  }
  void run(const Part& part) const {
    part.plan->run(part.problem.args, part.workspace.data, context_);
  }

  Context context_;
  Tensor q_, k_, v_, dout_, o_, dq_, dk_, dv_, lse_;
  Part forward_, backward_;
};

}  // namespace undivided::bench
