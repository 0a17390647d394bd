// SPDX-License-Identifier: Apache-2.0
// Device memory for the verbs: allocation in stream order, copies, mask plans.
#pragma once

#include "undivided/context.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cuda {

/// Device memory in stream order (cuMemAllocAsync where the device has pools, else cuMemAlloc).
/// Raises Error{out_of_memory}.
Allocator& allocator();

/// Dense views of equal size and dtype. The host memory may be reused when these return.
void copy_to_device(const View& host, const View& device, void* stream);
void copy_to_host(const View& device, const View& host, void* stream);

/// Fills plan.device with copies of its arrays on `device`.
void upload_mask_plan(MaskPlan& plan, Device device, void* stream);

}  // namespace undivided::cuda
