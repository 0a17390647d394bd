// SPDX-License-Identifier: Apache-2.0
// Results as flat lists of numbers in one order, whatever their layout: what comparisons work on.
#pragma once

#include <string>
#include <vector>

#include "undivided/plan.hpp"

namespace undivided::check {

/// Only elements that mean something: rows and keys within the lengths, in the order sequence,
/// head, token, dim.
struct Reading {
  std::string name;
  DType dtype = DType::f32;  // as stored
  std::vector<double> values;
  /// Errors below this are rounding noise of the sums that made the tensor (set by the twin).
  double floor = 0;
};

Reading read_rows(const Problem& p, const std::string& name, const View& v);     // O, dQ
Reading read_keys(const Problem& p, const std::string& name, const View& v);     // dK, dV
Reading read_scalars(const Problem& p, const std::string& name, const View& v);  // LSE
Reading read_key_mass(const Problem& p, const View& v);
Reading read_all(const std::string& name, const View& v);  // anything dense

/// Verb results, ready for comparison.
std::vector<Reading> readings(const Problem& p, const Forward& f);
std::vector<Reading> readings(const Problem& p, const Gradients& g);
std::vector<Reading> readings(const Problem& p, const Outputs& o);

}  // namespace undivided::check
