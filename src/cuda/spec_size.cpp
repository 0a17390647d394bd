// SPDX-License-Identifier: Apache-2.0
// How large a kernel is: tiles, threads, shared memory, grid.
#include <algorithm>

#include "cuda/difference_params.hpp"
#include "cuda/spec.hpp"
#include "cuda/tuning.hpp"

namespace undivided::cuda {
namespace {

int rounded(int x, int to) { return (x + to - 1) / to * to; }
template <class T>
T parts(T x, int size) {
  return (x + size - 1) / size;
}

}  // namespace

int KernelSpec::tile_m() const {
  const int d = std::max(dqk, dv);
  const bool heavy = score || dropout || asks_program();  // needs registers of its own
  if (family == Family::sm90) return sm90_tile(*this).queries;
  switch (kind) {
    case KernelKind::forward:
      return 64;
    case KernelKind::key_mass:
      return dqk <= 256 ? 64 : 32;
    case KernelKind::backward_q:
      return d <= 256 ? 64 : 32;
    case KernelKind::backward_kv:
      return d <= 64 && !heavy ? 64 : d <= (heavy ? 64 : 256) ? 32 : 16;
    default:
      return 0;
  }
}

int KernelSpec::tile_n() const {
  const int d = std::max(dqk, dv);
  const bool heavy = score || dropout || asks_program();
  if (family == Family::sm90) return sm90_tile(*this).keys;
  switch (kind) {
    case KernelKind::forward: {
      const int wide = std::max(dqk, dv_width());
      const int most = dropout && wide > 64 ? 32 : 64;
      return std::min(most, wide <= 128 ? 64 : wide <= (dropout ? 128 : 256) ? 32 : 16);
    }
    case KernelKind::key_mass:
      return 64;
    case KernelKind::backward_q:
      return d <= 128 && !heavy ? 64 : d <= 256 ? 32 : 16;
    case KernelKind::backward_kv:
      return d <= 256 ? 64 : 32;
    default:
      return 0;
  }
}

int KernelSpec::dv_chunks() const { return kind == KernelKind::forward ? parts(dv, 256) : 1; }

int KernelSpec::dv_width() const { return rounded(parts(dv, dv_chunks()), 16); }

int KernelSpec::chunks() const {
  if (kind == KernelKind::backward_q) {
    if (capture == Capture::largest) return 1;  // no dQ
    return parts(dqk, capture != Capture::none || dqk > 256 ? 128 : 256);
  }
  if (kind == KernelKind::backward_kv) return parts(std::max(dqk, dv), 128);
  return 1;
}

int KernelSpec::threads() const {
  if (by_query_tiles(kind)) return 256;
  if (family == Family::sm90) return sm90_tile(*this).threads();
  switch (kind) {
    case KernelKind::forward:
    case KernelKind::backward_q:
      return tile_m() * 2;  // a warp owns 16 rows
    case KernelKind::key_mass:
    case KernelKind::backward_kv:
      return tile_n() * 2;
    case KernelKind::sort_rows:
      return 1024;
    case KernelKind::sink_gradient:
    case KernelKind::meet_rows:
    case KernelKind::plan_rows:
    case KernelKind::take_rows:
    case KernelKind::round_sums:
      return 256;
    case KernelKind::difference:
    case KernelKind::difference_backward:
      return difference_threads;
    default:
      return 128;
  }
}

int KernelSpec::min_blocks() const {
  if (kind != KernelKind::forward || packed || score || dropout || asks_program()) return 1;
  const int wide = std::max(dqk, dv_width());
  return wide > 64 && wide <= 128
             ? 3
             : 1;  // 168 registers or fewer: causal d 128 gained 28 % on an H100
}

std::size_t KernelSpec::shared_memory() const {
  if (family == Family::sm90) return sm90_shared_memory(*this);
  // Rows are padded by 16 bytes: an odd number of 16-byte chunks, so ldmatrix meets no conflict.
  const auto tile = [](int count, int d) {
    return static_cast<std::size_t>(count) * static_cast<std::size_t>(rounded(d, 16) + 8) * 2;
  };
  const int m = tile_m(), n = tile_n();
  switch (kind) {
    case KernelKind::forward:
      return tile(m + n, dqk) + tile(n, dv_width());
    case KernelKind::key_mass:
      return tile(m + n, dqk);
    case KernelKind::backward_q:
    case KernelKind::backward_kv:
      return tile(m + n, dqk) + tile(m + n, dv);
    default:
      return 0;
  }
}

long long rows_of(RowKind rows, const Params& p) {
  return rows == RowKind::ragged ? p.heads * p.total_q
                                 : static_cast<long long>(p.batch) * p.heads * p.max_q_len;
}

long long grid_size(const KernelSpec& s, const Params& p) {
  const long long batch = p.batch;
  const auto warps = [&](long long rows) { return (rows + 3) / 4; };  // one warp a row, 4 a block
  switch (s.kind) {
    case KernelKind::forward:
      return batch * p.q_tiles * (s.packed ? p.kv_heads : p.heads) * s.dv_chunks() *
             (s.split ? p.splits : 1);
    case KernelKind::key_mass:
      return batch * p.k_tiles * p.heads;
    case KernelKind::backward_q:
      return batch * p.q_tiles * p.heads * s.chunks();
    case KernelKind::backward_kv:
      return batch * p.k_tiles * p.kv_heads * s.chunks();
    case KernelKind::preprocess:
      return warps(parts(rows_of(s.rows, p), 32 / row_lanes(s.dv)));
    case KernelKind::combine:
    case KernelKind::merge:
      return warps(rows_of(s.rows, p));
    case KernelKind::sink_gradient:
      return p.heads;
    case KernelKind::backward:
      return (s.kv == KvKind::ragged ? 1 : batch) * p.k_tiles * p.kv_heads;
    case KernelKind::prepare_rows:
      // The counter of tasks is zeroed also where there is no row.
      return std::max(1LL, (s.rows == RowKind::ragged ? 1 : batch) * p.q_tiles * p.heads);
    case KernelKind::gather_dq:
      return (s.rows == RowKind::ragged ? 1 : batch) * p.q_tiles * p.heads;
    case KernelKind::init:
      return (batch * p.heads + 127) / 128;
    case KernelKind::sort_rows:
    case KernelKind::meet_rows:
    case KernelKind::plan_rows:
    case KernelKind::take_rows:
      break;  // of ListParams: row_lists.cpp
    case KernelKind::round_sums:
      return (p.sums + 255) / 256;
    case KernelKind::difference:
    case KernelKind::difference_backward:
      break;  // of DifferenceParams: difference.cpp
  }
  return 0;
}

}  // namespace undivided::cuda
