// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of kernels/row_lists.cuh.
#include "cuda/row_lists.hpp"

#include <bit>
#include <limits>

#include "cuda/backend.hpp"
#include "cuda/list_params.hpp"
#include "cuda/memory.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

void start(
    KernelKind kind, long long blocks, ListParams& p, Device device, const Context& context) {
  launch_alone(kind, blocks, &p, "lists of rows need", device, context);
}

struct SideLists {
  Tensor rows, spare, places, counts;
};

RowSide side_of(const View& flags, SideLists& lists, const Context& context) {
  const std::int64_t batch = flags.size(0), heads = flags.size(1), n = flags.size(2);
  for (Tensor* t : {&lists.rows, &lists.spare, &lists.places})
    *t = empty(DType::i32, {batch, heads, n}, flags.device, context);
  lists.counts = empty(DType::i32, {batch, heads}, flags.device, context);
  const auto ints = [](const Tensor& t) { return static_cast<int*>(t.data); };
  return {flags.data,
          flags.step(0),
          flags.step(1),
          flags.step(2),
          flags.dtype == DType::boolean,
          static_cast<int>(heads),
          static_cast<int>(n),
          ints(lists.rows),
          ints(lists.spare),
          ints(lists.places),
          ints(lists.counts)};
}

/// Memory for a plan of which every row of blocks has at most three runs.
std::shared_ptr<MaskPlan> plan_of(ListParams& p, Device device, const Context& context) {
  auto plan = std::make_shared<MaskPlan>();
  plan->inside = Inside::program;
  plan->batch = std::int64_t{p.batch} * p.k.heads;
  plan->heads = p.group;
  const std::int64_t all = plan->batch * plan->heads,
                     rows = (p.q.tokens + 63) / 64 + (p.k.tokens + 63) / 64;
  if (all * 3 * rows > std::numeric_limits<std::int32_t>::max())
    throw Error(Code::invalid_argument,
                Stage::run,
                "the mask plan of these rows has more than 2^31 runs: split the batch");
  std::int64_t bytes = 0;
  const auto part = [&](std::int64_t count, std::size_t size) {
    const std::int64_t at = bytes;
    bytes += (count * static_cast<std::int64_t>(size) + 255) / 256 * 256;
    return at;
  };
  const std::int64_t entries = part(all, sizeof(PlanEntry)), entry_of = part(all, sizeof(int)),
                     offsets = part(all * (rows + 2), sizeof(int)),
                     runs = part(all * 3 * rows, sizeof(PlanRun));
  const Tensor memory = empty(DType::i8, {bytes}, device, context);
  auto* base = static_cast<std::byte*>(memory.data);
  p.entries = reinterpret_cast<PlanEntry*>(base + entries);
  p.entry_of = reinterpret_cast<int*>(base + entry_of);
  p.run_offsets = reinterpret_cast<int*>(base + offsets);
  p.runs = reinterpret_cast<PlanRun*>(base + runs);
  MaskPlan::DeviceCopy& d = plan->device;
  d.entries = reinterpret_cast<const MaskPlan::Entry*>(p.entries);
  d.entry_of = p.entry_of;
  d.run_offsets = p.run_offsets;
  d.runs = reinterpret_cast<const MaskPlan::Run*>(p.runs);
  d.owner = memory.owner;
  return plan;
}

}  // namespace

RowLists list_rows(const RowRule& rule, const Context& context) {
  const Device device = rule.q.device;
  SideLists q, k;
  ListParams p{};
  p.q = side_of(rule.q, q, context);
  p.k = side_of(rule.k, k, context);
  p.batch = static_cast<int>(rule.q.size(0));
  p.group = p.q.heads / p.k.heads;
  p.buckets = rule.buckets;
  p.order = rule.order;
  p.origin = static_cast<int>(rule.origin);
  RowLists out;
  for (Tensor* t : {&out.first, &out.end})
    *t = empty(
        DType::i32, {std::int64_t{p.batch} * p.k.heads, p.group, p.k.tokens}, device, context);
  p.first = static_cast<int*>(out.first.data);
  p.end = static_cast<int*>(out.end.data);
  out.plan = plan_of(p, device, context);
  const long long queries = static_cast<long long>(p.batch) * p.q.heads;
  start(KernelKind::sort_rows,
        queries + static_cast<long long>(p.batch) * p.k.heads,
        p,
        device,
        context);
  start(KernelKind::meet_rows, queries * ((p.k.tokens + 255) / 256), p, device, context);
  start(KernelKind::plan_rows, queries, p, device, context);
  out.q_rows = std::move(q.rows);
  out.k_rows = std::move(k.rows);
  out.q_places = std::move(q.places);
  out.k_places = std::move(k.places);
  return out;
}

void take_rows(
    const View& to, const View& from, const View& index, float empty, const Context& context) {
  const auto element = static_cast<std::int64_t>(size_of(from.dtype));
  const std::int64_t from_bytes = from.size(3) * element, to_bytes = to.size(3) * element;
  // The widest unit that all rows begin and end at.
  std::uint64_t together = reinterpret_cast<std::uintptr_t>(from.data) |
                           reinterpret_cast<std::uintptr_t>(to.data) |
                           static_cast<std::uint64_t>(from_bytes | to_bytes | 16);
  for (int axis = 0; axis < 3; ++axis)
    if (from.size(axis) > 1) together |= static_cast<std::uint64_t>(from.step(axis) * element);
  const std::int64_t unit = std::int64_t{1} << std::countr_zero(together);
  ListParams p{};
  TakeRef& t = p.take;
  t.from = from.data;
  t.batch = from.step(0) * element / unit;
  t.head = from.step(1) * element / unit;
  t.token = from.step(2) * element / unit;
  t.to = to.data;
  t.index = static_cast<const int*>(index.data);
  t.rows = to.size(0) * to.size(1);
  t.heads = static_cast<int>(to.size(1));
  t.count = static_cast<int>(to.size(2));
  t.unit = static_cast<int>(unit);
  t.from_units = static_cast<int>(from_bytes / unit);
  t.to_units = static_cast<int>(to_bytes / unit);
  const int lanes =
      std::min(32, static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(1, t.to_units)))));
  t.lanes_log2 = std::countr_zero(static_cast<unsigned>(lanes));
  t.empty = std::bit_cast<std::uint32_t>(empty);
  start(KernelKind::take_rows, (t.rows * t.count * lanes + 255) / 256, p, to.device, context);
}

}  // namespace undivided::cuda
