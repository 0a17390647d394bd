// SPDX-License-Identifier: Apache-2.0
// dQ, dK and dV on Hopper where the sums of one gradient fill a warpgroup, as above head dim 128,
// or where masks and scores need its registers: wide() in tuning.cpp says when.
//
// A CTA takes 64 keys of a KV head at a time. Its warpgroups share every pair and halve the
// columns:
//   warpgroup 0: S^T = K Q^T; P = e^(s - LSE), passed on; dV += dropped(P)^T dO; dQ, left columns
//   warpgroup 1: dP^T = V dO^T; dS = P * (dP - delta) * ds/dscore, passed back; dK += dS^T Q; dQ,
//                right columns
// Warpgroup 0 runs a tile ahead: it takes dS of the tile before. Both hold the same pairs of S^T
// and dP^T, so P passes thread to thread; for gradients of what a score captures S passes instead,
// and warpgroup 1 makes P again. dQ is added to its sums in global memory from registers.
#pragma once

#include "kernels/backward_consume_sm90.cuh"
#include "kernels/backward_pairs_sm90.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
struct WideConsumer90 : Consumer90Base<C> {
  using Base = Consumer90Base<C>;
  using Base::base, Base::p, Base::ring, Base::free;
  using L = SharedBackward90<C>;
  using T = typename C::Element;
  static constexpr int m = C::m;
  static constexpr bool captures = C::capture != Capture::none;
  unsigned step = 0;
  unsigned adds = 0;  // of dQ, so far

  /// Ordered: asks for the turn of the next addition. Once the one before it has been made.
  template <int group>
  __device__ __forceinline__ void ask_turn(int tile, int turn) {
    if (!C::ordered || L::dq_columns(group) == 0 || (threadIdx.x & 127) != 0) return;
    store_shared_word(base + L::dq_to + 4 * group, tile);
    store_shared_word(base + L::dq_turn + 4 * group, turn);
    mbarrier_arrive(base + L::turn_asked + 8 * group);
  }

