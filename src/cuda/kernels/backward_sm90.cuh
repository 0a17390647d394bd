// SPDX-License-Identifier: Apache-2.0
// dQ, dK and dV on Hopper in five products: TMA, wgmma and warp roles.
//
// A CTA takes 128 keys of a KV head and visits the query tiles of the heads of its group; then it
// takes others, which are brought while it writes dK and dV. Two warpgroups own 64 keys each, and
// hold S and dP transposed, so that P^T and dS^T are left operands straight from registers:
//   S^T = K Q^T, dP^T = V dO^T; P = e^(s - LSE); dV += dropped(P)^T dO
//   dS = P * (dP - delta) * ds/dscore; dK += dS^T Q, times scale at the end
//   dS goes to shared memory; dQ = dS K of both halves of the keys
// (Dao 2023, algorithm 2; Shah et al. 2024, section 3.1). Other warps find the tiles, bring Q and
// dO, and add each dQ tile to float32 sums in global memory, which gather_dq rounds. dK and dV stay
// in registers over all heads of the group. Gradients of captured arrays and parameters are added
// as device/captured.cuh says; Capture::largest only looks for their largest terms. Rows of Q, dO,
// K and V past a sequence are zeroed in shared memory, since 0 times what a neighbour left there
// may be NaN.
#pragma once

#include "kernels/backward_consume_sm90.cuh"
#include "kernels/backward_pairs_sm90.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
struct BackwardConsumer90 : Consumer90Base<C> {
  using Base = Consumer90Base<C>;
  using L = SharedBackward90<C>;
  using T = typename C::Element;
  using Base::base, Base::p, Base::ring;
  static constexpr int m = C::m;
  /// P of the next tile is made while dK and dQ of one are, dV while its dS is.
  static constexpr bool ahead = Score::identity && m == 64 && !L::broad;
  static constexpr int parts = L::broad ? 2 : 1;  // of the queries, in which dP is made
  static_assert(!L::broad || (Score::identity && m == 64));
  int group;
  unsigned step = 0;

  /// dQ = dS K: 64 queries by the 8 n columns of K at `columns`.
  template <int n>
  __device__ __forceinline__ void queries(float (&acc)[n][4], unsigned ds, unsigned columns) {
    const auto x = wgmma_descriptor(ds, 16), y = wgmma_descriptor(columns, 16);
#pragma unroll
    for (int i = 0; i < C::n / 16; ++i) {
      if (i == 0)
        Wgmma<T, 8 * n>::set_columns(acc, x, y);
      else
        Wgmma<T, 8 * n>::add_columns(acc, x + i * 2048 / 16, y + i * 2048 / 16);
    }
    wgmma_commit();
  }

  /// dK += dS^T Q: both in shared memory.
  __device__ __forceinline__ void add_keys(float (&dk)[C::dqk / 8][4], unsigned ds, unsigned q) {
    const auto x = wgmma_descriptor(ds, 16), y = wgmma_descriptor(q, L::row_slab);
#pragma unroll
    for (int i = 0; i < m / 16; ++i)
      Wgmma<T, C::dqk>::add_rows_columns(dk, x + i * 32 / 16, y + i * 2048 / 16);
    wgmma_commit();
  }

  /// Part of a dQ tile, from its accumulator `first` on, for the warp that adds it.
  template <int n>
  __device__ __forceinline__ void stage_dq(const float (&dq)[n][4], int first) {
#pragma unroll
    for (int i = 0; i < n; ++i)
      store_shared(
          base + L::dq_at + L::dq_bytes * group + ((first + i) * 128 + (threadIdx.x & 127)) * 16,
          dq[i]);
  }
  /// Leaves a dQ tile to that warp.
  __device__ __forceinline__ void leave_dq(const float (&dq)[8][4],
                                           const float (&rest)[4][4],
                                           int sums,
                                           int turn) {
    mbarrier_wait(base + L::dq_empty + 8 * group, (step & 1) ^ 1);
    stage_dq(dq, 0);
    if constexpr (L::broad) stage_dq(rest, 8);
    if ((threadIdx.x & 127) == 0) {
      store_shared_word(base + L::dq_to + 4 * group, sums);
      if constexpr (C::ordered) store_shared_word(base + L::dq_turn + 4 * group, turn);
    }
    async_proxy_fence();
    __syncwarp();
    this->free(L::dq_full + 8 * group);
  }

