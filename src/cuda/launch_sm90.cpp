// SPDX-License-Identifier: Apache-2.0
// Launches of the sm90 family: how the copy engine reads the tensors, and counters zeroed on the
// stream.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "cuda/launch.hpp"
#include "cuda/tuning.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

// As the kernel reads them; see kernels/work_sm90.cuh.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};
struct TensorMaps {
  TensorMap q, k, v, o;
};
struct BackwardMaps {
  TensorMap q, k, v, dout;
};
struct Schedule {
  int tiles, section, box;
  void* counter;
  std::uint32_t page_factor = 0;
  int page_shift = 0;

  /// j / size for j below 2^31 as a product and a shift (Granlund and Montgomery 1994,
  /// theorem 4.2).
  void divide_by(std::uint32_t size) {
    page_shift = 31 + static_cast<int>(std::bit_width(size - 1));
    page_factor = static_cast<std::uint32_t>(((std::uint64_t{1} << page_shift) + size - 1) / size);
  }
};

// How many there are along an axis, elements from one to the next, and how many a box takes.
struct Axis {
  long long count, stride;
  int box;
};

// Boxes of 64 columns of the inner axis with the 128-byte swizzle; outside the tensor: zeros.
void encode(
    Driver& driver, TensorMap& map, DType dtype, void* data, int dim, const Axis (&outer)[3]) {
  constexpr int type_f16 = 6, type_bf16 = 9, swizzle_128 = 3, promote_128 = 2;
  const auto extent = [](long long x) { return static_cast<std::uint64_t>(std::max(1LL, x)); };
  std::uint64_t extents[4] = {extent(dim)}, strides[3];
  std::uint32_t box[4] = {64};
  for (std::size_t i = 0; i < 3; ++i) {
    const Axis& a = outer[i];
    extents[i + 1] = extent(a.count);
    // The stride of an axis of one is not used, and may be anything.
    strides[i] =
        a.count > 1 ? static_cast<std::uint64_t>(a.stride) * 2 : 16 * extent((dim + 7) / 8);
    box[i + 1] = static_cast<std::uint32_t>(a.box);
  }
  const std::uint32_t steps[4] = {1, 1, 1, 1};
  driver.cuTensorMapEncodeTiled(&map,
                                dtype == DType::f16 ? type_f16 : type_bf16,
                                4,
                                data,
                                extents,
                                strides,
                                box,
                                steps,
                                0,
                                swizzle_128,
                                promote_128,
                                0);
}

// A tensor of tokens in boxes of `rows`.
void encode(Driver& driver,
            TensorMap& map,
            DType dtype,
            const MatrixRef& m,
            int dim,
            long long tokens,
            int heads,
            long long batch,
            int rows) {
  encode(driver,
         map,
         dtype,
         m.data,
         dim,
         {{tokens, m.token, rows}, {heads, m.head, 1}, {batch, m.batch, 1}});
}

}  // namespace

