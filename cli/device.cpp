// SPDX-License-Identifier: Apache-2.0
// Copies in, the verbs, copies out.
#include "cli/device.hpp"

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"

namespace undivided::cli {
namespace {

Run run_oracle(const Rows& q,
               const Kv& kv,
               const Options& options,
               const View& dout,
               const BackwardOptions& backward) {
  Run run;
  Options plain = options;
  plain.out_dtype.reset();
  run.forward = reference(q, kv, plain);
  if (!dout) return run;
  Rows d = q;
  const Tensor wide = converted(dout, DType::f64);
  d.data = wide;
  BackwardOptions b = backward;
  b.gradient_dtype.reset();
  run.gradients = reference_backward(d, q, kv, plain, b);
  return run;
}

}  // namespace

Device device_of(Backend backend) {
  if (backend != Backend::cuda) return cpu_device;
  const cuda::Availability there = cuda::availability();
  if (!there.ok)
    throw Error(Code::unsupported,
                Stage::plan,
                "--backend cuda: " + there.reason + "; allowed here: auto, cpu, reference");
  return {Device::Kind::cuda, 0};
}

Tensor on_host(const Tensor& tensor) {
  return tensor && tensor.device.kind == Device::Kind::cuda ? cuda::to_host(tensor) : tensor;
}

void wait_for(Device device) {
  if (device.kind == Device::Kind::cpu) return;
  cuda::synchronise({}, device);
}

Run run_on_device(const Rows& q,
                  const Kv& kv,
                  const Options& options,
                  const View& dout,
                  const BackwardOptions& backward,
                  const Context& context) {
  if (context.backend == Backend::reference) return run_oracle(q, kv, options, dout, backward);
  const Device device = device_of(context.backend);
  Rows rows = q;
  Kv keys = kv;
  Options there = options;
  BackwardOptions back = backward;
  std::vector<Tensor> keep;
  const auto move = [&](View& v) {
    if (!v || device.kind == Device::Kind::cpu) return;
    keep.push_back(cuda::to_device(v, device));
    v = keep.back();
  };
  for (View* v : {&rows.data, &keys.k, &keys.v, &there.sink, &back.dlse}) move(*v);

  Run run;
  run.forward = attention(rows, keys, there, context);
  if (dout) {
    // The gradient of O has the type of O.
    Rows d = rows;
    keep.push_back(converted(dout, run.forward.o.dtype));
    d.data = keep.back();
    move(d.data);
    run.gradients = attention_backward(d, rows, keys, run.forward, back, context);
  }
  Forward& f = run.forward;
  Gradients& g = run.gradients;
  for (Tensor* t : {&f.o, &f.lse, &f.max_logit, &f.key_mass, &g.q, &g.k, &g.v, &g.sink})
    *t = on_host(*t);
  for (auto& [name, t] : g.captured) t = on_host(t);
  wait_for(device);
  return run;
}

}  // namespace undivided::cli
