// SPDX-License-Identifier: Apache-2.0
// What the roles of the sm90 backward share: shared memory, the query tiles of a key tile, and the
// arithmetic on pairs. A warpgroup holds S^T: a thread has two keys, 8 apart, of an accumulator and
// queries 2 t and 2 t + 1 of each 8.
#pragma once

#include "kernels/output_sm90.cuh"

namespace undivided::cuda {

struct BackwardMaps {
  TensorMap q, k, v, dout;  // axes: dim, token, head, batch; ragged: one batch
};

template <int n>
struct Constant {
  static constexpr int value = n;
};

/// Offsets in shared memory; K is at 0. Tiles are slabs of 64 columns; see wgmma.cuh.
template <class C>
struct SharedBackward90 {
  static constexpr bool wide = C::n == 64;  // both warpgroups share all keys
  static constexpr int key_blocks = C::n / 64;
  static constexpr int q_slabs = (C::dqk + 63) / 64, v_slabs = (C::dv + 63) / 64;
  /// 128 keys and dqk above 128: registers hold dP of 32 queries at a time.
  static constexpr bool broad = !wide && q_slabs > 2;
  static constexpr int row_slab = C::m * 128, key_slab = C::n * 128;
  static constexpr int row_slabs = C::m / 64;  // of dS: its columns are queries
  static constexpr int q_bytes = q_slabs * row_slab, dout_bytes = v_slabs * row_slab;
  static constexpr int ds_bytes = row_slabs * key_slab, ds_tiles = broad ? 1 : 2;
  static constexpr int p_bytes = wide ? 64 * 64 * 4 : 0;
  // A tile of dQ in the order of its accumulators, a half a warpgroup.
  static constexpr int dq_floats = 64 * (wide ? q_slabs * 64 : broad ? 192 : 128);
  static constexpr int dq_second = wide ? (q_slabs + 1) / 2 * 64 * 64 : dq_floats / 2;
  static constexpr int dq_bytes = wide ? 0 : dq_floats / 2 * 4;
  /// Wide: columns of dQ that a warpgroup makes.
  static __device__ constexpr int dq_columns(int group) {
    return group == 0 ? (q_slabs + 1) / 2 * 64 : q_slabs / 2 * 64;
  }
  static constexpr int v_at = q_slabs * key_slab, q_at = v_at + v_slabs * key_slab;
  static constexpr int dout_at = q_at + C::stages * q_bytes;
  static constexpr int ds_at = dout_at + C::stages * dout_bytes;  // taken in turn
  static constexpr int dq_at = ds_at + ds_tiles * ds_bytes;       // one a warpgroup
  static constexpr int p_at = dq_at + 2 * dq_bytes;               // wide: P of the tile
  // LSE in log2, a float a row, then delta; of a plan then 64 words for each block with bits.
  static constexpr int lse = p_at + p_bytes, delta = lse + C::m * 4;
  static constexpr int stats_bytes = 2 * C::m * 4;
  static constexpr bool near_bits =
      C::mask == MaskKind::plan && !C::inside_program && q_slabs + v_slabs < 8;
  static constexpr int blocks = C::mask == MaskKind::plan ? key_blocks * row_slabs : 0;
  static constexpr int bits = lse + C::stages * stats_bytes;
  static constexpr int keys_full = bits + (near_bits ? C::stages * blocks * 512 : 0);  // barriers
  static constexpr int keys_empty = keys_full + 8, tail = keys_empty + 8;
  static constexpr int q_full = tail + 8, q_empty = q_full + 8 * C::stages;
  static constexpr int dout_full = q_empty + 8 * C::stages;
  static constexpr int dout_empty = dout_full + 8 * C::stages;
  static constexpr int dq_full = dout_empty + 8 * C::stages, dq_empty = dq_full + 16;
  static constexpr int p_full = dq_full, p_empty = p_full + 8;  // wide: instead
  static constexpr int ds_full = dq_empty + 16, ds_empty = ds_full + 16;
  static constexpr int task_slots = 3, task_full = ds_empty + 16;
  static constexpr int task_empty = task_full + 8 * task_slots;
  static constexpr int order_full = task_empty + 8 * task_slots, order_empty = order_full + 8;
  static constexpr int dq_to = order_empty + 8;  // the tile of dQ of each warpgroup, or -1: the end
  static constexpr int dq_turn = dq_to + 8;      // ordered: and its place in the order
  static constexpr int tasks = (dq_turn + 4 + 15) / 16 * 16;  // of KeyTask90
  // Per stage: head; query tile; the tile of its sums; ordered: its place in their order; is it the
  // last of the task; bit g: must warpgroup g look at pairs; of a plan: a class per 64 x 64 block.
  static constexpr int info = tasks + task_slots * 64;
  static constexpr int info_tile = 4, info_sums = 8, info_turn = 12, info_last = 16, info_look = 20;
  static constexpr int info_classes = 24;
  static constexpr int info_bytes = info_classes + 4 * blocks;
  // The next tile, from the scheduler to the producer: what becomes its info; first token of its
  // rows and their batch, as the copy engine counts; how many of them there are; the task in shared
  // memory if it is the first tile of one, else 0. Head -1: there are no more.
  static constexpr int order = info + C::stages * info_bytes, order_token = info_bytes;
  static constexpr int order_batch = order_token + 4, order_clean = order_batch + 4;
  static constexpr int order_task = order_clean + 4, order_bytes = order_task + 4;
  static_assert(order_bytes <= 128, "a word a lane");
  static constexpr int bytes = order + order_bytes;
};

/// The keys of a task as the loader tells the others.
struct KeyTask90 {
  int kv_head, b, j0;  // kv_head -1: there are no more
  int any;             // is there a query for them?
  Sequence s;
  int low, high;  // of a band: key j0 is kept by queries [low, high], the next key one further

