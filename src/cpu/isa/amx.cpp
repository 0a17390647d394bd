// SPDX-License-Identifier: Apache-2.0
// The tiles compiled for AVX-512 F, BW, VL, DQ, BF16 and VNNI, and AMX with bf16 and int8.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.hpp"

namespace undivided::cpu::amx {
// clang-format off: each of these uses what the ones before it define.
#include "cpu/vec_avx512.hpp"
constexpr int lanes = 2 * W, tile_rows = 8;
constexpr const char* isa_name = "amx";
#include "cpu/tile_math.hpp"
#include "cpu/tile_move.hpp"
#include "cpu/tile_blocks.hpp"
#include "cpu/tile_quads.hpp"
using IntegerWords = QuadWords;
#include "cpu/tile_quantised.hpp"
#include "cpu/tile_forward.hpp"
#include "cpu/tile_rows.hpp"
#include "cpu/tile_decode.hpp"
#include "cpu/tile_row_decode.hpp"
#include "cpu/tile_program.hpp"
#include "cpu/tile_backward.hpp"
#include "cpu/tile_dots.hpp"
#include "cpu/tile_dots_decode.hpp"
#include "cpu/tile_matrix.hpp"
#include "cpu/tile_matrix_decode.hpp"
static constexpr const Dots *isa_dots = &dots, *isa_matrix = &matrix;
#include "cpu/tile_table.hpp"
// clang-format on
}  // namespace undivided::cpu::amx
#endif
