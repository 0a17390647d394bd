// SPDX-License-Identifier: Apache-2.0
// Builds a Program: appends nodes once each (deduplicated), checks types, imports other programs.
#pragma once

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

  Type type(std::int32_t id) const { return program_.nodes[static_cast<std::size_t>(id)].type; }
  const Program& program() const { return program_; }
  Program& program() { return program_; }
  Captures& captures() { return captures_; }

 private:
  std::int32_t push(Node node);
  Program program_;
  Captures captures_;  // arrays by slot name
  std::unordered_multimap<std::size_t, std::int32_t> seen_;
};

}  // namespace undivided::expr
