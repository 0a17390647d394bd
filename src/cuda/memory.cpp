// SPDX-License-Identifier: Apache-2.0
// Allocation on streams, copies of strided views, and uploads.
#include "cuda/memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cuda/driver.hpp"
#include "cuda/launch.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

DevicePtr address(const void* p) { return reinterpret_cast<DevicePtr>(p); }

class StreamAllocator final : public Allocator {
 public:
  void* allocate(std::size_t bytes, Device device, void* stream) override {
    if (bytes == 0) bytes = 1;
    Driver& d = driver();
    const DeviceScope scope(d, device.index);
    DevicePtr p = 0;
    const bool pool = d.device(device.index).memory_pools;
    const Result result =
        pool ? d.cuMemAllocAsync.raw(&p, bytes, stream) : d.cuMemAlloc.raw(&p, bytes);
    if (result == out_of_memory_result) {
      std::size_t free = 0, total = 0;
      d.cuMemGetInfo.raw(&free, &total);
      throw Error(
          Code::out_of_memory,
          Stage::run,
          fmt::format(
              "{}: {} bytes are needed, {} of {} are free", to_string(device), bytes, free, total));
    }
    d.check(result, pool ? "cuMemAllocAsync" : "cuMemAlloc");
    return reinterpret_cast<void*>(p);
  }

  // Also called while unwinding and at exit: never throws.
  void deallocate(void* data, std::size_t, Device device, void* stream) override {
    if (!data || !available()) return;
    try {
      Driver& d = driver();
      const DeviceScope scope(d, device.index);
      // A stream that is gone already cannot order the free: the waiting form does it then.
      if (!d.device(device.index).memory_pools || d.cuMemFreeAsync.raw(address(data), stream) != 0)
        d.cuMemFree.raw(address(data));
    } catch (const Error&) {
      // The driver has shut down: the memory is gone with it.
    }
  }
};

// Elements from the first to the last of a view, as they lie in memory.
std::int64_t extent(const View& v) {
  std::int64_t last = 0;
  for (int i = 0; i < v.rank; ++i) {
    if (v.size(i) == 0) return 0;
    last += (v.size(i) - 1) * v.step(i);
  }
  return last + 1;
}

bool dense(const View& v) { return v.count() == 0 || v.contiguous(); }

void check_pair(const View& a, const View& b) {
  if (a.dtype != b.dtype || a.rank != b.rank || a.shape != b.shape)
    throw Error(
        Code::invalid_argument,
        Stage::run,
        fmt::format(
            "a copy needs equal types and shapes; got {} and {}", a.describe(), b.describe()));
}

void refuse_capture(Driver& d, StreamHandle stream, const char* what) {
  if (d.capturing(stream))
    throw Error(Code::unsupported,
                Stage::run,
                fmt::format("{} waits for the stream, which is being captured into a graph: do it "
                            "before the capture",
                            what));
}

Tensor host_like(const View& v) { return Tensor::empty_like(v, v.dtype); }

View at_memory(const View& layout, void* data, Device device) {
  View v = layout;
  v.data = data;
  v.device = device;
  return v;
}

}  // namespace

Allocator& allocator() {
  static StreamAllocator& one = *new StreamAllocator;
  return one;
}

Tensor empty(DType dtype,
             const std::vector<std::int64_t>& shape,
             Device device,
             const Context& context) {
  Tensor t;
  t.dtype = dtype;
  t.device = device;
  t.rank = static_cast<int>(shape.size());
  std::int64_t count = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    t.shape[i] = shape[i];
    t.stride[i] = count;
    count *= shape[i];
  }
  const std::size_t bytes = static_cast<std::size_t>(count) * size_of(dtype);
  Allocator& from = context.allocator ? *context.allocator : allocator();
  void* stream = context.stream;
  t.data = from.allocate(bytes, device, stream);
  t.owner = std::shared_ptr<void>(t.data, [&from, bytes, device, stream](void* data) {
    from.deallocate(data, bytes, device, stream);
  });
  return t;
}

void copy_to_device(const View& host, const View& device, void* stream) {
  check_pair(host, device);
  if (host.count() == 0) return;
  Driver& d = driver();
  const DeviceScope scope(d, device.device.index);
  refuse_capture(d, stream, "a copy from the host");
  const std::size_t element = size_of(host.dtype);
  Tensor packed;
  View from = host;
  if (!dense(device)) {
    // Bytes between the rows belong to the caller: fetch them, change ours, send all back.
    const auto bytes = static_cast<std::size_t>(extent(device)) * element;
    packed = Tensor::empty(DType::i8, {static_cast<std::int64_t>(bytes)});
    d.cuMemcpyDtoHAsync(packed.data, address(device.data), bytes, stream);
    d.cuStreamSynchronize(stream);
    copy(host, at_memory(device, packed.data, cpu_device));
    d.cuMemcpyHtoDAsync(address(device.data), packed.data, bytes, stream);
  } else {
    if (!dense(host)) {
      packed = host_like(host);
      copy(host, packed);
      from = packed;
    }
    const auto bytes = static_cast<std::size_t>(host.count()) * element;
    d.cuMemcpyHtoDAsync(address(device.data), from.data, bytes, stream);
  }
  d.cuStreamSynchronize(stream);
}

