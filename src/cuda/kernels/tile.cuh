// SPDX-License-Identifier: Apache-2.0
// Tiles in shared memory, and the two products on them that every kernel is made of.
//
// A tile is rows of `pitch<d>` elements: d rounded up to 16, plus 8, an odd number of 16-byte
// pieces, so the eight rows of an ldmatrix lie in different banks. Unused rows and columns are
// zero.
#pragma once

#include "device/copy.cuh"
#include "device/math.cuh"
#include "device/mma.cuh"

namespace undivided::cuda {

constexpr int rounded(int x) { return (x + 15) / 16 * 16; }
template <int d>
inline constexpr int pitch = rounded(d) + 8;
/// Bytes of a tile.
template <int rows, int d>
inline constexpr int tile_bytes = rows * pitch<d> * 2;

/// Loads `rows` x `d` elements; row r begins at base + row(r) and exists if r < valid. Columns at
/// or past `columns` are zero. Source is T, or float (rounded to T).
template <class T, int rows, int d, int threads, bool aligned, class Source, class Row>
__device__ inline void load_tile(
    unsigned to, const Source* base, int valid, int columns, const Row& row) {
  constexpr int pieces = rounded(d) / 8;
#pragma unroll 2  // more would cost registers that occupancy needs
  for (int i = threadIdx.x; i < rows * pieces; i += threads) {
    const int r = i / pieces, x = i % pieces * 8;
    const bool live = r < valid && x < columns;
    const unsigned at = to + (r * pitch<d> + x) * 2;
    const Source* from = live ? base + row(r) + x : base;
    if constexpr (aligned && sizeof(Source) == 2) {
      copy_async(at, from, live);
    } else {
      unsigned word[4] = {};
      if (live) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (sizeof(Source) == 2)
            word[j] = from[2 * j].bits | static_cast<unsigned>(from[2 * j + 1].bits) << 16;
          else
            word[j] = pack<T>(from[2 * j], from[2 * j + 1]);
        }
      }
      store_shared(at, word);
    }
  }
}

/// acc[n / 8] += A B^T for the 16 rows of A at `a` and the n rows of B at `b`, both with d columns.
template <class T, int d, int n>
__device__ inline void multiply_transposed(float (&acc)[n / 8][4], unsigned a, unsigned b) {
  const int lane = threadIdx.x & 31;
  const unsigned a_at = a + ((lane & 15) * pitch<d> + (lane >> 4) * 8) * 2;
  const unsigned b_at = b + (((lane & 7) + (lane >> 4) * 8) * pitch<d> + (lane >> 3 & 1) * 8) * 2;
#pragma unroll 8
  for (int k = 0; k < rounded(d); k += 16) {
    unsigned x[4];
    load_matrix(x, a_at + k * 2);
#pragma unroll
    for (int j = 0; j < n / 16; ++j) {
      unsigned y[4];
      load_matrix(y, b_at + (j * 16 * pitch<d> + k) * 2);
      mma<T>(acc[2 * j], x, y[0], y[1]);
      mma<T>(acc[2 * j + 1], x, y[2], y[3]);
    }
  }
}

/// acc[width / 8] += A B for A in registers (16 x k, fragments from `to_fragments`) and the k rows
/// of B at `b` (already moved to its first column); the tile of B has d columns.
template <class T, int d, int k, int width>
__device__ inline void multiply(float (&acc)[width / 8][4],
                                const unsigned (&a)[k / 16][4],
                                unsigned b) {
  const int lane = threadIdx.x & 31;
  const unsigned at = b + ((lane & 15) * pitch<d> + (lane >> 4) * 8) * 2;
#pragma unroll
  for (int i = 0; i < k / 16; ++i) {
#pragma unroll
    for (int j = 0; j < width / 16; ++j) {
      unsigned y[4];
      load_matrix_transposed(y, at + (i * 16 * pitch<d> + j * 16) * 2);
      mma<T>(acc[2 * j], a[i], y[0], y[1]);
      mma<T>(acc[2 * j + 1], a[i], y[2], y[3]);
    }
  }
}

/// An accumulator, rounded to T, as the left operand of the next product.
template <class T, int n>
__device__ inline void to_fragments(unsigned (&a)[n / 16][4], const float (&acc)[n / 8][4]) {
#pragma unroll
  for (int i = 0; i < n / 16; ++i) {
    a[i][0] = pack<T>(acc[2 * i][0], acc[2 * i][1]);
    a[i][1] = pack<T>(acc[2 * i][2], acc[2 * i][3]);
    a[i][2] = pack<T>(acc[2 * i + 1][0], acc[2 * i + 1][1]);
    a[i][3] = pack<T>(acc[2 * i + 1][2], acc[2 * i + 1][3]);
  }
}

template <int n>
__device__ inline void clear(float (&acc)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
}

/// Writes row `half` (0: g, 1: g + 8) of an accumulator times `scale` at `to`: columns `first` and
/// on, those below `columns`. A scale of 0 writes 0, whatever the accumulator holds.
template <class T, bool aligned, int n>
__device__ inline void store_row(
    T* to, const float (&acc)[n][4], int half, float scale, int first, int columns) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const int x = first + j * 8 + t * 2;
    const float a = half ? acc[j][2] : acc[j][0], b = half ? acc[j][3] : acc[j][1];
    if (x < columns)
      store_pair<T, aligned>(to + x, scale == 0 ? 0.0f : a * scale, scale == 0 ? 0.0f : b * scale);
  }
}

}  // namespace undivided::cuda
