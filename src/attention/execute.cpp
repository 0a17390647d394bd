// SPDX-License-Identifier: Apache-2.0
// The warm path: spec -> plan -> workspace -> run.
#include "attention/execute.hpp"

#include <bit>

#include "mask/plan.hpp"
#include "problem/sequence.hpp"

namespace undivided {
namespace {

std::vector<Sequence> sequences_of(const Problem& p) {
  std::vector<Sequence> out;
  for (std::int64_t b = 0; b < p.bounds.batch; ++b) out.push_back(sequence(p.spec, p.args, b));
  return out;
}

bool here(const View& v) { return !v || v.device.kind == Device::Kind::cpu; }

}  // namespace

Bounds rounded(const Bounds& bounds) {
  const auto up = [](std::int64_t n) {
    return n <= 1 ? n : static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n)));
  };
  return {up(bounds.batch),
          up(bounds.kv_heads),
          up(bounds.total_q),
          up(bounds.total_k),
          up(bounds.max_q_len),
          up(bounds.max_k_len),
          up(bounds.pages),
          up(bounds.captured)};
}

std::shared_ptr<const MaskPlan> new_plan_of_mask(const Problem& p, const Context& context) {
  Executor& executor = context.executor ? *context.executor : default_executor();
  std::shared_ptr<MaskPlan> made =
      make_mask_plan(*p.args.mask, query_heads(p.args), sequences_of(p), executor, p.spec.inside);
  upload_plan(*made, p.device, context);
  return made;
}

std::shared_ptr<const MaskPlan> plan_of_mask(const Problem& p, const Context& context) {
  std::vector<std::int64_t> key{query_heads(p.args), static_cast<std::int64_t>(p.spec.inside)};
  for (const Sequence& s : sequences_of(p))
    key.insert(key.end(), {s.q_len, s.k_len, s.q_origin, s.k_origin});
  return library_of(context).mask_plan(
      *p.args.mask, key, p.device, [&] { return new_plan_of_mask(p, context); });
}

bool makes_mask_plan(const Problem& p, const Context& context) {
  const Args& args = p.args;
  for (const View* v : {&args.q.offsets,
                        &args.q.lengths,
                        &args.kv.offsets,
                        &args.kv.lengths,
                        &args.q_origin,
                        &args.k_origin})
    if (!here(*v)) return false;
  return !args.mask->band.is_band && !args.mask->on_device &&
         p.bounds.max_q_len > MaskPlan::block && p.bounds.batch > 0 &&
         context.backend != Backend::reference;
}

void add_mask_plan(Problem& problem, const Context& context) {
  if (!makes_mask_plan(problem, context)) return;
  problem.args.mask_plan = plan_of_mask(problem, context);
  problem.spec.mask_plan = true;
}

void execute(Problem& problem, const Context& context) {
  add_mask_plan(problem, context);
  std::vector<Tensor> keep;
  if (problem.device.kind != Device::Kind::cpu) move_to_device(problem, context, keep);
  const Plan p = plan(problem.spec, rounded(problem.bounds), problem.device, context);
  const Library::Workspace workspace(library_of(context), p.workspace(), problem.device, context);
  p.run(problem.args, workspace.data(), context);
}

}  // namespace undivided
