// SPDX-License-Identifier: Apache-2.0
// The backward of the C door: gradients go where the caller says, by name for captured arrays.
#include "attention/execute.hpp"
#include "c/translate.hpp"

namespace undivided::c {
namespace {

void want_shape(const char* name, const View& v, DType dtype, const View& like) {
  bool same = v.rank == like.rank && v.dtype == dtype;
  for (int axis = 0; same && axis < v.rank; ++axis) same = v.size(axis) == like.size(axis);
  if (same) return;
  View expected = like;
  expected.dtype = dtype;
  refuse("the gradient {} is {}; {} is expected", name, v.describe(), expected.describe());
}

}  // namespace

void backward(const undivided_gradients* out,
              const Rows& dout,
              const Rows& q,
              const Kv& kv,
              const View& o,
              const View& lse,
              const Call& call) {
  if (!out) refuse("gradients are null");
  if (out->struct_size < sizeof(undivided_gradients))
    refuse("gradients: struct_size is {}; set it to sizeof, {} in this version",
           out->struct_size,
           sizeof(undivided_gradients));
  const View gq = view("dq", out->q), gk = view("dk", out->k), gv = view("dv", out->v);
  BackwardOptions wanted;
  wanted.dlse = view("dlse", out->dlse);
  wanted.q = static_cast<bool>(gq);
  wanted.k = static_cast<bool>(gk);
  wanted.v = static_cast<bool>(gv);
  wanted.captured = out->captured_count > 0;
  for (const View* v : {&gq, &gk, &gv})
    if (*v) wanted.gradient_dtype = v->dtype;
  Problem p = resolve_backward(dout, q, kv, o, lse, call.options, wanted);
  Args& a = p.args;
  const auto place = [&](const char* name, View to, View& slot, const View& like) {
    if (!to) return;
    if (to.rank == like.rank - 1) to = to.unsqueezed(0);
    want_shape(name, to, p.spec.out_dtype, like);
    slot = to;
  };
  place("dq", gq, a.dq, a.q.data);
  place("dk", gk, a.dk, a.kv.k);
  place("dv", gv, a.dv, a.kv.v);
  Tensor room;
  const auto heads = a.q.data.size(1);
  if (p.spec.sink) {
    a.dsink = view("dsink", out->sink);
    if (!a.dsink) a.dsink = room = allocate(call.context, p.device, DType::f32, {heads});
    if (a.dsink.dtype != DType::f32 || a.dsink.rank != 1 || a.dsink.size(0) != heads)
      refuse("the gradient dsink is {}; f32 [{}] is expected", a.dsink.describe(), heads);
  } else if (out->sink) {
    refuse("a gradient of the sink is asked for, and there is no sink");
  }
  const expr::Program& score = *p.spec.score;
  a.d_arrays.resize(p.spec.captured ? score.slots.size() : 0);
  Tensor params;
  std::vector<std::pair<std::size_t, View>> param_views;
  for (std::size_t i = 0; i < out->captured_count; ++i) {
    const undivided_named_view& c = out->captured[i];
    if (!c.name || !c.view) refuse("captured[{}] has no {}", i, c.name ? "view" : "name");
    const View to = view(c.name, c.view);
    bool found = false;
    for (std::size_t s = 0; s < score.slots.size() && p.spec.captured; ++s) {
      if (score.slots[s].name != c.name || score.slots[s].dtype != DType::f32) continue;
      const auto& array = a.score->bound.arrays[s];
      View like;
      like.rank = score.slots[s].rank;
      like.shape = array.shape;
      want_shape(c.name, to, DType::f32, like);
      a.d_arrays[s] = to;
      found = true;
    }
    for (std::size_t s = 0; s < score.params.size() && p.spec.captured; ++s) {
      if (score.params[s].name != c.name || score.params[s].lifted ||
          score.params[s].type != expr::Type::f32)
        continue;
      if (p.device.kind != Device::Kind::cpu || to.device != cpu_device)
        refuse("the gradient of parameter '{}' is on {}; only the host is served here",
               c.name,
               to_string(p.device));
      if (to.dtype != DType::f32 || to.count() != 1)
        refuse("the gradient of parameter '{}' is {}; f32 [1] is expected", c.name, to.describe());
      param_views.emplace_back(s, to);
      found = true;
    }
    if (!found) refuse("'{}' is no float array or parameter of the score", c.name);
  }
  if (!param_views.empty())
    a.d_params = params = allocate(
        call.context, p.device, DType::f32, {static_cast<std::int64_t>(score.params.size())});
  execute(p, call.context);
  for (const auto& [slot, to] : param_views)
    *static_cast<float*>(to.data) = params.ptr<float>()[slot];
}

}  // namespace undivided::c