  __device__ void run() {
    this->each_task([&](unsigned slot, bool any) {
      float dk[C::dqk / 8][4], dv[C::dv / 8][4];
      typename Score::Captures captured;
      clear(dk);
      clear(dv);
      if (any) {
        if constexpr (ahead) {
          tiles_ahead(slot, dk, dv);
        } else {
#pragma unroll 1
          while (!tile(slot, dk, dv, captured)) {
          }
        }
        this->done_with_keys();
      }
      if constexpr (C::capture != Capture::none) captured.template finish<C::capture>(p);
      if constexpr (C::capture == Capture::largest) return;
      const KeyTask90 t = KeyTask90::read<C>(slot);
      store_keys90<C>(p, t, p.dk, group, dk, p.scale);
      store_keys90<C>(p, t, p.dv, group, dv, C::dropout ? p.keep_scale : 1.0f);
    });
    if constexpr (C::capture == Capture::largest) return;
    mbarrier_wait(base + L::dq_empty + 8 * group, (step & 1) ^ 1);
    if ((threadIdx.x & 127) == 0) store_shared_word(base + L::dq_to + 4 * group, -1);
    __syncwarp();
    this->free(L::dq_full + 8 * group);
  }

  /// S^T of the query tile of the stage at hand.
  __device__ __forceinline__ void start_scores(float (&acc)[m / 8][4]) {
    mbarrier_wait(base + L::q_full + 8 * ring.at(), ring.parity());
    wgmma_fence();
    multiply_rows90<C, C::dqk>(acc, base + group * 8192, base + L::q_at + L::q_bytes * ring.at());
  }

  /// The query tiles of a task. What a warpgroup computes itself goes on beside products that ask
  /// little of shared memory: dS beside dV, P of the next tile, halved, beside dK and dQ. The
  /// warpgroups meet only where dQ takes the dS of both, and may be half a tile apart.
  __device__ __forceinline__ void tiles_ahead(unsigned slot,
                                              float (&dk)[C::dqk / 8][4],
                                              float (&dv)[C::dv / 8][4]) {
    // The rest is made beside dQ, where registers allow it.
    constexpr int first = C::consumer_registers < 240 ? m / 8 : m / 16;
    float acc[m / 8][4];
    start_scores(acc);
    wgmma_wait<0>();
    pin(acc);
    Pairs90<C, Mask, Score> pairs(p, slot, group);
    pairs.go_to(base, ring.at());
    pairs.weights(acc);
#pragma unroll 1
    for (bool last = false; !last; ++step) {
      const int at = ring.at();
      const unsigned q = base + L::q_at + L::q_bytes * at;
      const unsigned dout = base + L::dout_at + L::dout_bytes * at;
      const unsigned ds_at = base + L::ds_at + L::ds_bytes * (step & 1);
      const unsigned ds_full = L::ds_full + 8 * (step & 1);
      float dp[m / 8][4];
      unsigned ds[m / 16][4], left[m / 16][4];
      mbarrier_wait(base + L::dout_full + 8 * at, ring.parity());
      pairs.start_gradients(dp);
      wgmma_fence();
      multiply_rows90<C, C::dv, !C::dropout>(dp, base + L::v_at + group * 8192, dout);
      pairs.drop();
      pairs.fragments(left, acc);
      wgmma_fence();
      add_rows90<C, C::dv>(dv, left, dout);
      wgmma_wait<1>();
      pin(dp);
      pairs.template gradients<true>(acc, dp);
      to_fragments<T, m>(ds, dp);
      store_ds90<C>(ds, ds_at, group * 64);
      __syncwarp();
      this->free(ds_full);
      last = this->is_last();
      const int sums = this->sums(), turn = this->turn();
      // ptxas makes products wait for each other that are under way where branches meet.
      wgmma_wait<0>();
      pin(dv);
      this->free(L::dout_empty + 8 * at);
      ring.next();
      if (last) {
        wgmma_fence();
        add_rows90<C, C::dqk>(dk, ds, q);
      } else {
        start_scores(acc);
        add_rows90<C, C::dqk>(dk, ds, q);
        wgmma_wait<1>();
        pin(acc);
        pairs.go_to(base, ring.at());
        pairs.template exponentials<0, first>(acc);
        pin(acc);
      }
      mbarrier_wait(base + ds_full, step >> 1 & 1);
      float dq[8][4], rest[4][4];
      wgmma_fence();
      queries(dq, ds_at, base + group * L::key_slab);
      pairs.template exponentials<first, m / 8 - first>(acc);  // after the last: no use, no harm
      wgmma_wait<1>();
      pin(dk);
      this->free(L::q_empty + 8 * at);
      wgmma_wait<0>();
      pin(dq);
      leave_dq(dq, rest, sums, turn);
      if (!last) pairs.mask(acc);
    }
  }

