// SPDX-License-Identifier: Apache-2.0
// What the verbs share: fresh outputs, mask plans, device copies, one warm path from Problem to
// run.
#pragma once

#include <fmt/format.h>

#include <array>
#include <utility>
#include <vector>

#include "plan/library.hpp"
#include "undivided/plan.hpp"

namespace undivided {

/// Error{invalid_argument, resolve} with a formatted message.
template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(
      Code::invalid_argument, Stage::resolve, fmt::format(format, std::forward<T>(args)...));
}

inline std::vector<std::int64_t> shape_of(const View& v) {
  return {v.shape.begin(), v.shape.begin() + v.rank};
}

/// A batch of one sequence as that sequence; nothing stays nothing.
inline void drop_batch(Tensor& t) {
  if (t) static_cast<View&>(t) = t.selected(0, 0);
}

inline Executor& executor_of(const Context& context) {
  return context.executor ? *context.executor : default_executor();
}

/// Rounds each bound up to a power of two, so that a growing decode stays warm.
Bounds rounded(const Bounds& bounds);

/// Would the verbs make a mask plan? It pays when a mask is not a band and there are enough queries
/// to share it; its arrays and the lengths must be on the host.
bool makes_mask_plan(const Problem& problem, const Context& context);

/// Attaches a mask plan where it pays.
void add_mask_plan(Problem& problem, const Context& context);

/// Plans (or finds the plan), takes a workspace, runs, with a mask plan where it pays.
void execute(Problem& problem, const Context& context);

/// What a verb knows of a problem beside what its caller gave: a mask plan that is already there,
/// or which rows take part.
struct Known {
  std::shared_ptr<const MaskPlan> mask_plan;
  RowLists lists;
};
/// attention() and its backward with that; without a mask plan they may make one. Gradients of Q, K
/// and V go to the views that are given.
Forward attention_with(const Known& known,
                       const Rows& q,
                       const Kv& kv,
                       const Options& options,
                       const Context& context);
Gradients attention_backward_with(const Known& known,
                                  const Rows& dout,
                                  const Rows& q,
                                  const Kv& kv,
                                  const Forward& forward,
                                  const std::array<View, 3>& into,
                                  const Context& context);

/// Copies host lengths, offsets, tables, origins and captured arrays to the device of the data. The
/// copies live as long as `keep`.
void move_to_device(Problem& problem, const Context& context, std::vector<Tensor>& keep);

/// The problem with its lengths, tables, origins and arrays readable on the host. Synchronises. The
/// copies live as long as `keep`.
Problem on_host(Problem problem, const Context& context, std::vector<Tensor>& keep);

/// Fills MaskPlan::device when the data is on a CUDA device.
void upload_plan(MaskPlan& plan, Device device, const Context& context);

/// The mask plan of a problem whose lengths and arrays can be read. Cached by contents.
std::shared_ptr<const MaskPlan> plan_of_mask(const Problem& problem, const Context& context);
/// The same for contents that no other call will have: nothing is cached.
std::shared_ptr<const MaskPlan> new_plan_of_mask(const Problem& problem, const Context& context);

}  // namespace undivided
