// SPDX-License-Identifier: Apache-2.0
// From a claimed type and shape to a tensor, and back to bytes.
#include "core/raw_tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cstring>

namespace undivided {

static_assert(std::endian::native == std::endian::little, "files are read and written as they lie");

View checked_shape(const ByteSource& source,
                   const std::string& what,
                   const std::vector<std::int64_t>& shape,
                   const ElementType& type) {
  if (shape.empty())
    throw source.bad(fmt::format("{} is a single value; save it with the shape [1]", what));
  if (shape.size() > static_cast<std::size_t>(max_rank))
    throw source.bad(fmt::format("{} has {} axes; allowed: 1 to {}", what, shape.size(), max_rank));
  View view;
  view.dtype = type.dtype;
  view.rank = static_cast<int>(shape.size());
  // No more elements than the file has bytes: so nothing below can overflow, and nobody allocates
  // for a size that is only claimed.
  std::uint64_t count = 1;
  bool empty = false, too_many = false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::int64_t size = shape[i];
    if (size < 0 || size > (std::int64_t{1} << 46))
      throw source.bad(fmt::format("{} has a size of {}; allowed: 0 to 2^46", what, size));
    view.shape[i] = size;
    if (size == 0) empty = true;
    if (size > 1 && !too_many) {
      too_many = count > source.size() / static_cast<std::uint64_t>(size);
      count *= static_cast<std::uint64_t>(size);
    }
  }
  if (too_many && !empty)
    throw source.bad(
        fmt::format("is truncated: {} has the shape [{}], more elements than the file's {} bytes",
                    what,
                    fmt::join(shape, ", "),
                    source.size()));
  if (too_many)
    throw source.bad(
        fmt::format("{} is empty, with the impossible shape [{}]", what, fmt::join(shape, ", ")));
  std::int64_t step = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    view.stride[i] = step;
    step *= shape[i];
  }
  return view;
}

Tensor read_elements(const ByteSource& source,
                     std::uint64_t offset,
                     const View& shape,
                     const ElementType& type) {
  Tensor tensor = Tensor::empty_like(shape, type.dtype);
  const auto count = static_cast<std::uint64_t>(tensor.count());
  auto* bytes = static_cast<unsigned char*>(tensor.data);
  if (!type.widened) {
    source.read(offset, bytes, count * type.file_size);
    if (type.dtype == DType::boolean)
      for (std::uint64_t i = 0; i < count; ++i) bytes[i] = bytes[i] != 0;
    return tensor;
  }
  // uint8: read into the last quarter, then spread from the front; no element is overwritten
  // before it has moved.
  unsigned char* const narrow = bytes + 3 * count;
  source.read(offset, narrow, count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::int32_t value = narrow[i];
    std::memcpy(bytes + 4 * i, &value, 4);
  }
  return tensor;
}

void write_elements(AtomicFile& file, const View& view) {
  if (view.count() == 0) return;
  const Tensor dense = view.contiguous() ? Tensor() : converted(view, view.dtype);
  file.write(dense ? dense.data : view.data,
             static_cast<std::size_t>(view.count()) * size_of(view.dtype));
}

}  // namespace undivided
