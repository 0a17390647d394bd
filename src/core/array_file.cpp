// SPDX-License-Identifier: Apache-2.0
// Arrays by name: "FILE.npy" or "FILE.safetensors:NAME".
#include "core/array_file.hpp"

#include <fmt/format.h>

#include <string_view>

#include "core/npy.hpp"
#include "core/safetensors.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

struct Place {
  std::string path, name;
  bool safetensors = false;
};

Place place_of(const std::string& spec) {
  constexpr std::string_view suffix = ".safetensors";
  if (const std::size_t at = spec.rfind(".safetensors:"); at != std::string::npos)
    return {spec.substr(0, at + suffix.size()), spec.substr(at + suffix.size() + 1), true};
  return {spec, {}, spec.ends_with(suffix)};
}

Place output_place(const std::string& spec) {
  Place place = place_of(spec);
  if (place.safetensors ? place.name.empty() : !spec.ends_with(".npy"))
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("output '{}'; allowed: FILE.npy or FILE.safetensors:NAME", spec));
  return place;
}

}  // namespace

Tensor read_array(const std::string& spec) {
  const Place place = place_of(spec);
  if (!place.safetensors) return read_npy(place.path);
  const Safetensors file = Safetensors::open(place.path);
  if (!place.name.empty()) return file.read(place.name);
  if (file.entries().size() == 1) return file.read(file.entries()[0].name);
  throw Error(Code::io,
              Stage::parse,
              fmt::format("{}: has {} tensors; name one: {}:NAME{}",
                          spec,
                          file.entries().size(),
                          place.path,
                          file.entries().empty() ? std::string()
                                                 : ", for example " + file.entries()[0].name));
}

void write_array(const std::string& spec, const View& view) {
  const Place place = output_place(spec);
  if (place.safetensors)
    write_safetensors(place.path, {{place.name, view}});
  else
    write_npy(place.path, view);
}

void OutputSet::open(const std::string& spec) {
  const Place place = output_place(spec);
  File& file = files_[place.path];
  for (const auto& [name, tensor] : file.tensors)
    if (name == place.name)
      throw Error(Code::invalid_argument,
                  Stage::resolve,
                  fmt::format("two outputs go to '{}'; give each its own place", spec));
  if (!file.file) file.file = std::make_unique<AtomicFile>(place.path);
  file.tensors.emplace_back(place.name, Tensor());
}

void OutputSet::set(const std::string& spec, const Tensor& tensor) {
  const Place place = output_place(spec);
  if (!place.safetensors &&
      (tensor.dtype == DType::bf16 || tensor.dtype == DType::e4m3 || tensor.dtype == DType::e5m2))
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("{}: .npy has no {}; write to FILE.safetensors:NAME, or as f32",
                            spec,
                            name_of(tensor.dtype)));
  for (auto& [name, slot] : files_[place.path].tensors)
    if (name == place.name) slot = tensor;
}

void OutputSet::publish() {
  for (auto& [path, file] : files_) {
    if (path.ends_with(".npy")) {
      write_npy(*file.file, file.tensors[0].second);
    } else {
      std::vector<std::pair<std::string, View>> views;
      for (const auto& [name, tensor] : file.tensors) views.emplace_back(name, tensor);
      write_safetensors(*file.file, views);
    }
    file.file->close();
  }
  for (auto& [path, file] : files_) file.file->publish();
  files_.clear();
}

}  // namespace undivided
