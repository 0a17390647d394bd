// SPDX-License-Identifier: Apache-2.0
// Fills kernel parameters from Args, and launches.
#include "cuda/launch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <limits>

#include "core/philox.hpp"
#include "problem/sequence.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

static_assert(sizeof(PlanEntry) == sizeof(MaskPlan::Entry));
static_assert(offsetof(PlanEntry, query_runs) == offsetof(MaskPlan::Entry, query_runs));
static_assert(offsetof(PlanEntry, kept_pairs) == offsetof(MaskPlan::Entry, kept_pairs));
static_assert(sizeof(PlanRun) == sizeof(MaskPlan::Run));
static_assert(sizeof(MaskPlan::Tile) == 64 * sizeof(unsigned long long));

constexpr long long unbounded = 1LL << 40;

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(Code::invalid_argument, Stage::run, fmt::format(format, std::forward<T>(args)...));
}

int to_int(std::int64_t x) {
  constexpr std::int64_t low = std::numeric_limits<int>::min();
  constexpr std::int64_t high = std::numeric_limits<int>::max();
  return static_cast<int>(std::clamp(x, low, high));
}

void on_device(const char* what, const View& view) {
  if (view && view.device.kind != Device::Kind::cuda)
    refuse("{} is on the host; on CUDA it is device memory, which run() never reads", what);
}

// A kernel for aligned data would fault on other data, and a fault costs the process its device.
void check_aligned(const char* what, const View& v) {
  if (!v) return;
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  bool good = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int axis = 0; axis + 1 < v.rank; ++axis)
    if (v.size(axis) > 1) good = good && v.step(axis) * bytes % 16 == 0;
  if (!good)
    refuse(
        "{} ({}) has a base or stride that is not a multiple of 16 bytes, and this plan is for "
        "aligned data: plan with aligned = false, or resolve() the call with this view",
        what,
        v.describe());
}

int parts(std::int64_t count, int size) { return to_int((count + size - 1) / size); }

void fill_program(const char* what, const BoundProgram* bound, ProgramRef& out) {
  if (!bound) return;
  const expr::Program& program = *bound->program;
  for (std::size_t i = 0; i < bound->bound.arrays.size(); ++i) {
    const expr::Bound::ArrayRef& from = bound->bound.arrays[i];
    if (!bound->on_device)
      refuse("array {} of the {} is on the host; on CUDA captured arrays are device memory",
             program.slots[i].name,
             what);
    ArrayRef& to = out.arrays[i];
    to.data = const_cast<void*>(from.data);
    for (std::size_t axis = 0; axis < 4; ++axis) {
      to.stride[axis] = from.stride[axis];
      to.shape[axis] = to_int(from.shape[axis]);
    }
    to.low = to_int(from.low);
    to.high = to_int(from.high);
  }
  for (std::size_t i = 0; i < program.params.size(); ++i) {
    const double value = bound->bound.params[i];
    if (program.params[i].type == expr::Type::f32)
      out.values[i].f = static_cast<float>(value);
    else
      out.values[i].i = static_cast<int>(value);
  }
}

}  // namespace

int element_type(DType dtype) {
  return dtype == DType::f16 ? element_f16 : dtype == DType::bf16 ? element_bf16 : element_f32;
}

void set_tiles(const KernelSpec& spec, Params& p) {
  const bool sm90 = spec.family == Family::sm90;
  const int m = spec.tile_m(), n = spec.tile_n() * (sm90 ? sm90_tile(spec).ctas : 1);
  if (m > 0) {
    const int tokens = spec.packed && sm90 ? m / p.group : m;  // whole ones
    if (sm90 && spec.rows == RowKind::ragged)
      p.q_tiles = static_cast<int>(p.total_q / tokens) + p.batch;
    else if (sm90)
      p.q_tiles = parts(p.max_q_len, tokens);
    else
      p.q_tiles = parts(std::int64_t{p.max_q_len} * (spec.packed ? p.group : 1), m);
  }
  if (n > 0) {
    const bool all_keys = spec.kind == KernelKind::key_mass;
    p.k_tiles = parts(all_keys ? std::max(p.max_k_len, p.key_extent) : p.max_k_len, n);
    if (sm90 && spec.kv == KvKind::ragged) p.k_tiles = static_cast<int>(p.total_k / n) + p.batch;
  }
}

