// SPDX-License-Identifier: Apache-2.0
// Seeded inputs of a case: NaN wherever no result may look, views into bigger buffers.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "check/case.hpp"

namespace undivided::check {

/// Host memory with a guard of `guard` elements on both sides. Everything starts as NaN (floats) or
/// -1 (integers).
class Buffer {
 public:
  static constexpr std::int64_t guard = 1024;
  /// `shape` in logical axes; `layout` as in Case. Ragged tensors have rank 3.
  Buffer(DType dtype, std::vector<std::int64_t> shape, const std::string& layout = "packed");

  const View& view() const { return view_; }
  operator View() const { return view_; }  // NOLINT
  /// The whole memory, guards included, as a dense vector.
  View storage() const;
  /// Is everything outside the view still as it was made?
  bool untouched_outside() const;

 private:
  std::shared_ptr<std::vector<std::byte>> bytes_;
  View view_;
};

struct Inputs {
  Rows q, dout;
  Kv kv;
  Options options;
  BackwardOptions backward;
  std::vector<std::int64_t> q_len, k_len;  // per sequence
  std::vector<Buffer> owners;
};
Inputs make_inputs(const Case& c);

/// Dense normal random host data, for tests that shape their own problem.
Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape, std::uint64_t seed);

}  // namespace undivided::check
