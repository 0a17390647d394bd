// SPDX-License-Identifier: Apache-2.0
// merge: the monoid of partial results; finish: the sink, once. (Rabe and Staats 2021, section 3.)
#include "attention/merge.hpp"

#include <fmt/format.h>

#include "attention/execute.hpp"

namespace undivided {
namespace {

PartialView view_of(const Partial& p) { return {p.o, p.lse, p.ragged}; }

bool same_shape(const View& a, const View& b) {
  bool same = a.rank == b.rank;
  for (int axis = 0; same && axis < a.rank; ++axis) same = a.size(axis) == b.size(axis);
  return same;
}

void check(const PartialView& p, const char* name) {
  if (!p.o || !p.lse) refuse("partial {} has no {}", name, p.o ? "LSE" : "O");
  if (p.o.dtype != DType::f32 || p.lse.dtype != DType::f32)
    refuse("partial {} has O {} and LSE {}; both must be f32: make it with options.partial",
           name,
           p.o.describe(),
           p.lse.describe());
  const bool shapes = p.ragged ? p.o.rank == 3 && p.lse.rank == 2 && p.o.size(0) == p.lse.size(1) &&
                                     p.o.size(1) == p.lse.size(0)
                               : (p.o.rank == 3 || p.o.rank == 4) && p.lse.rank == p.o.rank - 1;
  bool same = shapes;
  for (int axis = 0; same && !p.ragged && axis < p.lse.rank; ++axis)
    same = p.o.size(axis) == p.lse.size(axis);
  if (!same)
    refuse("partial {} has O {} and LSE {}; {} is expected",
           name,
           p.o.describe(),
           p.lse.describe(),
           p.ragged ? "O [total, head, dim] with LSE [head, total]"
                    : "LSE of O's shape without dim (set ragged for packed rows)");
}

Partial like(const PartialView& p, DType dtype, const Context& context) {
  Partial out;
  out.ragged = p.ragged;
  out.o = allocate(context, p.o.device, dtype, shape_of(p.o));
  out.lse = allocate(context, p.o.device, DType::f32, shape_of(p.lse));
  return out;
}

void check_result(const PartialView& out, const PartialView& p) {
  if (out.o.dtype != DType::f32 && !is_float16(out.o.dtype))
    refuse("the merged O is {}; f32, f16 or bf16 is allowed", name_of(out.o.dtype));
  if (!same_shape(out.o, p.o) || !same_shape(out.lse, p.lse) || out.lse.dtype != DType::f32)
    refuse("the merged O is {} and LSE {}; shapes of {} and {} are expected, LSE in f32",
           out.o.describe(),
           out.lse.describe(),
           p.o.describe(),
           p.lse.describe());
}

}  // namespace

void combine(const PartialView& out,
             const PartialView& a,
             const PartialView* b,
             const View& sink,
             const Context& context) {
  check(a, b ? "a" : "p");
  if (b) {
    check(*b, "b");
    if (a.ragged != b->ragged || !same_shape(a.o, b->o))
      refuse(
          "partials have O {} and {}; they must have one shape", a.o.describe(), b->o.describe());
    if (a.o.device != b->o.device)
      refuse("partials are on {} and {}", to_string(a.o.device), to_string(b->o.device));
  }
  const std::int64_t heads = a.o.rank == 4 || a.ragged ? a.o.size(1) : a.o.size(0);
  if (sink && (sink.dtype != DType::f32 || sink.rank != 1 || sink.size(0) != heads))
    refuse("sink is {}; f32 [{}] is expected", sink.describe(), heads);
  check_result(out, a);
  Problem p;
  Spec& spec = p.spec;
  spec.op = Operation::merge;
  spec.dtype = DType::f32;
  spec.out_dtype = out.o.dtype;
  spec.rows = a.ragged ? RowKind::ragged : RowKind::dense;
  spec.dqk = spec.dv = static_cast<int>(a.o.size(-1));
  spec.sink = static_cast<bool>(sink);
  spec.mask = Mask().program();
  spec.score = Score().program();
  p.device = a.o.device;
  const auto four = [&](const View& v, int rank) {
    return v && v.rank == rank - 1 && !a.ragged ? v.unsqueezed(0) : v;
  };
  Args& args = p.args;
  args.a_o = four(a.o, 4);
  args.a_lse = four(a.lse, 3);
  if (b) {
    args.b_o = four(b->o, 4);
    args.b_lse = four(b->lse, 3);
  }
  args.o = four(out.o, 4);
  args.lse = four(out.lse, 3);
  args.sink = sink;
  const View& o = args.a_o;
  const std::int64_t rows = a.ragged ? o.size(0) : o.size(2);
  p.bounds = {
      a.ragged ? 1 : o.size(0), o.size(1), a.ragged ? rows : o.size(0) * rows, 0, rows, 0, 0};
  const Plan made = plan(spec, rounded(p.bounds), p.device, context);
  const Library::Workspace workspace(library_of(context), made.workspace(), p.device, context);
  made.run(args, workspace.data(), context);
}

Partial merge(const Partial& a, const Partial& b, const Context& context) {
  check(view_of(a), "a");
  Partial out = like(view_of(a), DType::f32, context);
  const PartialView second = view_of(b);
  combine(view_of(out), view_of(a), &second, {}, context);
  return out;
}

Partial finish(const Partial& p, const View& sink, DType dtype, const Context& context) {
  check(view_of(p), "p");
  if (dtype != DType::f32 && !is_float16(dtype))
    refuse("dtype is {}; f32, f16 or bf16 is allowed", name_of(dtype));
  Partial out = like(view_of(p), dtype, context);
  combine(view_of(out), view_of(p), nullptr, sink, context);
  return out;
}

}  // namespace undivided
