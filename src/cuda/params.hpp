// SPDX-License-Identifier: Apache-2.0
// Everything one launch passes to a kernel: plain data read by the host (C++20) and by NVRTC.
//
// The text of a kernel is composed in this order (compose() in spec.cpp):
//   #include "kernels/<kind>.cuh"
//   struct Config { static constexpr int dqk = 128; ... };      all of KernelSpec
//   struct Mask   { static bool keep(p, batch, head, q, k, q_len, k_len); };
//   struct Score  { apply, derivative, capture; see below };
//   extern "C" __global__ void undivided_kernel(const __grid_constant__ Params p) { <kind><...>(p);
//   }
// Mask and Score are the generated policies; without a program they are FullMask and IdentityScore
// (kernels/policy.cuh says what a policy must answer). Positions are int: origin + local index.
// Grids are one-dimensional; grid_size() in spec.cpp and the first lines of each kernel agree.
//
// Nothing here is trusted: kernels clamp lengths to the bounds, offsets to the totals, page ids to
// the pool, captured indices to the array and captured integers to their declared range.
#pragma once

#include "cuda/page_map.hpp"

namespace undivided::cuda {

/// A strided tensor of tokens. Strides count elements; the dim stride is 1. Dense and paged: batch
/// is the stride of a sequence or page. Ragged: batch is unused, token is the stride of packed
/// rows.
struct MatrixRef {
  void* data;
  long long batch, head, token;
};

/// One float32 per (row or key, head). Ragged [head, total]: batch is unused.
struct ScalarRef {
  float* data;
  long long batch, head, token;
};

/// A device array of i32 or i64 (lengths, offsets, origins).
struct IndexRef {
  const void* data;  // null: not given
  long long stride;
  int wide;  // i64?
};

/// A captured array. Indices are clamped to shape, integer values to [low, high].
struct ArrayRef {
  void* data;  // gradients: float32, null when not wanted
  long long stride[4];
  int shape[4];
  int low, high;
};

/// Lanes that share a row where delta is made: each has 8 of its columns, while there are so many.
constexpr int row_lanes(int columns) {
  return columns > 128 ? 32 : columns > 64 ? 16 : columns > 32 ? 8 : columns > 16 ? 4 : 2;
}

inline constexpr int max_arrays = 8;
inline constexpr int max_values = 32;

/// How gradients of captured arrays are added (device/captured.cuh).
enum class Capture { none, atomic, largest, sums };
/// Bits of a term in fixed point: fewest, so that 2^40 terms fit in a sum, and most.
inline constexpr int fewest_term_bits = 22, most_term_bits = 40;

/// A bound program: slots and parameters in its order. Gradients of a score reuse its score's.
struct ProgramRef {
  ArrayRef arrays[max_arrays];
  union Value {
    int i;  // i32 and boolean
    float f;
  } values[max_values];
};

// Mirrors of MaskPlan::Entry and MaskPlan::Run (the launcher asserts their sizes and offsets).
struct PlanEntry {
  long long q_len, k_len;
  int q_blocks, k_blocks;
  int query_runs, key_runs;
  long long empty, partial, full, kept_pairs, rows_without_key;
};
struct PlanRun {
  int begin, end, tiles;
};
struct PlanRef {
  const PlanEntry* entries;
  const int* entry_of;  // [batch * heads]
  const int* run_offsets;
  const PlanRun* runs;
  const int* tile_ids;
  const unsigned long long (*tiles)[64];  // by query: word = query row, bit = key
};

/// How positions start.
enum OriginMode : int { origin_start = 0, origin_end = 1, origin_given = 2 };

enum ElementType : int { element_f32 = 0, element_f16 = 1, element_bf16 = 2 };

struct Params {
  // The problem.
  int batch, heads, kv_heads, group;  // heads = kv_heads * group
  int q_tiles;    // query tiles of the grid: over max_q_len (times group when packed)
  int k_tiles;    // key tiles of the grid: over max_k_len; key_mass: over key_extent too
  int max_q_len;  // bound of q_len: dense: the extent of Q; ragged: the bound
  int max_k_len;  // bound of k_len: dense: the extent of K; else the bound
  long long total_q, total_k;  // packed rows (ragged), else unused
  IndexRef q_offsets, q_lengths, k_offsets, k_lengths;
  PageMap pages;  // paged keys
  int origin;     // OriginMode
  IndexRef q_origin, k_origin;

  // Data.
  MatrixRef q, k, v, o;
  ScalarRef lse;
  float scale;
  const float* sink;  // [heads] or null (null too when the result is partial)
  float* max_logit;   // or null; set to -inf by the init kernel first
  long long max_logit_batch, max_logit_head;
  ScalarRef key_mass;  // key_mass kernel only; dense or paged: [batch, head, key]
  int key_extent;      // dense or paged: keys of key_mass; those past k_len are set to 0

  // Mask.
  long long band_left, band_right;  // keep iff q - k <= left && k - q <= right; 1 << 40: unbounded
  PlanRef plan;
  int reach;  // how many keys a query sees, about: what sections of CTAs are sized by
  ProgramRef mask, score;

  // Dropout: keep iff word >= threshold.
  unsigned dropout_threshold;
  float keep_scale;  // 1 / (1 - p)
  unsigned long long seed;
  const unsigned long long* seed_pointer;  // read instead of seed when not null

  // Splits: split s covers keys [s * split_keys, (s + 1) * split_keys) of the sequence.
  int splits, split_keys;  // split_keys: a multiple of 64
  float* partial_o;        // [splits, rows, dv]
  float* partial_lse;      // [splits, rows]; rows: see rows_of() in spec.hpp

  // Backward. o and lse above are read.
  MatrixRef dout;
  int o_type, dout_type;  // ElementType, read where delta is made
  void* rounded_dout;     // sm90: a float32 dO in 16 bits, [rows, dv]
  ScalarRef dlse;         // data null: zero
  float* delta;           // D = rowsum(dO * O) - dLSE, [rows]; sm90: only for a sink
  float* dq_sum;          // sm90: dQ before its rounding, in tiles, then the counters of tasks;
                          // zeroed by prepare_rows, unless the first stores
  float* row_stats;       // sm90: of each query tile its LSE in log2, then its delta
  int* dq_turns;          // ordered or stored by the first: whose turn it is, four a tile
  long long dq_tiles, dq_floats;  // how many; multiples of 4 floats
  MatrixRef dq, dk, dv;           // data null: not wanted; float32 or 16-bit (Config::out)
  float* dsink;                   // [heads] or null
  ArrayRef d_arrays[max_arrays];  // of the score program; zeroed by the host first
  float* d_params;                // one per score parameter, zeroed by the host first; or null
  ArrayRef d_sums[max_arrays];    // ordered: i64, dense, zeroed; d_arrays then holds largest terms
  long long* d_param_sums;
  long long sums;  // of all arrays and parameters
  int term_bits;

  // Merge: (a, b) -> (o, lse), float32 in. b_o null: a alone. Dense: batch, heads, max_q_len;
  // ragged: total_q.
  MatrixRef a_o, b_o;
  ScalarRef a_lse, b_lse;
};
static_assert(sizeof(Params) <= 4096, "kernel parameters are limited to 4 KB");

}  // namespace undivided::cuda
