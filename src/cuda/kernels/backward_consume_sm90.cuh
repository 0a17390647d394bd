// SPDX-License-Identifier: Apache-2.0
// What both shapes of the sm90 backward share: products of tiles, dS and the rows of dK and dV on
// their way out, a consumer's walk through its tasks, and which warp has which role.
#pragma once

#include "kernels/backward_load_sm90.cuh"

namespace undivided::cuda {

/// acc = A B^T: 64 keys at `a` times the 8 n queries at `b`; `more`: added to acc.
template <class C, int d, bool more = false, int n>
__device__ __forceinline__ void multiply_rows90(float (&acc)[n][4], unsigned a, unsigned b) {
  using L = SharedBackward90<C>;
  using Product = Wgmma<typename C::Element, 8 * n>;
  const auto x = wgmma_descriptor(a, 16), y = wgmma_descriptor(b, 16);
#pragma unroll
  for (int i = 0; i < (d + 15) / 16; ++i) {
    const auto u = x + (i / 4 * L::key_slab + i % 4 * 32) / 16;
    const auto v = y + (i / 4 * L::row_slab + i % 4 * 32) / 16;
    if (i == 0 && !more)
      Product::set_rows(acc, u, v);
    else
      Product::add_rows(acc, u, v);
  }
  wgmma_commit();
}
/// acc += A B: fragments times the 16 n query rows at `b`.
template <class C, int d, int n>
__device__ __forceinline__ void add_rows90(float (&acc)[d / 8][4],
                                           const unsigned (&a)[n][4],
                                           unsigned b) {
  const auto y = wgmma_descriptor(b, SharedBackward90<C>::row_slab);
#pragma unroll
  for (int i = 0; i < n; ++i)
    Wgmma<typename C::Element, d>::register_shared(acc, a[i], y + i * 2048 / 16);
  wgmma_commit();
}

/// dS^T as rows of keys from `first` on: a slab for 64 queries.
template <class C>
__device__ __forceinline__ void store_ds90(const unsigned (&ds)[C::m / 16][4],
                                           unsigned to,
                                           int first) {
  const int lane = threadIdx.x & 31;
  const int key = first + (threadIdx.x & 127) / 32 * 16 + (lane & 15);
#pragma unroll
  for (int i = 0; i < C::m / 16; ++i) {
    const int piece = 2 * i + (lane >> 4);
    store_matrix(
        to + piece / 8 * SharedBackward90<C>::key_slab + key * 128 + ((piece ^ key) & 7) * 16,
        ds[i]);
  }
  async_proxy_fence();
}

/// Writes the two rows of a thread of dK or dV, times `scale`.
template <class C, int n>
__device__ __forceinline__ void store_keys90(const Params& p,
                                             const KeyTask90& t,
                                             const MatrixRef& to,
                                             int group,
                                             float (&acc)[n][4],
                                             float scale) {
  using Out = typename C::Out;
  const int mine = Keys90<C>(t, group).mine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = mine + 8 * half;
    const bool live = j < t.s.k_len;
    // Dense padding gets zeros; packed rows past the length belong to others.
    const bool written = to.data && (live || (C::kv == KvKind::dense && j < p.max_k_len));
    if (!live) {
#pragma unroll
      for (int i = 0; i < n; ++i) acc[i][2 * half] = acc[i][2 * half + 1] = 0.0f;
    }
    store_row90<Out>(written
                         ? static_cast<Out*>(to.data) + key_offset<C>(p, to, t.s, t.b, t.kv_head, j)
                         : nullptr,
                     acc,
                     half,
                     scale);
  }
}

/// What both shapes of the consumers share.
template <class C>
struct Consumer90Base {
  using L = SharedBackward90<C>;
  const Params& p;
  unsigned base;
  Ring<C::stages> ring;
  Ring<1> keys_ring;

