// SPDX-License-Identifier: Apache-2.0
// dQ, dK and dV on Hopper where the sums of one gradient fill a warpgroup, as above head dim 128,
// or where masks and scores need its registers: wide() in tuning.cpp says when.
//
// A CTA takes 64 keys of a KV head at a time. Its warpgroups share every pair and halve the
// columns:
//   warpgroup 0: S^T = K Q^T; P = e^(s - LSE), passed on; dV += dropped(P)^T dO; dQ, left columns
//   warpgroup 1: dP^T = V dO^T; dS = P * (dP - delta) * ds/dscore, passed back; dK += dS^T Q; dQ,
//                right columns
// dQ is that of the tile before: warpgroup 0 runs ahead. Both hold the same pairs of S^T and dP^T,
// so P passes thread to thread; for gradients of what a score captures S passes instead, and
// warpgroup 1 makes P again. dQ is added to its sums in global memory from registers.
//
// What bounds it are these additions. So above head dim 128 two CTAs of a cluster take 128 keys
// together and send each other dS; each makes half the columns of dQ of all 128 keys. That needs
// half the additions. At 256 memory for it comes from dO, which has one stage.
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
  Ring<L::dout_stages> douts;
  unsigned step = 0;
  unsigned adds = 0;  // of dQ, so far

  /// The stage of dO.
  __device__ __forceinline__ const auto& dout_ring() const {
    if constexpr (!L::paired)
      return ring;
    else
      return douts;
  }
  __device__ __forceinline__ unsigned dout() const {
    return base + L::dout_at + L::dout_bytes * dout_ring().at();
  }
  __device__ __forceinline__ void wait_for_dout() const {
    mbarrier_wait(base + L::dout_full + 8 * dout_ring().at(), dout_ring().parity());
  }
  __device__ __forceinline__ void done_with_dout() {
    free(L::dout_empty + 8 * dout_ring().at());
    douts.next();
  }

  /// Where dQ of a step is added, and ordered: its place in the order.
  struct Sum {
    int tile = -1, turn = 0;
  };
  __device__ __forceinline__ Sum sum_of_stage() const {
    const unsigned info = this->info();
    return {load_shared_word(info + L::info_sums),
            C::ordered ? load_shared_word(info + L::info_turn) : 0};
  }
  /// Ordered: asks for the turn of the next addition. Once the one before it has been made.
  template <int group>
  __device__ __forceinline__ void ask_turn(const Sum& sum) {
    if (!C::ordered || L::dq_width(group) == 0 || (threadIdx.x & 127) != 0) return;
    store_shared_word(base + L::dq_to + 4 * group, sum.tile);
    store_shared_word(base + L::dq_turn + 4 * group, sum.turn);
    mbarrier_arrive(base + L::turn_asked + 8 * group);
  }

  /// This warpgroup's columns of dQ = dS K of step `of`.
  template <int group>
  __device__ __forceinline__ void start_dq(float (&dq)[L::dq_width(group) / 8][4], unsigned of) {
    const unsigned ds = base + L::ds_at + L::ds_bytes * (of & 1);
    mbarrier_wait(base + L::ds_full + 8 * (of & 1), of >> 1 & 1);
    wgmma_fence();
    const int column = L::dq_column(group);
    multiply_columns<false>(dq, ds, base + column / 64 * L::key_slab + column % 64 * 2);
    if constexpr (L::paired) {
      mbarrier_wait(base + L::other_ds_full + 8 * (of & 1), of >> 1 & 1);
      multiply_columns<true>(dq,
                             ds + L::other_ds_at - L::ds_at,
                             base + L::other_k_at + group * L::key_slab + column % 64 * 2);
    }
    wgmma_commit();
  }
  /// acc = dS K of 64 keys; `more`: added to acc.
  template <bool more, int n>
  __device__ __forceinline__ void multiply_columns(float (&acc)[n][4], unsigned ds, unsigned k) {
    using Product = Wgmma<T, 8 * n>;
    const auto x = wgmma_descriptor(ds, 16), y = wgmma_descriptor(k, L::key_slab);
#pragma unroll
    for (int i = 0; i < C::n / 16; ++i) {
      if (i == 0 && !more)
        Product::set_columns(acc, x, y);
      else
        Product::add_columns(acc, x + i * 2048 / 16, y + i * 2048 / 16);
    }
  }
  /// Adds it to the sums, when the product is done.
  template <int group>
  __device__ __forceinline__ void add_dq(float (&dq)[L::dq_width(group) / 8][4],
                                         unsigned of,
                                         const Sum& sum) {
    pin(dq);
    free_both(L::ds_empty + 8 * (of & 1));
    if constexpr (C::ordered) mbarrier_wait(base + L::turn_ready + 8 * group, adds & 1);
    float* to = p.dq_sum + static_cast<long long>(sum.tile) * L::dq_floats +
                L::dq_column(group) * 64 + (threadIdx.x & 127) * 4;
#pragma unroll
    for (int i = 0; i < L::dq_width(group) / 8; ++i) add_quad(to + i * 512, dq[i]);
    if constexpr (C::ordered) {
      __syncwarp();
      free(L::turn_added + 8 * group);
      ++adds;
    }
  }
  /// A buffer that both CTAs write or read.
  __device__ __forceinline__ void free_both(unsigned barrier) {
    free(barrier);
    if (L::paired && (threadIdx.x & 31) == 0)
      cluster_arrive(cluster_address(base + barrier, cluster_rank() ^ 1));
  }
  /// A warp's rows of dS, to the other CTA. That its buffer is free it has said on the barrier of
  /// this one's.
  __device__ __forceinline__ void send_ds() {
    if (!L::paired || (threadIdx.x & 31) != 0) return;
    constexpr int bytes = L::ds_bytes / 4;
    const unsigned rows = L::ds_bytes * (step & 1) + (threadIdx.x & 127) / 32 * bytes;
    const unsigned full = base + L::other_ds_full + 8 * (step & 1);
    const int other = cluster_rank() ^ 1;
    mbarrier_expect(full, bytes);
    cluster_copy(cluster_address(base + L::other_ds_at + rows, other),
                 base + L::ds_at + rows,
                 bytes,
                 cluster_address(full, other));
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
    ask_turn<0>({});
  }
  __device__ __forceinline__ void weigh_tiles(unsigned slot, float (&dv)[C::dv / 8][4]) {
    Sum before;
    const auto add_before = [&] {
      float dq[L::dq_width(0) / 8][4];
      start_dq<0>(dq, step - 1);
      wgmma_wait<0>();
      add_dq<0>(dq, step - 1, before);
    };
#pragma unroll 1
    for (bool last = false; !last; ring.next(), ++step) {
      const int at = ring.at();
      mbarrier_wait(base + L::q_full + 8 * at, ring.parity());
      const Sum now = sum_of_stage();
      last = this->is_last();
      if (before.tile >= 0) ask_turn<0>(before);
      float acc[m / 8][4];
      unsigned left[m / 16][4];
      wgmma_fence();
      multiply_rows90<C, C::dqk>(acc, base, base + L::q_at + L::q_bytes * at);
      wgmma_wait<0>();
      pin(acc);
      if constexpr (captures) pass(acc);
      if constexpr (C::capture == Capture::largest) {
        __syncwarp();
        done_with_dout();
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
      wait_for_dout();
      wgmma_fence();
      add_rows90<C, C::dv>(dv, left, dout());
      wgmma_wait<0>();
      pin(dv);
      done_with_dout();
      if (before.tile >= 0) add_before();
      before = now;
    }
    if constexpr (C::capture == Capture::largest) return;
    ask_turn<0>(before);
    add_before();
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
    ask_turn<1>({});
  }
  __device__ __forceinline__ void differentiate_tiles(unsigned slot,
                                                      float (&dk)[C::dqk / 8][4],
                                                      typename Score::Captures& captured) {
    constexpr int width = L::dq_width(1);
    // Is dP begun a tile ahead, beside dQ? Where dQ takes half as many registers.
    constexpr bool ahead = L::paired;
    Sum before;
    float dp[m / 8][4];
    const auto start_dp = [&] {
      wait_for_dout();
      wgmma_fence();
      multiply_rows90<C, C::dv>(dp, base + L::v_at, dout());
    };
    if constexpr (ahead) start_dp();
#pragma unroll 1
    for (bool last = false; !last; ring.next(), ++step) {
      const int at = ring.at();
      mbarrier_wait(base + L::q_full + 8 * at, ring.parity());
      const Sum now = sum_of_stage();
      last = this->is_last();
      if (before.tile >= 0) ask_turn<1>(before);
      if constexpr (!ahead) start_dp();
      wgmma_wait<0>();
      pin(dp);
      done_with_dout();
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
      unsigned ds[m / 16][4];
      to_fragments<T, m>(ds, dp);
      mbarrier_wait(base + L::ds_empty + 8 * (step & 1), (step >> 1 & 1) ^ 1);
      store_ds90<C>(ds, base + L::ds_at + L::ds_bytes * (step & 1), 0);
      __syncwarp();
      free(L::ds_full + 8 * (step & 1));
      send_ds();
      wgmma_fence();
      add_rows90<C, C::dqk>(dk, ds, base + L::q_at + L::q_bytes * at);
      const auto done_with_q = [&] {
        pin(dk);
        free(L::q_empty + 8 * at);
        if (ahead && !last) start_dp();
      };
      if constexpr (width > 0) {
        if (before.tile >= 0) {
          float dq[width / 8][4];
          start_dq<1>(dq, step - 1);
          wgmma_wait<1>();
          done_with_q();
          if (ahead && !last)
            wgmma_wait<1>();
          else
            wgmma_wait<0>();
          add_dq<1>(dq, step - 1, before);
          before = now;
          continue;
        }
      } else {
        free(L::ds_empty + 8 * (step & 1));
      }
      wgmma_wait<0>();
      done_with_q();
      before = now;
    }
    if constexpr (C::capture != Capture::largest && width > 0) {
      ask_turn<1>(before);
      float dq[width / 8][4];
      start_dq<1>(dq, step - 1);
      wgmma_wait<0>();
      add_dq<1>(dq, step - 1, before);
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
