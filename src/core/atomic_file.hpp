// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written beside its place and renamed when complete.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>

namespace undivided {

class AtomicFile {
 public:
  /// Creates the temporary file. Raises Error{io, resolve} if the place cannot be written.
  explicit AtomicFile(const std::string& path);
  /// Without publish() the temporary file goes and the old content stays.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Raises Error{io, run}: disk full and the like.
  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void close();    ///< everything is on its way to the disk; publish() does it too
  void publish();  ///< renames
  const std::string& path() const { return path_; }

 private:
  std::string path_, temporary_;  // equal for a pipe or a device, which is written in place
  std::FILE* file_ = nullptr;
  bool published_ = false;
};

}  // namespace undivided