  __device__ __forceinline__ void free(unsigned barrier) {
    if ((threadIdx.x & 31) == 0) mbarrier_arrive(base + barrier);
  }
  /// body(slot, any) for each task; `any`: are there queries, and were K and V brought?
  template <class Body>
  __device__ __forceinline__ void each_task(const Body& body) {
#pragma unroll 1
    for (Ring<L::task_slots> tasks;; tasks.next()) {
      mbarrier_wait(base + L::task_full + 8 * tasks.at(), tasks.parity());
      const unsigned slot = base + L::tasks + 64 * tasks.at();
      const int4 first = load_shared_ints(slot);
      if (first.x < 0) return;
      if (first.w) mbarrier_wait(base + L::keys_full, keys_ring.parity());
      body(slot, first.w != 0);
      __syncwarp();
      free(L::task_empty + 8 * tasks.at());
    }
  }
  /// The last product with K and V is done.
  __device__ __forceinline__ void done_with_keys() {
    free(L::keys_empty);
    keys_ring.next();
  }
  /// The stage at hand, and whether it is the last of the task.
  __device__ __forceinline__ unsigned info() const {
    return base + L::info + L::info_bytes * ring.at();
  }
  __device__ __forceinline__ bool is_last() const {
    return load_shared_word(info() + L::info_last);
  }
  __device__ __forceinline__ int sums() const { return load_shared_word(info() + L::info_sums); }
  __device__ __forceinline__ int turn() const {
    return C::ordered ? load_shared_word(info() + L::info_turn) : 0;
  }
  /// Q and dO are no longer read. Was it the last tile?
  __device__ __forceinline__ bool leave_tile() {
    const bool last = is_last();
    __syncwarp();
    free(L::dout_empty + 8 * ring.at());
    free(L::q_empty + 8 * ring.at());
    ring.next();
    return last;
  }
};

/// `consume(base, group)`: what warpgroups 0 and 1 do.
template <class C, class Consume>
__device__ __forceinline__ void backward_roles90(const Params& p,
                                                 const BackwardMaps& maps,
                                                 const Schedule& schedule,
                                                 const Consume& consume) {
  using L = SharedBackward90<C>;
  static_assert(L::bytes + 1024 <= C::shared_memory, "what the launch asks for");
  static_assert(L::dq_floats == C::dq_floats, "what the workspace has");
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned base = (shared_address(shared) + 1023) & ~1023u;
  const int group = warpgroup_index();

  if (threadIdx.x == 0) {
    mbarrier_init(base + L::keys_full, L::paired ? 4 : 2);
    mbarrier_init(base + L::keys_empty, 8);
    mbarrier_init(base + L::tail, 1);
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(base + L::q_full + 8 * i, 2);
      mbarrier_init(base + L::q_empty + 8 * i, 8);
    }
    for (int i = 0; i < L::dout_stages; ++i) {
      mbarrier_init(base + L::dout_full + 8 * i, 1);
      mbarrier_init(base + L::dout_empty + 8 * i, 8);
    }
    for (int g = 0; g < 2; ++g) {
      mbarrier_init(base + L::ds_full + 8 * g, L::wide ? 4 : 8);
      mbarrier_init(base + L::ds_empty + 8 * g, L::paired ? 16 : 8);
      mbarrier_init(base + L::dq_full + 8 * g, 4);  // wide: of P, full and empty
      mbarrier_init(base + L::dq_empty + 8 * g, 1);
    }
    for (int i = 0; i < L::task_slots; ++i) {
      mbarrier_init(base + L::task_full + 8 * i, 1);
      mbarrier_init(base + L::task_empty + 8 * i, 8);
    }
    for (int g = 0; g < 2; ++g) {
      mbarrier_init(base + L::turn_asked + 8 * g, 1);
      mbarrier_init(base + L::turn_ready + 8 * g, 1);
      mbarrier_init(base + L::turn_added + 8 * g, 4);
    }
    if constexpr (L::paired) {
      for (int g = 0; g < 2; ++g) mbarrier_init(base + L::other_ds_full + 8 * g, 4);
      mbarrier_init(base + L::shared_task_full, 1);
      mbarrier_init(base + L::shared_task_empty, 1);
    }
    mbarrier_init(base + L::order_full, 1);
    mbarrier_init(base + L::order_empty, 1);
    mbarrier_init_fence();
  }
  if constexpr (L::paired)
    cluster_sync();
  else
    __syncthreads();

  if (group == 2) {
    lower_registers<C::producer_registers>();
    const int warp = threadIdx.x / 32 - 8;
    const bool lead = (threadIdx.x & 31) == 0;
    if (warp == 0)
      BackwardProducer90<C>{p, maps, base, lead}.run();
    else if (warp == 2)
      BackwardScheduler90<C>{p, schedule, base, lead}.run();
    else if (C::capture != Capture::largest && lead) {
      const int group = warp / 2;  // warps 1 and 3
      if (C::adders == 2) add_dq<C>(p, base, group, group + 1);
      if (C::adders == 1 && group == 0) add_dq<C>(p, base, 0, 2);
      if (L::wide && C::ordered && L::dq_width(group) > 0) keep_turns<C>(p, base, group);
    }
  } else {
    raise_registers<C::consumer_registers>();
    consume(base, group);
  }
  // The other CTA may still write to this one's shared memory.
  if constexpr (L::paired) cluster_sync();
}

}  // namespace undivided::cuda
