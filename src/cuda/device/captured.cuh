// SPDX-License-Identifier: Apache-2.0
// Gradients of captured arrays and parameters: sums over pairs that blocks meet in any order.
//
// Capture::atomic adds in float32, in the order of arrival. The ordered way adds integers, which
// commute: a pass of `largest` leaves the bits of the largest |term| of each element in its float32
// place; a pass of `sums` rounds each term to a multiple of 2^-term_bits times the power of two
// above that one and adds it to 64 bits; round_sums makes float32 of them. Up to 2^(62 - term_bits)
// terms stay inside.
// Elements with a term that is not finite get Inf or NaN as a float32 sum would.
#pragma once

#include "device/math.cuh"

namespace undivided::cuda {

inline constexpr unsigned infinite_bits = 0x7f800000u;
inline constexpr long long positive_infinity = 1, negative_infinity = 2;

/// The exponent e of a largest term: it is below 2^(e - 126). Terms are never cut finer than the
/// smallest normal float32.
__device__ inline int term_exponent(unsigned largest, int term_bits) {
  return maximum(static_cast<int>(largest >> 23), term_bits);
}

/// If `live`: nothing in the kernel reads what these change. PTX: red.global
__device__ inline void reduce_add(float* at, float x, bool live) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p red.global.add.f32 [%0], %1;\n}" ::"l"(
                   __cvta_generic_to_global(at)),
               "f"(x),
               "r"(static_cast<int>(live)));
}
__device__ inline void reduce_add(long long* at, long long x, bool live) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p red.global.add.u64 [%0], %1;\n}" ::"l"(
                   __cvta_generic_to_global(at)),
               "l"(x),
               "r"(static_cast<int>(live)));
}
__device__ inline void reduce_or(long long* at, long long bits, bool live) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p red.global.or.b64 [%0], %1;\n}" ::"l"(
                   __cvta_generic_to_global(at)),
               "l"(bits),
               "r"(static_cast<int>(live)));
}
__device__ inline void reduce_max(float* at, unsigned bits, bool live) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p red.global.max.u32 [%0], %1;\n}" ::"l"(
                   __cvta_generic_to_global(at)),
               "r"(bits),
               "r"(static_cast<int>(live)));
}

/// One term of one element, if `live`; `largest`: the bits of its largest term, where the way asks
/// for them. Without branches, so that the loads of many terms go together.
template <Capture how>
__device__ __forceinline__ void add_term(
    const Params& p, float* to, long long* sum, unsigned largest, float x, bool live) {
  if constexpr (how == Capture::atomic) {
    reduce_add(to, x, live && x != 0);
  } else if constexpr (how == Capture::largest) {
    const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    reduce_max(to, bits, live && bits != 0);
  } else {
    const int e = term_exponent(largest, p.term_bits);
    const float scale = __int_as_float((127 + p.term_bits + 126 - e) << 23);
    const long long most = 1LL << p.term_bits;
    const long long fixed = clamped(__float2ll_rn(x * scale), -most, most);
    const bool finite = largest < infinite_bits;
    reduce_add(sum, fixed, live && finite && fixed != 0);
    const long long sign = x > 0 ? positive_infinity : negative_infinity;
    reduce_or(sum, sign, live && !finite && fabsf(x) == infinity());
  }
}

/// What the terms of an element add up to.
__device__ inline float rounded_sum(float largest_term, long long sum, int term_bits) {
  const unsigned largest = __float_as_uint(largest_term);
  if (largest > infinite_bits) return __int_as_float(0x7fffffff);
  if (largest == infinite_bits)
    return sum == positive_infinity   ? infinity()
           : sum == negative_infinity ? -infinity()
                                      : __int_as_float(0x7fffffff);
  const int e = term_exponent(largest, term_bits);
  const double unit = __longlong_as_double((1023LL + e - 126 - term_bits) << 52);
  return static_cast<float>(static_cast<double>(sum) * unit);
}

/// What a thread has not added yet: its sums of parameters; for each read of an array the
/// sum over the last pairs, as long as they read one element. A slope of a head is so added once a
/// block, a bucket of distances once for many pairs. Elements are told apart by their indices: what
/// does not depend on the pair, the compiler need not compare.
template <int of_slot, int of_rank>
struct Read {
  static constexpr int slot = of_slot, rank = of_rank;
};
template <int params, class... Reads>
struct Captured {
  struct Run {
    int i[4];
    unsigned largest;
    bool any = false;
    float x = 0.0f;
  };
  static constexpr int reads = sizeof...(Reads);
  float sums[params] = {};
  Run runs[reads + 1];

  /// Adds x to element (i...) of the gradient that `read` reads, if `live`.
  template <Capture how, int read, class... I>
  __device__ __forceinline__ void add(const Params& p, float x, bool live, I... i) {
    const int index[4] = {i...};
    Run& run = runs[read];
    if (!run.any || index[0] != run.i[0] || index[1] != run.i[1] || index[2] != run.i[2] ||
        index[3] != run.i[3]) {
      leave<how>(p, place(p, read, run), run, run.any);
      for (int axis = 0; axis < 4; ++axis) run.i[axis] = index[axis];
      run.any = true;
      run.x = 0.0f;
      if constexpr (how == Capture::sums)  // asked for before it is needed
        if (const Place to = place(p, read, run); to.wanted)
          run.largest = __float_as_uint(__ldg(to.at));
    }
    run.x += live ? x : 0.0f;
  }

  /// Adds what is left; every lane of the warp calls it. Lanes with one element are summed first.
  template <Capture how>
  __device__ __forceinline__ void finish(const Params& p) {
    const unsigned all = 0xffffffffu;
    const bool lead = (threadIdx.x & 31) == 0;
    if (p.d_params) {
#pragma unroll
      for (int i = 0; i < params; ++i) {
        const float total = warp_sum(sums[i]);
        const unsigned largest = how == Capture::sums ? __float_as_uint(p.d_params[i]) : 0;
        add_term<how>(p, p.d_params + i, p.d_param_sums + i, largest, total, lead);
      }
    }
#pragma unroll
    for (int read = 0; read < reads; ++read) {
      Run& run = runs[read];
      const Place to = place(p, read, run);
      const auto mine = run.any ? reinterpret_cast<unsigned long long>(to.at) : 0;
      const bool one = __all_sync(all, mine == __shfl_sync(all, mine, 0));
      if (one) run.x = warp_sum(run.x);
      leave<how>(p, to, run, run.any && (!one || lead));
    }
  }

 private:
  struct Place {
    float* at;
    long long* sum;
    bool wanted;
  };
  /// Where a run is added.
  static __device__ __forceinline__ Place place(const Params& p, int read, const Run& run) {
    constexpr int slots[] = {Reads::slot..., 0}, ranks[] = {Reads::rank..., 0};
    const ArrayRef &a = p.d_arrays[slots[read]], &sums = p.d_sums[slots[read]];
    long long at = 0, sum = 0;
#pragma unroll
    for (int axis = 0; axis < ranks[read]; ++axis) {
      const int i = clamped(run.i[axis], 0, a.shape[axis] - 1);
      at += a.stride[axis] * i;
      sum += sums.stride[axis] * i;
    }
    return {static_cast<float*>(a.data) + at,
            static_cast<long long*>(sums.data) + sum,
            a.data != nullptr};
  }
  template <Capture how>
  static __device__ __forceinline__ void leave(const Params& p,
                                               const Place& to,
                                               const Run& run,
                                               bool live) {
    add_term<how>(p, to.at, to.sum, run.largest, run.x, to.wanted && live);
  }
};

}  // namespace undivided::cuda
