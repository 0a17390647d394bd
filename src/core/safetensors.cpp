// SPDX-License-Identifier: Apache-2.0
// safetensors files. Layout: length of the header (8 bytes), the header (JSON), the bytes. As the
// format asks, tensors lie one after another without overlap or hole, up to the end of the file.
#include "core/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <tuple>

#include "core/raw_tensor.hpp"

namespace undivided {
namespace {

using nlohmann::json;

constexpr std::uint64_t longest_header = 100'000'000;  // the format's own limit
constexpr const char* safetensors_types =
    "F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I8, U8 and BOOL";

struct TypeName {
  const char* name;
  ElementType type;
};
constexpr std::array<TypeName, 11> type_names{{{"F64", {DType::f64, 8}},
                                               {"F32", {DType::f32, 4}},
                                               {"F16", {DType::f16, 2}},
                                               {"BF16", {DType::bf16, 2}},
                                               {"F8_E4M3", {DType::e4m3, 1}},
                                               {"F8_E5M2", {DType::e5m2, 1}},
                                               {"I64", {DType::i64, 8}},
                                               {"I32", {DType::i32, 4}},
                                               {"I8", {DType::i8, 1}},
                                               {"BOOL", {DType::boolean, 1}},
                                               {"U8", {DType::i32, 1, true}}}};

const ElementType* type_of(std::string_view name) {
  for (const TypeName& t : type_names)
    if (name == t.name) return &t.type;
  return nullptr;
}

const char* name_in_file(DType dtype) {
  for (const TypeName& t : type_names)
    if (t.type.dtype == dtype) return t.name;
  return "";
}

// Rejects what a JSON library would accept in silence: repeated names, and depth.
json parse_header(const ByteSource& source, const std::string& text) {
  std::set<std::string> names;
  const json::parser_callback_t check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 4) throw source.bad("has a header with too many nested levels");
    if (event == json::parse_event_t::key && depth == 1 &&
        !names.insert(value.get<std::string>()).second)
      throw source.bad(fmt::format("names '{}' twice", value.get<std::string>()));
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception&) {
    throw source.bad("has a header that is not valid JSON");
  }
}

std::uint64_t whole_number(const ByteSource& source, const std::string& name, const json& value) {
  if (!value.is_number_unsigned())
    throw source.bad(fmt::format("tensor '{}': sizes and offsets are whole numbers", name));
  return value.get<std::uint64_t>();
}

Safetensors::Entry entry(const ByteSource& source, const std::string& name, const json& value) {
  if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() ||
      !value.contains("shape") || !value["shape"].is_array() || !value.contains("data_offsets") ||
      !value["data_offsets"].is_array() || value["data_offsets"].size() != 2)
    throw source.bad(fmt::format("tensor '{}' needs a dtype, a shape and two data_offsets", name));
  Safetensors::Entry e;
  e.name = name;
  e.dtype = value["dtype"].get<std::string>();
  for (const json& size : value["shape"]) {
    const std::uint64_t n = whole_number(source, name, size);
    if (n > (std::uint64_t{1} << 46))
      throw source.bad(fmt::format("tensor '{}' has a size of {}; allowed: 0 to 2^46", name, n));
    e.shape.push_back(static_cast<std::int64_t>(n));
  }
  e.begin = whole_number(source, name, value["data_offsets"][0]);
  e.end = whole_number(source, name, value["data_offsets"][1]);
  return e;
}

void check_layout(const ByteSource& source,
                  const std::vector<Safetensors::Entry>& entries,
                  std::uint64_t data_size) {
  std::uint64_t expected = 0;
  for (const Safetensors::Entry& e : entries) {
    if (e.end < e.begin || e.end > data_size)
      throw source.bad(fmt::format(
          "tensor '{}' lies at bytes {} to {}, outside the {} bytes of data; the file is truncated "
          "or its header wrong",
          e.name,
          e.begin,
          e.end,
          data_size));
    if (e.begin != expected)
      throw source.bad(fmt::format("tensor '{}' begins at byte {} where {} was expected: {}",
                                   e.name,
                                   e.begin,
                                   expected,
                                   e.begin < expected ? "tensors overlap" : "there is a hole"));
    expected = e.end;
  }
  if (expected != data_size)
    throw source.bad(fmt::format("has {} bytes after the last tensor; the header is wrong",
                                 data_size - expected));
}

}  // namespace

