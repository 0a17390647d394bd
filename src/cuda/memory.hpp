// SPDX-License-Identifier: Apache-2.0
// Device memory for the verbs: the allocator, copies, mask plans, and times on a stream.
#pragma once

#include <functional>
#include <vector>

#include "undivided/context.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cuda {

/// cuMemAllocAsync on the stream, or cuMemAlloc where the device has no memory pools.
Allocator& allocator();

/// A dense device tensor from context.allocator, or allocator().
Tensor empty(DType dtype,
             const std::vector<std::int64_t>& shape,
             Device device,
             const Context& context = {});
/// A dense copy on the device. The host memory may be reused at return.
Tensor to_device(const View& host, Device device, const Context& context = {});
/// A dense copy on the host; waits for the stream.
Tensor to_host(const View& device, const Context& context = {});
/// The same between views that exist; shapes and types are equal, strides are any. Both are done
/// at return, and are refused while the stream is captured.
void copy_to_device(const View& host, const View& device, void* stream = nullptr);
void copy_to_host(const View& device, const View& host, void* stream = nullptr);
void zero(const View& device, void* stream = nullptr);

/// Is the stream being captured into a graph? What synchronises must refuse then.
bool capturing(const Context& context, Device device);
void synchronise(const Context& context, Device device);

/// Fills plan.device. Waits for the stream.
void upload_mask_plan(MaskPlan& plan, Device device, void* stream = nullptr);

/// Seconds of each of `repeats` calls of `work` on the stream, by events; one warm-up before.
std::vector<double> time_on_stream(Device device,
                                   const Context& context,
                                   int repeats,
                                   const std::function<void()>& work);

}  // namespace undivided::cuda
