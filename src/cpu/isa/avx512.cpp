// SPDX-License-Identifier: Apache-2.0
// The tiles compiled for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.hpp"

namespace undivided::cpu::avx512 {
// clang-format off: each of these uses what the ones before it define.
#include "cpu/vec_avx512.hpp"
constexpr int lanes = 2 * W, tile_rows = 8;
constexpr const Dots *isa_dots = nullptr, *isa_matrix = nullptr;
constexpr const char* isa_name = "avx512";
#include "cpu/tile_math.hpp"
#include "cpu/tile_move.hpp"
#include "cpu/tile_blocks.hpp"
using IntegerWords = struct FloatWords;
#include "cpu/tile_quantised.hpp"
#include "cpu/tile_forward.hpp"
#include "cpu/tile_rows.hpp"
#include "cpu/tile_decode.hpp"
#include "cpu/tile_row_decode.hpp"
#include "cpu/tile_program.hpp"
#include "cpu/tile_backward.hpp"
#include "cpu/tile_table.hpp"
// clang-format on
}  // namespace undivided::cpu::avx512
#endif
