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

/// Keys of one sum of dQ: their sums are added in ascending order, by one task or by several.
inline constexpr std::int64_t chunk_keys = 512;
/// Lanes whose weights wait, so that dK and dV are read and written once for all of them. bf16 of
/// d 128 on tile registers takes 0.97 of what it took with 128, the others the same.
inline constexpr int waiting_lanes = 256;

/// dQ of a sub-block: nothing yet; the sums of its first chunk in dq_t; those of whole chunks in
/// dq_t; and those of a later chunk in dq_part.
enum class Summed : std::uint8_t { nothing, first, whole, more };

/// Scratch of one worker. `keys` is how many keys its dK and dV buffers hold.
struct SweepMemory {
  SweepMemory(Arena& arena, const Setup& setup, std::int64_t keys);
  ScoreTiles::Memory tiles;
  WorkerFiles files;  // of the gradient program
  float *do_t, *q_rows, *do_rows;
  float *p, *ds;              // [waiting_lanes / lanes][key_block][lanes]
  float *p_pairs, *ds_pairs;  // the same in pairs of lanes
  std::byte* rounded;         // dO of a sub-block in bf16
  float *dq_t, *dq_part;      // [column][lanes] of each sub-block: of all keys, of a chunk
  Summed* summed;             // of each sub-block
  bool* loaded;               // rows of a sub-block
  float *raw, *lse2, *delta;
  float *dk, *dv;  // [keys][padded]
};

/// Where the dQ of a task goes that saw only some of the keys: rows of float32 without the scale.
struct DqPart {
  float* rows = nullptr;         // of the head: [query][padded]
  std::uint8_t* used = nullptr;  // [sub-block]
};

class Sweep {
 public:
  /// `lse2` and `delta` are row scalars: LSE in log2 units (+inf without a key) and
  /// rowsum(dO * O) - dLSE.
  Sweep(const Run& run, const SweepMemory& memory, const View& lse2, const View& delta)
      : run_(run),
        kernels_(run.kernels),
        memory_(memory),
        lse2_(lse2),
        delta_(delta),
        dqk_(padded(run.setup, run.spec.dqk)),
        dv_(padded(run.setup, run.spec.dv)) {}

  bool want_dq = false, want_dkv = false;
  void capture(const CapturedSums::Place& place) {
    captured_ = place.sums;
    captured_memory_ = place.sums->memory(place.group);
  }

  /// Query tiles [first_tile, end_tile) of `head`, local keys [k0, k1). dK and dV add to the
  /// buffers, whose first row is key k0. dQ goes to `part`, or is complete when there is none.
  void run(const Sequence& s,
           std::int64_t b,
           std::int64_t head,
           std::int64_t first_tile,
           std::int64_t end_tile,
           std::int64_t k0,
           std::int64_t k1,
           const DqPart& part = {});

 private:
  void load_rows(ScoreTiles& tiles, int sub);
  void load_keys(ScoreTiles& tiles);
  void step(ScoreTiles& tiles, int sub, int slot);
  void apply_gradient(ScoreTiles& tiles, int sub, int slot);
  void accumulate_keys(const ScoreTiles& tiles, int first_sub, int end_sub, std::int64_t k0);
  void end_chunk(const ScoreTiles& tiles);
  void store_dq(const ScoreTiles& tiles, int sub, const DqPart& part);

  const Run& run_;
  const Kernels& kernels_;
  SweepMemory memory_;
  View lse2_, delta_;
  std::int64_t dqk_, dv_;  // padded
  const CapturedSums* captured_ = nullptr;
  CapturedSums::Memory captured_memory_;
};

}  // namespace undivided::cpu
