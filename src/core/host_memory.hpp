// SPDX-License-Identifier: Apache-2.0
// Host memory of tensors, results and workspaces.
#pragma once

#include <cstddef>

namespace undivided {

/// `bytes` at a multiple of 256, or null without memory. From 1 MiB on the memory lies on whole
/// huge pages of 2 MiB (a rest of less than half a page does not), and the system is asked for
/// them: rows then cost a third of the walks through page tables, and a first touch one fault for
/// 512.
void* take_host_memory(std::size_t bytes);
/// What take_host_memory(bytes) returned.
void return_host_memory(void* memory, std::size_t bytes);

}  // namespace undivided
