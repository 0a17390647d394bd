// SPDX-License-Identifier: Apache-2.0
// Arrays by name: "FILE.npy" or "FILE.safetensors:NAME", one to read, several to write together.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/atomic_file.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// Raises Error{io, parse}. A safetensors file with one tensor needs no NAME.
Tensor read_array(const std::string& spec);
void write_array(const std::string& spec, const View& view);

/// Outputs that appear together or not at all. open() fails early, before anything is computed.
class OutputSet {
 public:
  void open(const std::string& spec);
  void set(const std::string& spec, const Tensor& tensor);  ///< one that was opened
  /// Writes every file, then renames them all. Raises Error{io, run}.
  void publish();

 private:
  struct File {
    std::unique_ptr<AtomicFile> file;
    std::vector<std::pair<std::string, Tensor>> tensors;  // .npy: one, without a name
  };
  std::map<std::string, File> files_;  // by path
};

}  // namespace undivided