MatrixRef matrix(const View& v, bool packed_rows) {
  if (!v) return {};
  if (packed_rows) return {v.data, 0, v.stride[1], v.stride[0]};
  return {v.data, v.stride[0], v.stride[1], v.stride[2]};
}

ScalarRef scalars(const View& v, bool packed_rows) {
  if (!v) return {};
  auto* data = static_cast<float*>(v.data);
  if (packed_rows) return {data, 0, v.stride[0], v.stride[1]};
  return {data, v.stride[0], v.stride[1], v.stride[2]};
}

IndexRef indices(const View& v) {
  if (!v) return {};
  return {v.data, v.stride[0], v.dtype == DType::i64};
}

void fill_problem(const Spec& spec, const Bounds& bounds, const Args& a, Params& p) {
  for_each_index(a, [](const char* what, const View& v) { on_device(what, v); });
  for (const auto& [what, view] :
       {std::pair{"sink", &a.sink}, std::pair{"seed_view", &a.seed_view}})
    on_device(what, *view);
  if (spec.aligned)
    for (const auto& [what, view] : {std::pair{"Q", &a.q.data},
                                     std::pair{"K", &a.kv.k},
                                     std::pair{"V", &a.kv.v},
                                     std::pair{"O", &a.o},
                                     std::pair{"dO", &a.dout.data},
                                     std::pair{"dQ", &a.dq},
                                     std::pair{"dK", &a.dk},
                                     std::pair{"dV", &a.dv}})
      check_aligned(what, *view);
  const bool ragged_q = spec.rows == RowKind::ragged, ragged_k = spec.kv == KvKind::ragged;
  const View &q = a.q.data, &k = a.kv.k;
  p.batch = to_int(ragged_q ? a.q.offsets.size(0) - 1 : q.size(0));
  p.heads = to_int(q.size(1));
  p.kv_heads = to_int(k.size(1));
  p.group = spec.group;

  const auto bound = [](std::int64_t shape, std::int64_t promised, std::int64_t planned) {
    if (promised > 0) shape = std::min(shape, promised);
    return to_int(std::min(shape, planned));
  };
  if (ragged_q) {
    p.total_q = q.size(0);
    p.max_q_len = bound(p.total_q, a.q.max_length, bounds.max_q_len);
  } else {
    p.max_q_len = to_int(q.size(2));
  }
  switch (spec.kv) {
    case KvKind::dense:
      p.max_k_len = to_int(k.size(2));
      break;
    case KvKind::ragged:
      p.total_k = k.size(0);
      p.max_k_len = bound(p.total_k, a.kv.max_length, bounds.max_k_len);
      break;
    case KvKind::paged:
      p.pages = page_map(a.kv);
      p.max_k_len =
          bound(std::int64_t{p.pages.slots} * p.pages.size, a.kv.max_length, bounds.max_k_len);
      break;
  }
  p.q_offsets = indices(a.q.offsets);
  p.k_offsets = indices(a.kv.offsets);
  if (spec.q_lengths) p.q_lengths = indices(a.q.lengths);
  if (spec.k_lengths || spec.kv == KvKind::paged) p.k_lengths = indices(a.kv.lengths);
  if (spec.origin == Origin::end) p.origin = origin_end;
  if (spec.origin == Origin::given) {
    p.origin = origin_given;
    p.q_origin = indices(a.q_origin);
    p.k_origin = indices(a.k_origin);
  }

  p.q = matrix(q, ragged_q);
  p.k = matrix(k, ragged_k);
  p.v = matrix(a.kv.v, ragged_k);
  p.o = matrix(a.o, ragged_q);
  p.lse = scalars(a.lse, ragged_q);
  p.scale = static_cast<float>(a.scale);
  if (spec.sink && !spec.partial) p.sink = static_cast<const float*>(a.sink.data);
  if (spec.max_logit && a.max_logit) {
    p.max_logit = static_cast<float*>(a.max_logit.data);
    p.max_logit_batch = a.max_logit.stride[0];
    p.max_logit_head = a.max_logit.stride[1];
  }
  if (spec.key_mass && a.key_mass) {
    p.key_mass = scalars(a.key_mass, ragged_k);
    p.key_extent = ragged_k ? 0 : to_int(a.key_mass.size(2));
  }

  p.band_left = p.band_right = unbounded;
  if (a.mask) {
    const expr::Band& band = a.mask->band;
    if (band.is_band && band.has_left)
      p.band_left = std::clamp<long long>(band.left, -unbounded, unbounded);
    if (band.is_band && band.has_right)
      p.band_right = std::clamp<long long>(band.right, -unbounded, unbounded);
    if (spec.mask_plan ? spec.inside == Inside::program : !band.is_band)
      fill_program("mask", a.mask.get(), p.mask);
  }
  p.reach = static_cast<int>(
      std::clamp<long long>(p.band_left + p.band_right + 1, 1, std::max(1, p.max_k_len)));
  fill_program("score", a.score.get(), p.score);

  if (spec.dropout) {
    p.dropout_threshold = philox::dropout_threshold(a.dropout);
    p.keep_scale = static_cast<float>(1.0 / (1.0 - a.dropout));
    p.seed = a.seed;
    if (a.seed_view) p.seed_pointer = static_cast<const unsigned long long*>(a.seed_view.data);
  }
  p.splits = 1;
  p.split_keys = to_int(std::max<std::int64_t>(64, (std::int64_t{p.max_k_len} + 63) / 64 * 64));
}

