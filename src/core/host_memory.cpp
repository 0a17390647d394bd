// SPDX-License-Identifier: Apache-2.0
// Host memory through operator new, so that replacements of it see every byte.
#include "core/host_memory.hpp"

#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace undivided {
namespace {

constexpr std::size_t huge_page = std::size_t{2} << 20;

std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{bytes < huge_page ? 256 : huge_page};
}

}  // namespace

void* take_host_memory(std::size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
#ifdef __linux__
  // What does not fill a huge page stays on small ones. A system that refuses loses only speed.
  if (memory && bytes >= huge_page)
    static_cast<void>(madvise(memory, bytes / huge_page * huge_page, MADV_HUGEPAGE));
#endif
  return memory;
}

void return_host_memory(void* memory, std::size_t bytes) {
  ::operator delete(memory, alignment_of(bytes));
}

}  // namespace undivided
