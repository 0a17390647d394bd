// SPDX-License-Identifier: Apache-2.0
// Sparse attention (Pagliardini et al. 2023): sorts the rows that take part, finds which of them
// meet, plans the mask of the compact problem, and moves rows there and back.
#pragma once

#include "device/math.cuh"
#include "list_params.hpp"

namespace undivided::cuda {

/// Rows behind the last that are made empty: the tiles that a kernel may read with the last one.
inline constexpr int tail_rows = 256;

__device__ inline int flag_at(const RowSide& s, int row, int i) {
  const long long at = row / s.heads * s.batch + row % s.heads * s.head + i * s.token;
  return s.boolean ? static_cast<const unsigned char*>(s.flags)[at]
                   : static_cast<const int*>(s.flags)[at];
}

/// Sums of all earlier threads of the block; `total` is that of all. `sums` holds a word a warp.
__device__ inline int exclusive_sum(int x, int* sums, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int here = x;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, here, step);
    if (lane >= step) here += other;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = here;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) before = total;
    total += sums[w];
  }
  return before + here - x;
}

/// A stable sort of one head by bytes, the lowest first: dropped rows go behind kept ones. Each
/// warp owns a stretch of the rows and a column of the counts, so that equal keys keep their order.
///
/// Grid: a block a head of Q, then of K. Block: 1024 threads.
__device__ inline void sort_rows(const ListParams& p) {
  constexpr int bytes = 256, warps = 32;
  __shared__ int place[bytes * warps];
  __shared__ int sums[warps];
  const bool queries = static_cast<int>(blockIdx.x) < p.batch * p.q.heads;
  const RowSide& s = queries ? p.q : p.k;
  const int row = queries ? blockIdx.x : blockIdx.x - p.batch * p.q.heads;
  const int n = s.tokens, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long base = static_cast<long long>(row) * n;
  const auto key = [&](int i) {
    const int flag = flag_at(s, row, i);
    return p.buckets ? static_cast<unsigned>(flag) ^ 0x80000000u : static_cast<unsigned>(flag == 0);
  };

  const unsigned one = n > 0 ? key(0) : 0;
  unsigned differ = 0;
  int mine = 0, kept = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const unsigned x = key(i);
    differ |= x ^ one;
    mine += p.buckets || x == 0;
  }
  exclusive_sum(mine, sums, kept);
  unsigned bytes_that_differ = 0;
  int passes = 0;
  for (int byte = 0; byte < 4; ++byte)
    if (__syncthreads_or(differ >> 8 * byte & 255)) {
      bytes_that_differ |= 1u << byte;
      ++passes;
    }

  const int* from = nullptr;  // the tokens themselves
  const int per = (n + 1023) / 1024 * 32, begin = minimum(n, warp * per),
            end = minimum(n, begin + per);
  for (int byte = 0; byte < 4; ++byte) {
    if (!(bytes_that_differ >> byte & 1)) continue;
    int* to = (--passes % 2 == 0 ? s.rows : s.spare) + base;
    const auto digit = [&](int token) { return static_cast<int>(key(token) >> 8 * byte & 255); };
    for (int x = threadIdx.x; x < bytes * warps; x += blockDim.x) place[x] = 0;
    __syncthreads();
    for (int i = begin + lane; i < end; i += 32)
      atomicAdd(&place[digit(from ? from[i] : i) * warps + warp], 1);
    __syncthreads();
    constexpr int each = bytes * warps / 1024;
    int sum = 0, ignored = 0;
    for (int x = 0; x < each; ++x) sum += place[threadIdx.x * each + x];
    int running = exclusive_sum(sum, sums, ignored);
    for (int x = 0; x < each; ++x) {
      const int count = place[threadIdx.x * each + x];
      place[threadIdx.x * each + x] = running;
      running += count;
    }
    __syncthreads();
    for (int i = begin; i < end; i += 32) {
      const bool live = i + lane < end;
      const unsigned there = __ballot_sync(0xffffffffu, live);
      unsigned equal = 0;
      int d = 0;
      if (live) {
        const int token = from ? from[i + lane] : i + lane;
        d = digit(token);
        equal = __match_any_sync(there, d);
        to[place[d * warps + warp] + __popc(equal & ((1u << lane) - 1))] = token;
      }
      __syncwarp();
      if (live && (equal & ((1u << lane) - 1)) == 0) place[d * warps + warp] += __popc(equal);
      __syncwarp();
    }
    __syncthreads();
    from = to;
  }

  const int tail = (kept + tail_rows - 1) / tail_rows * tail_rows;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const int token = from ? from[i] : i;
    s.places[base + token] = i < kept ? i : -1;
    s.rows[base + i] = i < kept ? token : i < tail ? -1 : -2;
  }
  if (threadIdx.x == 0) s.counts[row] = kept;
}