void fill_backward(const Spec& spec, const Args& a, Params& p) {
  const bool ragged_q = spec.rows == RowKind::ragged, ragged_k = spec.kv == KvKind::ragged;
  p.dout = matrix(a.dout.data, ragged_q);
  p.o_type = element_type(a.o.dtype);
  p.dout_type = element_type(a.dout.data.dtype);
  if (spec.dlse) p.dlse = scalars(a.dlse, ragged_q);
  if (spec.want_dq) p.dq = matrix(a.dq, ragged_q);
  if (spec.want_dk) p.dk = matrix(a.dk, ragged_k);
  if (spec.want_dv) p.dv = matrix(a.dv, ragged_k);
  if (spec.sink && a.dsink) p.dsink = static_cast<float*>(a.dsink.data);
  if (!spec.captured) return;
  for (std::size_t i = 0; i < a.d_arrays.size(); ++i) {
    const View& view = a.d_arrays[i];
    if (!view) continue;
    on_device("the gradient of a captured array", view);
    ArrayRef& to = p.d_arrays[i];
    to.data = view.data;
    for (int axis = 0; axis < view.rank; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      to.stride[at] = view.stride[at];
      to.shape[at] = to_int(view.shape[at]);
    }
  }
  if (a.d_params) p.d_params = static_cast<float*>(a.d_params.data);
}

void fill_sums(const Spec& spec, long long* sums, Params& p) {
  for (ArrayRef& to : p.d_arrays) {
    if (!to.data) continue;
    ArrayRef& from = p.d_sums[&to - p.d_arrays];
    from = to;
    from.data = sums + p.sums;
    long long count = 1;
    for (int axis = 3; axis >= 0; --axis) {
      from.shape[axis] = std::max(to.shape[axis], 1);
      from.stride[axis] = count;
      count *= from.shape[axis];
    }
    p.sums += count;
  }
  if (!p.d_params) return;
  p.d_param_sums = sums + p.sums;
  p.sums += std::ssize(spec.score->params);
}

void fill_merge(const Spec& spec, const Args& a, Params& p) {
  const bool ragged = spec.rows == RowKind::ragged;
  p.heads = p.kv_heads = to_int(a.a_o.size(1));
  p.group = 1;
  if (ragged) {
    p.batch = 1;
    p.total_q = a.a_o.size(0);
    p.max_q_len = to_int(p.total_q);
  } else {
    p.batch = to_int(a.a_o.size(0));
    p.max_q_len = to_int(a.a_o.size(2));
  }
  p.a_o = matrix(a.a_o, ragged);
  p.a_lse = scalars(a.a_lse, ragged);
  p.b_o = matrix(a.b_o, ragged);
  p.b_lse = scalars(a.b_lse, ragged);
  p.o = matrix(a.o, ragged);
  p.lse = scalars(a.lse, ragged);
  if (spec.sink) p.sink = static_cast<const float*>(a.sink.data);
}

