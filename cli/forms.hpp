// SPDX-License-Identifier: Apache-2.0
// The forms of attention that the demo shows, on a given Q, K, V.
#pragma once

#include <string>
#include <vector>

#include "cli/measure.hpp"
#include "cli/report.hpp"

namespace undivided::cli {

struct Form {
  std::string name, note;
  Workload work;
  bool backward = false;
};

/// Dense float32 [1, heads, tokens, dim] and which document a token belongs to.
struct Input {
  std::string name;
  Tensor q, k, v;
  std::vector<std::int32_t> document;  // ascending
};

/// The captured layer that ships with the sources. Raises Error{io} if it is not found.
Input real_input();
Input large_input(std::int64_t heads, std::int64_t tokens, std::int64_t dim);

/// Later work adds its forms here.
std::vector<Form> forms_of(const Input& input);

/// Largest difference as part of the oracle's largest value.
double error_of(const Tensor& result, const Tensor& oracle);
/// Variants that are verbs of their own, on the CPU: measured and judged against float64.
std::vector<DemoRow> variant_rows(const Input& input, const Context& context, const Peak& peak);

}  // namespace undivided::cli
