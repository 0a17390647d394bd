// SPDX-License-Identifier: Apache-2.0
// Times the steps of a warm call: the verb, its parts, Plan::run, and Plan::run by the C door.
#include "cli/bench_overhead.hpp"

#include <time.h>

#include <functional>
#include <vector>

#include "attention/execute.hpp"
#include "cli/device.hpp"
#include "cuda/memory.hpp"
#include "undivided/c.h"

namespace undivided::cli {
namespace {

constexpr int rounds = 200, calls_of_round = 50;

/// The time of this thread, so that a busy neighbour does not count.
double thread_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double median_call(Device device, const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    wait_for(device);
    const double before = thread_seconds();
    for (int i = 0; i < calls_of_round; ++i) call();
    times.push_back((thread_seconds() - before) / calls_of_round);
  }
  wait_for(device);
  return median(times);
}

std::int32_t code_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return UNDIVIDED_F32;
    case DType::f16:
      return UNDIVIDED_F16;
    default:
      return UNDIVIDED_BF16;
  }
}

/// A dense problem behind the C door.
class CProblem {
 public:
  CProblem(
      const View& q, const View& k, const View& v, const View& o, const View& lse, Backend backend)
      : q_(view(q)), k_(view(k)), v_(view(v)), o_(view(o)), lse_(view(lse)) {
    rows_.struct_size = sizeof(rows_);
    rows_.data = &q_;
    kv_.struct_size = sizeof(kv_);
    kv_.k = &k_;
    kv_.v = &v_;
    out_.struct_size = sizeof(out_);
    out_.o = &o_;
    out_.lse = &lse_;
    options_.struct_size = sizeof(options_);
    options_.backend = backend == Backend::cuda ? UNDIVIDED_BACKEND_CUDA : UNDIVIDED_BACKEND_CPU;
    options_.threads = 1;
    check(undivided_plan_create(&plan_, &rows_, &kv_, &options_));
    if (const auto bytes = static_cast<std::int64_t>(undivided_plan_workspace(plan_)))
      workspace_ = allocate({}, q.device, DType::i8, {bytes});
  }
  ~CProblem() { undivided_plan_free(plan_); }
  CProblem(const CProblem&) = delete;
  void run() const {
    check(undivided_plan_run(plan_, &out_, &rows_, &kv_, &options_, workspace_.data));
  }

 private:
  static void check(undivided_status status) {
    if (status != UNDIVIDED_OK)
      throw Error(Code::invalid_argument, Stage::run, undivided_last_error());
  }
  static undivided_view view(const View& v) {
    undivided_view c{};
    c.struct_size = sizeof(c);
    c.data = v.data;
    c.dtype = code_of(v.dtype);
    c.cuda = v.device.kind == Device::Kind::cuda;
    c.device = v.device.index;
    c.rank = v.rank;
    for (std::size_t axis = 0; axis < max_rank; ++axis) {
      c.shape[axis] = v.shape[axis];
      c.stride[axis] = v.stride[axis];
    }
    return c;
  }

  undivided_view q_, k_, v_, o_, lse_;
  undivided_rows rows_{};
  undivided_kv kv_{};
  undivided_outputs out_{};
  undivided_options options_{};
  undivided_plan* plan_ = nullptr;
  Tensor workspace_;
};

}  // namespace

double overhead_seconds(const Row& row, const Context& context) {
  Workload w = workload_of(row);
  const Device device = device_of(context.backend);
  const bool backward = row.direction == "backward";
  const Job job(w, backward, context);
  if (row.step == "run")
    return median_call(device, [&] { backward ? job.run_backward() : job.run_forward(); });
  if (device.kind == Device::Kind::cuda)
    for (View* v : {&w.q.data, &w.kv.k, &w.kv.v}) {
      w.keep.push_back(cuda::to_device(*v, device));
      *v = w.keep.back();
    }
  if (row.step == "c run") {
    const CProblem c(w.q.data, w.kv.k, w.kv.v, job.o, job.lse, context.backend);
    return median_call(device, [&] { c.run(); });
  }
  if (row.step == "resolve") return median_call(device, [&] { resolve(w.q, w.kv, w.options); });
  if (row.step == "plan") {
    const Problem p = resolve(w.q, w.kv, w.options);
    return median_call(device, [&] { plan(p.spec, rounded(p.bounds), p.device, context); });
  }
  return median_call(device, [&] { attention(w.q, w.kv, w.options, context); });
}

}  // namespace undivided::cli
