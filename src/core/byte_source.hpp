// SPDX-License-Identifier: Apache-2.0
// Bounded reads from a file or from memory: whoever parses a format never sees an end too late.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "undivided/error.hpp"

namespace undivided {

class ByteSource {
 public:
  /// Raises Error{io, parse} if there is no such regular file.
  static ByteSource file(const std::string& path);
  /// Somebody else's memory; `name` appears in messages.
  static ByteSource memory(const void* data, std::uint64_t size, const std::string& name);

  std::uint64_t size() const { return size_; }
  const std::string& name() const { return name_; }
  /// Copies [offset, offset + size). Raises Error{io, parse} if that is not inside.
  void read(std::uint64_t offset, void* to, std::uint64_t size) const;
  /// An Error{io, parse} that begins with the name.
  Error bad(const std::string& what) const;

 private:
  std::string name_;
  std::uint64_t size_ = 0;
  const unsigned char* memory_ = nullptr;
  std::shared_ptr<std::FILE> file_;
};

}  // namespace undivided
