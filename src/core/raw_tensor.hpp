// SPDX-License-Identifier: Apache-2.0
// What .npy and safetensors share: from a claimed type and shape to a tensor, and back to bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/atomic_file.hpp"
#include "core/byte_source.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// How the file stores one element, and what it becomes.
struct ElementType {
  DType dtype = DType::f32;
  std::uint64_t file_size = 0;  // bytes in the file
  bool widened = false;         // uint8 in the file, i32 in memory
};

/// The dense shape, once it is known to be one that a view can have. Raises Error{io, parse}.
View checked_shape(const ByteSource& source,
                   const std::string& what,
                   const std::vector<std::int64_t>& shape,
                   const ElementType& type);

Tensor read_elements(const ByteSource& source,
                     std::uint64_t offset,
                     const View& shape,
                     const ElementType& type);

void write_elements(AtomicFile& file, const View& view);

}  // namespace undivided
