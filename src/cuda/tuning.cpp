// SPDX-License-Identifier: Apache-2.0
// Rows of the sm90 family. Figures: TFLOP/s at 8192 tokens on one H100, bf16, one run; cuDNN 9.19
// in the same run: d 64 468 full, 422 causal; d 128 600, 511; d 256 655, 563.
#include "cuda/tuning.hpp"

#include <algorithm>

namespace undivided::cuda {
namespace {

int slabs(int d) { return (d + 63) / 64; }

// A program, a plan or dropout needs registers of its own.
bool heavy(const KernelSpec& k) {
  return k.score || k.dropout || k.mask == MaskKind::program || k.mask == MaskKind::plan;
}
// Above d 128, do 128 keys fit in shared memory and in registers?
bool broad(const KernelSpec& k) { return k.dqk > 128 && k.dqk <= 192 && k.dv <= 128 && !heavy(k); }
// Do the warpgroups of the backward share 64 keys? See kernels/backward_wide_sm90.cuh. At d 128
// with a plan (prefix-LM) that gave 301 where 128 keys give 491 and spill a few scalars.
bool wide(const KernelSpec& k) { return std::max(k.dqk, k.dv) > 128 && !broad(k); }

// Do two CTAs of those exchange dS? d 256, without: causal 0.88 to 0.96 as fast, full 0.88 to 0.94,
// 32/2 heads 0.76, prefix 0.89, softcap 0.93, documents 0.96; in order 0.78 to 0.91. d 192: prefix
// and softcap 0.95, in order 0.76 to 0.86, but causal 1.01 and full 1.03. Not with captures of a
// score, which need the registers.
bool pairs(const KernelSpec& k) {
  return k.kind == KernelKind::backward && wide(k) && slabs(k.dqk) > 2 &&
         (slabs(k.dqk) == 4 || k.ordered || heavy(k)) && k.capture == Capture::none;
}

Sm90Tile backward_tile(const KernelSpec& k) {
  Sm90Tile t;
  // 128 queries feed the tensor cores better; above d 64 the sums of dK and dV leave no registers.
  // At d 64 a score or plan spills with them (8 to 568 bytes) and is 1.17 to 1.30 times as fast as
  // with 64, which spill nothing. Not by capture: prepare_rows and gather_dq have the same tiles.
  t.queries = std::max(k.dqk, k.dv) <= 64 ? 128 : 64;
  if (wide(k)) t.keys = 64;
  if (pairs(k)) t.ctas = 2;
  // Each waits for an answer from L2. Without an order, d 128: 1.01 to 1.02 of what one gives, d
  // 64: 0.98.
  t.adders = wide(k) ? 0 : k.ordered || t.queries == 64 ? 2 : 1;
  // The loader spills a little with what is left; a consumer that spills costs more: d 64, 8192
  // tokens, full: 507 so, 494 with 40 and 232. But where a plan has an order, the scheduler counts
  // its visitors: prefix 0.84 so of what 40 and 232 give; and scores of d 128 spill nothing with
  // those.
  const bool counts = k.ordered && k.mask == MaskKind::plan;
  if (wide(k) || t.queries == 128 || !(k.score || counts)) {
    t.producer_registers = 24;
    t.consumer_registers = 240;
  }
  return t;
}

bool is_backward(const KernelSpec& k) {
  return k.kind == KernelKind::backward || by_query_tiles(k.kind);
}

std::size_t backward_shared_memory(const KernelSpec& k) {
  constexpr int task_slots = 3;
  if (by_query_tiles(k.kind)) return 0;
  const Sm90Tile t = backward_tile(k);
  const int columns = slabs(k.dqk) + slabs(k.dv), blocks = t.queries / 64;
  const int dout = t.ctas == 2 && columns > 6 ? slabs(k.dv) : 0;  // stages less
  const int tiles = ((t.keys + t.stages * t.queries) * columns - t.queries * dout) * 128;
  const int other = t.ctas == 2 ? 4 * t.keys * 128 : 0;  // dS and K
  const int ds = (broad(k) ? 1 : 2) * blocks * t.keys * 128 + other;
  const int passed = wide(k) ? 64 * 64 * 4 : sm90_dq_floats(k) * 4;  // P, or dQ
  const int rows = 2 * t.stages * t.queries * 4;
  const int of_plan = k.mask == MaskKind::plan ? t.keys / 64 * blocks : 0;
  const int bits = k.inside_program || columns == 8 ? 0 : t.stages * of_plan * 512;
  const int barriers = 8 * (3 + 4 * t.stages) + 64 + 16 * task_slots + 16 + 48 + 40 + 16;
  const int tasks = 15 + task_slots * 64;
  const int info = 24 + 4 * of_plan, order = 16;
  return static_cast<std::size_t>(1024 + tiles + ds + passed + rows + bits + barriers + tasks +
                                  (t.stages + 1) * info + order);
}

}  // namespace

Sm90Tile sm90_tile(const KernelSpec& k) {
  if (is_backward(k)) return backward_tile(k);
  const int d = std::max(k.dqk, k.dv);
  const bool planned = k.mask == MaskKind::plan, paged = k.kv == KvKind::paged,
             ragged = k.rows == RowKind::ragged;
  const bool few_rows = k.packed || k.split || k.warpgroups;
  Sm90Tile t;
  if (d <= 128 && !few_rows && !k.fixed && !k.dropout && !k.asks_program()) {
    // As many warpgroups as registers allow, with 64 keys: while one waits or weighs, others
    // multiply. Against two or three with 128 or 176 keys: d 64, 512 keys, causal 1.15, full 1.08;
    // 8192 keys 1.02 and 0.99. d 128, 512 keys, causal 1.08; 8192 keys, causal 1.04, full 1.05.
    t.warpgroups = d <= 64 && !planned && !paged && !ragged ? 4 : 3;
    t.keys = 64;
    t.stages = d <= 64 ? 4 : 3;
    t.q_stages = 2;
    // Ragged: 582 full and 507 causal so, 507 and 452 with another buffer of Q in place of a stage.
    if (d > 64 && ragged) {
      t.stages = 4;
      t.q_stages = 1;
    }
  } else if (d <= 64) {
    t.stages = 4;
    t.q_stages = 2;
  } else if (d <= 128) {
    t.q_stages = 2;
  } else if (k.dqk <= 192 && k.dv <= 128) {
    t.keys = 128;  // three warpgroups with 64 keys are as fast
  } else if (d <= 192) {
    t.keys = 96;  // not measured
  } else {
    // 128 x 80 with slack: 756 full, 709 causal; without: 704, 697.
    t.keys = 80;
  }
  if (k.dv > 128) t.slack = 8;
  // Without maxima: 8192 keys, d 64 538 -> 595, d 128 640 -> 729, causal 620 -> 705, ALiBi 553 ->
  // 666; d 256 within 2 %.
  t.bold = !k.fixed && k.dv <= 128;
  // Whole blocks of a plan; a program or dropout needs registers of its own.
  const bool plain = !planned && !k.score && !k.dropout && !k.asks_program();
  if ((!plain || k.fixed) && d > 128 && t.keys < 128) t.keys = 64;
  if (k.dropout) t.keys = 64;
  if (k.warpgroups) t.warpgroups = k.warpgroups;
  // Looking up runs and pages takes registers.
  if (t.warpgroups > 1) {
    // Paged, of dense: d 64 0.85 so, 0.79 with four warpgroups, whose loader spills; d 256 0.95
    // with 40 and 80 keys, 0.93 with 56, 0.87 with 64 keys.
    const int granted = 65536 / t.threads() / 8 * 8 * (t.warpgroups + 1);
    const int loader = !planned && !paged ? 24 : planned || t.keys != 80 ? 56 : 40;
    t.consumer_registers = (granted - loader) / t.warpgroups / 8 * 8;
    t.producer_registers = granted - t.warpgroups * t.consumer_registers;
  }
  t.queries = t.warpgroups * 64;
  return t;
}

bool sm90_serves(const KernelSpec& k, const char** why) {
  const char* reason = nullptr;
  if (k.kind != KernelKind::forward && !is_backward(k))
    reason = "only the forward and the backward have such kernels";
  else if (is_backward(k) && k.kv == KvKind::paged)
    reason = "keys in pages";
  else if (std::max(k.dqk, k.dv) > 256)
    reason = "a head dim above 256";
  else if (!k.aligned)
    reason = "a base or stride that is not a multiple of 16 bytes";
  if (why) *why = reason;
  return !reason;
}

std::size_t sm90_shared_memory(const KernelSpec& k) {
  if (is_backward(k)) return backward_shared_memory(k);
  const Sm90Tile t = sm90_tile(k);
  const int q = t.q_stages * slabs(k.dqk) * t.warpgroups * 64 * 128;
  const int kv = t.stages * (slabs(k.dqk) + slabs(k.dv)) * t.keys * 128;
  const int barriers = 8 * (2 * t.q_stages + 4 * t.stages) + 32 + 8;
  const int tasks = 8 + 2 * 64;  // after them, at a multiple of 16
  const int info = k.mask == MaskKind::plan ? 8 + 4 * t.keys / 64 * t.warpgroups : 0;
  // Slabs begin at multiples of 1024 bytes, the block's memory perhaps not.
  return static_cast<std::size_t>(1024 + q + kv + barriers + tasks + t.stages * info);
}

long long sm90_dq_tiles(
    const KernelSpec& k, long long batch, long long heads, long long max_q_len, long long total_q) {
  const int m = backward_tile(k).queries;
  return k.rows == RowKind::ragged ? heads * (total_q / m + batch + 1)
                                   : batch * heads * ((max_q_len + m - 1) / m);
}

int sm90_dq_floats(const KernelSpec& k) {
  return 64 * (wide(k) ? 64 * slabs(k.dqk) : broad(k) ? 192 : 128);
}

int sm90_section(const KernelSpec& k, const Params& p) {
  // Ordered and causal: the more pairs side by side, the less a task waits for the one before.
  if (is_backward(k) && (!k.ordered || k.mask == MaskKind::full)) {
    // What the CTAs of a section read and add to stays in L2: Q, dO, K, V and the sums of dQ; fewer
    // than 4 or more than 16 pairs gave nothing. 16384 tokens, causal / full, against sections
    // of 32 MB of keys and values alone: 512 of d 64 1.07 / 1.11, d 128 1.14 / 1.02, d 256 1.17 /
    // 1.03; 2048 of d 64 1.12 / 1.05; else within 2 %.
    const long long queries = p.reach + std::max(0, p.max_q_len - p.max_k_len);  // that see a key
    const long long bytes = std::max(1LL, queries) * (4LL * (k.dqk + k.dv) + 4LL * k.dqk);
    const int pairs = std::max(1, p.kv_heads * (k.kv == KvKind::ragged ? 1 : p.batch));
    // A group that alone is more: 32/2 heads of d 256, 16384 tokens, causal 1.09.
    const int least = p.group > 1 && bytes > 32 << 20 ? 1 : 4;
    return std::clamp(
        static_cast<int>(std::clamp<long long>((32 << 20) / bytes, least, 16)), 1, pairs);
  }
  const int batch = k.rows == RowKind::ragged ? 1 : p.batch;
  const int group = k.packed || is_backward(k) ? 1 : p.group,
            pairs = std::max(1, p.kv_heads * group * batch);
  if (k.mask == MaskKind::full) return 1;  // query tiles of a head side by side
  constexpr long long l2_share = 32 << 20;
  const long long bytes = std::max(1, p.reach) * 2LL * (k.dqk + k.dv);
  long long heads = 1;
  while (heads * 2 * bytes <= l2_share && heads < pairs) heads *= 2;
  // Ordered, 64 keys: tasks of one pair that run side by side wait for each other at every tile, so
  // few of many pairs run. d 256, causal, of `fast`: with 8, 16, 32 pairs 0.94, 0.93, 0.88 at 4096
  // tokens, 0.95, 0.95, 0.89 at 2048, with 16 and 64 0.94 and 0.83 at 512; d 192 0.68 with 8, 0.73
  // with 16.
  if (is_backward(k) && k.tile_n() == 64 && k.mask == MaskKind::band) heads = 16;
  // Ordered: who comes before has then gone ahead by some tiles, and short sequences side by side
  // read more than stays in L2. 512 tokens, causal 1.15; 1024 1.06, d 64 1.19; 2048 1.02.
  if (is_backward(k) && k.kv == KvKind::dense && k.tile_n() == 128) {
    const int tiles = (std::max(1, p.reach) + k.tile_m() - 1) / k.tile_m();
    heads = std::min<long long>(heads, std::clamp(640 / tiles, 8, 64));
  }
  return static_cast<int>(std::min<long long>(heads * group, pairs));
}

}  // namespace undivided::cuda
