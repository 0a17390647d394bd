// SPDX-License-Identifier: Apache-2.0
// How much weight each key receives.
#pragma once

#include <functional>

#include "cpu/score_tiles.hpp"

namespace undivided::cpu {

/// args.key_mass: the weights once more, with the final LSE, summed over the queries of a head.
/// `memory` is that of a worker.
void write_key_mass(const Run& run,
                    const View& lse,
                    Executor& executor,
                    const std::function<ScoreTiles::Memory(int)>& memory);

}  // namespace undivided::cpu
