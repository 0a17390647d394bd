// SPDX-License-Identifier: Apache-2.0
// safetensors files: a JSON header that names tensors and says where their bytes are.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/atomic_file.hpp"
#include "core/byte_source.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

class Safetensors {
 public:
  struct Entry {
    std::string name, dtype;  // dtype as in the file: "F32"
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0, end = 0;  // bytes from the end of the header
  };

  /// Reads and checks the header. Raises Error{io, parse}.
  explicit Safetensors(const ByteSource& source);
  static Safetensors open(const std::string& path) { return Safetensors(ByteSource::file(path)); }

  const std::vector<Entry>& entries() const { return entries_; }  ///< by position in the file
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I8 BOOL, and U8, which becomes i32.
  Tensor read(const std::string& name) const;
  /// The bytes as they lie, of any type and number of axes.
  void copy(const Entry& entry, AtomicFile& to) const;

 private:
  ByteSource source_;
  std::uint64_t data_at_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

std::vector<std::pair<std::string, Tensor>> read_safetensors(const std::string& path);

/// A tensor to come: what the header says of it, and who writes its bytes when it is its turn.
struct SafetensorsItem {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
  std::function<void(AtomicFile&)> write;
};
/// Holds no more in memory than one item's writer does.
void write_safetensors(AtomicFile& file,
                       std::vector<SafetensorsItem> items,
                       const std::map<std::string, std::string>& metadata = {});
void write_safetensors(AtomicFile& file,
                       const std::vector<std::pair<std::string, View>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});
void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, View>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace undivided
