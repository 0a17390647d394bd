// SPDX-License-Identifier: Apache-2.0
// Two attentions over the same values in one sweep over the keys.
#pragma once

#include <functional>

#include "cpu/problem.hpp"

namespace undivided::cpu {

/// The two branches of differential attention. Output head h is made of head h of branch 0 and of
/// branch 1, or, when both are one set of heads (`paired`), of its heads 2h and 2h + 1.
struct Branches {
  Spec spec;                 // of a branch; its op is Operation::differential
  Bounds bounds;             // of a branch
  const Args* args[2] = {};  // float32 O and LSE; they differ in Q, K, O and LSE alone
  bool paired = false;
};

/// Rows [first, first + count) of output head h are complete in both branches. Ragged rows are
/// those of one sequence, batch 0.
using RowsDone =
    std::function<void(std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t count)>;

/// O and LSE of both branches. Each block of V is read once for the two of them, and `done` is
/// called while its rows are in the cache. Keys are not split among workers.
class Differential {
 public:
  Differential(const Branches& branches, const Context& context);
  std::size_t workspace() const { return shared_bytes_ + worker_bytes_ * workers(); }
  void run(void* workspace, const RowsDone& done, const Context& context) const;

 private:
  std::size_t workers() const { return static_cast<std::size_t>(setup_.workers); }
  const Branches& branches_;
  Setup setup_;
  std::size_t shared_bytes_ = 0, worker_bytes_ = 0;
};

}  // namespace undivided::cpu
