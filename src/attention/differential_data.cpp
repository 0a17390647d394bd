// SPDX-License-Identifier: Apache-2.0
// Data of differential attention: checks, the attention calls, and copies where an epilogue needs
// them.
#include <cmath>

#include "attention/differential.hpp"
#include "attention/execute.hpp"
#include "attention/head_rows.hpp"
#include "cpu/backend.hpp"
#include "cpu/differential.hpp"
#include "cuda/memory.hpp"

namespace undivided {
namespace {

std::vector<std::int64_t> shape_of(const View& v) {
  return {v.shape.begin(), v.shape.begin() + v.rank};
}

bool aligned(const View& v) {
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  bool ok = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int axis = 0; axis + 1 < v.rank; ++axis) ok &= v.step(axis) * bytes % 16 == 0;
  return ok;
}

void add_batch(View& v) {
  if (v.rank == 3) v = v.unsqueezed(0);
}

template <class T>
void add(const View& from, const View& to) {
  const T* x = static_cast<const T*>(from.data);
  T* y = static_cast<T*>(to.data);
  for (std::int64_t i = 0, n = to.count(); i < n; ++i) y[i] += x[i];
}

}  // namespace

View every_head(const View& v, std::int64_t first, std::int64_t step, std::int64_t count) {
  View some = v;
  some.data = static_cast<std::byte*>(v.data) +
              first * v.stride[1] * static_cast<std::int64_t>(size_of(v.dtype));
  some.shape[1] = count;
  some.stride[1] = v.stride[1] * step;
  return some;
}

Executor& executor_of(const Context& context) {
  return context.executor ? *context.executor : default_executor();
}

DifferentialData::DifferentialData(const Rows& rows,
                                   const Kv& keys,
                                   const Options& options,
                                   const Context& context)
    : q(rows), kv(keys), options_(options), context_(context) {
  const std::pair<const char*, bool> not_here[] = {
      {"sink: two softmaxes would each need one", static_cast<bool>(options.sink)},
      {"dropout: both components would drop the same pairs", options.dropout > 0},
      {"partial: the difference of two partial results does not merge", options.partial},
      {"max_logit: call attention on a component", options.max_logit},
      {"key_mass: call attention on a component", options.key_mass},
      {"k_mean: call attention on a component", static_cast<bool>(kv.k_mean)},
  };
  for (const auto& [what, asked] : not_here)
    if (asked)
      throw Error(
          Code::unsupported, Stage::resolve, fmt::format("differential does not take {}", what));
  if (!q.data || !kv.k || !kv.v)
    refuse_differential("{} is not given", !q.data ? "Q" : !kv.k ? "K" : "V");
  if (q.lengths)
    refuse_differential("Q has lengths; pack its rows (ragged) or pad without lengths");
  if (q.data.rank < 3 || kv.k.rank < 3 || kv.v.rank < 3)
    refuse_differential("Q is {}, K is {}, V is {}; [batch, head, token, dim] is expected",
                        q.data.describe(),
                        kv.k.describe(),
                        kv.v.describe());
  if (!q.offsets) {
    single_ = q.data.rank == 3;
    add_batch(q.data);
  }
  if (kv.kind == KvKind::dense) {
    add_batch(kv.k);
    add_batch(kv.v);
  }
  const DType dtype = q.data.dtype;
  if (options.out_dtype && *options.out_dtype != dtype &&
      (*options.out_dtype != DType::f32 || dtype == DType::f64))
    refuse_differential("out_dtype is {}; {}{} is allowed for {} inputs",
                        name_of(*options.out_dtype),
                        name_of(dtype),
                        dtype == DType::f64 ? "" : " or f32",
                        name_of(dtype));
}

DType DifferentialData::statistic() const {
  return q.data.dtype == DType::f64 ? DType::f64 : DType::f32;
}

