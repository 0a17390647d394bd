// SPDX-License-Identifier: Apache-2.0
// Checkpoints in and out.
#include "nn/convert_files.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>

#include "nn/blas.hpp"

namespace undivided::nn {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::uint64_t longest_json = 100'000'000;

ordered_json read_json(const std::string& path) {
  const ByteSource source = ByteSource::file(path);
  if (source.size() > longest_json)
    throw source.bad(fmt::format("has {} bytes; allowed: {}", source.size(), longest_json));
  std::string text(source.size(), '\0');
  source.read(0, text.data(), text.size());
  const ordered_json value = ordered_json::parse(text, nullptr, false);
  if (!value.is_object()) throw source.bad("is not a JSON object");
  return value;
}

// The file of a folder that holds the weights, or names them.
std::string weights_of(const std::string& folder) {
  for (const char* name : {"model.safetensors.index.json", "model.safetensors"})
    if (fs::exists(fs::path(folder) / name)) return (fs::path(folder) / name).string();
  std::vector<std::string> found, other;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    (name.ends_with(".safetensors") ? found : other).push_back(name);
  }
  if (found.size() == 1) return (fs::path(folder) / found[0]).string();
  bool pickled = false;
  for (const std::string& name : other)
    pickled |= name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
  throw Error(Code::io,
              Stage::parse,
              fmt::format("{}: {}; expected: model.safetensors, model.safetensors.index.json or "
                          "one *.safetensors",
                          folder,
                          found.size() > 1 ? fmt::format("several weight files ({}) and no index",
                                                         fmt::join(found, ", "))
                          : pickled        ? "only pickled weights, which are not read; save them "
                                             "as safetensors first"
                                           : "no weights"));
}

}  // namespace

SourceCheckpoint::SourceCheckpoint(const std::string& path)
    : path_(path), folder_(fs::is_directory(path)) {
  const std::string weights = folder_ ? weights_of(path) : path;
  if (weights.ends_with(".index.json"))
    add_index(weights);
  else
    add(weights);
  for (const auto& [file, opened] : files_)
    for (const Safetensors::Entry& e : opened.entries())
      if (const auto at = home_.find(e.name); at != home_.end() && at->second == file)
        entries_[e.name] = &e;
  metadata = files_.begin()->second.metadata();
  const fs::path beside = fs::path(weights).parent_path() / "config.json";
  if (fs::exists(beside)) config = read_json(beside.string());
}

void SourceCheckpoint::add(const std::string& file) {
  const Safetensors& opened = files_.emplace(file, Safetensors::open(file)).first->second;
  for (const Safetensors::Entry& e : opened.entries()) home_[e.name] = file;
}

void SourceCheckpoint::add_index(const std::string& file) {
  const ordered_json index = read_json(file);
  const auto bad = [&](const std::string& what) {
    return Error(Code::io, Stage::parse, fmt::format("{} {}", file, what));
  };
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty())
    throw bad("has no weight_map of tensors to files");
  std::map<std::string, std::set<std::string>> held;  // path -> names in it
  for (const auto& [name, value] : map->items()) {
    if (!value.is_string()) throw bad(fmt::format("maps '{}' to something that is no name", name));
    const std::string shard = value.get<std::string>();
    if (shard.empty() || shard == ".." || shard.find('/') != std::string::npos)
      throw bad(
          fmt::format("maps '{}' to '{}'; a file of the same folder is expected", name, shard));
    const std::string path = (fs::path(file).parent_path() / shard).string();
    if (!held.contains(path)) {
      const auto& opened = files_.emplace(path, Safetensors::open(path)).first->second;
      for (const Safetensors::Entry& e : opened.entries()) held[path].insert(e.name);
    }
    if (!held[path].contains(name))
      throw bad(fmt::format("says that {} holds '{}', which it does not", shard, name));
    home_[name] = path;
  }
}

std::vector<std::string> SourceCheckpoint::inputs() const {
  std::vector<std::string> all = {path_};
  for (const auto& file : files_) all.push_back(file.first);
  return all;
}

const Safetensors::Entry* SourceCheckpoint::find(const std::string& name) const {
  const auto at = entries_.find(name);
  return at == entries_.end() ? nullptr : at->second;
}

SafetensorsItem SourceCheckpoint::item(const std::string& name, const std::string& as) const {
  const Safetensors::Entry* e = entries_.at(name);
  const Safetensors* file = &files_.at(home_.at(name));
  return {as, e->dtype, e->shape, e->end - e->begin, [=](AtomicFile& to) { file->copy(*e, to); }};
}

void check_target(const SourceCheckpoint& source, const std::string& out) {
  require(!out.empty(), "no output is named");
  std::error_code ignored;
  for (const std::string& input : source.inputs())
    require(!fs::equivalent(input, out, ignored),
            fmt::format("{} is the input; name another output", out));
  if (!source.folder()) {
    require(out.ends_with(".safetensors"),
            fmt::format("the output '{}' does not end with .safetensors; a folder is written when "
                        "the input is one",
                        out));
    return;
  }
  require(!out.ends_with(".safetensors"),
          fmt::format("the input is a folder, so the output is one too, not the file '{}'", out));
  require(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)),
          fmt::format("{} exists and is not empty; name a new folder", out));
}

void write_checkpoint(const std::string& out,
                      bool folder,
                      std::vector<SafetensorsItem> items,
                      const std::map<std::string, std::string>& metadata,
                      const ordered_json& config) {
  if (!folder) {
    AtomicFile file(out);
    write_safetensors(file, std::move(items), metadata);
    file.publish();
    return;
  }
  // A folder is filled beside its place and renamed.
  static std::atomic<unsigned> counter{0};
  fs::path place(out);
  if (!place.has_filename()) place = place.parent_path();  // a '/' at the end
  const fs::path fresh = fmt::format("{}.{}-{}.tmp", place.string(), ::getpid(), counter++);
  std::error_code failure;
  fs::create_directory(fresh, failure);
  if (failure)
    throw Error(
        Code::io, Stage::resolve, fmt::format("{} cannot be made: {}", out, failure.message()));
  try {
    AtomicFile weights((fresh / "model.safetensors").string());
    write_safetensors(weights, std::move(items), metadata);
    weights.publish();
    if (!config.is_null()) {
      AtomicFile json((fresh / "config.json").string());
      json.write(config.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
      json.publish();
    }
    fs::rename(fresh, place, failure);
    if (failure)
      throw Error(
          Code::io, Stage::run, fmt::format("{} cannot be renamed: {}", out, failure.message()));
  } catch (...) {
    fs::remove_all(fresh, failure);
    throw;
  }
}

}  // namespace undivided::nn
