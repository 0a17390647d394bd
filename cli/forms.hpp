// SPDX-License-Identifier: Apache-2.0
// The forms of attention that the demo shows, on a given Q, K, V.
#pragma once

#include <string>
#include <vector>

#include "cli/measure.hpp"

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

}  // namespace undivided::cli