void launch_sm90(Driver& driver,
                 const LoadedKernel& kernel,
                 Params& p,
                 int multiprocessors,
                 void* counter,
                 StreamHandle stream) {
  const KernelSpec& s = kernel.spec;
  set_tiles(s, p);
  const bool ragged_q = s.rows == RowKind::ragged, ragged_k = s.kv == KvKind::ragged;
  const long long tiles = static_cast<long long>(p.q_tiles) * p.splits *
                          (s.packed ? p.kv_heads : p.heads) * (ragged_q ? 1 : p.batch);
  if (tiles <= 0) return;
  if (tiles > std::numeric_limits<int>::max() - 65536)
    throw Error(
        Code::invalid_argument,
        Stage::run,
        fmt::format("kernel {} has {} query tiles; at most 2147418111 are counted: split the batch",
                    kernel.info.name,
                    tiles));
  const bool paged = s.kv == KvKind::paged;
  const int m = s.tile_m(), n = s.tile_n();
  const int box = paged ? std::gcd(p.pages.size, n) : n;
  const Axis q_batch{ragged_q ? 1 : p.batch, p.q.batch, 1};
  const Axis q_tokens{ragged_q ? p.total_q : p.max_q_len, p.q.token, s.packed ? m / p.group : m};
  const Axis q_heads{p.heads, p.q.head, s.packed ? p.group : 1};
  const long long k_tokens = paged ? p.pages.size : ragged_k ? p.total_k : p.max_k_len;
  const long long k_batch = paged ? p.pages.pages : ragged_k ? 1 : p.batch;
  TensorMaps maps;
  if (s.packed)
    encode(driver, maps.q, s.dtype, p.q.data, s.dqk, {q_heads, q_tokens, q_batch});
  else
    encode(driver, maps.q, s.dtype, p.q.data, s.dqk, {q_tokens, q_heads, q_batch});
  encode(driver, maps.k, s.dtype, p.k, s.dqk, k_tokens, p.kv_heads, k_batch, box);
  encode(driver, maps.v, s.dtype, p.v, s.dv, k_tokens, p.kv_heads, k_batch, box);
  if (s.out == s.dtype)
    encode(driver, maps.o, s.dtype, p.o, s.dv, q_tokens.count, p.heads, q_batch.count, 16);
  // With a tile a CTA at most, nobody asks for the next one: a call less.
  if (tiles <= multiprocessors)
    counter = nullptr;
  else
    driver.cuMemsetD32Async(reinterpret_cast<DevicePtr>(counter), 0, 1, stream);
  Schedule schedule{static_cast<int>(tiles), sm90_section(s, p), box, counter};
  if (paged) schedule.divide_by(static_cast<std::uint32_t>(p.pages.size));
  void* arguments[] = {&p, &maps, &schedule};
  start(driver, kernel, std::min<long long>(tiles, multiprocessors), arguments, stream, false);
}

void launch_backward_sm90(Driver& driver,
                          const LoadedKernel& kernel,
                          Params& p,
                          int multiprocessors,
                          StreamHandle stream,
                          bool follows) {
  const KernelSpec& s = kernel.spec;
  set_tiles(s, p);
  const bool ragged_k = s.kv == KvKind::ragged;
  const long long tiles = p.dq_tiles, tasks = grid_size(s, p);
  if (tasks <= 0) return;
  if (tasks > std::numeric_limits<int>::max() - 65536 || tiles > std::numeric_limits<int>::max())
    throw Error(
        Code::invalid_argument,
        Stage::run,
        fmt::format(
            "kernel {} has {} key tiles and {} query tiles; at most 2147418111 are counted: split "
            "the batch",
            kernel.info.name,
            tasks,
            tiles));
  const bool ragged = s.rows == RowKind::ragged;
  const long long q_tokens = ragged ? p.total_q : p.max_q_len;
  const long long k_tokens = ragged_k ? p.total_k : p.max_k_len;
  const int q_batch = ragged ? 1 : p.batch, k_batch = ragged_k ? 1 : p.batch;
  BackwardMaps maps{};  // without queries nothing is copied, and there may be no address
  if (q_tokens > 0) {
    encode(driver, maps.q, s.dtype, p.q, s.dqk, q_tokens, p.heads, q_batch, s.tile_m());
    MatrixRef dout = p.dout;
    if (p.rounded_dout) dout = {p.rounded_dout, p.heads * q_tokens * s.dv, q_tokens * s.dv, s.dv};
    encode(driver, maps.dout, s.dtype, dout, s.dv, q_tokens, p.heads, q_batch, s.tile_m());
  }
  encode(driver, maps.k, s.dtype, p.k, s.dqk, k_tokens, p.kv_heads, k_batch, s.tile_n());
  encode(driver, maps.v, s.dtype, p.v, s.dv, k_tokens, p.kv_heads, k_batch, s.tile_n());
  // Each pass has a counter of its own.
  float* counter = p.dq_sum + p.dq_floats + (s.capture == Capture::largest ? 1 : 0);
  Schedule schedule{static_cast<int>(tasks), sm90_section(s, p), 0, counter};
  void* arguments[] = {&p, &maps, &schedule};
  const int ctas = sm90_tile(s).ctas;
  start(driver,
        kernel,
        std::min<long long>(tasks, multiprocessors / ctas) * ctas,
        arguments,
        stream,
        follows);
}

}  // namespace undivided::cuda
