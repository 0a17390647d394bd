// SPDX-License-Identifier: Apache-2.0
// How a backward is cut into tasks.
//
// One task sweeps keys of a KV head against all queries of its group and gives their dK and dV.
// With many KV heads it takes all keys and gives dQ too. With few it takes a chunk of keys, and the
// dQ of the chunks are added afterwards (Dao 2023, section 3.2, with a fixed order instead of
// atomics). If these would need too much memory, query tiles compute dQ in a pass of their own, at
// the price of two products more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/problem.hpp"

namespace undivided::cpu {

struct BackwardForm {
  enum class Kind : std::uint8_t { whole, parts, passes };

  explicit BackwardForm(const Setup& setup);

  /// Keys of a task of some form.
  std::int64_t buffer_keys(Kind of) const;
  /// Tasks that share sums of captured arrays. By bounds alone, so bits do not depend on workers.
  std::int64_t groups() const;
  /// What explain() says of it.
  std::vector<std::string> notes() const;

  Kind kind = Kind::whole;
  bool alone = false;           // takes the form `whole` on an executor of one worker
  bool captured = false;        // are there gradients of captured arrays?
  std::int64_t rows = 0;        // of a head, all sequences
  std::int64_t pairs = 0;       // of sequences and KV heads
  std::int64_t chunks = 1;      // of keys
  std::int64_t blocks = 0;      // sub-blocks of a head's rows
  std::int64_t part_bytes = 0;  // dQ of all chunks
};

}  // namespace undivided::cpu
