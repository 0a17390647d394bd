// SPDX-License-Identifier: Apache-2.0
// The weights of each key, summed once more when the LSE is known.
#include "cpu/key_mass.hpp"

#include <limits>

namespace undivided::cpu {
namespace {

constexpr std::int64_t mass_keys = 16 * key_block;  // of a task

void zero_floats(const View& v) {  // any strides, rank 2 or 3
  const std::int64_t outer = v.rank == 3 ? v.size(0) : 1, o = v.rank == 3 ? v.stride[0] : 0;
  for (std::int64_t x = 0; x < outer; ++x)
    for (std::int64_t y = 0; y < v.size(-2); ++y)
      for (std::int64_t z = 0; z < v.size(-1); ++z)
        static_cast<float*>(v.data)[x * o + y * v.step(-2) + z * v.step(-1)] = 0;
}

/// Of keys [j0, j0 + mass_keys).
void mass(const Run& run,
          const View& lse,
          const ScoreTiles::Memory& memory,
          std::int64_t b,
          std::int64_t head,
          std::int64_t j0) {
  const Sequence s = sequence(run.spec, run.args, b, head);
  const std::int64_t end = std::min(s.k_len, j0 + mass_keys);
  if (j0 >= end) return;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  ScoreTiles tiles(run, memory);
  float sum[mass_keys] = {}, lse2[max_lanes];
  for (std::int64_t first = 0; first < s.q_len; first += run.tile) {
    tiles.begin(
        s, b, head, first, static_cast<int>(std::min<std::int64_t>(run.tile, s.q_len - first)));
    for (std::int64_t j = std::max(j0, tiles.low()); j < std::min(end, tiles.high());
         j += key_block) {
      if (!tiles.visit(j)) continue;
      tiles.load_keys();
      for (int sub = 0; sub < tiles.subs(); ++sub) {
        const RowRange& range = tiles.range(sub);
        if (range.empty()) continue;
        for (int lane = 0; lane < run.kernels.lanes; ++lane) {
          const float row_lse = lane < tiles.lanes_of(sub)
                                    ? *row_scalar(run.spec, lse, s, b, head, tiles.row(sub, lane))
                                    : 0.0f;
          lse2[lane] = row_lse == -infinity ? infinity : static_cast<float>(row_lse * log2_e);
        }
        float* p = tiles.scores(sub);
        run.kernels.weights(p, range.size(), run.factor, lse2);
        run.kernels.sum_lanes(p, range.size(), tiles.lanes_of(sub), sum + (j - j0) + range.begin);
      }
    }
  }
  for (std::int64_t j = j0; j < end; ++j)
    *reinterpret_cast<float*>(key_scalar_address(run.spec, run.args.key_mass, s, b, head, j)) =
        sum[j - j0];
}

}  // namespace

void write_key_mass(const Run& run,
                    const View& lse,
                    Executor& executor,
                    const std::function<ScoreTiles::Memory(int)>& memory) {
  zero_floats(run.args.key_mass);
  const std::int64_t chunks = (run.max_k_len + mass_keys - 1) / mass_keys;
  executor.parallel_for(run.batch * run.heads * chunks, [&](std::int64_t i, int worker) {
    mass(run,
         lse,
         memory(worker),
         i / chunks / run.heads,
         i / chunks % run.heads,
         i % chunks * mass_keys);
  });
}

}  // namespace undivided::cpu