  template <class C>
  __device__ static KeyTask90 of(
      const Params& p, const Sequence& s, int kv_head, int b, int j0, bool any) {
    KeyTask90 t{kv_head, b, j0, any, s, 0, 0};
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      t.low = static_cast<int>(clamped<long long>(band.first_query(j0), -C::n, s.q_len));
      t.high = static_cast<int>(clamped<long long>(band.last_query(j0), -1 - C::n, s.q_len));
    }
    return t;
  }
  __device__ void write(unsigned at) const {
    store_shared(at, make_int4(kv_head, b, j0, any));
    store_shared(at + 16, make_int4(s.q_len, s.k_len, s.q_origin, s.k_origin));
    store_shared(at + 32, make_int4(low, high, 0, 0));
    store_shared(at + 48,
                 make_int4(static_cast<int>(s.q_first),
                           static_cast<int>(s.q_first >> 32),
                           static_cast<int>(s.k_first),
                           static_cast<int>(s.k_first >> 32)));
  }
  template <class C>
  __device__ static KeyTask90 read(unsigned at) {
    const int4 a = load_shared_ints(at), b = load_shared_ints(at + 16);
    KeyTask90 t{a.x, a.y, a.z, a.w, {b.x, b.y, 0, 0, b.z, b.w}, 0, 0};
    if constexpr (C::mask == MaskKind::band) {
      const int4 c = load_shared_ints(at + 32);
      t.low = c.x;
      t.high = c.y;
    }
    if constexpr (C::rows == RowKind::ragged || C::kv == KvKind::ragged) {
      const int4 c = load_shared_ints(at + 48);
      t.s.q_first = static_cast<long long>(c.y) << 32 | static_cast<unsigned>(c.x);
      t.s.k_first = static_cast<long long>(c.w) << 32 | static_cast<unsigned>(c.z);
    }
    return t;
  }
};

/// Where a dQ tile has its sums, in tiles. Sequences of packed rows
/// begin new tiles: floor(first / m) + b leaves room for every tail.
template <class C>
__device__ inline int dq_tile(const Params& p, const Sequence& s, int b, int h, int tile) {
  if constexpr (C::rows == RowKind::ragged)
    return h * static_cast<int>(p.total_q / C::m + p.batch + 1) +
           static_cast<int>(s.q_first / C::m) + b + tile;
  else
    return (b * p.heads + h) * p.q_tiles + tile;
}

/// The query tiles that the keys of a CTA visit: ascending; descending when dQ is added in a fixed
/// order, which is that of keys: then CTAs follow each other through the tiles, under a causal mask
/// too, and none waits for one that starts later.
template <class C>
struct QueryTiles {
  static constexpr bool planned = C::mask == MaskKind::plan, down = C::ordered;
  static constexpr int per = C::m / 64;  // of a plan: blocks of a tile
  static constexpr int key_blocks = C::n / 64;

