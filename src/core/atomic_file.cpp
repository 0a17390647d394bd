// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all.
#include "core/atomic_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "undivided/error.hpp"

namespace undivided {
namespace {

Error failure(Stage stage, const std::string& path, const char* what, int number) {
  return Error(Code::io, stage, fmt::format("{}: {}: {}", path, what, std::strerror(number)));
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_directory(path_, ignored))
    throw Error(Code::io, Stage::resolve, path_ + ": is a folder; name a file in it");
  if (fs::is_symlink(path_, ignored)) {  // replace what it points to, not the link
    const fs::path target = fs::weakly_canonical(path_, ignored);
    if (!ignored) path_ = target.string();
  }
  static std::atomic<unsigned> counter{0};
  const bool in_place = fs::exists(path_, ignored) && !fs::is_regular_file(path_, ignored);
  temporary_ = in_place ? path_ : fmt::format("{}.{}-{}.tmp", path_, ::getpid(), counter++);
  file_ = std::fopen(temporary_.c_str(), in_place ? "wb" : "wbx");
  if (!file_) throw failure(Stage::resolve, path_, "cannot be written", errno);
}

AtomicFile::~AtomicFile() {
  if (file_) std::fclose(file_);
  if (!published_ && temporary_ != path_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, std::size_t size) {
  if (size && std::fwrite(data, 1, size, file_) != size)
    throw failure(Stage::run, path_, "writing failed", errno);
}

void AtomicFile::close() {
  if (!file_) return;
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0) throw failure(Stage::run, path_, "writing failed", errno);
}

void AtomicFile::publish() {
  close();
  if (temporary_ != path_ && std::rename(temporary_.c_str(), path_.c_str()) != 0)
    throw failure(Stage::run, path_, "renaming failed", errno);
  published_ = true;
}

}  // namespace undivided
