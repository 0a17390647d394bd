// SPDX-License-Identifier: Apache-2.0
// A problem made ready to run many times, and how long it takes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/common.hpp"
#include "undivided/undivided.hpp"

namespace undivided::cli {

/// Host data of a problem. `dout` has the shape of O and the type of Q.
struct Workload {
  Rows q;
  Kv kv;
  Options options;
  Tensor dout;
  std::vector<Tensor> keep;
};

/// Plan, arguments and workspace of a forward, and of its backward when asked for.
class Job {
 public:
  Job(const Workload& work, bool backward, const Context& context);

  void run_forward() const;
  void run_backward() const;
  /// Median seconds of one run: at least 3 runs, about `budget` seconds of them.
  double forward_seconds(double budget) const;
  double backward_seconds(double budget) const;

  std::int64_t kept_pairs() const { return pairs_; }
  double forward_flops() const;   ///< 2 * pairs * (d + dv)
  double backward_flops() const;  ///< 2 * pairs * (3 d + 2 dv)
  const Explanation& forward_explanation() const { return forward_.plan->explanation(); }
  const Explanation& backward_explanation() const { return backward_.plan->explanation(); }

  Tensor o, lse, dq, dk, dv;  ///< where the data is: see on_host()

 private:
  struct Part {
    Problem problem;
    std::shared_ptr<Plan> plan;
    Tensor workspace;
  };
  void prepare(Part& part);
  void run(const Part& part) const;
  double seconds(const Part& part, double budget) const;

  Context context_;
  Device device_;
  Part forward_, backward_;
  std::int64_t pairs_ = 0;
  std::vector<Tensor> keep_;
};

/// GFLOP/s that one thread, or the GPU, can reach, and what that figure is.
struct Peak {
  double gflops = 0;
  std::string of;
  double (*now)() = nullptr;  ///< the rate at this moment, of a tenth of a millisecond; CPU only
};
/// Of an element type: for bf16 the faster of float32 FMA and bf16 dot products, or the dot
/// products alone when their instruction set is `forced`. On CUDA the card's matrix instruction on
/// f16 or bf16 (other types: bf16), measured now.
Peak measured_peak(Backend backend, DType dtype = DType::f32, bool forced = false);

double now();  ///< seconds of a clock that only goes forward
double median(std::vector<double> values);

}  // namespace undivided::cli
