// SPDX-License-Identifier: Apache-2.0
// O = softmax(mask(score(scale Q K^T))) V on Hopper: TMA, wgmma and warp roles.
//
// One CTA holds an SM. Its last warpgroup loads: one warp, few registers. Each other warpgroup owns
// 64 query rows and the same key tiles:
//   S_0 = Q K_0^T; P_0 = softmax(S_0)
//   for j = 1...: start S_j = Q K_j^T; start O += P_(j-1) V_(j-1); wait for S_j; softmax(S_j) while
//   the second product runs; wait for O; P_j = S_j rounded; O = O * 2^(m - m')
// (Shah et al. 2024, FlashAttention-3, algorithm 2), for each stretch of tiles that the warpgroup
// needs. P stays in registers. A `bold` kernel finds row maxima in the first tile only; see
// Softmax90::bold_step. Rows whose weights outgrow float32
// are left alone and noted in the slot of the task, and the loader sends the tile again, to be done
// with care. Q has `q_stages` buffers, K and V `stages` each. CTAs are persistent: tile blockIdx.x,
// then the next of a counter. V rows past the keys of a sequence are zeroed in shared memory, since
// 0 times what a neighbour left there may be NaN. With two buffers of Q, each warp puts its rows of
// O where its rows of Q were, and the copy engine stores them while the next tile begins; what it
// cannot clip (tails of packed rows, say) is stored from registers. Paged keys: a tile comes in
// boxes that divide a page, one copy a lane. Packed: the heads of a group are rows of one tile,
// which the copy engine interleaves. Split: see combine.cuh.
#pragma once

#include "kernels/forward_load_sm90.cuh"
#include "kernels/output_sm90.cuh"

namespace undivided::cuda {

template <class C, class Mask, class Score>
struct Consumer90 {
  using L = Shared90<C>;
  using T = typename C::Element;
  static constexpr int n = C::n, width = C::dv;
  /// Does the copy engine store O, from the buffer of Q?
  static constexpr bool staged = C::q_stages > 1 && sizeof(typename C::Out) == 2 && !C::packed &&
                                 !C::split && width % 16 == 0 && L::v_slabs <= L::q_slabs;
  const Params& p;
  const TensorMaps& maps;
  unsigned base;
  int group;
  Ring<C::q_stages> q;
  Ring<C::stages> k, v;
  unsigned owed = 0;  // staged: the barrier of the buffer of Q that O is being stored from

  __device__ __forceinline__ void free(int barrier) {
    if ((threadIdx.x & 31) == 0) mbarrier_arrive(base + barrier);
  }

  /// S = Q K^T.
  __device__ __forceinline__ void scores(float (&acc)[n / 8][4]) {
    const auto a = wgmma_descriptor(base + L::q_bytes * q.at() + group * 8192, 16);
    const auto b = wgmma_descriptor(base + L::k_at + L::k_bytes * k.at(), 16);
    constexpr int steps = (C::dqk + 15) / 16;
#pragma unroll
    for (int i = 0; i < steps; ++i)
      Wgmma<T, n>::shared_shared(acc,
                                 a + (i / 4 * L::q_slab + i % 4 * 32) / 16,
                                 b + (i / 4 * L::k_slab + i % 4 * 32) / 16,
                                 i > 0);
    wgmma_commit();
  }
  /// O += P V.
  __device__ __forceinline__ void values(float (&out)[width / 8][4],
                                         const unsigned (&weights)[n / 16][4]) {
    const auto b = wgmma_descriptor(base + L::v_at + L::v_bytes * v.at(), L::k_slab);
#pragma unroll
    for (int i = 0; i < n / 16; ++i)
      Wgmma<T, width>::register_shared(out, weights[i], b + i * 2048 / 16);
    wgmma_commit();
  }

  __device__ __forceinline__ void my_turn() {
    if constexpr (C::pingpong) named_barrier_sync(1 + group, 256);
  }
  __device__ __forceinline__ void your_turn() {
    if constexpr (C::pingpong) named_barrier_arrive(1 + (group + 1) % C::warpgroups, 256);
  }

