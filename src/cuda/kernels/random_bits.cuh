// SPDX-License-Identifier: Apache-2.0
// Random operands for kernels that measure: power, and so the clock, depends on the bits.
#pragma once

#include "device/types.cuh"

namespace undivided::cuda {

/// A hash of a counter (the finalizer of MurmurHash3).
__device__ inline unsigned mixed(unsigned x) {
  x = (x ^ x >> 16) * 0x85EBCA6Bu;
  x = (x ^ x >> 13) * 0xC2B2AE35u;
  return x ^ x >> 16;
}
/// Two numbers, each uniform in [-1, 1).
template <class T>
__device__ inline unsigned random_pair(unsigned& state) {
  const auto uniform = [&] {
    state += 0x9E3779B9u;
    return static_cast<float>(static_cast<int>(mixed(state))) * 0x1p-31f;
  };
  const float low = uniform();
  return pack<T>(low, uniform());
}

}  // namespace undivided::cuda
