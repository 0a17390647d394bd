// SPDX-License-Identifier: Apache-2.0
// Data of differential attention: checks, the attention calls, and the epilogues on either device.
#include <cmath>

#include "attention/differential.hpp"
#include "attention/execute.hpp"
#include "attention/head_rows.hpp"
#include "cpu/backend.hpp"
#include "cpu/differential.hpp"
#include "cuda/memory.hpp"

namespace undivided {
namespace {

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
  if (!on_cpu() && !is_float16(dtype))
    throw Error(Code::unsupported,
                Stage::resolve,
                fmt::format("differential: Q is {} on {}; CUDA kernels multiply f16 or bf16, and "
                            "f32 and f64 are for the host",
                            name_of(dtype),
                            to_string(q.data.device)));
  if (dtype == DType::f64 && context.backend == Backend::cpu)
    throw Error(Code::unsupported,
                Stage::resolve,
                "differential: backend cpu was asked for and Q is f64, which is for the reference: "
                "automatic or reference is allowed, or f32 inputs");
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

void DifferentialData::check_parameter(const char* name, const View& v) const {
  if (v.device.kind == Device::Kind::cpu) return;
  if (v.device != q.data.device || v.dtype != DType::f32)
    refuse_differential("{} is {} on {}; it is expected on the host{}",
                        name,
                        v.describe(),
                        to_string(v.device),
                        on_cpu() ? "" : ", or as f32 on " + to_string(q.data.device));
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
  Rows gradient = rows;
  gradient.data = dout;
  if (statistic() == DType::f64) {
    const Gradients g = reference_backward(gradient, rows, keys, forward.options);
    copy(g.q, dq);
    copy(g.k, dk);
    copy(g.v, dv);
    return;
  }
  BackwardOptions wanted;
  wanted.gradient_dtype = dq.dtype;
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

/// Without packed rows past the last sequence, which belong to nobody. On the host.
View DifferentialData::used(const View& rows) const {
  if (!q.offsets || q.offsets.device.kind != Device::Kind::cpu) return rows;
  const double last = load_element(q.offsets.dtype, q.offsets.at({q.offsets.size(0) - 1}));
  return rows.sliced(2, 0, static_cast<std::int64_t>(last));
}

cuda::Difference DifferentialData::on_device(const Epilogue& e, std::vector<Tensor>& keep) const {
  const auto there = [&](const View& v) -> View {
    if (!v || v.device.kind != Device::Kind::cpu) return v;
    keep.push_back(cuda::to_device(v, q.data.device, context_));
    return keep.back();
  };
  const auto floats = [&](const View& v) -> View {
    if (!v || v.device.kind != Device::Kind::cpu) return v;
    return there(converted(v, DType::f32));
  };
  cuda::Difference d;
  d.lambda = e.lambda;
  d.logits = floats(e.logits);
  d.norm = !e.logits;
  d.gain = e.gain;
  d.eps = e.eps;
  d.offsets = there(q.offsets);
  d.weight = floats(e.weight_view);
  return d;
}

void DifferentialData::check_gradient(const View& dout, const View& o) const {
  bool same = dout.rank == o.rank && dout.dtype == o.dtype && dout.device == o.device;
  for (int axis = 0; same && axis < o.rank; ++axis) same = dout.size(axis) == o.size(axis);
  if (!same)
    refuse_differential("the gradient of O is {} on {}; {} on {} like O is expected",
                        dout.describe(),
                        to_string(dout.device),
                        o.describe(),
                        to_string(o.device));
  if (!on_cpu() && dout.size(-1) > 1 && dout.step(-1) != 1)
    refuse_differential("the gradient of O has last stride {}; 1 is expected on {}",
                        dout.step(-1),
                        to_string(dout.device));
}

namespace {

/// The two branches' rows of the same output head, [batch, head, token, Dv].
std::pair<View, View> branch_rows(const View& a, const View& b, bool paired) {
  const std::int64_t heads = a.size(1) / 2;
  return paired ? std::pair{every_head(a, 0, 2, heads), every_head(a, 1, 2, heads)}
                : std::pair{a, b};
}

/// Packed rows or keys as [1, head, total, dim].
View four(const View& v) { return v.rank == 3 ? v.permuted({1, 0, 2}).unsqueezed(0) : v; }

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
        difference(epilogue, parts.first, parts.second, y, {b, h, first, n});
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
  const bool in_place = !on_cpu() || dtype == statistic();
  const Tensor host = in_place ? f.o : Tensor::empty_like(f.o, statistic());
  const View y = rows_of(host);
  if (!forward_fused(branches, epilogue, f, y)) {
    f.branches.clear();
    for (const Branch& b : branches) f.branches.push_back(attend(b.q, b.kv));
    const auto [o1, o2] = branch_rows(
        rows_of(f.branches.front().o), rows_of(f.branches.back().o), branches.size() == 1);
    if (on_cpu()) {
      const View a = o1, b = o2;
      for_each_head(y, executor_of(context_), [&](std::int64_t i, std::int64_t h) {
        difference(epilogue, a, b, y, {i, h, 0, used(y).size(2)});
      });
    } else {
      std::vector<Tensor> keep;
      cuda::Difference d = on_device(epilogue, keep);
      d.a = o1;
      d.b = o2;
      cuda::difference(d, y, context_);
    }
  }
  if (!in_place) copy(host, f.o);
  if (single_) static_cast<View&>(f.o) = f.o.selected(0, 0);
  return f;
}

DifferentialData::Back DifferentialData::backward(const View& dout,
                                                  const DifferentialForward& f,
                                                  const Epilogue& epilogue) const {
  check_gradient(dout, f.o);
  Back back;
  // CUDA kernels for gradients are at their best with 16 bits, to which they round dO anyway.
  for (const Forward& branch : f.branches)
    back.dout.push_back(allocate(
        context_, q.data.device, on_cpu() ? statistic() : q.data.dtype, shape_of(branch.o)));
  const bool paired = f.branches.size() == 1;
  const auto o = branch_rows(rows_of(f.branches.front().o), rows_of(f.branches.back().o), paired);
  const auto d = branch_rows(rows_of(back.dout.front()), rows_of(back.dout.back()), paired);
  if (epilogue.logits)
    back.logits = allocate(context_, q.data.device, statistic(), shape_of(epilogue.logits));
  if (on_cpu()) {
    const Tensor dy = converted(rows_of(dout), statistic());
    back.sums = difference_backward(epilogue,
                                    used(dy),
                                    used(o.first),
                                    used(o.second),
                                    d.first,
                                    d.second,
                                    back.logits,
                                    executor_of(context_));
    return back;
  }
  std::vector<Tensor> keep;
  cuda::Difference on = on_device(epilogue, keep);
  on.a = o.first;
  on.b = o.second;
  std::vector<double> sums =
      cuda::difference_backward(on, rows_of(dout), d.first, d.second, back.logits, context_);
  if (sums.empty()) return back;
  back.sums.lambda = sums.back();
  sums.pop_back();
  back.sums.weight = std::move(sums);
  return back;
}

Tensor DifferentialData::room(const View& like, DType dtype) const {
  return allocate(context_, q.data.device, dtype, shape_of(like));
}

Tensor DifferentialData::gradient(const Tensor& a, const Tensor& b, const View& input) const {
  Tensor g = a;
  if (!on_cpu() && (b || input.dtype != a.dtype)) {
    g = room(a, input.dtype);
    cuda::Difference sum;
    sum.a = four(a);
    if (b) sum.b = four(b);
    sum.lambda = -1;
    cuda::difference(sum, four(g), context_);
  } else {
    if (b) (a.dtype == DType::f64 ? add<double> : add<float>)(b, a);
    if (input.dtype != a.dtype) {
      g = room(a, input.dtype);
      copy(a, g);
    }
  }
  if (input.rank == g.rank - 1) static_cast<View&>(g) = g.selected(0, 0);
  return g;
}

}  // namespace undivided