  /// One query tile. Was it the last?
  __device__ __forceinline__ bool tile(unsigned slot,
                                       float (&dk)[C::dqk / 8][4],
                                       float (&dv)[C::dv / 8][4],
                                       typename Score::Captures& captured) {
    if constexpr (m == 128) opaque(base);
    const int at = ring.at();
    mbarrier_wait(base + L::q_full + 8 * at, ring.parity());
    const unsigned q = L::q_at + L::q_bytes * at, dout = L::dout_at + L::dout_bytes * at;
    float acc[m / 8][4], dp[m / 8 / parts][4];
    Pairs90<C, Mask, Score> pairs(p, slot, group);
    constexpr bool started = Score::identity && !L::broad;
    if constexpr (started) {
      pairs.go_to(base, at);
      pairs.start_gradients(dp);
      pin(dp);
      mbarrier_wait(base + L::dout_full + 8 * at, ring.parity());
    }
    wgmma_fence();
    multiply_rows90<C, C::dqk>(acc, base + group * 8192, base + q);
    if constexpr (!started) {
      mbarrier_wait(base + L::dout_full + 8 * at, ring.parity());
      wgmma_fence();
    }
    multiply_rows90<C, C::dv, started && !C::dropout>(
        dp, base + L::v_at + group * 8192, base + dout);

    if constexpr (!started) pairs.go_to(base, at);
    unsigned ds[m / 16][4];
    if constexpr (Score::identity) {
      wgmma_wait<1>();
      pin(acc);
      pairs.weights(acc);
    }
    pairs.drop();
    if constexpr (C::capture == Capture::largest) {
      wgmma_wait<0>();
      pin(acc);
      pin(dp);
      pairs.both(acc, dp, captured);
      return this->leave_tile();
    }
    if constexpr (L::broad) {  // dP in two parts; each is dS before the next needs registers
      constexpr int n = 2;
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        unsigned left[n][4], right[n][4];
        if (part == 0)
          wgmma_wait<0>();
        else
          wgmma_wait<1>();
        pin(dp);
        pairs.gradients(acc, dp, part * 2 * n);
        to_fragments<T, 16 * n>(right, dp);
#pragma unroll
        for (int i = 0; i < n; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[part * n + i][e] = right[i][e];
        pairs.fragments(left, acc, part * 2 * n);
        wgmma_fence();
        if (part == 0)
          multiply_rows90<C, C::dv>(dp, base + L::v_at + group * 8192, base + dout + n * 2048);
        add_rows90<C, C::dv>(dv, left, base + dout + part * n * 2048);
      }
    } else {
      unsigned left[m / 16][4];
      wgmma_wait<0>();
      pin(acc);
      pin(dp);
      if constexpr (Score::identity)
        pairs.template gradients<true>(acc, dp);
      else
        pairs.both(acc, dp, captured);
      to_fragments<T, m>(ds, dp);
      pairs.fragments(left, acc);
      wgmma_fence();
      add_rows90<C, C::dv>(dv, left, base + dout);
    }
    const unsigned ds_at = L::ds_at + L::ds_bytes * (step % L::ds_tiles);
    if constexpr (L::ds_tiles == 1) mbarrier_wait(base + L::ds_empty, (step & 1) ^ 1);
    store_ds90<C>(ds, base + ds_at, group * 64);
    if constexpr (L::broad) {
      wgmma_wait<0>();
      pin(dv);
    }
    named_barrier_sync(1, 256);
    // This warpgroup's share of dQ: 64 rows, or 64 columns and half of those above 128.
    float dq[8][4], rest[4][4];
    wgmma_fence();
    queries(dq,
            base + ds_at + (m == 128 ? group * L::key_slab : 0),
            base + (m == 128 ? 0 : group * L::key_slab));
    if constexpr (L::broad) queries(rest, base + ds_at, base + 2 * L::key_slab + group * 64);
    if constexpr (L::broad)  // dS^T from shared memory: its registers hold dQ
      add_keys(dk, base + ds_at + group * 8192, base + q);
    else
      add_rows90<C, C::dqk>(dk, ds, base + q);
    wgmma_wait<1>();
    if constexpr (!L::broad) pin(dv);
    pin(dq);
    if constexpr (L::broad) {
      pin(rest);
      this->free(L::ds_empty);
    }
    this->free(L::dout_empty + 8 * at);
    leave_dq(dq, rest, this->sums(), this->turn());
    ++step;
    const bool last = this->is_last();
    wgmma_wait<0>();
    pin(dk);
    this->free(L::q_empty + 8 * at);
    ring.next();
    return last;
  }
};

template <class C, class Mask, class Score>
__device__ __forceinline__ void backward_sm90(const Params& p,
                                              const BackwardMaps& maps,
                                              const Schedule& schedule) {
  backward_roles90<C>(p, maps, schedule, [&](unsigned base, int group) {
    BackwardConsumer90<C, Mask, Score> consumer{{p, base}, group};
    consumer.run();
  });
}

}  // namespace undivided::cuda
