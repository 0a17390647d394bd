// SPDX-License-Identifier: Apache-2.0
// Which kernels a spec takes, how its keys are split, and what that needs.
#include "cuda/choose.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/emit.hpp"
#include "cuda/tuning.hpp"
#include "expr/program.hpp"

namespace undivided::cuda {
namespace {

// A block of the portable forward keeps about half of a multiprocessor's registers.
constexpr std::int64_t least_blocks_per_multiprocessor = 2;
// Fewer keys than this are not worth a block and its share of the combine.
constexpr std::int64_t fewest_split_keys = 256;
constexpr std::int64_t split_step = 64;

std::int64_t parts(std::int64_t x, std::int64_t size) { return (x + size - 1) / size; }

KernelSpec base(const Spec& spec, KernelKind kind) {
  KernelSpec k;
  k.kind = kind;
  k.dtype = spec.dtype;
  k.out = spec.partial ? DType::f32 : spec.out_dtype;
  k.dqk = spec.dqk;
  k.dv = spec.dv;
  k.mask = mask_kind(spec);
  k.inside_program = k.mask == MaskKind::plan && spec.inside == Inside::program;
  k.score = !plain_score(spec);
  k.rows = spec.rows;
  k.kv = spec.kv;
  k.dropout = spec.dropout;
  k.aligned = spec.aligned;
  k.wide_dout = spec.op == Operation::backward && spec.dout_dtype == DType::f32;
  k.ordered = spec.op == Operation::backward && spec.determinism != Determinism::fast;
  return k;
}

std::int64_t heads_of(const Spec& s, const Bounds& b) { return b.kv_heads * s.group; }
void choose_splits(
    const Spec& s, const Bounds& b, const DeviceInfo& device, KernelSpec& k, Choice& c) {
  if (s.determinism == Determinism::invariant || b.max_k_len < 2 * fewest_split_keys) return;
  const std::int64_t tokens_per_tile =
      std::max<std::int64_t>(1, k.tile_m() / (k.packed ? s.group : 1));
  const std::int64_t tiles = s.rows == RowKind::ragged
                                 ? parts(b.total_q, tokens_per_tile) + b.batch
                                 : b.batch * parts(b.max_q_len, tokens_per_tile);
  const std::int64_t blocks =
      tiles * (k.packed ? b.kv_heads : heads_of(s, b)) * std::max(1, k.dv_chunks());
  const std::int64_t room =
      std::max<std::int64_t>(least_blocks_per_multiprocessor, k.min_blocks()) *
      device.multiprocessors;
  if (blocks == 0 || blocks * 2 > room) return;
  const std::int64_t wanted = std::min(room / blocks, parts(b.max_k_len, fewest_split_keys));
  const std::int64_t keys = parts(parts(b.max_k_len, wanted), split_step) * split_step;
  const std::int64_t splits = parts(b.max_k_len, keys);
  if (splits < 2) return;
  k.split = true;
  c.split_keys = static_cast<int>(keys);
  c.splits = static_cast<int>(splits);
}

bool take_sm90(const DeviceInfo& device, const KernelSpec& k, const char** why) {
  if (device.arch() == 90) return sm90_serves(k, why);
  *why = "compute capability 9.0 is needed";
  return false;
}

std::int64_t tiles_sm90(const Spec& s, const Bounds& b, const KernelSpec& k) {
  const std::int64_t tokens = k.packed ? k.tile_m() / s.group : k.tile_m();
  const std::int64_t tiles = s.rows == RowKind::ragged ? parts(b.total_q, tokens) + b.batch
                                                       : b.batch * parts(b.max_q_len, tokens);
  return tiles * (k.packed ? b.kv_heads : heads_of(s, b));
}

// One CTA fills a multiprocessor and takes tiles from a counter. Few tiles: the fewest splits that
// keep nearly all multiprocessors busy to the end.
void choose_splits_sm90(
    const Spec& s, const Bounds& b, const DeviceInfo& device, KernelSpec& k, Choice& c) {
  // A part of a tile costs its partial rows, written and read: worth 1024 keys of 128 rows.
  const std::int64_t fewest = k.tile_m() == 64 ? fewest_split_keys : 4 * fewest_split_keys;
  if (s.determinism == Determinism::invariant || b.max_k_len < 2 * fewest) return;
  const std::int64_t blocks = tiles_sm90(s, b, k), room = device.multiprocessors, n = k.tile_n();
  if (blocks == 0 || blocks >= 2 * room) return;
  const auto keys_of = [&](std::int64_t splits) {
    return parts(parts(b.max_k_len, splits), n) * n;
  };
  const auto busy = [&](std::int64_t splits) {
    const std::int64_t work = blocks * parts(b.max_k_len, keys_of(splits));
    return static_cast<double>(work) / static_cast<double>(parts(work, room) * room);
  };
  const std::int64_t most = std::min(parts(b.max_k_len, fewest), parts(4 * room, blocks));
  double best = 0;
  for (std::int64_t i = 1; i <= most; ++i) best = std::max(best, busy(i));
  std::int64_t splits = 1;
  while (busy(splits) < 0.93 * best) ++splits;
  c.split_keys = static_cast<int>(keys_of(splits));
  c.splits = static_cast<int>(parts(b.max_k_len, c.split_keys));
  k.split = c.splits > 1;
  if (!k.split) c.split_keys = 0;
}

// Rows keep their bits whatever the layout of the keys, packing and height of the tile: with fixed
// key tiles each row sees the same products and the same softmax steps.
void choose_sm90(
    const Spec& s, const Bounds& b, const DeviceInfo& device, KernelSpec& k, Choice& c) {
  k.family = Family::sm90;
  k.fixed = s.determinism == Determinism::invariant;
  c.counter = 0;
  k.packed = s.group > 1 && s.group <= 64 && k.mask != MaskKind::plan && b.max_q_len < 128;
  const std::int64_t rows = b.max_q_len * (k.packed ? s.group : 1);
  if (rows <= 64)
    k.warpgroups = 1;
  else if (!k.packed && k.tile_m() > 128 &&
           (rows <= 128 || tiles_sm90(s, b, k) < 2 * device.multiprocessors))
    k.warpgroups = 2;  // lower tiles share out better
  choose_splits_sm90(s, b, device, k, c);
}

void choose_forward(
    const Spec& s, const Bounds& b, const DeviceInfo& device, Family preferred, Choice& c) {
  KernelSpec k = base(s, KernelKind::forward);
  if (preferred == Family::sm90 && take_sm90(device, k, &c.not_sm90)) {
    choose_sm90(s, b, device, k, c);
  } else {
    k.packed = s.group > 1 && k.mask != MaskKind::plan && b.max_q_len < k.tile_m() &&
               s.determinism != Determinism::invariant;
    choose_splits(s, b, device, k, c);
  }
  if (s.max_logit) c.kernels.push_back(base(s, KernelKind::init));
  c.kernels.push_back(k);
  if (k.split) c.kernels.push_back(base(s, KernelKind::combine));
  if (s.key_mass) c.kernels.push_back(base(s, KernelKind::key_mass));
}

void choose_backward(const Spec& s, const DeviceInfo& device, Family preferred, Choice& c) {
  KernelSpec whole = base(s, KernelKind::backward);
  const bool captured = s.captured && whole.score, ordered = s.determinism != Determinism::fast;
  if (captured) whole.capture = ordered ? Capture::sums : Capture::atomic;
  // Ordered: the largest terms first, then their sums, then float32 of those.
  const auto add = [&](KernelSpec k) {
    if (captured && ordered) {
      k.capture = Capture::largest;
      c.kernels.push_back(k);
      c.sums = 0;
    }
    k.capture = whole.capture;
    c.kernels.push_back(k);
    if (c.sums == 0) c.kernels.push_back(base(s, KernelKind::round_sums));
  };
  const bool one_pass = preferred == Family::sm90 && take_sm90(device, whole, &c.not_sm90);
  c.kernels.push_back(base(s, one_pass ? KernelKind::prepare_rows : KernelKind::preprocess));
  if (one_pass) {
    add(whole);
    if (whole.wide_dout) c.dout = 0;
    if (s.want_dq) c.kernels.push_back(base(s, KernelKind::gather_dq));
    c.dq_sum = 0;
  } else {
    if (s.want_dq || captured) add(base(s, KernelKind::backward_q));
    if (s.want_dk || s.want_dv) c.kernels.push_back(base(s, KernelKind::backward_kv));
  }
  if (s.sink) c.kernels.push_back(base(s, KernelKind::sink_gradient));
}

}  // namespace

std::int64_t query_rows(const Spec& s, const Bounds& b) {
  return heads_of(s, b) * (s.rows == RowKind::ragged ? b.total_q : b.batch * b.max_q_len);
}

int term_bits(const Spec& s, const Bounds& b) {
  const double pairs = static_cast<double>(query_rows(s, b)) * static_cast<double>(b.max_k_len);
  const int room = 62 - static_cast<int>(std::ceil(std::log2(std::max(1.0, pairs))));
  const bool fixed = s.determinism == Determinism::invariant;
  return std::min(room, fixed ? fewest_term_bits : most_term_bits);
}

Choice choose(const Spec& spec, const Bounds& bounds, const DeviceInfo& device, Family preferred) {
  Choice c;
  c.rows = query_rows(spec, bounds);
  if (spec.op == Operation::forward) choose_forward(spec, bounds, device, preferred, c);
  if (spec.op == Operation::backward) choose_backward(spec, device, preferred, c);
  if (spec.op == Operation::merge) c.kernels.push_back(base(spec, KernelKind::merge));
  for (KernelSpec& k : c.kernels) k = canonical(k);

  const auto take = [&](std::int64_t floats) {
    const auto at = static_cast<std::int64_t>(c.workspace);
    c.workspace += static_cast<std::size_t>(parts(floats * 4, 256) * 256);
    return at;
  };
  if (c.counter >= 0) c.counter = take(1);
  if (c.split_keys > 0) {
    c.partial_o = take(c.splits * c.rows * spec.dv);
    c.partial_lse = take(c.splits * c.rows);
  }
  if (spec.op == Operation::backward) c.delta = take(c.rows);
  if (c.dq_sum >= 0) {
    const KernelSpec& k = c.whole_backward = canonical(base(spec, KernelKind::backward));
    const std::int64_t tiles =
        sm90_dq_tiles(k, bounds.batch, heads_of(spec, bounds), bounds.max_q_len, bounds.total_q);
    c.row_stats = take(tiles * 2 * k.tile_m());
    c.dq_sum = take(tiles * sm90_dq_floats(k) + 4);  // and the counters of tasks
    if (k.ordered || sm90_tile(k).adders > 0) c.dq_turns = take(4 * tiles);
  }
  if (c.dout >= 0) c.dout = take(parts(c.rows * spec.dv, 2));
  if (c.sums >= 0) c.term_bits = term_bits(spec, bounds);
  if (c.sums >= 0) c.sums = take(2 * (bounds.captured + std::ssize(spec.score->params)));
  if (spec.op == Operation::forward && spec.key_mass) c.lse = take(c.rows);
  return c;
}

double kept_pairs(const Spec& s, const Bounds& b) {
  const double heads = static_cast<double>(heads_of(s, b));
  const double sequences =
      s.rows == RowKind::ragged
          ? static_cast<double>(b.total_q) / std::max<double>(1, static_cast<double>(b.max_q_len))
          : static_cast<double>(b.batch);
  expr::Band band;
  if (s.mask) {
    std::vector<double> values;
    for (const expr::ParamDecl& p : s.mask->params) values.push_back(p.value);
    band = expr::recognise_band(*s.mask, values);
  }
  if (!band.is_band || (!band.has_left && !band.has_right))
    return heads * sequences * static_cast<double>(b.max_q_len) * static_cast<double>(b.max_k_len);
  const std::int64_t shift = s.origin == Origin::end ? b.max_k_len - b.max_q_len : 0;
  // Long sequences are sampled: every step-th row stands for step rows.
  const std::int64_t step = std::max<std::int64_t>(1, b.max_q_len / 65536);
  double pairs = 0;
  for (std::int64_t i = 0; i < b.max_q_len; i += step) {
    const std::int64_t q = i + shift;
    const std::int64_t low = band.has_left ? std::max<std::int64_t>(0, q - band.left) : 0;
    const std::int64_t high =
        band.has_right ? std::min(b.max_k_len, q + band.right + 1) : b.max_k_len;
    pairs += static_cast<double>(step) * static_cast<double>(std::max<std::int64_t>(0, high - low));
  }
  return heads * sequences * pairs;
}

double flops(const Spec& s, const Bounds& b) {
  if (s.op == Operation::merge) return static_cast<double>(query_rows(s, b)) * (4.0 * s.dv + 8);
  const double pairs = kept_pairs(s, b);
  return s.op == Operation::backward ? 2 * pairs * (3.0 * s.dqk + 2.0 * s.dv)
                                     : 2 * pairs * (s.dqk + s.dv);
}

double bytes_moved(const Spec& s, const Bounds& b) {
  const auto size = [](DType t) { return static_cast<double>(size_of(t)); };
  const double rows = static_cast<double>(query_rows(s, b));
  if (s.op == Operation::merge) return rows * (2 * (s.dv * 4.0 + 4) + s.dv * size(s.out_dtype) + 4);
  const double keys =
      static_cast<double>(b.kv_heads) *
      static_cast<double>(s.kv == KvKind::ragged ? b.total_k : b.batch * b.max_k_len);
  const double in = size(s.dtype), out = size(s.partial ? DType::f32 : s.out_dtype);
  const double q = rows * s.dqk, o = rows * s.dv, k = keys * s.dqk, v = keys * s.dv;
  if (s.op == Operation::backward) return in * (q + k + v + 2 * o) + out * (q + k + v) + rows * 12;
  return in * (q + k + v) + out * o + rows * 4;
}

}  // namespace undivided::cuda
