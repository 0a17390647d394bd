// SPDX-License-Identifier: Apache-2.0
// From C structs to the C++ types, checking struct sizes and enumerators.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <string>

#include "attention/merge.hpp"
#include "expr/program.hpp"
#include "problem/bound.hpp"
#include "undivided/c.h"
#include "undivided/undivided.hpp"

namespace undivided::c {

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(
      Code::invalid_argument, Stage::resolve, fmt::format(format, std::forward<T>(args)...));
}

View view(const char* name, const undivided_view* v);  ///< null: not given
Rows rows(const char* name, const undivided_rows* r);
Kv kv(const undivided_kv* k);
Outputs outputs(const undivided_outputs* o);
/// O and LSE of outputs; both are needed.
PartialView partial(const char* name, const undivided_outputs* o, bool ragged);
/// Verbs make their own mask plans: one that is given is not ignored.
void refuse_mask_plan(const undivided_options* o);

/// Options and Context of one call, with what they borrow from.
struct Call {
  explicit Call(const undivided_options* o);
  Options options;
  Context context;
  std::shared_ptr<Executor> executor;
};

Bounds rounded_bounds(const Bounds& bounds);

/// What may change between runs of a plan.
void refresh(Args& args, Context& context, const undivided_options& o);

/// Shapes and types of outputs against Q and K: a kernel trusts them.
void check_outputs(const Spec& spec, const Args& args);

void backward(const undivided_gradients* out,
              const Rows& dout,
              const Rows& q,
              const Kv& kv,
              const View& o,
              const View& lse,
              const Call& call);

}  // namespace undivided::c
