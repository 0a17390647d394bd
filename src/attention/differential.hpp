// SPDX-License-Identifier: Apache-2.0
// What both versions of differential attention share: checked data, attention calls, epilogues.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "attention/differential_rows.hpp"
#include "cuda/difference.hpp"
#include "undivided/variants.hpp"

namespace undivided {

template <class... T>
[[noreturn]] void refuse_differential(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument,
              Stage::resolve,
              "differential: " + fmt::format(format, std::forward<T>(args)...));
}

/// Heads first, first + step, ...: a view of axis 1.
View every_head(const View& v, std::int64_t first, std::int64_t step, std::int64_t count);

/// Q, K and V of a call. Rows of an epilogue are [batch, head, token, dim], ragged ones with
/// batch 1.
class DifferentialData {
 public:
  /// Refuses what the composition cannot honour. Adds a batch axis to a single sequence.
  DifferentialData(const Rows& q, const Kv& kv, const Options& options, const Context& context);

  Rows q;
  Kv kv;

  /// float64 for the oracle, else float32: branches, statistics and gradients of parameters.
  DType statistic() const;
  bool on_cpu() const { return q.data.device.kind == Device::Kind::cpu; }
  std::vector<double> vector(const char* name, const View& v) const;
  /// Refuses what an epilogue cannot read: it is where Q is, f32 on CUDA, or on the host.
  void check_parameter(const char* name, const View& v) const;

  Forward attend(const Rows& rows, const Kv& keys) const;

  /// One attention whose heads 2h and 2h + 1 make head h, or two that make head h of their heads h.
  struct Branch {
    Rows q;
    Kv kv;
  };
  /// Runs the branches, then the epilogue where the data is: in one sweep that reads V once where
  /// that exists, else one attention after another.
  DifferentialForward forward(const std::vector<Branch>& branches, const Epilogue& epilogue) const;

  /// dO of each branch, or of the one with all heads, where the data is; and gradients of
  /// parameters: on the host, but those of the logits.
  struct Back {
    std::vector<Tensor> dout;
    Tensor logits;
    EpilogueGradient sums;
  };
  Back backward(const View& dout, const DifferentialForward& f, const Epilogue& epilogue) const;
  /// Writes the gradients, all of one dtype, into views of any stride.
  void attend_backward(const View& dout,
                       const Rows& rows,
                       const Kv& keys,
                       const Forward& forward,
                       const View& dq,
                       const View& dk,
                       const View& dv) const;

  /// Room for a gradient.
  Tensor room(const View& like, DType dtype) const;
  /// A gradient in the dtype and rank of its input; `b`, when given, is added.
  Tensor gradient(const Tensor& a, const Tensor& b, const View& input) const;

 private:
  bool forward_fused(const std::vector<Branch>& branches,
                     const Epilogue& epilogue,
                     DifferentialForward& f,
                     const View& y) const;
  void check_gradient(const View& dout, const View& o) const;
  View rows_of(const View& o) const;
  View used(const View& rows) const;
  cuda::Difference on_device(const Epilogue& epilogue, std::vector<Tensor>& keep) const;
  bool single_ = false;
  Options options_;
  Context context_;
};

}  // namespace undivided
