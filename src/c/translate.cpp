// SPDX-License-Identifier: Apache-2.0
// Reads C structs. A struct_size below what this version needs is refused, a larger one is fine:
// newer callers may know fields that are not read here.
#include "c/translate.hpp"

#include "attention/execute.hpp"

namespace undivided::c {
namespace {

template <class T>
void want_size(const char* name, const T& s) {
  if (s.struct_size < sizeof(T))
    refuse("{}: struct_size is {}; set it to sizeof, {} in this version",
           name,
           s.struct_size,
           sizeof(T));
}

DType dtype_of(const char* name, std::int32_t d) {
  switch (d) {
    case UNDIVIDED_F64:
      return DType::f64;
    case UNDIVIDED_F32:
      return DType::f32;
    case UNDIVIDED_F16:
      return DType::f16;
    case UNDIVIDED_BF16:
      return DType::bf16;
    case UNDIVIDED_I32:
      return DType::i32;
    case UNDIVIDED_I64:
      return DType::i64;
    case UNDIVIDED_BOOL:
      return DType::boolean;
    default:
      refuse("{}: dtype is {}; one of undivided_dtype is expected", name, d);
  }
}

/// An enumerator from 0 to `last`.
int choice(const char* name, std::int32_t value, int last) {
  if (value < 0 || value > last) refuse("{} is {}; 0 to {} is allowed", name, value, last);
  return value;
}

}  // namespace

View view(const char* name, const undivided_view* v) {
  if (!v) return {};
  want_size(name, *v);
  if (v->rank < 1 || v->rank > max_rank)
    refuse("{}: rank is {}; 1 to {} is allowed", name, v->rank, max_rank);
  View out;
  out.data = v->data;
  out.dtype = dtype_of(name, v->dtype);
  if (choice("view.cuda", v->cuda, 1)) out.device = {Device::Kind::cuda, v->device};
  out.rank = v->rank;
  bool strided = false;
  std::int64_t dense = 1;
  for (int axis = v->rank - 1; axis >= 0; --axis) {
    const auto a = static_cast<std::size_t>(axis);
    if (v->shape[a] < 0) refuse("{}: shape[{}] is {}", name, axis, v->shape[a]);
    out.shape[a] = v->shape[a];
    out.stride[a] = dense;
    dense *= v->shape[a];
    strided |= v->stride[a] != 0;
  }
  if (strided)
    for (std::size_t a = 0; a < static_cast<std::size_t>(v->rank); ++a)
      out.stride[a] = v->stride[a];
  return out;
}

Rows rows(const char* name, const undivided_rows* r) {
  if (!r) refuse("{} is null", name);
  want_size(name, *r);
  Rows out(view(name, r->data));
  out.offsets = view("offsets", r->offsets);
  out.lengths = view("lengths", r->lengths);
  out.max_length = r->max_length;
  return out;
}

Kv kv(const undivided_kv* k) {
  if (!k) refuse("kv is null");
  want_size("kv", *k);
  Kv out;
  out.kind = static_cast<KvKind>(choice("kv.kind", k->kind, UNDIVIDED_KV_PAGED));
  out.k = view("k", k->k);
  out.v = view("v", k->v);
  out.offsets = view("kv.offsets", k->offsets);
  out.lengths = view("kv.lengths", k->lengths);
  out.page_table = view("page_table", k->page_table);
  out.prefix_table = view("prefix_table", k->prefix_table);
  out.max_length = k->max_length;
  return out;
}

Outputs outputs(const undivided_outputs* o) {
  if (!o) refuse("outputs are null");
  want_size("outputs", *o);
  return {view("o", o->o),
          view("lse", o->lse),
          view("max_logit", o->max_logit),
          view("key_mass", o->key_mass)};
}

PartialView partial(const char* name, const undivided_outputs* o, bool ragged) {
  if (!o) refuse("{} is null", name);
  const Outputs views = outputs(o);
  if (!views.o || !views.lse) refuse("{} has no {}", name, views.o ? "lse" : "o");
  if (views.max_logit || views.key_mass)
    refuse("{} has {}; a merge knows O and LSE only",
           name,
           views.max_logit ? "max_logit" : "key_mass");
  return {views.o, views.lse, ragged};
}

void refuse_mask_plan(const undivided_options* o) {
  if (o && o->struct_size >= sizeof(*o) && o->mask_plan)
    refuse(
        "options.mask_plan is read by undivided_plan_create and undivided_plan_run; this call "
        "makes "
        "its own when it needs one");
}

Call::Call(const undivided_options* given) {
  undivided_options none{};
  none.struct_size = sizeof(none);
  const undivided_options& o = given ? *given : none;
  want_size("options", o);
  Captures captures;
  for (std::size_t i = 0; i < o.array_count; ++i) {
    const undivided_named_view& a = o.arrays[i];
    if (!a.name || !a.view) refuse("arrays[{}] has no {}", i, a.name ? "view" : "name");
    const View v = view(a.name, a.view);
    std::optional<std::pair<std::int64_t, std::int64_t>> range;
    if (v.device.kind == Device::Kind::cuda) range = {a.low, a.high};
    captures.arrays.emplace_back(v, a.name, range);
  }
  for (std::size_t i = 0; i < o.param_count; ++i) {
    if (!o.params[i].name) refuse("params[{}] has no name", i);
    captures.params.emplace_back(o.params[i].name, o.params[i].value);
  }
  // Each program gets the captures that its text names.
  if (o.mask) options.mask = Mask::parse(o.mask, captures);
  if (o.score) options.score = Score::parse(o.score, captures);
  if (const int align = choice("align", o.align, UNDIVIDED_ALIGN_END))
    options.align = align == UNDIVIDED_ALIGN_START ? Align::start : Align::end;
  options.q_origin = view("q_origin", o.q_origin);
  options.k_origin = view("k_origin", o.k_origin);
  if (o.scale != 0) options.scale = o.scale;
  options.sink = view("sink", o.sink);
  options.dropout = o.dropout;
  options.seed = o.seed;
  options.determinism =
      static_cast<Determinism>(choice("determinism", o.determinism, UNDIVIDED_INVARIANT));
  if (o.out_dtype) options.out_dtype = dtype_of("out_dtype", o.out_dtype);
  options.partial = o.partial != 0;
  options.max_logit = o.max_logit != 0;
  options.key_mass = o.key_mass != 0;
  options.inside = static_cast<Inside>(choice("inside", o.inside, UNDIVIDED_INSIDE_PROGRAM));
  context.backend = static_cast<Backend>(choice("backend", o.backend, UNDIVIDED_BACKEND_CUDA));
  context.compile = o.compile_never ? Compile::never : Compile::allowed;
  context.stream = o.stream;
  if (o.threads < 0 || o.threads > 1024)
    refuse("threads is {}; 0 (all cores) to 1024 is allowed", o.threads);
  if (o.threads == 1) {
    context.executor = &inline_executor();
  } else if (o.threads > 1) {
    executor = make_executor(o.threads);
    context.executor = executor.get();
  }
}

Bounds rounded_bounds(const Bounds& bounds) { return rounded(bounds); }

void refresh(Args& args, Context& context, const undivided_options& o) {
  want_size("options", o);
  if (o.sink) args.sink = view("sink", o.sink);
  if (o.q_origin) args.q_origin = view("q_origin", o.q_origin);
  if (o.k_origin) args.k_origin = view("k_origin", o.k_origin);
  args.seed = o.seed;
  context.stream = o.stream;
}

void check_outputs(const Spec& spec, const Args& a) {
  const auto want =
      [](const char* name, const View& v, DType dtype, std::initializer_list<std::int64_t> shape) {
        bool same = v.rank == static_cast<int>(shape.size()) && v.dtype == dtype;
        int axis = 0;
        for (const std::int64_t n : shape) {
          if (same) same = v.size(axis) == n;
          ++axis;
        }
        if (!same)
          refuse("{} is {}; {} [{}] is expected",
                 name,
                 v ? v.describe() : "not given",
                 name_of(dtype),
                 fmt::join(shape, ", "));
      };
  const View& q = a.q.data;
  if (q.rank != (spec.rows == RowKind::ragged ? 3 : 4))
    refuse("Q is {}; this plan is for {} rows",
           q.describe(),
           spec.rows == RowKind::ragged ? "ragged" : "dense");
  if (spec.rows == RowKind::ragged) {
    want("O", a.o, spec.out_dtype, {q.size(0), q.size(1), spec.dv});
    if (a.lse) want("LSE", a.lse, DType::f32, {q.size(1), q.size(0)});
  } else {
    want("O", a.o, spec.out_dtype, {q.size(0), q.size(1), q.size(2), spec.dv});
    if (a.lse) want("LSE", a.lse, DType::f32, {q.size(0), q.size(1), q.size(2)});
  }
  if (spec.max_logit && !a.max_logit) refuse("max_logit is not given, and this plan writes it");
  if (spec.key_mass && !a.key_mass) refuse("key_mass is not given, and this plan writes it");
}

}  // namespace undivided::c