/// Both sides are sorted by (bucket, time), so the queries that see a key lie together.
///
/// Grid: blocks of 256 keys of each query head. Block: 256 threads.
__device__ inline void meet_rows(const ListParams& p) {
  const int tiles = (p.k.tokens + 255) / 256;
  const int row = blockIdx.x / tiles, j = blockIdx.x % tiles * 256 + threadIdx.x;
  if (j >= p.k.tokens) return;
  const int b = row / p.q.heads, key_row = b * p.k.heads + row % p.q.heads / p.group;
  const int* queries = p.q.rows + static_cast<long long>(row) * p.q.tokens;
  const int count = p.q.counts[row];
  /// The first compact query for which `past` holds: it goes on holding.
  const auto search = [&](auto&& past) {
    int low = 0, high = count;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (past(queries[middle]))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  };
  int first = count, end = count;
  if (j < p.k.counts[key_row]) {
    const int token = p.k.rows[static_cast<long long>(key_row) * p.k.tokens + j];
    const int bucket = p.buckets ? flag_at(p.k, key_row, token) : 0;
    const auto bucket_of = [&](int query) { return p.buckets ? flag_at(p.q, row, query) : 0; };
    first = search([&](int query) {
      const int its = bucket_of(query);
      const bool later =
          p.order == 0 || query + static_cast<long long>(p.origin) >= token + (p.order == 2);
      return its > bucket || (its == bucket && later);
    });
    if (p.buckets) end = search([&](int query) { return bucket_of(query) > bucket; });
  }
  const long long at = static_cast<long long>(row) * p.k.tokens + j;
  p.first[at] = first;
  p.end[at] = end;
}

/// Where the blocks of queries of one block of keys begin and end: those that may be kept, and
/// those that all keys see. Neither bound goes back from block to block.
struct KeyBlock {
  int low, high, full_low, full_high;
};
__device__ inline KeyBlock key_block(const ListParams& p, int row, int block) {
  const long long base = static_cast<long long>(row) * p.k.tokens;
  const int j0 = block * 64, j1 = minimum(j0 + 64, p.k.tokens) - 1;
  const int shared_end = p.end[base + j0];
  return {p.first[base + j0] / 64,
          (p.end[base + j1] + 63) / 64,
          (p.first[base + j1] + 63) / 64,
          shared_end == p.q.tokens ? (shared_end + 63) / 64 : shared_end / 64};
}

/// A plan whose Partial blocks ask the program. Block pairs between two buckets of one block may be
/// Partial without a pair.
///
/// Grid: a block a query head. Block: 256 threads.
__device__ inline void plan_rows(const ListParams& p) {
  __shared__ int sums[8];
  const int row = blockIdx.x;
  const int q_blocks = (p.q.tokens + 63) / 64, k_blocks = (p.k.tokens + 63) / 64;
  const int rows = q_blocks + k_blocks, query_runs = row * (rows + 2),
            key_runs = query_runs + q_blocks + 1;
  if (threadIdx.x == 0) {
    p.entry_of[row] = row;
    p.entries[row] = {
        p.q.tokens, p.k.tokens, q_blocks, k_blocks, query_runs, key_runs, 0, 0, 0, 0, 0};
  }
  int next = row * 3 * rows;  // a row of blocks has at most Partial, Full, Partial
  for (int from = 0; from < rows; from += blockDim.x) {
    const int i = from + threadIdx.x;
    int low = 0, high = 0, full_low = 0, full_high = 0;
    if (i < q_blocks) {
      const auto search = [&](auto&& past) {
        int a = 0, b = k_blocks;
        while (a < b) {
          const int middle = a + (b - a) / 2;
          if (past(key_block(p, row, middle)))
            b = middle;
          else
            a = middle + 1;
        }
        return a;
      };
      low = search([&](const KeyBlock& k) { return k.high > i; });
      high = search([&](const KeyBlock& k) { return k.low > i; });
      full_low = search([&](const KeyBlock& k) { return k.full_high > i; });
      full_high = search([&](const KeyBlock& k) { return k.full_low > i; });
    } else if (i < rows) {
      const KeyBlock k = key_block(p, row, i - q_blocks);
      low = k.low, high = k.high, full_low = k.full_low, full_high = k.full_high;
    }
    high = maximum(low, high);
    full_low = clamped(full_low, low, high);
    full_high = clamped(full_high, full_low, high);
    // Without Full blocks the two Partial runs are one.
    const PlanRun runs[3] = {{low, full_low < full_high ? full_low : high, 0},
                             {full_low, full_high, -1},
                             {full_high, full_low < full_high ? high : full_high, 0}};
    int count = 0, total = 0;
    for (const PlanRun& r : runs) count += r.begin < r.end;
    int at = next + exclusive_sum(count, sums, total);
    if (i < rows) {
      p.run_offsets[query_runs + i + (i >= q_blocks)] = at;
      for (const PlanRun& r : runs)
        if (r.begin < r.end) p.runs[at++] = r;
      if (i == q_blocks - 1 || i == rows - 1)
        p.run_offsets[query_runs + i + (i >= q_blocks) + 1] = at;
    }
    next += total;
  }
}

template <class T>
__device__ inline void take_units(const TakeRef& t, const T& empty) {
  const long long thread = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  const long long at = thread >> t.lanes_log2;
  const int lanes = 1 << t.lanes_log2;
  if (at >= t.rows * t.count) return;
  const int index = t.index[at];
  if (index < -1) return;
  const long long row = at / t.count;
  const T* from = static_cast<const T*>(t.from) + row / t.heads * t.batch + row % t.heads * t.head +
                  maximum(index, 0) * t.token;
  T* to = static_cast<T*>(t.to) + at * t.to_units;
  for (int x = static_cast<int>(thread & (lanes - 1)); x < t.to_units; x += lanes)
    to[x] = index >= 0 && x < t.from_units ? from[x] : empty;
}

/// Grid: a few lanes a row. Block: 256 threads.
__device__ inline void take_rows(const ListParams& p) {
  const unsigned e = p.take.empty;
  if (p.take.unit == 16)
    take_units(p.take, make_uint4(e, e, e, e));
  else if (p.take.unit == 8)
    take_units(p.take, make_uint2(e, e));
  else if (p.take.unit == 4)
    take_units(p.take, e);
  else
    take_units(p.take, static_cast<unsigned short>(e));
}

}  // namespace undivided::cuda
