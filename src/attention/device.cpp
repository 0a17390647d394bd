// SPDX-License-Identifier: Apache-2.0
// Device memory for the verbs: small host arrays go there, contents come back when asked for.
#include <fmt/format.h>

#include <new>

#include "attention/execute.hpp"
#include "core/host_memory.hpp"
#include "cuda/memory.hpp"
#include "problem/sequence.hpp"

namespace undivided {
namespace {

class HostAllocator final : public Allocator {
 public:
  void* allocate(std::size_t bytes, Device, void*) override {
    if (void* memory = take_host_memory(bytes)) return memory;
    throw std::bad_alloc();
  }
  void deallocate(void* data, std::size_t bytes, Device, void*) override {
    return_host_memory(data, bytes);
  }
};

Tensor dense_on(const View& v, Device device, const Context& context) {
  return allocate(context, device, v.dtype, {v.shape.begin(), v.shape.begin() + v.rank});
}

Tensor to_device(const View& host, Device device, const Context& context) {
  const Tensor compact = host.contiguous() ? Tensor{} : converted(host, host.dtype);
  Tensor there = dense_on(host, device, context);
  cuda::copy_to_device(compact ? static_cast<const View&>(compact) : host, there, context.stream);
  return there;
}

Tensor to_host(const View& device, const Context& context) {
  View span = device;
  if (!device.contiguous()) {
    // A strided index is rare and small: fetch all that it spans.
    std::int64_t last = 0;
    for (int axis = 0; axis < device.rank; ++axis)
      last += (device.size(axis) - 1) * device.step(axis);
    span = View::of(device.data, device.dtype, {last + 1}, device.device);
  }
  Tensor here = Tensor::empty_like(span, span.dtype);
  cuda::copy_to_host(span, here, context.stream);
  if (!device.contiguous()) {
    here.rank = device.rank;
    here.shape = device.shape;
    here.stride = device.stride;
  }
  return here;
}

/// The same program with its arrays elsewhere.
template <class F>
std::shared_ptr<const BoundProgram> with_arrays(const BoundProgram& bound,
                                                bool on_device,
                                                F&& place) {
  if (bound.program->slots.empty()) return nullptr;
  auto moved = std::make_shared<BoundProgram>(bound);
  moved->on_device = on_device;
  for (std::size_t i = 0; i < bound.program->slots.size(); ++i)
    for (const Array& array : bound.captures.arrays)
      if (array.name() == bound.program->slots[i].name) {
        const View v = place(array);
        moved->bound.arrays[i].data = v.data;
        for (int axis = 0; axis < v.rank; ++axis)
          moved->bound.arrays[i].stride[static_cast<std::size_t>(axis)] = v.step(axis);
      }
  return moved;
}

}  // namespace

Allocator& allocator_of(const Context& context, Device device) {
  static HostAllocator host;
  if (context.allocator) return *context.allocator;
  if (device.kind == Device::Kind::cpu) return host;
  return cuda::allocator();
}

Tensor allocate(const Context& context,
                Device device,
                DType dtype,
                const std::vector<std::int64_t>& shape) {
  Tensor t;
  t.dtype = dtype;
  t.device = device;
  t.rank = static_cast<int>(shape.size());
  std::int64_t count = 1;
  for (int axis = t.rank - 1; axis >= 0; --axis) {
    const auto at = static_cast<std::size_t>(axis);
    t.shape[at] = shape[at];
    t.stride[at] = count;
    count *= shape[at];
  }
  if (!context.allocator && device.kind == Device::Kind::cpu) {
    Tensor memory = Tensor::empty(dtype, {count});
    t.data = memory.data;
    t.owner = std::move(memory.owner);
    return t;
  }
  Allocator& allocator = allocator_of(context, device);
  const std::size_t bytes = static_cast<std::size_t>(count) * size_of(dtype);
  if (bytes == 0) return t;
  t.data = allocator.allocate(bytes, device, context.stream);
  t.owner = std::shared_ptr<void>(t.data,
                                  [&allocator, bytes, device, stream = context.stream](void* data) {
                                    allocator.deallocate(data, bytes, device, stream);
                                  });
  return t;
}

void move_to_device(Problem& p, const Context& context, std::vector<Tensor>& keep) {
  for_each_index(p.args, [&](const char*, View& v) {
    if (v.device.kind != Device::Kind::cpu) return;
    keep.push_back(to_device(v, p.device, context));
    v = keep.back();
  });
  for (auto* program : {&p.args.mask, &p.args.score}) {
    if (!*program || (*program)->on_device) continue;
    auto moved = with_arrays(**program, true, [&](const Array& array) {
      return library_of(context).uploaded(
          array, p.device, [&](const View& v) { return to_device(v, p.device, context); });
    });
    if (moved) *program = std::move(moved);
  }
}

Problem on_host(Problem p, const Context& context, std::vector<Tensor>& keep) {
  for_each_index(p.args, [&](const char*, View& v) {
    if (v.device.kind == Device::Kind::cpu) return;
    keep.push_back(to_host(v, context));
    v = keep.back();
  });
  for (auto* program : {&p.args.mask, &p.args.score}) {
    if (!*program || !(*program)->on_device) continue;
    auto moved = with_arrays(**program, false, [&](const Array& array) -> View {
      if (array.view().device.kind == Device::Kind::cpu) return array.view();
      keep.push_back(to_host(array.view(), context));
      return keep.back();
    });
    if (moved) *program = std::move(moved);
  }
  return p;
}

void upload_plan(MaskPlan& plan, Device device, const Context& context) {
  if (device.kind != Device::Kind::cpu) cuda::upload_mask_plan(plan, device, context.stream);
}

}  // namespace undivided
