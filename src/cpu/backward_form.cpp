// SPDX-License-Identifier: Apache-2.0
// Which form a backward takes, and what explain() says of it.
#include "cpu/backward_form.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cpu/captured.hpp"
#include "cpu/sweep.hpp"

namespace undivided::cpu {
namespace {

constexpr std::int64_t most_worker_bytes = std::int64_t{64} << 20;  // dK and dV of one worker
constexpr std::int64_t most_part_bytes = std::int64_t{256} << 20;
constexpr std::int64_t tasks_per_worker = 8;  // so that the last tasks leave little idle
constexpr std::int64_t most_groups = 64;      // of sums of captured arrays

}  // namespace

BackwardForm::BackwardForm(const Setup& setup) : captured(setup.spec.captured) {
  const Bounds& b = setup.bounds;
  const Spec& spec = setup.spec;
  rows = spec.rows == RowKind::ragged ? b.total_q : b.batch * b.max_q_len;
  pairs = b.batch * b.kv_heads;
  chunks =
      std::max<std::int64_t>(1, (b.max_k_len + chunk_keys - 1) / chunk_keys);  // or an empty one
  blocks = setup.tiles(b.max_q_len) * setup.subs();
  part_bytes = chunks * rows * setup.heads() * padded(setup, spec.dqk) * 4;

  const std::int64_t w = setup.workers;
  const std::int64_t bytes =
      buffer_keys(Kind::whole) * (padded(setup, spec.dqk) + padded(setup, spec.dv)) * 4;
  const std::int64_t rounds = (pairs + w - 1) / w;
  // Two products of five more are worth it only if idle workers would cost more than that.
  const bool fits = bytes <= most_worker_bytes;
  const bool whole = fits && rounds * w * 5 <= pairs * 7;
  const bool parts = part_bytes <= most_part_bytes;
  if (captured)
    kind = parts ? Kind::parts : Kind::passes;
  else if (fits && (w == 1 || pairs >= tasks_per_worker * w))
    kind = Kind::whole;
  else
    kind = parts && chunks > 1 ? Kind::parts : whole ? Kind::whole : Kind::passes;
  alone = fits && kind != Kind::whole && !captured;
}

std::int64_t BackwardForm::buffer_keys(Kind of) const {
  return of == Kind::whole ? chunks * chunk_keys : chunk_keys;
}

std::int64_t BackwardForm::groups() const {
  return kind == Kind::parts ? std::min(most_groups, pairs * chunks) : 1;
}

std::vector<std::string> BackwardForm::notes() const {
  const char* const text[] = {
      "one pass: dQ, dK and dV of a KV head by one task",
      "one pass: dK and dV by chunks of 512 keys; their float32 dQ are kept and added in order",
      "two passes: dQ by query tiles, dK and dV by chunks of 512 keys"};
  std::vector<std::string> notes{text[static_cast<int>(kind)]};
  if (alone) notes.push_back(fmt::format("on one worker {}", text[0]));
  if (kind == Kind::passes)
    notes.push_back(fmt::format("float32 dQ of {} chunks would need {} MiB; {} are allowed",
                                chunks,
                                part_bytes >> 20,
                                most_part_bytes >> 20));
  if (captured)
    notes.push_back(
        groups() == 1
            ? std::string("gradients of captured arrays are summed by one thread")
            : fmt::format("gradients of captured arrays are summed by {} groups of tasks, added in "
                          "order; by one thread beyond {} elements",
                          groups(),
                          CapturedSums::most_elements));
  return notes;
}

}  // namespace undivided::cpu
