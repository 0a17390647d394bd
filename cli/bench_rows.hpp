// SPDX-License-Identifier: Apache-2.0
// The rows of `undivided bench`: which problems, beside what, and the bars they must reach.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/measure.hpp"

namespace undivided::cli {

struct Row {
  std::string name, direction, mask = "full";  // mask: full, causal, window, documents
  DType dtype = DType::f32;
  std::int64_t batch = 1, heads = 4, kv_heads = 4, q_len = 2048, k_len = 2048, d = 128;
  int threads = 1;
  std::int64_t page = 0;           // tokens of a page; 0: dense keys
  std::string score = "identity";  // or softcap, alibi, t5
  std::string precision;           // i8/bf16 or i8/f32; "": follows the inputs
  std::string isa;                 // forced; "": the best one
  std::string step;                // of a call: verb, resolve, plan, run or c run; "": the
                                   // kernel's time
  bool contended = false;          // beside a process that never sleeps
  bool usual = true;               // without --all and --filter too
  std::shared_ptr<Row> beside;     // timed in turns with this row

  /// The figure that is judged: of_peak, of_read, rate_ratio (to `beside`), p90_ratio, seconds.
  struct Bar {
    std::string of;
    double value = 0;
    bool at_most = false;
  };
  std::optional<Bar> bar;
};

/// All rows of a backend, in an order that stays.
std::vector<Row> rows_of(Backend backend);
Workload workload_of(const Row& row);
std::string mask_text(const Row& row);

}  // namespace undivided::cli
