// SPDX-License-Identifier: Apache-2.0
// How fast the matrix instruction of Hopper is: products of random tiles in shared memory.
//
// Block: two warpgroups, one block a multiprocessor. Each warpgroup has 64 rows of its own, all
// share 256 columns, 64 deep: four instructions (2097152 operations) a turn. What lies where does
// not matter, so the tiles are filled as one run of bytes.
#pragma once

#include "device/math.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "kernels/random_bits.cuh"

namespace undivided::cuda {

template <class T>
__device__ void peak(float* out, int turns) {
  constexpr int a_bytes = 64 * 128, b_bytes = 256 * 128, all = 2 * a_bytes + b_bytes;
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned state = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = threadIdx.x; i < all / 4; i += blockDim.x)
    reinterpret_cast<unsigned*>(shared)[i] = random_pair<T>(state);
  async_proxy_fence();
  __syncthreads();
  const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const auto a = wgmma_descriptor(base + threadIdx.x / 128 * a_bytes, 16);
  const auto b = wgmma_descriptor(base + 2 * a_bytes, 16);
  float c[32][4] = {};
  pin(c);
  wgmma_fence();
  for (int t = 0; t < turns; ++t) {
#pragma unroll
    for (int k = 0; k < 4; ++k)  // 16 columns are 32 bytes: 2 in a descriptor
      Wgmma<T, 256>::shared_shared(c, a + 2 * k, b + 2 * k, 1);
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  pin(c);
  float sum = 0;
#pragma unroll
  for (const auto& tile : c)
#pragma unroll
    for (const float x : tile) sum += x;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace undivided::cuda