void fill_mask_plan(const Args& a, Params& p) {
  if (!a.mask_plan || !a.mask_plan->device.entries)
    refuse("the mask plan has no copy on the device: make it with mask_plan() for data on CUDA");
  const MaskPlan& plan = *a.mask_plan;
  if (plan.batch < p.batch || plan.heads != p.heads)
    refuse("the mask plan is for batch {} and {} heads; the problem has batch {} and {} heads",
           plan.batch,
           plan.heads,
           p.batch,
           p.heads);
  const MaskPlan::DeviceCopy& d = plan.device;
  if (d.reach > 0) p.reach = to_int(std::min<std::int64_t>(d.reach, p.reach));
  p.plan.entries = reinterpret_cast<const PlanEntry*>(d.entries);
  p.plan.entry_of = d.entry_of;
  p.plan.run_offsets = d.run_offsets;
  p.plan.runs = reinterpret_cast<const PlanRun*>(d.runs);
  p.plan.tile_ids = d.tile_ids;
  p.plan.tiles = reinterpret_cast<const unsigned long long(*)[64]>(d.tiles_by_query);
}

void start(Driver& driver,
           const LoadedKernel& kernel,
           long long blocks,
           void** arguments,
           StreamHandle stream,
           bool follows) {
  if (blocks <= 0) return;
  if (blocks > std::numeric_limits<int>::max())
    refuse("kernel {} needs {} thread blocks; a launch has at most 2147483647: split the batch",
           kernel.info.name,
           blocks);
  constexpr int oldest_that_captures = 12030;
  if (follows && kernel.info.arch >= 90 && driver.version() >= oldest_that_captures &&
      driver.cuLaunchKernelEx.found()) {
    LaunchAttribute overlap{LaunchAttribute::stream_order_by_program, 0, {1}};
    const LaunchConfig config{{static_cast<unsigned>(blocks), 1, 1},
                              {kernel.threads, 1, 1},
                              kernel.shared_memory,
                              stream,
                              &overlap,
                              1};
    return driver.cuLaunchKernelEx(&config, kernel.function, arguments, nullptr);
  }
  driver.cuLaunchKernel(kernel.function,
                        static_cast<unsigned>(blocks),
                        1,
                        1,
                        kernel.threads,
                        1,
                        1,
                        kernel.shared_memory,
                        stream,
                        arguments,
                        nullptr);
}

void launch(
    Driver& driver, const LoadedKernel& kernel, Params& p, StreamHandle stream, bool follows) {
  set_tiles(kernel.spec, p);
  void* arguments[] = {&p};
  start(driver, kernel, grid_size(kernel.spec, p), arguments, stream, follows);
}

void zero(Driver& driver, const View& view, StreamHandle stream) {
  if (!view || view.count() == 0) return;
  const std::size_t element = size_of(view.dtype);
  // Merge inner axes while they are dense; the outer ones are walked.
  int axis = view.rank;
  std::int64_t run = 1;
  while (axis > 0) {
    const auto at = static_cast<std::size_t>(axis - 1);
    if (view.shape[at] != 1 && view.stride[at] != run) break;
    run *= view.shape[at];
    --axis;
  }
  std::int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= view.shape[static_cast<std::size_t>(i)];
  for (std::int64_t n = 0; n < outer; ++n) {
    std::int64_t offset = 0, rest = n;
    for (int i = axis - 1; i >= 0; --i) {
      const auto at = static_cast<std::size_t>(i);
      offset += rest % view.shape[at] * view.stride[at];
      rest /= view.shape[at];
    }
    const auto address =
        reinterpret_cast<DevicePtr>(view.data) + static_cast<DevicePtr>(offset) * element;
    driver.cuMemsetD8Async(address, 0, static_cast<std::size_t>(run) * element, stream);
  }
}

}  // namespace undivided::cuda
