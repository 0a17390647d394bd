// SPDX-License-Identifier: Apache-2.0
// Tiles, stages and registers of the sm90 kernels, each with what was measured for it.
#pragma once

#include "cuda/spec.hpp"

namespace undivided::cuda {

struct Sm90Tile {
  int warpgroups = 2;  // of 64 query rows (backward: keys); one more loads
  int queries = 128;   // of a tile
  int keys = 128;
  int ctas = 1;    // backward: that share a task, each with `keys` of it, and exchange dS
  int stages = 2;  // of K and of V; backward: of Q and of dO
  int q_stages = 1;
  int adders = 0;    // backward: threads that add dQ for the consumers; 0: these do it themselves
  int slack = 0;     // log2 by which a row's maximum may grow before O is rescaled; 0: none
  bool bold = true;  // do references of rows stay without a look at maxima?
  int producer_registers = 40, consumer_registers = 232;

  int threads() const { return 128 * (warpgroups + 1); }
  /// Do the warpgroups of a forward take turns with the tensor cores? Packed rows 528 so, 487
  /// without; d 256 1.00 to 1.02. A warpgroup that passes its neighbour's tiles would be one ahead
  /// of two stages: 0.89.
  bool takes_turns() const { return warpgroups == 2; }
};

Sm90Tile sm90_tile(const KernelSpec& spec);

/// Can the sm90 family run this kernel, whatever the bounds? `why` says what it lacks.
bool sm90_serves(const KernelSpec& spec, const char** why);

/// Tiles of the sums of dQ of the backward, and floats of each.
long long sm90_dq_tiles(const KernelSpec& spec,
                        long long batch,
                        long long heads,
                        long long max_q_len,
                        long long total_q);
int sm90_dq_floats(const KernelSpec& spec);

std::size_t sm90_shared_memory(const KernelSpec& spec);
/// The forms of wgmma with n columns (device/wgmma.cuh). Every accumulator is an operand, so text
/// is generated. `backward`: with the forms that kernels of the backward take besides.
std::string wgmma_text(DType type, int n, bool backward);
std::string compose_sm90(const KernelSpec& spec, std::string_view mask, std::string_view score);

/// (batch, head) pairs whose keys and values stay in L2 together.
int sm90_section(const KernelSpec& spec, const Params& p);

}  // namespace undivided::cuda
