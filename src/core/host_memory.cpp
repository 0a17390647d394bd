// SPDX-License-Identifier: Apache-2.0
// Host memory through operator new, so that replacements of it see every byte.
#include "core/host_memory.hpp"

#include <algorithm>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace undivided {
namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;

/// Of whole huge pages: a rest of half a page gets one of its own.
std::size_t huge_part(std::size_t bytes) {
  return (bytes / huge_page + (bytes % huge_page >= huge_page / 2 ? 1 : 0)) * huge_page;
}

std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{huge_part(bytes) == 0 ? 256 : huge_page};
}

}  // namespace

void* take_host_memory(std::size_t bytes) {
  const std::size_t huge = huge_part(bytes);
  void* memory = ::operator new(std::max(bytes, huge), alignment_of(bytes), std::nothrow);
#ifdef __linux__
  // A system that refuses loses only speed.
  if (memory && huge > 0) static_cast<void>(madvise(memory, huge, MADV_HUGEPAGE));
#endif
  return memory;
}

void return_host_memory(void* memory, std::size_t bytes) {
  ::operator delete(memory, alignment_of(bytes));
}

}  // namespace undivided