  /// This warpgroup's columns of dQ = dS K of step `of`, added to the sums at `tile`.
  template <int group>
  __device__ __forceinline__ void start_dq(float (&dq)[L::dq_columns(group) / 8][4], unsigned of) {
    constexpr int width = L::dq_columns(group);
    mbarrier_wait(base + L::ds_full + 8 * (of & 1), of >> 1 & 1);
    const auto x = wgmma_descriptor(base + L::ds_at + L::ds_bytes * (of & 1), 16);
    const auto y =
        wgmma_descriptor(base + group * L::dq_columns(0) / 64 * L::key_slab, L::key_slab);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::n / 16; ++i) {
      if (i == 0)
        Wgmma<T, width>::set_columns(dq, x, y);
      else
        Wgmma<T, width>::add_columns(dq, x + i * 2048 / 16, y + i * 2048 / 16);
    }
    wgmma_commit();
  }
  template <int group>
  __device__ __forceinline__ void finish_dq(float (&dq)[L::dq_columns(group) / 8][4],
                                            unsigned of,
                                            int tile) {
    wgmma_wait<0>();
    pin(dq);
    free(L::ds_empty + 8 * (of & 1));
    if constexpr (C::ordered) mbarrier_wait(base + L::turn_ready + 8 * group, adds & 1);
    float* to = p.dq_sum + static_cast<long long>(tile) * L::dq_floats + group * L::dq_second +
                (threadIdx.x & 127) * 4;
#pragma unroll
    for (int i = 0; i < L::dq_columns(group) / 8; ++i) add_quad(to + i * 512, dq[i]);
    if constexpr (C::ordered) {
      __syncwarp();
      free(L::turn_added + 8 * group);
      ++adds;
    }
  }

  __device__ void weigh() {
    this->each_task([&](unsigned slot, bool any) {
      float dv[C::dv / 8][4];
      clear(dv);
      if (any) {
        weigh_tiles(slot, dv);
        this->done_with_keys();
      }
      if constexpr (C::capture != Capture::largest)
        store_keys90<C>(p, KeyTask90::read<C>(slot), p.dv, 0, dv, C::dropout ? p.keep_scale : 1.0f);
    });
    ask_turn<0>(-1, 0);
  }
  __device__ __forceinline__ void weigh_tiles(unsigned slot, float (&dv)[C::dv / 8][4]) {
    int before = -1, turn = 0;  // the dQ tile of the step before, and its place in the order
#pragma unroll 1
    for (bool last = false; !last; ring.next(), ++step) {
      const int at = ring.at();
      mbarrier_wait(base + L::q_full + 8 * at, ring.parity());
      const int sums = load_shared_word(this->info() + L::info_sums);
      const int my_turn = C::ordered ? load_shared_word(this->info() + L::info_turn) : 0;
      last = this->is_last();
      if (before >= 0) ask_turn<0>(before, turn);
      float acc[m / 8][4];
      unsigned left[m / 16][4];
      wgmma_fence();
      multiply_rows90<C, C::dqk>(acc, base, base + L::q_at + L::q_bytes * at);
      wgmma_wait<0>();
      pin(acc);
      if constexpr (captures) pass(acc);
      if constexpr (C::capture == Capture::largest) {
        __syncwarp();
        free(L::dout_empty + 8 * at);
        free(L::q_empty + 8 * at);
        continue;
      }
      Pairs90<C, Mask, Score> pair(p, slot, 0);
      pair.go_to(base, at);
      if constexpr (Score::identity) {
        pair.weights(acc);
        pass(acc);
      } else {
        float slope[m / 8][4];
        pair.weights_and_slopes(acc, slope);
        if constexpr (!captures) pass(slope);
      }
      free(L::q_empty + 8 * at);
      pair.drop();
      pair.fragments(left, acc);
      mbarrier_wait(base + L::dout_full + 8 * at, ring.parity());
      wgmma_fence();
      add_rows90<C, C::dv>(dv, left, base + L::dout_at + L::dout_bytes * at);
      if (before >= 0) {
        float dq[L::dq_columns(0) / 8][4];
        start_dq<0>(dq, step - 1);
        wgmma_wait<1>();
        pin(dv);
        free(L::dout_empty + 8 * at);
        finish_dq<0>(dq, step - 1, before);
      } else {
        wgmma_wait<0>();
        pin(dv);
        free(L::dout_empty + 8 * at);
      }
      before = sums;
      turn = my_turn;
    }
    if constexpr (C::capture == Capture::largest) return;
    ask_turn<0>(before, turn);
    float dq[L::dq_columns(0) / 8][4];
    start_dq<0>(dq, step - 1);
    finish_dq<0>(dq, step - 1, before);
  }

  /// P, or P * ds/dscore, or S, to the same threads of warpgroup 1.
  __device__ __forceinline__ void pass(const float (&weight)[m / 8][4]) {
    mbarrier_wait(base + L::p_empty, (step & 1) ^ 1);
#pragma unroll
    for (int i = 0; i < m / 8; ++i)
      store_shared(base + L::p_at + (i * 128 + (threadIdx.x & 127)) * 16, weight[i]);
    __syncwarp();
    free(L::p_full);
  }

  __device__ void differentiate() {
    this->each_task([&](unsigned slot, bool any) {
      float dk[C::dqk / 8][4];
      typename Score::Captures captured;
      clear(dk);
      if (any) {
        differentiate_tiles(slot, dk, captured);
        this->done_with_keys();
      }
      if constexpr (captures) captured.template finish<C::capture>(p);
      if constexpr (C::capture != Capture::largest)
        store_keys90<C>(p, KeyTask90::read<C>(slot), p.dk, 0, dk, p.scale);
    });
    ask_turn<1>(-1, 0);
  }
  __device__ __forceinline__ void differentiate_tiles(unsigned slot,
                                                      float (&dk)[C::dqk / 8][4],
                                                      typename Score::Captures& captured) {
#pragma unroll 1
    for (bool last = false; !last; ring.next(), ++step) {
      const int at = ring.at();
      mbarrier_wait(base + L::q_full + 8 * at, ring.parity());
      const int sums = load_shared_word(this->info() + L::info_sums);
      if constexpr (C::ordered && C::capture != Capture::largest)
        ask_turn<1>(sums, load_shared_word(this->info() + L::info_turn));
      last = this->is_last();
      float dp[m / 8][4];
      unsigned ds[m / 16][4];
      mbarrier_wait(base + L::dout_full + 8 * at, ring.parity());
      wgmma_fence();
      multiply_rows90<C, C::dv>(dp, base + L::v_at, base + L::dout_at + L::dout_bytes * at);
      wgmma_wait<0>();
      pin(dp);
      free(L::dout_empty + 8 * at);
      Pairs90<C, Mask, Score> pair(p, slot, 0);
      pair.go_to(base, at);
      pair.drop();
      float weight[m / 8][4];
      mbarrier_wait(base + L::p_full, step & 1);
#pragma unroll
      for (int i = 0; i < m / 8; ++i)
        load_shared(weight[i], base + L::p_at + (i * 128 + (threadIdx.x & 127)) * 16);
      __syncwarp();
      free(L::p_empty);
      if constexpr (captures)
        pair.both(weight, dp, captured);
      else
        pair.gradients(weight, dp);
      if constexpr (C::capture == Capture::largest) {
        __syncwarp();
        free(L::q_empty + 8 * at);
        continue;
      }
      to_fragments<T, m>(ds, dp);
      mbarrier_wait(base + L::ds_empty + 8 * (step & 1), (step >> 1 & 1) ^ 1);
      store_ds90<C>(ds, base + L::ds_at + L::ds_bytes * (step & 1), 0);
      __syncwarp();
      free(L::ds_full + 8 * (step & 1));
      wgmma_fence();
      add_rows90<C, C::dqk>(dk, ds, base + L::q_at + L::q_bytes * at);
      if constexpr (L::dq_columns(1) > 0) {
        float dq[L::dq_columns(1) / 8][4];
        start_dq<1>(dq, step);
        wgmma_wait<1>();
        pin(dk);
        free(L::q_empty + 8 * at);
        finish_dq<1>(dq, step, sums);
      } else {
        wgmma_wait<0>();
        pin(dk);
        free(L::q_empty + 8 * at);
        free(L::ds_empty + 8 * (step & 1));
      }
    }
  }
};

template <class C, class Mask, class Score>
__device__ __forceinline__ void backward_wide_sm90(const Params& p,
                                                   const BackwardMaps& maps,
                                                   const Schedule& schedule) {
  backward_roles90<C>(p, maps, schedule, [&](unsigned base, int group) {
    WideConsumer90<C, Mask, Score> consumer{{p, base}};
    if (group == 0)
      consumer.weigh();
    else
      consumer.differentiate();
  });
}

}  // namespace undivided::cuda
