// SPDX-License-Identifier: Apache-2.0
// The C door over the verbs and plans: translates structs, catches everything, keeps the message.
#include "undivided/c.h"

#include <fmt/format.h>

#include <cstring>
#include <new>

#include "c/translate.hpp"

using namespace undivided;

struct undivided_plan {
  Problem problem;  // spec, and Args with the programs, scale and dropout
  Plan plan;
  std::shared_ptr<Executor> executor;
  Context context;
  std::string text;
};
struct undivided_mask_plan {
  std::shared_ptr<const MaskPlan> blocks;
};

namespace {

thread_local std::string last_error;

template <class F>
undivided_status guarded(F&& body) noexcept {
  try {
    body();
    return UNDIVIDED_OK;
  } catch (const Error& e) {
    try {
      last_error = fmt::format("{}: {}", undivided::name_of(e.stage()), e.what());
    } catch (...) {
    }
    switch (e.code()) {
      case Code::invalid_argument:
        return UNDIVIDED_INVALID_ARGUMENT;
      case Code::unsupported:
        return UNDIVIDED_UNSUPPORTED;
      case Code::out_of_memory:
        return UNDIVIDED_OUT_OF_MEMORY;
      case Code::io:
        return UNDIVIDED_IO;
      case Code::driver:
        return UNDIVIDED_DRIVER;
    }
    return UNDIVIDED_INTERNAL;
  } catch (const std::bad_alloc&) {
    last_error.clear();
    return UNDIVIDED_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    try {
      last_error = e.what();
    } catch (...) {
    }
    return UNDIVIDED_INTERNAL;
  } catch (...) {
    return UNDIVIDED_INTERNAL;
  }
}

/// Dense data is 4-D inside.
View with_batch(View v, int rank, bool dense_rows) {
  return v && dense_rows && v.rank == rank - 1 ? v.unsqueezed(0) : v;
}

}  // namespace

const char* undivided_last_error(void) { return last_error.c_str(); }
const char* undivided_version(void) { return UNDIVIDED_VERSION; }

undivided_status undivided_attention(const undivided_outputs* out,
                                     const undivided_rows* q,
                                     const undivided_kv* kv,
                                     const undivided_options* options) {
  return guarded([&] {
    const c::Call call(options);
    c::refuse_mask_plan(options);
    const Outputs outputs = c::outputs(out);
    if (call.options.max_logit && !outputs.max_logit)
      c::refuse("options.max_logit is set; outputs.max_logit must say where it goes");
    if (call.options.key_mass && !outputs.key_mass)
      c::refuse("options.key_mass is set; outputs.key_mass must say where it goes");
    attention_into(outputs, c::rows("q", q), c::kv(kv), call.options, call.context);
  });
}

undivided_status undivided_attention_backward(const undivided_gradients* out,
                                              const undivided_rows* dout,
                                              const undivided_rows* q,
                                              const undivided_kv* kv,
                                              const undivided_view* o,
                                              const undivided_view* lse,
                                              const undivided_options* options) {
  return guarded([&] {
    const c::Call call(options);
    c::refuse_mask_plan(options);
    c::backward(out,
                c::rows("dout", dout),
                c::rows("q", q),
                c::kv(kv),
                c::view("o", o),
                c::view("lse", lse),
                call);
  });
}

undivided_status undivided_merge(const undivided_outputs* out,
                                 const undivided_outputs* a,
                                 const undivided_outputs* b,
                                 std::int32_t ragged,
                                 const undivided_options* options) {
  return guarded([&] {
    const c::Call call(options);
    c::refuse_mask_plan(options);
    if (call.options.sink) c::refuse("a merge takes no sink: undivided_finish adds it, once");
    const PartialView second = c::partial("b", b, ragged != 0);
    combine(c::partial("the result", out, ragged != 0),
            c::partial("a", a, ragged != 0),
            &second,
            {},
            call.context);
  });
}

undivided_status undivided_finish(const undivided_outputs* out,
                                  const undivided_outputs* partial,
                                  std::int32_t ragged,
                                  const undivided_options* options) {
  return guarded([&] {
    const c::Call call(options);
    c::refuse_mask_plan(options);
    combine(c::partial("the result", out, ragged != 0),
            c::partial("partial", partial, ragged != 0),
            nullptr,
            call.options.sink,
            call.context);
  });
}

