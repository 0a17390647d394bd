// SPDX-License-Identifier: Apache-2.0
// Builds a Program: appends nodes once each (deduplicated), checks types, imports other programs.
#pragma once

#include <set>
#include <unordered_map>

#include "expr/program.hpp"

namespace undivided::expr {

class Builder : public std::enable_shared_from_this<Builder> {
 public:
  std::int32_t leaf(Op op);
  std::int32_t constant(bool value);
  std::int32_t constant(std::int64_t value);
  std::int32_t constant(double value);
  std::int32_t param(const std::string& name, Type type, double value);
  std::int32_t load(std::int32_t slot, const std::vector<std::int32_t>& index);
  /// Checks operand types, inserts to_float for mixed arithmetic. Raises Error{parse} that names
  /// the operation and the types that came.
  std::int32_t apply(Op op, std::int32_t a, std::int32_t b = -1, std::int32_t c = -1);
  /// The slot of this array: the same storage gets the same slot, another array of the same name is
  /// renamed.
  std::int32_t slot(const Array& array);
  std::int32_t slot(const Slot& declared);  // text without contents

  /// Copies a program in. `score_node` >= 0 replaces its score leaf. Returns the node of root 0.
  std::int32_t import(const Program& p, const Captures& captures, std::int32_t score_node = -1);

  /// Appends a node as it is, once, without checks.
  std::int32_t append(const Node& node) { return push(node); }
  /// More nodes than this raise Error{parse}.
  void set_limit(std::size_t nodes) { limit_ = nodes; }
  /// The value as f32. Raises Error{parse} for a bool.
  std::int32_t to_float(std::int32_t a);

  Type type(std::int32_t id) const { return program_.nodes[static_cast<std::size_t>(id)].type; }
  const Program& program() const { return program_; }
  Program& program() { return program_; }
  Captures& captures() { return captures_; }

 private:
  std::int32_t push(Node node);
  std::int32_t node(Op op, Type result, std::int32_t a, std::int32_t b = -1, std::int32_t c = -1);
  std::string free_name(const std::string& wanted) const;
  std::size_t limit_ = 1 << 15;
  Program program_;
  Captures captures_;  // arrays by slot name
  std::unordered_multimap<std::size_t, std::int32_t> seen_;
  std::set<std::string> renamed_;  // parameters that got another name here
};

}  // namespace undivided::expr
