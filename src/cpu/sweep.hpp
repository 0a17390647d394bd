// SPDX-License-Identifier: Apache-2.0
// One pass of the backward over a rectangle of (query tiles) x (keys) of one sequence.
#pragma once

#include "cpu/captured.hpp"
#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

/// Float32 columns of the row-major copies: full vectors.
inline std::int64_t padded(const Setup& setup, int d) {
  return (d + setup.kernels->lanes - 1) / setup.kernels->lanes * setup.kernels->lanes;
}

/// Scratch of one worker. `keys` is how many keys its dK and dV buffers hold.
struct SweepMemory {
  SweepMemory(Arena& arena, const Setup& setup, std::int64_t keys);
  ScoreTiles::Memory tiles;
  WorkerFiles files;  // of the gradient program
  float *do_t, *dq_t, *q_rows, *do_rows;
  float *raw, *dp, *lse2, *delta;
  float *dk, *dv;  // [keys][padded]
};

class Sweep {
 public:
  /// `lse2` and `delta` are row scalars: LSE in log2 units (+inf without a key) and
  /// rowsum(dO * O) - dLSE.
  Sweep(const Run& run, const SweepMemory& memory, const View& lse2, const View& delta)
      : run_(run), kernels_(run.kernels), memory_(memory), lse2_(lse2), delta_(delta) {}

  bool want_dq = false, want_dkv = false;
  const CapturedSums* captured = nullptr;
  const CapturedSums::Memory* captured_memory = nullptr;

  /// Query tiles [first_tile, end_tile) of `head`, local keys [k0, k1). dQ is complete when the
  /// keys are all there are; dK and dV add to the buffers, whose first row is key k0.
  void run(const Sequence& s,
           std::int64_t b,
           std::int64_t head,
           std::int64_t first_tile,
           std::int64_t end_tile,
           std::int64_t k0,
           std::int64_t k1);

 private:
  void load_rows(ScoreTiles& tiles, const Sequence& s, std::int64_t b, std::int64_t head);
  void step(ScoreTiles& tiles, int sub, std::int64_t k0);
  void apply_gradient(ScoreTiles& tiles, int sub);
  void store_dq(const ScoreTiles& tiles, int sub);

  const Run& run_;
  const Kernels& kernels_;
  SweepMemory memory_;
  View lse2_, delta_;
};

}  // namespace undivided::cpu