std::vector<double> DifferentialData::vector(const char* name, const View& v) const {
  if (!v) refuse_differential("{} is not given", name);
  if (v.rank != 1 || (v.dtype != DType::f32 && v.dtype != DType::f64))
    refuse_differential("{} is {}; a vector of f32 or f64 is expected", name, v.describe());
  const Tensor copy = v.device.kind == Device::Kind::cpu ? Tensor{} : cuda::to_host(v, context_);
  const View& host = copy ? static_cast<const View&>(copy) : v;
  std::vector<double> values;
  for (std::int64_t i = 0; i < host.size(0); ++i)
    values.push_back(load_element(host.dtype, host.at({i})));
  return values;
}

Forward DifferentialData::attend(const Rows& rows, const Kv& keys) const {
  Options options = options_;
  options.out_dtype = statistic();
  if (statistic() == DType::f64) return reference(rows, keys, options);
  return attention(rows, keys, options, context_);
}

void DifferentialData::attend_backward(const View& dout,
                                       const Rows& rows,
                                       const Kv& keys,
                                       const Forward& forward,
                                       const View& dq,
                                       const View& dk,
                                       const View& dv) const {
  // Back from [1, head, total, dim] to packed rows.
  const View packed = q.offsets ? dout.selected(0, 0).permuted({1, 0, 2}) : dout;
  const Tensor moved = on_cpu() ? Tensor{} : cuda::to_device(packed, q.data.device, context_);
  Rows gradient = rows;
  gradient.data = moved ? static_cast<const View&>(moved) : packed;
  if (statistic() == DType::f64) {
    const Gradients g = reference_backward(gradient, rows, keys, forward.options);
    copy(g.q, dq);
    copy(g.k, dk);
    copy(g.v, dv);
    return;
  }
  BackwardOptions wanted;
  wanted.gradient_dtype = DType::f32;
  wanted.captured = false;
  Problem p =
      resolve_backward(gradient, rows, keys, forward.o, forward.lse, forward.options, wanted);
  p.args.dq = dq;
  p.args.dk = dk;
  p.args.dv = dv;
  for (const View* v : {&dq, &dk, &dv}) p.spec.aligned &= aligned(*v);
  execute(p, context_);
}

View DifferentialData::rows_of(const View& o) const {
  return q.offsets ? o.permuted({1, 0, 2}).unsqueezed(0) : o.rank == 3 ? o.unsqueezed(0) : o;
}

Tensor DifferentialData::host_rows(const Tensor& o) const {
  Tensor t = o;
  if (!on_cpu()) t = cuda::to_host(o, context_);
  static_cast<View&>(t) = rows_of(t);
  return t;
}

Tensor DifferentialData::host_gradient(const View& dout, const View& o) const {
  bool same = dout.rank == o.rank && dout.dtype == o.dtype && dout.device == o.device;
  for (int axis = 0; same && axis < o.rank; ++axis) same = dout.size(axis) == o.size(axis);
  if (!same)
    refuse_differential("the gradient of O is {} on {}; {} on {} like O is expected",
                        dout.describe(),
                        to_string(dout.device),
                        o.describe(),
                        to_string(o.device));
  const Tensor host = on_cpu() ? Tensor{} : cuda::to_host(dout, context_);
  return converted(rows_of(host ? static_cast<const View&>(host) : dout), statistic());
}

namespace {

/// The two branches' rows of the same output head, [batch, head, token, Dv].
std::pair<View, View> branch_rows(const View& a, const View& b, bool paired) {
  const std::int64_t heads = a.size(1) / 2;
  return paired ? std::pair{every_head(a, 0, 2, heads), every_head(a, 1, 2, heads)}
                : std::pair{a, b};
}

}  // namespace

