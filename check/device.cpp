// SPDX-License-Identifier: Apache-2.0
// Device copies of a case through the library's own memory functions.
#include "check/device.hpp"

#include "cuda/memory.hpp"
#include "plan/library.hpp"
#include "undivided/error.hpp"

namespace undivided::check {

Place::Place(Backend backend, const Context& context)
    : context_(context),
      device_(backend == Backend::cuda ? Device{Device::Kind::cuda, 0} : cpu_device) {}

const Place::Copy& Place::copy_of(const Buffer& buffer) {
  const View all = buffer.storage();
  for (const Copy& c : copies_)
    if (c.host.data == all.data) return c;
  Copy c{all, {}, allocate(context_, device_, all.dtype, {all.count()})};
  c.device = c.owner;
  cuda::copy_to_device(c.host, c.device, context_.stream);
  copies_.push_back(c);
  return copies_.back();
}

View Place::bring(const Buffer& buffer) {
  View v = buffer.view();
  if (device_.kind == Device::Kind::cpu) return v;
  const Copy& c = copy_of(buffer);
  const auto offset =
      static_cast<const std::byte*>(v.data) - static_cast<const std::byte*>(c.host.data);
  v.data = static_cast<std::byte*>(c.device.data) + offset;
  v.device = device_;
  return v;
}

Inputs Place::bring(const Inputs& host) {
  Inputs out = host;
  if (device_.kind == Device::Kind::cpu) return out;
  for (View* v : {&out.q.data,
                  &out.dout.data,
                  &out.kv.k,
                  &out.kv.v,
                  &out.kv.k_mean,
                  &out.options.sink,
                  &out.backward.dlse})
    for (const Buffer& b : host.owners)
      if (*v && b.view().data == v->data) {
        *v = bring(b);
        break;
      }
  return out;
}

void Place::fetch(const Buffer& buffer) {
  if (device_.kind == Device::Kind::cpu) return;
  const Copy& c = copy_of(buffer);
  cuda::copy_to_host(c.device, c.host, context_.stream);
}

Tensor Place::host(const View& v) const {
  if (v.device.kind == Device::Kind::cpu) return converted(v, v.dtype);
  const Tensor out = Tensor::empty_like(v, v.dtype);
  cuda::copy_to_host(v, out, context_.stream);
  return out;
}

std::string missing(Backend backend) {
  if (backend != Backend::cuda) return {};
  try {
    allocate({}, Device{Device::Kind::cuda, 0}, DType::f32, {1});
    return {};
  } catch (const Error& e) {
    return std::string("no GPU: ") + e.what();
  }
}

}  // namespace undivided::check