Safetensors::Safetensors(const ByteSource& source) : source_(source) {
  unsigned char length[8] = {};
  if (source.size() < 8) throw source.bad("is not a safetensors file: it has fewer than 8 bytes");
  source.read(0, length, 8);
  std::uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) header_size = header_size << 8 | length[i];
  if (header_size > longest_header || header_size > source.size() - 8)
    throw source.bad(fmt::format(
        "is not a safetensors file, or truncated: it claims a header of {} bytes and has {}",
        header_size,
        source.size() - 8));
  std::string text(header_size, '\0');
  source.read(8, text.data(), header_size);
  data_at_ = 8 + header_size;
  const std::uint64_t data_size = source.size() - data_at_;

  const json header = parse_header(source, text);
  if (!header.is_object()) throw source.bad("has a header that is not a JSON object");
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      entries_.push_back(entry(source, name, value));
      continue;
    }
    if (!value.is_object()) throw source.bad("has metadata that is not a JSON object");
    for (const auto& [key, item] : value.items()) {
      if (!item.is_string()) throw source.bad(fmt::format("metadata '{}' is not text", key));
      metadata_[key] = item.get<std::string>();
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_layout(source, entries_, data_size);
}

Tensor Safetensors::read(const std::string& name) const {
  std::string names;
  for (const Entry& e : entries_) {
    if (e.name != name) {
      if (names.size() < 200) names += (names.empty() ? "" : ", ") + e.name;
      continue;
    }
    const std::string what = fmt::format("tensor '{}'", name);
    const ElementType* type = type_of(e.dtype);
    if (!type)
      throw source_.bad(
          fmt::format("{} has the type {}; allowed: {}", what, e.dtype, safetensors_types));
    const View shape = checked_shape(source_, what, e.shape, *type);
    const std::uint64_t needed = static_cast<std::uint64_t>(shape.count()) * type->file_size;
    if (e.end - e.begin != needed)
      throw source_.bad(fmt::format("{}: {} needs {} bytes, its offsets span {}",
                                    what,
                                    shape.describe(),
                                    needed,
                                    e.end - e.begin));
    return read_elements(source_, data_at_ + e.begin, shape, *type);
  }
  throw source_.bad(fmt::format(
      "has no tensor '{}'; it has: {}", name, names.empty() ? std::string("none") : names));
}

std::vector<std::pair<std::string, Tensor>> read_safetensors(const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  std::vector<std::pair<std::string, Tensor>> result;
  for (const Safetensors::Entry& e : file.entries()) result.emplace_back(e.name, file.read(e.name));
  return result;
}

void Safetensors::copy(const Entry& entry, AtomicFile& to) const {
  std::vector<char> piece(1 << 20);
  for (std::uint64_t at = entry.begin; at < entry.end; at += piece.size()) {
    const std::uint64_t n = std::min<std::uint64_t>(piece.size(), entry.end - at);
    source_.read(data_at_ + at, piece.data(), n);
    to.write(piece.data(), n);
  }
}

void write_safetensors(AtomicFile& file,
                       std::vector<SafetensorsItem> items,
                       const std::map<std::string, std::string>& metadata) {
  // Wide elements first keeps every tensor aligned to its element.
  const auto width = [](const SafetensorsItem& item) {
    std::uint64_t count = 1;
    for (const std::int64_t n : item.shape) count *= static_cast<std::uint64_t>(n);
    return count > 0 ? item.bytes / count : 1;
  };
  std::sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
    const std::uint64_t wide_a = width(a), wide_b = width(b);
    return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
  });
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (const SafetensorsItem& item : items) {
    if (item.name.empty() || item.name == "__metadata__" || header.contains(item.name))
      throw Error(Code::invalid_argument,
                  Stage::resolve,
                  fmt::format("{}: '{}' cannot name a tensor here: names are not empty, not "
                              "__metadata__ and not repeated",
                              file.path(),
                              item.name));
    json& e = header[item.name];
    e["dtype"] = item.dtype;
    e["shape"] = item.shape;
    e["data_offsets"] = {at, at + item.bytes};
    at += item.bytes;
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  while (text.size() % 8 != 0) text += ' ';
  unsigned char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
  file.write(length, sizeof length);
  file.write(text);
  for (const SafetensorsItem& item : items) item.write(file);
}

void write_safetensors(AtomicFile& file,
                       const std::vector<std::pair<std::string, View>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsItem> items;
  for (const auto& named : tensors) {
    const View& v = named.second;
    items.push_back({named.first,
                     name_in_file(v.dtype),
                     {v.shape.begin(), v.shape.begin() + v.rank},
                     static_cast<std::uint64_t>(v.count()) * size_of(v.dtype),
                     [&v](AtomicFile& to) { write_elements(to, v); }});
  }
  write_safetensors(file, std::move(items), metadata);
}

void write_safetensors(const std::string& path,
                       const std::vector<std::pair<std::string, View>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  AtomicFile file(path);
  write_safetensors(file, tensors, metadata);
  file.publish();
}

}  // namespace undivided