undivided_status undivided_mask_plan_create(undivided_mask_plan** result,
                                            const undivided_rows* q,
                                            const undivided_kv* kv,
                                            const undivided_options* options) {
  return guarded([&] {
    if (!result) c::refuse("mask plan is null; a place for the new plan is expected");
    *result = nullptr;
    const c::Call call(options);
    c::refuse_mask_plan(options);
    *result =
        new undivided_mask_plan{mask_plan(c::rows("q", q), c::kv(kv), call.options, call.context)};
  });
}

undivided_status undivided_mask_plan_summary(const undivided_mask_plan* plan,
                                             undivided_mask_summary* summary) {
  return guarded([&] {
    if (!plan) c::refuse("mask plan is null");
    if (!summary || summary->struct_size < sizeof(*summary))
      c::refuse("summary: set struct_size to sizeof, {} in this version", sizeof(*summary));
    undivided_mask_summary sum{};
    sum.struct_size = summary->struct_size;
    sum.block = MaskPlan::block;
    for (const std::int32_t i : plan->blocks->entry_of) {
      const MaskPlan::Entry& e = plan->blocks->entries[static_cast<std::size_t>(i)];
      sum.empty += e.empty;
      sum.partial += e.partial;
      sum.full += e.full;
      sum.kept_pairs += e.kept_pairs;
      sum.rows_without_key += e.rows_without_key;
    }
    *summary = sum;
  });
}

void undivided_mask_plan_free(undivided_mask_plan* plan) { delete plan; }

undivided_status undivided_plan_create(undivided_plan** result,
                                       const undivided_rows* q,
                                       const undivided_kv* kv,
                                       const undivided_options* options) {
  return guarded([&] {
    if (!result) c::refuse("plan is null; a place for the new plan is expected");
    *result = nullptr;
    const c::Call call(options);
    Problem p = resolve(c::rows("q", q), c::kv(kv), call.options);
    if (options && options->mask_plan) {
      p.args.mask_plan = options->mask_plan->blocks;
      p.spec.mask_plan = true;
    }
    const bool arrays = !p.spec.mask->slots.empty() || !p.spec.score->slots.empty();
    if (p.device.kind == Device::Kind::cuda && arrays &&
        !(p.args.mask->on_device || p.args.score->on_device))
      c::refuse("the arrays are on the host and Q is on {}; a plan reads arrays on its device",
                to_string(p.device));
    Plan made =
        plan(p.spec, arrays ? p.bounds : c::rounded_bounds(p.bounds), p.device, call.context);
    std::string text = made.explain();
    *result = new undivided_plan{
        std::move(p), std::move(made), call.executor, call.context, std::move(text)};
  });
}

size_t undivided_plan_workspace(const undivided_plan* plan) {
  return plan ? plan->plan.workspace() : 0;
}
const char* undivided_plan_explain(const undivided_plan* plan) {
  return plan ? plan->text.c_str() : "";
}
const char* undivided_plan_kernel(const undivided_plan* plan) {
  return plan ? plan->plan.explanation().kernel.c_str() : "";
}
const char* undivided_plan_backend(const undivided_plan* plan) {
  return plan ? plan->plan.explanation().backend.c_str() : "";
}

undivided_status undivided_plan_run(const undivided_plan* plan,
                                    const undivided_outputs* out,
                                    const undivided_rows* q,
                                    const undivided_kv* kv,
                                    const undivided_options* options,
                                    void* workspace) {
  return guarded([&] {
    if (!plan) c::refuse("plan is null");
    const Spec& spec = plan->plan.spec();
    const bool dense_rows = spec.rows == RowKind::dense;
    Args args = plan->problem.args;
    args.q = c::rows("q", q);
    args.q.data = with_batch(args.q.data, 4, dense_rows);
    args.kv = c::kv(kv);
    args.kv.k = with_batch(args.kv.k, 4, spec.kv == KvKind::dense);
    args.kv.v = with_batch(args.kv.v, 4, spec.kv == KvKind::dense);
    const Outputs outputs = c::outputs(out);
    args.o = with_batch(outputs.o, 4, dense_rows);
    args.lse = with_batch(outputs.lse, 3, dense_rows);
    args.max_logit = outputs.max_logit;
    args.key_mass = outputs.key_mass;
    c::check_outputs(spec, args);
    Context context = plan->context;
    if (options) c::refresh(args, context, *options);
    if (options && options->mask_plan) {
      if (!spec.mask_plan) c::refuse("a mask plan is given, and this plan was made without one");
      args.mask_plan = options->mask_plan->blocks;
    }
    plan->plan.run(args, workspace, context);
  });
}

void undivided_plan_free(undivided_plan* plan) { delete plan; }