  /// The rows of the query tile that the loader wrote at `slot`.
  __device__ __forceinline__ Rows90 rows_of(const Task90& task) {
    Rows90 r;
    r.work = task.work;
    const int tokens = tile_tokens<C>(p), first = r.work.q_tile * tokens;
    const int thread = threadIdx.x & 127, mine = group * 64 + thread / 32 * 16 + (thread & 31) / 4;
    if constexpr (C::packed) {
      r.first = first + group * 64 / p.group;
      r.last = first + minimum(group * 64 + 63, tokens * p.group - 1) / p.group;
    } else {
      r.first = first + group * 64;
      r.last = r.first + 63;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int x = mine + 8 * half;
      if constexpr (C::packed) {
        r.tokens[half] = x < tokens * p.group ? first + x / p.group : 1 << 30;
        r.heads[half] = r.work.head * p.group + x % p.group;
      } else {
        r.tokens[half] = first + x;
        r.heads[half] = r.work.head;
      }
    }
    r.limit<C>(task, first);
    return r;
  }

  __device__ __forceinline__ void tile(unsigned slot) {
    const Task90 task = Task90::read(slot);
    const Rows90 r = rows_of(task);
    const Sequence& s = task.s;
    const float unit = Score::unit(p, Scale(p).value) * log2_e;

    const typename Score::Fixed fixed[2] = {
        {p, r.work.b, r.heads[0], s.q_len, s.k_len},
        {p, r.work.b, C::packed ? r.heads[1] : r.heads[0], s.q_len, s.k_len}};

    float out[width / 8][4];
    Softmax90 soft;
    clear(out);
    soft.start();
    // Maxima are looked for until every row has a reference, or in all tiles.
    const bool careful = !C::bold || task.again || p.max_logit;
    bool bold = false;
    const bool any = task.first < task.end;
    if (any) mbarrier_wait(base + L::q_full + 8 * q.at(), q.parity());
    float acc[n / 8][4];
    unsigned weights[n / 16][4];
    int classes[L::blocks ? L::blocks : 1];
    bool moved, shifts;
    int tile = task.end - 1, j0;
    // Is there a further tile, and does this warpgroup need it? Taking turns needs equal counts.
    bool more = any,
         needed = C::pingpong ||
                  (KeyTiles<C>::planned ? task.low >> group & 1 : tile >= r.begin && tile < r.end);
    const auto look_up = [&] {
      if constexpr (KeyTiles<C>::planned) {
        const unsigned info = base + L::info + L::info_bytes * k.at();
        const int further = load_shared_word(info + 4);
        more = further >= 0;
        needed = C::pingpong || (further >> group & 1);
        j0 = load_shared_word(info) * n;
#pragma unroll
        for (int i = 0; i < L::blocks; ++i)
          classes[i] = load_shared_word(info + 8 + 4 * (group * L::blocks + i));
      } else {
        j0 = tile-- * n;
        more = tile >= task.first;
        needed = C::pingpong || (tile >= r.begin && tile < r.end);
      }
    };
    const auto weigh = [&] {
      score_tile90<C, Mask, Score>(p, s, r, acc, j0, classes, fixed, Score::linear && bold);
      if (C::bold && bold) {
        shifts = soft.bold_step(acc, unit, Line<Score>(p, s, r, j0, fixed, unit));
        moved = shifts;
      } else {
        shifts = false;
        moved = soft.template step<(C::slack > 0)>(acc, unit, C::slack);
        bold = !careful && soft.ready();
      }
      if constexpr (C::dropout) drop(s, r, acc, j0);
    };
    const auto follow = [&] {  // the references of the rows
      if (moved) {
        if (shifts) soft.shift(acc);
        rescale_rows(out, soft.rescale);
      }
    };
    const auto k_done = [&] {
      free(L::k_empty + 8 * k.at());
      k.next();
      if (!staged && !more) free(L::q_empty + 8 * q.at());
    };
    const auto v_done = [&] {
      free(L::v_empty + 8 * v.at());
      v.next();
    };

#pragma unroll 1
    while (more) {
      mbarrier_wait(base + L::k_full + 8 * k.at(), k.parity());
      if (!needed) {  // only others do
        look_up();
        k_done();
        mbarrier_wait(base + L::v_full + 8 * v.at(), v.parity());
        v_done();
        continue;
      }
      my_turn();
      wgmma_fence();
      scores(acc);
      your_turn();
      look_up();
      settle();
      wgmma_wait<0>();
      pin(acc);
      k_done();
      weigh();
      if constexpr (KeyTiles<C>::planned && !C::pingpong) follow();  // else O is zero
      to_fragments<T, n>(weights, acc);

#pragma unroll 1
      while (more && needed) {
        mbarrier_wait(base + L::k_full + 8 * k.at(), k.parity());
        my_turn();
        pin(acc);
        wgmma_fence();
        scores(acc);
        mbarrier_wait(base + L::v_full + 8 * v.at(), v.parity());
        pin(out);
        wgmma_fence();
        values(out, weights);
        your_turn();
        look_up();
        wgmma_wait<1>();
        pin(acc);
        k_done();
        weigh();
        wgmma_wait<0>();
        pin(out);
        v_done();
        follow();
        to_fragments<T, n>(weights, acc);
      }
      mbarrier_wait(base + L::v_full + 8 * v.at(), v.parity());
      pin(out);
      wgmma_fence();
      values(out, weights);
      wgmma_wait<0>();
      pin(out);
      v_done();
      if constexpr (C::pingpong) break;
    }
    // Read again: kept through the loop it would cost registers.
    finish(slot, out, soft);
  }

