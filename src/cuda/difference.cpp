// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of kernels/difference.cuh.
#include "cuda/difference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/difference_params.hpp"
#include "cuda/launch.hpp"
#include "cuda/memory.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr int blocks_per_multiprocessor = 2;  // enough loads in flight for the memory of an H100

bool aligned(const View& v) {
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  bool good = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int axis = 0; axis + 1 < v.rank; ++axis) good &= v.step(axis) * bytes % 16 == 0;
  return good;
}

RowsRef rows(const View& v, DifferenceParams& p) {
  if (!v) return {};
  p.aligned &= aligned(v);
  return {matrix(v, false), element_type(v.dtype)};
}

DifferenceParams params_of(const Difference& d) {
  const View& a = d.a;
  if (a.size(3) > widest_difference || a.size(3) % 8 != 0 || a.size(3) < 8)
    throw Error(Code::unsupported,
                Stage::plan,
                fmt::format("the epilogue of differential attention has head dim {} on CUDA; "
                            "multiples of 8 from 8 to {} are allowed",
                            a.size(3),
                            widest_difference));
  if (a.size(2) > std::numeric_limits<int>::max() || a.size(1) > std::numeric_limits<int>::max())
    throw Error(Code::unsupported,
                Stage::plan,
                fmt::format("{} is too large for one launch; lengths below 2^31 are allowed",
                            a.describe()));
  DifferenceParams p{};
  p.rows = a.size(0) * a.size(1) * a.size(2);
  p.heads = static_cast<int>(a.size(1));
  p.tokens = static_cast<int>(a.size(2));
  p.dim = static_cast<int>(a.size(3));
  p.aligned = 1;
  p.a = rows(a, p);
  p.b = rows(d.b, p);
  p.lambda = static_cast<float>(d.lambda);
  p.logits = scalars(d.logits, false);
  p.norm = d.norm;
  p.gain = static_cast<float>(d.gain);
  p.eps = static_cast<float>(d.eps);
  p.weight = static_cast<const float*>(d.weight.data);
  p.offsets = indices(d.offsets);
  p.sequences = d.offsets ? static_cast<int>(d.offsets.size(0) - 1) : 0;
  return p;
}

long long blocks_of(const DifferenceParams& p) {
  const int in_one = difference_threads / row_lanes(p.dim);
  return (p.rows + in_one - 1) / in_one;
}

void start(
    KernelKind kind, long long blocks, DifferenceParams& p, Device device, const Context& context) {
  launch_alone(kind, blocks, &p, "the epilogue of differential attention needs", device, context);
}

}  // namespace

void difference(const Difference& d, const View& y, const Context& context) {
  DifferenceParams p = params_of(d);
  p.y = rows(y, p);
  start(KernelKind::difference, blocks_of(p), p, y.device, context);
}

std::vector<double> difference_backward(const Difference& d,
                                        const View& dy,
                                        const View& da,
                                        const View& db,
                                        const View& dlogits,
                                        const Context& context) {
  DifferenceParams p = params_of(d);
  p.dy = rows(dy, p);
  p.da = rows(da, p);
  p.db = rows(db, p);
  p.dlogits = scalars(dlogits, false);
  std::vector<double> sums(d.norm ? static_cast<std::size_t>(p.dim) + 1 : 0);
  if (p.rows == 0) return sums;
  const Device device = dy.device;
  const long long blocks = std::min<long long>(
      blocks_of(p), blocks_per_multiprocessor * driver().device(device.index).multiprocessors);
  Tensor parts;
  if (d.norm) {
    parts = empty(DType::f32, {blocks, p.dim + 1}, device, context);
    p.sums = static_cast<float*>(parts.data);
  }
  start(KernelKind::difference_backward, blocks, p, device, context);
  if (!d.norm) return sums;
  const Tensor here = to_host(parts, context);
  const float* at = here.ptr<float>();
  for (long long i = 0; i < blocks; ++i)
    for (double& sum : sums) sum += *at++;
  return sums;
}

}  // namespace undivided::cuda
