// SPDX-License-Identifier: Apache-2.0
// A checkpoint as it comes (one file, shards with an index, or a folder with config.json) and as it
// goes: whole or not at all, one tensor in memory at a time.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/safetensors.hpp"

namespace undivided::nn {

class SourceCheckpoint {
 public:
  /// NAME.safetensors, NAME.safetensors.index.json, or a folder that holds one of them. Raises
  /// Error{io, parse}.
  explicit SourceCheckpoint(const std::string& path);
  SourceCheckpoint(const SourceCheckpoint&) = delete;
  SourceCheckpoint& operator=(const SourceCheckpoint&) = delete;

  /// By name, in order.
  const std::map<std::string, const Safetensors::Entry*>& entries() const { return entries_; }
  const Safetensors::Entry* find(const std::string& name) const;
  Tensor read(const std::string& name) const { return files_.at(home_.at(name)).read(name); }
  /// Passes the tensor through, under the same or another name.
  SafetensorsItem item(const std::string& name, const std::string& as) const;

  const std::string& path() const { return path_; }
  std::vector<std::string> inputs() const;  ///< every file and folder that was named or followed
  bool folder() const { return folder_; }
  std::map<std::string, std::string> metadata;
  /// config.json beside the weights; null where there is none.
  nlohmann::ordered_json config;

 private:
  void add(const std::string& file);
  void add_index(const std::string& file);

  std::string path_;
  bool folder_ = false;
  std::map<std::string, Safetensors> files_;  // by path
  std::map<std::string, std::string> home_;   // tensor -> path
  std::map<std::string, const Safetensors::Entry*> entries_;
};

/// Refuses a place that cannot be written, is the source itself, or is a folder with something in
/// it. Raises Error{resolve}.
void check_target(const SourceCheckpoint& source, const std::string& out);
/// A folder gets model.safetensors and, unless `config` is null, config.json.
void write_checkpoint(const std::string& out,
                      bool folder,
                      std::vector<SafetensorsItem> items,
                      const std::map<std::string, std::string>& metadata,
                      const nlohmann::ordered_json& config);

}  // namespace undivided::nn