  int tile = down ? -1 : 0, first = 0, end = 0;
  const PlanRef* plan = nullptr;
  BlockCursor<down> keys[key_blocks];

  QueryTiles() = default;
  __device__ QueryTiles(const Params& p, const Sequence& s, int b, int h, int j0) {
    const int j1 = minimum(j0 + C::n, s.k_len) - 1;
    long long low = 0, high = s.q_len;
    if constexpr (C::mask == MaskKind::band) {
      const Band band(p, s);
      low = maximum<long long>(low, band.first_query(j0));
      high = minimum<long long>(high, band.last_query(j1) + 1);
    }
    if constexpr (planned) {
      plan = &p.plan;
      const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
      high = minimum<long long>(high, e.q_len);
#pragma unroll
      for (int g = 0; g < key_blocks; ++g) {
        const int block = j0 / 64 + g;
        keys[g].start(p.plan, e.key_runs + block, block < e.k_blocks && block * 64 < s.k_len);
      }
    }
    if (low >= high) return;
    first = static_cast<int>(low / C::m);
    end = static_cast<int>((high + C::m - 1) / C::m);
    tile = down ? end - 1 : first;
    if constexpr (planned) settle();
  }
  // One bound each: asked for both, NVRTC 13.0 drops the loop after its first turn.
  __device__ bool valid() const { return down ? tile >= first : tile < end; }
  __device__ void next() {
    tile += down ? -1 : 1;
    if constexpr (planned) settle();
  }
  /// Class of one 64 x 64 block of the tile at hand, asked once each, in the order of the walk.
  __device__ int block_class(int g, int i) {
    static_assert(!down || !planned || per == 1);
    return keys[g].template block_class<C>(*plan, tile * per + i);
  }

 private:
  __device__ void settle() {
    int best = down ? -1 : end;
#pragma unroll
    for (int g = 0; g < key_blocks; ++g) {
      keys[g].seek(*plan, tile * per + (down ? per - 1 : 0));
      if constexpr (down)
        best = maximum(best, minimum(tile, keys[g].run.end > 0 ? (keys[g].run.end - 1) / per : -1));
      else
        best = minimum(best, maximum(tile, keys[g].run.begin / per));
    }
    tile = best;
  }
};

/// How many key tiles before that of key j0 visit a query tile. Plans come with tiles of 64 x 64.
template <class C>
__device__ inline int visitors_before(
    const Params& p, const Sequence& s, int b, int h, int tile, int j0) {
  const int mine = j0 / C::n;
  if constexpr (C::mask == MaskKind::band) {
    const long long key = maximum<long long>(0, Band(p, s).first_key(tile * C::m));
    return mine - static_cast<int>(key / C::n);
  }
  if constexpr (C::mask == MaskKind::plan) {
    static_assert(!C::ordered || (C::m == 64 && C::n == 64));
    const PlanEntry& e = p.plan.entries[p.plan.entry_of[b * p.heads + h]];
    int count = 0;
    for (int r = p.plan.run_offsets[e.query_runs + tile];
         r < p.plan.run_offsets[e.query_runs + tile + 1];
         ++r)
      count += maximum(0, minimum(p.plan.runs[r].end, mine) - p.plan.runs[r].begin);
    return count;
  }
  return mine;
}

/// The keys of a warpgroup as one of its threads sees them.
template <class C>
struct Keys90 {
  int mine;             // the upper of the thread's two keys
  int low[2], high[2];  // queries [low, high] of a band keep them; none past the length