bool DifferentialData::forward_fused(const std::vector<Branch>& branches,
                                     const Epilogue& epilogue,
                                     DifferentialForward& f,
                                     const View& y) const {
  // Products of a named precision are those of attention().
  if (!on_cpu() || statistic() == DType::f64 || !options_.precision.follow ||
      context_.backend == Backend::reference || context_.backend == Backend::cuda)
    return false;
  Options options = options_;
  options.out_dtype = DType::f32;
  std::vector<Problem> problems;
  for (const Branch& b : branches) {
    problems.push_back(resolve(b.q, b.kv, options));
    Problem& p = problems.back();
    // Few queries fill lanes with the heads of a group, or split the keys: attention() does both.
    if (p.bounds.max_q_len <= MaskPlan::block || !cpu::support(p.spec, p.bounds, context_).ok)
      return false;
    std::vector<std::int64_t> shape = shape_of(b.q.data);
    shape.back() = p.spec.dv;
    Forward& one = f.branches.emplace_back();
    one.options = options;
    one.o = allocate(context_, {}, DType::f32, shape);
    shape.pop_back();
    if (q.offsets) std::swap(shape[0], shape[1]);
    one.lse = allocate(context_, {}, DType::f32, shape);
    p.args.o = one.o;
    p.args.lse = one.lse;
  }
  for (Problem& p : problems) {
    add_mask_plan(p, context_);
    p.spec.op = Operation::differential;
  }
  cpu::Branches both{problems[0].spec,
                     problems[0].bounds,
                     {&problems.front().args, &problems.back().args},
                     problems.size() == 1};
  const auto parts =
      branch_rows(rows_of(f.branches.front().o), rows_of(f.branches.back().o), both.paired);
  const cpu::Differential call(both, context_);
  const Library::Workspace workspace(library_of(context_), call.workspace(), {}, context_);
  call.run(
      workspace.data(),
      [&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t n) {
        epilogue(parts.first, parts.second, y, {b, h, first, n});
      },
      context_);
  return true;
}

DifferentialForward DifferentialData::forward(const std::vector<Branch>& branches,
                                              const Epilogue& epilogue) const {
  DifferentialForward f;
  f.options = options_;
  std::vector<std::int64_t> shape = shape_of(q.data);
  shape[1] /= 2;
  shape.back() = kv.v.size(-1);
  const DType dtype = options_.out_dtype.value_or(q.data.dtype);
  f.o = allocate(context_, q.data.device, dtype, shape);
  const bool in_place = on_cpu() && dtype == statistic();
  const Tensor host = in_place ? f.o : Tensor::empty_like(f.o, statistic());
  const View y = rows_of(host);
  if (!forward_fused(branches, epilogue, f, y)) {
    f.branches.clear();
    std::vector<Tensor> o;
    for (const Branch& b : branches) {
      f.branches.push_back(attend(b.q, b.kv));
      o.push_back(host_rows(f.branches.back().o));
    }
    const auto parts = branch_rows(o.front(), o.back(), branches.size() == 1);
    for_each_head(y, executor_of(context_), [&](std::int64_t b, std::int64_t h) {
      epilogue(parts.first, parts.second, y, {b, h, 0, y.size(2)});
    });
  }
  if (!in_place) {
    if (on_cpu())
      copy(host, f.o);
    else
      cuda::copy_to_device(converted(host, dtype), f.o, context_.stream);
  }
  if (single_) static_cast<View&>(f.o) = f.o.selected(0, 0);
  return f;
}

Tensor DifferentialData::room(const View& like) const {
  return allocate(context_, q.data.device, statistic(), shape_of(like));
}

Tensor DifferentialData::gradient(const Tensor& sum, const View& input) const {
  Tensor g = sum;
  if (input.dtype != sum.dtype) {
    g = allocate(context_, q.data.device, input.dtype, shape_of(sum));
    if (on_cpu())
      copy(sum, g);
    else
      cuda::copy_to_device(
          converted(cuda::to_host(sum, context_), input.dtype), g, context_.stream);
  }
  if (input.rank == g.rank - 1) static_cast<View&>(g) = g.selected(0, 0);
  return g;
}

Tensor DifferentialData::gradient_sum(const Tensor& a, const Tensor& b, const View& input) const {
  if (on_cpu()) {
    (a.dtype == DType::f64 ? add<double> : add<float>)(b, a);
  } else {
    const Tensor x = cuda::to_host(a, context_), y = cuda::to_host(b, context_);
    add<float>(y, x);
    cuda::copy_to_device(x, a, context_.stream);
  }
  return gradient(a, input);
}

}  // namespace undivided
