// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy files, versions 1 to 3: little endian, C order, at most four axes.
#pragma once

#include <string>

#include "core/atomic_file.hpp"
#include "core/byte_source.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// Element types f8 f4 f2 i8 i4 i1 b1, and u1, which becomes i32. Raises Error{io, parse}.
Tensor read_npy(const std::string& path);
Tensor read_npy(const ByteSource& source);

/// Raises Error{invalid_argument, resolve} for a type that .npy has no name for: bf16, e4m3, e5m2.
void write_npy(const std::string& path, const View& view);
void write_npy(AtomicFile& file, const View& view);  ///< without publishing

}  // namespace undivided
