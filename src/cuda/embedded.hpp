// SPDX-License-Identifier: Apache-2.0
// The kernel sources, embedded at build time; names are like "device/mma.cuh".
#pragma once

namespace undivided::cuda {

struct EmbeddedFile {
  const char* name;
  const char* text;  // ends with a NUL
};

extern const EmbeddedFile embedded_files[];  // sorted by name; one {nullptr, nullptr} at the end
extern const int embedded_file_count;        // without that end marker

}  // namespace undivided::cuda