  Keys90() = default;
  __device__ Keys90(const KeyTask90& t, int group) {
    const int thread = threadIdx.x & 127;
    mine = t.j0 + group * 64 + thread / 32 * 16 + (thread & 31) / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      low[half] = first_query(t, mine + 8 * half);
      high[half] = last_query(t, mine + 8 * half);
    }
  }
  static __device__ int first_query(const KeyTask90& t, int j) {
    if (j >= t.s.k_len) return 0x7fffffff;
    return C::mask == MaskKind::band ? t.low + j - t.j0 : 0;
  }
  static __device__ int last_query(const KeyTask90& t, int j) {
    if (j >= t.s.k_len) return -1;
    return C::mask == MaskKind::band ? t.high + j - t.j0 : 0x7fffffff;
  }
  /// A bit a warpgroup: does a pair of its keys and queries [i0, i0 + m) ask for a look?
  static __device__ int looks(const KeyTask90& t, int i0) {
    int bits = 0;
#pragma unroll
    for (int g = 0; g < C::n / 64; ++g) {
      const int first = t.j0 + g * 64;
      if (C::mask == MaskKind::program || i0 < first_query(t, first + 63) ||
          i0 + C::m - 1 > last_query(t, first))
        bits |= 1 << g;
    }
    return bits;
  }
};

/// The pairs of a query tile and the keys of a warpgroup: from S^T and dP^T to P^T and dS^T.
template <class C, class Mask, class Score>
struct Pairs90 {
  using L = SharedBackward90<C>;
  static constexpr int m = C::m, blocks = C::mask == MaskKind::plan ? m / 64 : 0;
  /// Does every tile need the task? Else only one that is looked at reads it, and it takes no
  /// registers.
  static constexpr bool eager =
      !Score::identity || C::dropout || C::inside_program || C::mask == MaskKind::program;
  const Params& p;
  unsigned slot, info;  // of the task and of the tile, in shared memory
  int group;
  unsigned lse;  // in shared memory; delta is behind it
  bool looked;   // may a pair be masked?
  int h, i0;     // known when read_task() was called
  KeyTask90 t;
  Keys90<C> keys;
  typename Score::Fixed fixed;
  int classes[blocks ? blocks : 1];
  unsigned dropped[m / 64];              // a bit an element
  unsigned inside[blocks ? blocks : 1];  // the same: what a block of a plan keeps