  /// A buffer of Q that O has left is free. PTX of its wait: cp.async.bulk.wait_group.read
  __device__ __forceinline__ void settle() {
    if constexpr (staged) {
      if (owed && (threadIdx.x & 31) == 0) {
        bulk_wait_read<0>();
        mbarrier_arrive(owed);
      }
      owed = 0;
    }
  }

  /// Must the rows of this warp be left alone? They are to be done again, or were right before.
  /// The vote tells the compiler that all lanes agree: else it gives up uniform registers.
  __device__ __forceinline__ bool leaves(unsigned slot, int again, bool lost) {
    if constexpr (!C::bold) return false;
    const int warp = 1 << threadIdx.x / 32;
    if (!again && lost && (threadIdx.x & 31) == 0) or_shared_word(slot + Task90::verdict, warp);
    return __any_sync(0xffffffffu, again ? !(again & warp) : lost);
  }

  __device__ __forceinline__ void finish(unsigned slot,
                                         float (&out)[width / 8][4],
                                         const Softmax90& soft) {
    const Task90 task = Task90::read(slot);
    const Rows90 r = rows_of(task);
    const bool any = task.first < task.end;
    float scale[2];
    settle();
    if (!leaves(slot, task.again, soft.lost)) {
      finish_rows90<C>(p, task.s, r, out, soft, scale);
      const int warp = (threadIdx.x & 127) / 32 * 16, first = r.first + warp;
      if (staged && any && (C::rows == RowKind::dense || first + 16 <= task.s.q_len))
        stage(task, out, scale, warp, first);
      else
        store_rows90<C>(p, task.s, r, out, scale);
    }
    if (staged && any) owed = base + L::q_empty + 8 * q.at();
    if (any) q.next();
  }

  /// O to the buffer of Q, and from there.
  __device__ __forceinline__ void stage(const Task90& task,
                                        const float (&out)[width / 8][4],
                                        const float (&scale)[2],
                                        int warp,
                                        int first) {
    if constexpr (staged) {
      const unsigned buffer = base + L::q_bytes * q.at();
      stage_rows90<T>(buffer, L::q_slab, group * 64 + warp, out, scale);
      if ((threadIdx.x & 31) == 0) {
        const int row = static_cast<int>(task.s.q_first) + first;
#pragma unroll
        for (int i = 0; i < L::v_slabs; ++i)
          tma_store(maps.o,
                    buffer + i * L::q_slab + (group * 64 + warp) * 128,
                    i * 64,
                    row,
                    task.work.head,
                    C::rows == RowKind::ragged ? 0 : task.work.b);
        bulk_commit();
      }
    }
  }

