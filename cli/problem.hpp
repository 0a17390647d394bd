// SPDX-License-Identifier: Apache-2.0
// The flags that describe a problem, shared by attend and explain, and the arrays they name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.hpp"
#include "undivided/undivided.hpp"

namespace undivided::cli {

/// As given on the command line; empty means not given.
struct ProblemFlags {
  std::string q, k, v;
  std::string mask, score;
  std::vector<std::string> arrays, params;
  std::string align, q_origin, k_origin;
  std::optional<double> scale;
  std::string sink;
  double dropout = 0;
  std::uint64_t seed = 0;
  std::string dtype, out_dtype, precision, k_mean;
  std::string q_offsets, k_offsets, page_table, prefix_table, lengths, q_lengths, k_lengths;
  std::string backend = "auto", determinism = "fast", inside = "automatic";
  int threads = 0;
};
void add_problem_flags(CLI::App& app, ProblemFlags& flags);

/// A problem with the memory that its views point to.
struct LoadedProblem {
  Rows q;
  Kv kv;
  Options options;
  DType dtype = DType::f32;      // of Q, K and V
  DType out_dtype = DType::f32;  // of the files that are written
  std::vector<Tensor> keep;

  const Tensor& hold(Tensor t) { return keep.emplace_back(std::move(t)); }
};

/// Reads every array that the flags name and rounds Q, K and V. Contents are checked by resolve().
LoadedProblem load_problem(const ProblemFlags& flags);
/// The same without data: `shape` is "b,hq,hkv,nq,nk,d,dv"; Q, K and V must not be read.
LoadedProblem shape_problem(const ProblemFlags& flags, const std::string& shape, Device device);

/// Masks and scores from text, with the arrays and parameters that they name. Every array and
/// parameter given must be read by one of them.
struct Programs {
  Mask mask;
  Score score;
};
Programs parse_programs(const std::string& mask,
                        const std::string& score,
                        const std::vector<std::string>& arrays,
                        const std::vector<std::string>& params);

/// Reads NAME=FILE as a captured array; int64 that fits becomes int32, small floats become float32.
Array read_captured(const std::string& assignment);
Tensor read_named(const char* flag, const std::string& spec);

Backend backend_of(const std::string& name);
/// follow or empty, f32, bf16, f16, i8/bf16, i8/f32.
Precision precision_of(const std::string& name);
Align align_of(const std::string& name);
DType float_dtype_of(const char* flag, const std::string& name);

}  // namespace undivided::cli
