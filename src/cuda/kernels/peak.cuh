// SPDX-License-Identifier: Apache-2.0
// How fast the matrix instruction of every card is: products of random numbers in registers.
//
// Each warp keeps two fragments of 16 rows and four of 8 columns, and adds their eight products
// (32768 operations) to sums of their own, `turns` times. Nothing is read from memory.
#pragma once

#include "device/math.cuh"
#include "device/mma.cuh"
#include "kernels/random_bits.cuh"

namespace undivided::cuda {

template <class T>
__device__ void peak(float* out, int turns) {
  unsigned a[2][4], b[4][2];
  unsigned state = blockIdx.x * blockDim.x + threadIdx.x;
  for (auto& fragment : a)
    for (unsigned& word : fragment) word = random_pair<T>(state);
  for (auto& fragment : b)
    for (unsigned& word : fragment) word = random_pair<T>(state);
  float c[2][4][4] = {};
  for (int t = 0; t < turns; ++t)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) mma<T>(c[i][j], a[i], b[j][0], b[j][1]);
  float sum = 0;
  for (const auto& row : c)
    for (const auto& tile : row)
      for (const float x : tile) sum += x;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace undivided::cuda