  /// Zeros the weights that dropout drops; the rest are scaled at the end.
  __device__ __forceinline__ void drop(const Sequence& s,
                                       const Rows90& r,
                                       float (&acc)[n / 8][4],
                                       int j0) {
    const Dropout dropout(p);
    const int first = s.k_origin + j0 + (threadIdx.x & 3) * 2;
#pragma unroll
    for (int i = 0; i < n / 8; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bool x, y;
        dropout.keep_pair(
            r.work.b, r.heads[half], s.q_origin + r.tokens[half], first + i * 8, x, y);
        if (!x) acc[i][2 * half] = 0.0f;
        if (!y) acc[i][2 * half + 1] = 0.0f;
      }
  }
};

template <class C, class Mask, class Score>
__device__ __forceinline__ void forward_sm90(const Params& p,
                                             const TensorMaps& maps,
                                             const Schedule& schedule) {
  using L = Shared90<C>;
  static_assert(L::bytes + 1024 <= C::shared_memory, "what the launch asks for");
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned base = (shared_address(shared) + 1023) & ~1023u;
  const int group = warpgroup_index();

  if (threadIdx.x == 0) {
    constexpr int warps = C::warpgroups * 4;
    for (int i = 0; i < C::q_stages; ++i) {
      mbarrier_init(base + L::q_full + 8 * i, 1);
      mbarrier_init(base + L::q_empty + 8 * i, warps);
    }
    for (int i = 0; i < C::stages; ++i) {
      mbarrier_init(base + L::k_full + 8 * i, 1);
      mbarrier_init(base + L::k_empty + 8 * i, warps);
      mbarrier_init(base + L::v_full + 8 * i, 1);
      mbarrier_init(base + L::v_empty + 8 * i, warps);
    }
    for (int i = 0; i < 2; ++i) {
      store_shared_word(base + L::work + Task90::bytes * i + Task90::verdict, 0);
      mbarrier_init(base + L::work_full + 8 * i, 1);
      mbarrier_init(base + L::work_empty + 8 * i, warps + L::v_apart);
    }
    mbarrier_init(base + L::tail, 1);
    mbarrier_init_fence();
  }
  __syncthreads();

  if (group == C::warpgroups) {
    if constexpr (C::warpgroups > 1) lower_registers<C::producer_registers>();
    const int warp = threadIdx.x / 32 - C::warpgroups * 4;
    const bool lead = (threadIdx.x & 31) == 0;
    if constexpr (L::v_apart)
      if (warp == 1)
        return Producer90<C>{p, maps, schedule, base, lead, PagedBoxes<C>(p, schedule)}.values();
    if (warp != 0) return;  // said of one warp, its scalars take uniform registers
    Producer90<C> producer{p, maps, schedule, base, lead, PagedBoxes<C>(p, schedule)};
    if (producer.lead) {
      tma_prefetch(maps.q);
      tma_prefetch(maps.k);
      tma_prefetch(maps.v);
    }
    Ring<2> ring;
    int held[2] = {}, quiet = 0;  // tiles that the slots held; slots in a row with nothing to do
    for (int at = blockIdx.x;;) {
      mbarrier_wait(base + L::work_empty + 8 * ring.at(), ring.parity() ^ 1);
      const unsigned slot = base + L::work + Task90::bytes * ring.at();
      const unsigned full = base + L::work_full + 8 * ring.at();
      // Warps that lost rows of the tile that was here: all do it again with care.
      const int again =
          C::bold ? __shfl_sync(0xffffffffu, load_shared_word(slot + Task90::verdict), 0) : 0;
      const int now = again ? (ring.at() ? held[1] : held[0]) : at;
      (ring.at() ? held[1] : held[0]) = now;
      ring.next();
      if (now >= schedule.tiles) {
        const bool over = !C::bold || ++quiet == 2;  // the other slot may still come back
        if (producer.lead) {
          store_shared_word(slot, over ? Task90::over : Task90::nothing);
          mbarrier_arrive(full);
        }
        if (over) break;
        continue;
      }
      quiet = 0;
      const Work work = work_at<C>(p, schedule, now);
      const Sequence s = sequence<C>(p, work.b);
      KeyTiles<C> tiles(p, s, work);
      int next = 0;
      if (producer.lead) {
        Task90::of<C>(p, s, work, tiles, again).write(slot);
        mbarrier_arrive(full);
      }
      if (tiles.valid()) producer.tile(work, s, tiles);
      // Drawn with its loads under way and no sooner: who holds a long tile keeps it from the idle.
      if (producer.lead)
        next = again              ? at
               : schedule.counter ? atomicAdd(schedule.counter, 1) + gridDim.x
                                  : schedule.tiles;
      at = __shfl_sync(0xffffffffu, next, 0);
    }
  } else {
    if constexpr (C::warpgroups > 1) raise_registers<C::consumer_registers>();
    Consumer90<C, Mask, Score> consumer{p, maps, base, group};
    if constexpr (C::pingpong) {
      if (group == C::warpgroups - 1) consumer.your_turn();
    }
    for (Ring<2> ring;; ring.next()) {
      mbarrier_wait(base + L::work_full + 8 * ring.at(), ring.parity());
      const unsigned slot = base + L::work + Task90::bytes * ring.at();
      const int first = load_shared_word(slot);
      if (first == Task90::over) break;
      if (first != Task90::nothing) consumer.tile(slot);
      __syncwarp();
      consumer.free(L::work_empty + 8 * ring.at());
    }
    consumer.settle();  // shared memory stays until it is read
  }
}

}  // namespace undivided::cuda
