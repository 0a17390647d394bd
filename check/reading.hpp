// SPDX-License-Identifier: Apache-2.0
// Results as flat lists of numbers in one order, whatever their layout: what comparisons work on.
#pragma once

#include <string>
#include <vector>

#include "problem/sample.hpp"
#include "undivided/plan.hpp"

namespace undivided::check {

/// Only elements that mean something: rows and keys within the lengths, in the order sequence,
/// head, token, dim; those of the sample, where one is given.
struct Reading {
  std::string name;
  DType dtype = DType::f32;  // as stored
  std::vector<double> values;
  /// Errors below this are rounding noise of the sums that made the tensor (set by the twin).
  double floor = 0;
};

Reading read_rows(const Problem& p,
                  const std::string& name,
                  const View& v,
                  const Sample& sample = {});  // O, dQ
Reading read_keys(const Problem& p,
                  const std::string& name,
                  const View& v,
                  const Sample& sample = {});  // dK, dV
Reading read_scalars(const Problem& p,
                     const std::string& name,
                     const View& v,
                     const Sample& sample = {});  // LSE
Reading read_key_mass(const Problem& p, const View& v);
Reading read_all(const std::string& name, const View& v);  // anything dense

/// Verb results, ready for comparison. A sample leaves out sums over all rows: max_logit, key_mass,
/// dsink and gradients of captured arrays.
std::vector<Reading> readings(const Problem& p, const Forward& f, const Sample& sample = {});
std::vector<Reading> readings(const Problem& p, const Gradients& g, const Sample& sample = {});
std::vector<Reading> readings(const Problem& p, const Outputs& o, const Sample& sample = {});

/// Query rows of all heads: in the sample, and in all.
struct RowCount {
  std::int64_t taken = 0, all = 0;
};
RowCount count_rows(const Problem& p, const Sample& sample);

}  // namespace undivided::check