void copy_to_host(const View& device, const View& host, void* stream) {
  check_pair(device, host);
  if (host.count() == 0) return;
  Driver& d = driver();
  const DeviceScope scope(d, device.device.index);
  refuse_capture(d, stream, "a copy to the host");
  const auto bytes = static_cast<std::size_t>(extent(device)) * size_of(device.dtype);
  const bool straight = dense(device) && dense(host);
  Tensor raw;
  if (!straight) raw = Tensor::empty(DType::i8, {static_cast<std::int64_t>(bytes)});
  d.cuMemcpyDtoHAsync(straight ? host.data : raw.data, address(device.data), bytes, stream);
  d.cuStreamSynchronize(stream);
  if (!straight) copy(at_memory(device, raw.data, cpu_device), host);
}

Tensor to_device(const View& host, Device device, const Context& context) {
  std::vector<std::int64_t> shape;
  for (int i = 0; i < host.rank; ++i) shape.push_back(host.size(i));
  Tensor t = empty(host.dtype, shape, device, context);
  copy_to_device(host, t, context.stream);
  return t;
}

Tensor to_host(const View& device, const Context& context) {
  Tensor t = host_like(device);
  t.device = cpu_device;
  copy_to_host(device, t, context.stream);
  return t;
}

void zero(const View& device, void* stream) {
  Driver& d = driver();
  const DeviceScope scope(d, device.device.index);
  zero(d, device, stream);
}

bool capturing(const Context& context, Device device) {
  Driver& d = driver();
  const DeviceScope scope(d, device.index);
  return d.capturing(context.stream);
}

void synchronise(const Context& context, Device device) {
  Driver& d = driver();
  const DeviceScope scope(d, device.index);
  d.cuStreamSynchronize(context.stream);
}

void upload_mask_plan(MaskPlan& plan, Device device, void* stream) {
  struct Part {
    const void* data;
    std::size_t bytes, offset;
  };
  std::size_t total = 0;
  const auto part = [&](const auto& v) {
    const Part p{v.data(), v.size() * sizeof(v[0]), total};
    total += (p.bytes + 255) / 256 * 256;
    return p;
  };
  const Part parts[] = {part(plan.entries),
                        part(plan.entry_of),
                        part(plan.run_offsets),
                        part(plan.runs),
                        part(plan.tile_ids),
                        part(plan.tiles_by_query)};
  std::vector<std::byte> packed(total);
  for (const Part& p : parts)
    if (p.bytes > 0) std::memcpy(packed.data() + p.offset, p.data, p.bytes);
  const auto bytes = static_cast<std::int64_t>(total);
  const View host = View::of(packed.data(), DType::i8, {bytes});
  Context context;
  context.stream = stream;
  const Tensor copy = to_device(host, device, context);
  const auto* base = static_cast<const std::byte*>(copy.data);
  const auto place = [&](auto*& pointer, const Part& p) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + p.offset);
  };
  place(plan.device.entries, parts[0]);
  place(plan.device.entry_of, parts[1]);
  place(plan.device.run_offsets, parts[2]);
  place(plan.device.runs, parts[3]);
  place(plan.device.tile_ids, parts[4]);
  place(plan.device.tiles_by_query, parts[5]);
  for (const MaskPlan::Entry& e : plan.entries)
    plan.device.reach = std::max(plan.device.reach,
                                 (e.partial + e.full) * MaskPlan::block / std::max(1, e.q_blocks));
  plan.device.owner = copy.owner;
}

std::vector<double> time_on_stream(Device device,
                                   const Context& context,
                                   int repeats,
                                   const std::function<void()>& work) {
  Driver& d = driver();
  const DeviceScope scope(d, device.index);
  struct Event {
    Driver& driver;
    EventHandle handle = nullptr;
    explicit Event(Driver& owner) : driver(owner) { driver.cuEventCreate(&handle, 0); }
    ~Event() { driver.cuEventDestroy.raw(handle); }
  };
  work();
  Event begin(d), end(d);
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    d.cuEventRecord(begin.handle, context.stream);
    work();
    d.cuEventRecord(end.handle, context.stream);
    d.cuEventSynchronize(end.handle);
    float milliseconds = 0;
    d.cuEventElapsedTime(&milliseconds, begin.handle, end.handle);
    seconds.push_back(milliseconds * 1e-3);
  }
  return seconds;
}

}  // namespace undivided::cuda