  /// The query tile of stage `at`, and the keys of warpgroup `my_group`.
  __device__ __forceinline__
  Pairs90(const Params& params, unsigned base, unsigned task, int my_group, int at)
      : p(params), slot(task), group(my_group) {
    info = base + L::info + L::info_bytes * at;
    lse = base + L::lse + at * L::stats_bytes;
    looked = load_shared_word(info + L::info_look) >> group & 1;
    if constexpr (eager) read_task();
    if constexpr (!Score::identity) fixed = typename Score::Fixed(p, t.b, h, t.s.q_len, t.s.k_len);
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      classes[i] = load_shared_word(info + L::info_classes + 4 * (L::row_slabs * group + i));
      looked = looked || classes[i] != BlockCursor<false>::full_block;
    }
    if constexpr (L::near_bits) {
      if (looked) read_bits(base + L::bits + (at * L::blocks + L::row_slabs * group) * 512);
    } else if constexpr (C::inside_program) {
#pragma unroll
      for (int i = 0; i < blocks; ++i) inside[i] = classes[i] < 0 ? ~0u : ask(i);
    }
  }

  __device__ __forceinline__ void read_task() {
    h = load_shared_word(info);
    i0 = load_shared_word(info + L::info_tile) * m;
    t = KeyTask90::read<C>(slot);
    keys = Keys90<C>(t, group);
  }

  static __device__ __forceinline__ int column() { return (threadIdx.x & 3) * 2; }
  /// The numbers of queries 8 c + 2 t and the next.
  static __device__ __forceinline__ float2 of_rows(unsigned at, int c) {
    return load_shared_pair(at + (c * 8 + column()) * 4);
  }

  /// What the bits of this warpgroup's blocks, rows of queries at `from`, keep of its elements.
  __device__ __forceinline__ void read_bits(unsigned from) {
    const int key = (threadIdx.x & 127) / 32 * 16 + (threadIdx.x & 31) / 4;  // j0 begins a block
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      inside[i] = classes[i] == BlockCursor<false>::empty_block ? 0 : ~0u;
      if (classes[i] < 0) continue;
      inside[i] = 0;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int4 two = load_shared_ints(from + i * 512 + (c * 8 + column()) * 8);
        // Keys 0 to 31 of a query are its lower word; the thread's two lie in the same.
        const unsigned a = static_cast<unsigned>(key < 32 ? two.x : two.y) >> (key & 31);
        const unsigned b = static_cast<unsigned>(key < 32 ? two.z : two.w) >> (key & 31);
        inside[i] |= ((a & 1) | (b & 1) << 1 | (a >> 8 & 1) << 2 | (b >> 8 & 1) << 3) << c * 4;
      }
    }
  }

  /// The program's answers for the elements of one block of queries.
  __device__ __forceinline__ unsigned ask(int block) const {
    unsigned bits = 0;
#pragma unroll 1  // rolled: as many copies of the program would cost registers
    for (int x = 0; x < 32; ++x) {
      const int i = i0 + block * 64 + x / 4 * 8 + column() + (x & 1), half = x >> 1 & 1;
      const int j = keys.mine + 8 * half;
      bits |= static_cast<unsigned>(
                  Mask::keep(p, t.b, h, t.s.q_origin + i, t.s.k_origin + j, t.s.q_len, t.s.k_len))
              << x;
    }
    return bits;
  }

  /// Is the pair of accumulator element (c, e) kept? Only asked of tiles that are `looked` at.
  __device__ __forceinline__ bool kept(int c, int e) const {
    const int half = e >> 1, x = c * 8 + column() + (e & 1), i = i0 + x;
    bool keep = i >= keys.low[half] && i <= keys.high[half];
    const int j = keys.mine + 8 * half;
    if constexpr (C::mask == MaskKind::plan) {
      const int id = classes[c / 8];
      if (id == BlockCursor<false>::empty_block) keep = false;
      if constexpr (C::inside_program || L::near_bits)
        keep = keep && (inside[c / 8] >> (c % 8 * 4 + e) & 1);
      else if (id >= 0)
        keep = keep && (p.plan.tiles[id][x & 63] >> (j & 63) & 1);
    }
    if constexpr (C::mask == MaskKind::program)
      keep = keep && i < t.s.q_len &&
             Mask::keep(p, t.b, h, t.s.q_origin + i, t.s.k_origin + j, t.s.q_len, t.s.k_len);
    return keep;
  }

  __device__ __forceinline__ bool keeps_weight(int c, int e) const {
    const int i = i0 + c * 8 + column() + (e & 1), j = keys.mine + 8 * (e >> 1);
    return Dropout(p).keep(t.b, h, t.s.q_origin + i, t.s.k_origin + j);
  }
  __device__ __forceinline__ void drop() {
    if constexpr (C::dropout) {
#pragma unroll
      for (int w = 0; w < m / 64; ++w) {
        dropped[w] = 0;
#pragma unroll
        for (int k = 0; k < 32; ++k)
          if (!keeps_weight(w * 8 + k / 4, k % 4)) dropped[w] |= 1u << k;
      }
    }
  }
  __device__ __forceinline__ bool is_dropped(int c, int e) const {
    if constexpr (C::dropout) return dropped[c / 8] >> (c % 8 * 4 + e) & 1;
    return false;
  }

  /// S^T to P^T.
  __device__ __forceinline__ void weights(float (&acc)[m / 8][4]) {
    const float unit = p.scale * log2_e;
#pragma unroll
    for (int c = 0; c < m / 8; ++c) {
      const float2 top = of_rows(lse, c);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        acc[c][e] = exp2_fast(fmaf(acc[c][e], unit, e & 1 ? -top.y : -top.x));
    }
    if (looked) {
      if constexpr (!eager) read_task();
#pragma unroll
      for (int c = 0; c < m / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (!kept(c, e)) acc[c][e] = 0.0f;
    }
  }

  /// dP^T to dS^T = P * (dP - delta), of 8 n queries from 8 `first` on; a masked pair has none,
  /// whatever V holds.
  template <int n>
  __device__ __forceinline__ void gradients(const float (&weight)[m / 8][4],
                                            float (&dp)[n][4],
                                            int first = 0) const {
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float2 d = of_rows(lse + L::delta - L::lse, first + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float grad = dp[c][e];
        if constexpr (C::dropout) grad = is_dropped(first + c, e) ? 0.0f : grad * p.keep_scale;
        dp[c][e] = weight[first + c][e] * (grad - (e & 1 ? d.y : d.x));
      }
    }
    if (looked) {
#pragma unroll
      for (int c = 0; c < n; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (weight[first + c][e] == 0.0f) dp[c][e] = 0.0f;
    }
  }

  /// k - q of the first query of a thread; further ones are whole numbers away.
  __device__ __forceinline__ float distance(int half) const {
    return distance_of(t.s, i0 + column(), keys.mine + 8 * half);
  }

  /// S^T to P^T and P^T * ds/dscore.
  __device__ __forceinline__ void weights_and_slopes(float (&acc)[m / 8][4],
                                                     float (&slope)[m / 8][4]) {
    each_pair(acc, [&](int c, int e, float weight, float by, int, int, float, float) {
      slope[c][e] = weight * by;
    });
    forget(acc, slope);
  }

  /// Both at once, for a score program: its derivative is taken at what P was made of. With the
  /// terms of what it captures.
  __device__ __forceinline__ void both(float (&acc)[m / 8][4],
                                       float (&dp)[m / 8][4],
                                       typename Score::Captures& captured) {
    each_pair(acc, [&](int c, int e, float weight, float by, int qp, int kp, float far, float raw) {
      const float2 d = of_rows(lse + L::delta - L::lse, c);
      float grad = dp[c][e];
      if constexpr (C::dropout) grad = is_dropped(c, e) ? 0.0f : grad * p.keep_scale;
      grad = weight * (grad - (e & 1 ? d.y : d.x));
      const bool live = keeps(c, e);
      if constexpr (C::capture != Capture::none)
        Score::template capture<C::capture>(p,
                                            t.b,
                                            h,
                                            qp,
                                            kp,
                                            t.s.q_len,
                                            t.s.k_len,
                                            far,
                                            raw,
                                            Scale(p).value,
                                            grad,
                                            live,
                                            captured);
      dp[c][e] = live ? grad * by : 0.0f;
    });
    forget(acc, dp);
  }

  /// P^T without what dropout drops, as left operands, of 16 n queries from 8 `first` on.
  template <int n>
  __device__ __forceinline__ void fragments(unsigned (&left)[n][4],
                                            const float (&acc)[m / 8][4],
                                            int first = 0) const {
    float rest[2 * n][4];
#pragma unroll
    for (int c = 0; c < 2 * n; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        rest[c][e] = C::dropout && is_dropped(first + c, e) ? 0.0f : acc[first + c][e];
    to_fragments<typename C::Element, 16 * n>(left, rest);
  }

 private:
  /// Replaces scores of a program by weights; f(c, e, weight, derivative of the score).
  template <class F>
  __device__ __forceinline__ void each_pair(float (&acc)[m / 8][4], F&& f) const {
    const float from[2] = {distance(0), distance(1)};
    const Scale scale(p);
    const float unit = Score::unit(p, scale.value) * log2_e;
    scale.apply(p, acc);
#pragma unroll
    for (int c = 0; c < m / 8; ++c) {
      const float2 top = of_rows(lse, c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = i0 + c * 8 + column() + (e & 1), j = keys.mine + 8 * (e >> 1);
        const int qp = t.s.q_origin + i, kp = t.s.k_origin + j;
        const float far = from[e >> 1] - static_cast<float>(c * 8 + (e & 1)), raw = acc[c][e];
        const float score =
            Score::apply(p, t.b, h, qp, kp, t.s.q_len, t.s.k_len, far, raw, scale.value, fixed);
        acc[c][e] = exp2_fast(fmaf(score, unit, e & 1 ? -top.y : -top.x));
        if (!keeps(c, e)) acc[c][e] = 0.0f;
        const float by = Score::derivative(
            p, t.b, h, qp, kp, t.s.q_len, t.s.k_len, far, raw, scale.value, fixed);
        f(c, e, acc[c][e], by, qp, kp, far, raw);
      }
    }
  }

  /// Where single pairs are captured they are also told apart one by one; else forget() does it,
  /// and only for a tile that must be looked at.
  __device__ __forceinline__ bool keeps(int c, int e) const {
    return C::capture == Capture::none || !looked || kept(c, e);
  }
  /// Zeros the pairs that are masked, whatever Q, K and V hold there.
  __device__ __forceinline__ void forget(float (&weight)[m / 8][4],
                                         float (&other)[m / 8][4]) const {
    if (C::capture != Capture::none || !looked) return;
#pragma unroll
    for (int c = 0; c < m / 8; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (!kept(c, e)) weight[c][e] = other[c][e] = 0.0f;
  }
};

}  // namespace undivided::cuda
