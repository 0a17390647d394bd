// SPDX-License-Identifier: Apache-2.0
// What both versions of differential attention share: checked data, attention calls, host copies.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "attention/differential_rows.hpp"
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

Executor& executor_of(const Context& context);

/// Q, K and V of a call. Rows on the host are [batch, head, token, dim], ragged ones with batch 1.
class DifferentialData {
 public:
  /// Refuses what the composition cannot honour. Adds a batch axis to a single sequence.
  DifferentialData(const Rows& q, const Kv& kv, const Options& options, const Context& context);

  Rows q;
  Kv kv;

  /// float64 for the oracle, else float32: branches, statistics and gradients of parameters.
  DType statistic() const;
  std::vector<double> vector(const char* name, const View& v) const;

  Forward attend(const Rows& rows, const Kv& keys) const;

  /// One attention whose heads 2h and 2h + 1 make head h, or two that make head h of their heads h.
  struct Branch {
    Rows q;
    Kv kv;
  };
  /// Runs the branches, and the epilogue on rows of `o` (on the host, statistic() dtype): in one
  /// sweep that reads V once where that exists, else one attention after another.
  using Epilogue =
      std::function<void(const View& o1, const View& o2, const View& o, const RowSpan& rows)>;
  DifferentialForward forward(const std::vector<Branch>& branches, const Epilogue& epilogue) const;
  /// Writes the gradients, of statistic() dtype, into views of any stride. `dout` is on the host.
  void attend_backward(const View& dout,
                       const Rows& rows,
                       const Kv& keys,
                       const Forward& forward,
                       const View& dq,
                       const View& dk,
                       const View& dv) const;

  Tensor host_rows(const Tensor& o) const;
  /// dO on the host in statistic() dtype, once it is seen to be like O.
  Tensor host_gradient(const View& dout, const View& o) const;
  Tensor room(const View& like) const;
  /// A gradient in the dtype and rank of its input.
  Tensor gradient(const Tensor& sum, const View& input) const;
  Tensor gradient_sum(const Tensor& a, const Tensor& b, const View& input) const;

 private:
  bool forward_fused(const std::vector<Branch>& branches,
                     const Epilogue& epilogue,
                     DifferentialForward& f,
                     const View& y) const;
  View rows_of(const View& o) const;
  bool on_cpu() const { return q.data.device.kind == Device::Kind::cpu; }
  bool single_ = false;
  Options options_;
  Context context_;
};

}  // namespace undivided
