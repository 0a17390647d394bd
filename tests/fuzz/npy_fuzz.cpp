// SPDX-License-Identifier: Apache-2.0
// Any bytes given to the .npy reader either become a tensor or raise an Error that says why.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace undivided;
  try {
    const Tensor t = read_npy(ByteSource::memory(data, size, "fuzz.npy"));
    if (t.rank < 1 || t.rank > max_rank || t.count() < 0 || !t.contiguous()) std::abort();
    // Everything that the shape promises can be read: the sanitizers watch this walk.
    [[maybe_unused]] volatile double last = 0;
    const auto bytes = static_cast<std::int64_t>(size_of(t.dtype));
    for (std::int64_t i = 0; i < t.count(); ++i)
      last = load_element(t.dtype, t.ptr<char>() + i * bytes);
  } catch (const Error& e) {
    if (e.code() != Code::io || std::strlen(e.what()) < 10) std::abort();
  }
  return 0;
}
