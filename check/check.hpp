// SPDX-License-Identifier: Apache-2.0
// Runs a case on a backend and compares it with the float64 oracle and with a plain twin.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "check/case.hpp"

namespace undivided::check {

/// One tensor against the oracle. `limit` follows from the dtype and from the twin's own error.
struct Comparison {
  std::string tensor;  // "o", "lse", "dq", ...
  double max_abs = 0, limit = 0;
  double relative_l1 = 0, relative_l1_limit = 0;
  double gain = 1;  // least-squares factor between result and oracle
  double bias = 0;  // mean signed error over mean |oracle|
  bool passed = true;
  std::string reason;  // why not
};

struct Result {
  std::string name, backend, kernel;
  bool passed = false, skipped = false;
  std::string reason;                                                  // of a failure or a skip
  double max_abs = 0, limit = 0, relative_l1 = 0, gain = 1, bias = 0;  // of the worst tensor
  double exact_relative_l1 = 0;  // scores of int8: O against exact attention of the inputs
  std::vector<Comparison> tensors;
  double seconds = 0;
  std::int64_t rows_compared = 0, rows = 0;  // query rows of all heads

  /// One JSON object: name, backend, kernel, passed, skipped, reason, max_abs, limit, relative_l1,
  /// gain, bias, exact_relative_l1, rows_compared, rows.
  std::string json() const;
};

struct Inputs;
/// What a test spoils on purpose: the backend sees the spoiled inputs, the oracle the true ones.
using Fault = std::function<void(Inputs&)>;

/// Never throws for a wrong result; an unexpected exception is a failure with its message. A
/// processor without the forced ISA, or a machine without a GPU, is a skip. `sample` instead of
/// sample_of(c): O, LSE and dQ are compared at its queries, dK and dV at its keys. The gradients of
/// a sample are judged given the backend's own O and LSE, which are compared too.
Result run_case(const Case& c,
                Backend backend = Backend::cpu,
                const Fault& fault = {},
                const std::optional<Sample>& sample = {});

/// Reasons a case may be skipped for; any other skip is a failure.
const std::vector<std::string>& legal_skips();

}  // namespace undivided::check
