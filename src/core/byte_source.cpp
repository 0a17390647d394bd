// SPDX-License-Identifier: Apache-2.0
// Bounded reads from a file or from memory.
#include "core/byte_source.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace undivided {

ByteSource ByteSource::file(const std::string& path) {
  ByteSource source;
  source.name_ = path;
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) throw source.bad(std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw source.bad("is not a regular file");
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) throw source.bad(std::strerror(errno));
  source.file_ = std::shared_ptr<std::FILE>(file, [](std::FILE* f) { std::fclose(f); });
  source.size_ = static_cast<std::uint64_t>(status.st_size);
  return source;
}

ByteSource ByteSource::memory(const void* data, std::uint64_t size, const std::string& name) {
  ByteSource source;
  source.name_ = name;
  source.size_ = size;
  source.memory_ = static_cast<const unsigned char*>(data);
  return source;
}

void ByteSource::read(std::uint64_t offset, void* to, std::uint64_t size) const {
  if (offset > size_ || size > size_ - offset)
    throw bad(fmt::format(
        "is truncated: bytes {} to {} are needed, the file has {}", offset, offset + size, size_));
  if (size == 0) return;
  if (memory_) {
    std::memcpy(to, memory_ + offset, size);
    return;
  }
  const bool whole = ::fseeko(file_.get(), static_cast<off_t>(offset), SEEK_SET) == 0 &&
                     std::fread(to, 1, size, file_.get()) == size;
  if (!whole) throw bad(fmt::format("could not be read at byte {}", offset));
}

Error ByteSource::bad(const std::string& what) const {
  return Error(Code::io, Stage::parse, name_ + ": " + what);
}

}  // namespace undivided
