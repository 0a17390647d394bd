// SPDX-License-Identifier: Apache-2.0
// NumPy's .npy files. Layout: magic, version, length of the header, the header as a Python dict,
// the elements. Nothing in the header is believed before it has been compared with the file's size.
#include "core/npy.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "core/raw_tensor.hpp"

namespace undivided {
namespace {

constexpr char magic[] = "\x93NUMPY";
constexpr std::uint64_t longest_npy_header = 64 * 1024;
constexpr const char* npy_types = "f8, f4, f2, i8, i4, i1, u1 and b1";

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

// The subset of Python literals that NumPy writes: a dict of a string, a bool and a tuple.
class HeaderParser {
 public:
  HeaderParser(const ByteSource& source, std::string_view text) : source_(source), text_(text) {}

  Header parse() {
    std::optional<std::string> descr;
    std::optional<bool> fortran_order;
    std::optional<std::vector<std::int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !descr) {
        if (peek() == '[')
          throw source_.bad(fmt::format("has structured elements; allowed: {}", npy_types));
        descr = string();
      } else if (key == "fortran_order" && !fortran_order) {
        fortran_order = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        throw source_.bad(fmt::format(
            "has a bad header: key '{}'; expected descr, fortran_order and shape, each once", key));
      }
      if (!accept(',') && peek() != '}') fail("',' or '}'");
    }
    if (peek() != '\0') fail("the end of the header");
    if (!descr || !fortran_order || !shape)
      throw source_.bad("has a bad header: descr, fortran_order and shape are all needed");
    return {*descr, *fortran_order, *shape};
  }

 private:
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("'{}'", c));
  }
  [[noreturn]] void fail(const std::string& expected) const {
    throw source_.bad(
        fmt::format("has a bad header: expected {} at its character {}", expected, at_));
  }

  std::string string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("a string");
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail("a string with an end");
    std::string result(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return result;
  }
  bool boolean() {
    peek();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    fail("True or False");
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> result;
    expect('(');
    while (!accept(')')) {
      peek();
      std::int64_t size = 0;
      const char* const end = text_.data() + text_.size();
      const auto [stop, failure] = std::from_chars(text_.data() + at_, end, size);
      if (failure != std::errc() || size < 0) fail("a size of 0 or more");
      at_ = static_cast<std::size_t>(stop - text_.data());
      result.push_back(size);
      if (!accept(',') && peek() != ')') fail("',' or ')'");
    }
    return result;
  }

  const ByteSource& source_;
  std::string_view text_;
  std::size_t at_ = 0;
};

ElementType element_type(const ByteSource& source, const std::string& descr) {
  const char order = descr.empty() ? '\0' : descr[0];
  const std::string kind = descr.empty() ? descr : descr.substr(1);
  const ElementType type = kind == "f8"   ? ElementType{DType::f64, 8}
                           : kind == "f4" ? ElementType{DType::f32, 4}
                           : kind == "f2" ? ElementType{DType::f16, 2}
                           : kind == "i8" ? ElementType{DType::i64, 8}
                           : kind == "i4" ? ElementType{DType::i32, 4}
                           : kind == "i1" ? ElementType{DType::i8, 1}
                           : kind == "u1" ? ElementType{DType::i32, 1, true}
                           : kind == "b1" ? ElementType{DType::boolean, 1}
                                          : ElementType{};
  if (type.file_size == 0 || std::string_view("<>|=").find(order) == std::string_view::npos)
    throw source.bad(fmt::format("has elements of type '{}'; allowed: {}", descr, npy_types));
  if (order == '>' && type.file_size > 1)
    throw source.bad(
        fmt::format("is big endian ('{}'); save it little endian, as '<{}'", descr, kind));
  return type;
}

const char* descr_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "<f8";
    case DType::f32:
      return "<f4";
    case DType::f16:
      return "<f2";
    case DType::i8:
      return "|i1";
    case DType::i32:
      return "<i4";
    case DType::i64:
      return "<i8";
    case DType::boolean:
      return "|b1";
    default:
      return nullptr;
  }
}

}  // namespace

Tensor read_npy(const ByteSource& source) {
  unsigned char start[12] = {};
  source.read(0, start, source.size() < 10 ? source.size() : 10);
  if (std::memcmp(start, magic, 6) != 0)
    throw source.bad("is not a .npy file (it does not begin with \\x93NUMPY)");
  if (source.size() < 10) throw source.bad("is truncated inside the .npy header");
  const int version = start[6];
  if (version < 1 || version > 3)
    throw source.bad(fmt::format("is .npy version {}; versions 1 to 3 are read", version));
  std::uint64_t header_at = 10, header_size = start[8] + 256u * start[9];
  if (version > 1) {
    source.read(8, start + 8, 4);
    header_at = 12;
    header_size += (std::uint64_t{start[10]} << 16) + (std::uint64_t{start[11]} << 24);
  }
  if (header_size > longest_npy_header)
    throw source.bad(fmt::format(
        "claims a header of {} bytes; allowed: up to {}", header_size, longest_npy_header));
  std::string text(header_size, '\0');
  source.read(header_at, text.data(), header_size);

  const Header header = HeaderParser(source, text).parse();
  const ElementType type = element_type(source, header.descr);
  const View shape = checked_shape(source, "the array", header.shape, type);
  if (header.fortran_order && shape.rank > 1 && shape.count() > 1)
    throw source.bad("is in Fortran order; save it in C order (numpy.ascontiguousarray)");
  const std::uint64_t begin = header_at + header_size;
  const std::uint64_t needed = static_cast<std::uint64_t>(shape.count()) * type.file_size;
  if (source.size() - begin != needed)
    throw source.bad(fmt::format(
        "{}: {} needs {} bytes of data, the file has {}",
        source.size() - begin < needed ? "is truncated" : "is longer than its header says",
        shape.describe(),
        needed,
        source.size() - begin));
  return read_elements(source, begin, shape, type);
}

Tensor read_npy(const std::string& path) { return read_npy(ByteSource::file(path)); }

void write_npy(AtomicFile& file, const View& view) {
  const char* descr = descr_of(view.dtype);
  if (!descr)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("{}: .npy has no {}; write to FILE.safetensors:NAME, or as f32",
                            file.path(),
                            name_of(view.dtype)));
  std::string shape;
  for (int i = 0; i < view.rank; ++i)
    shape += fmt::format("{}{}",
                         view.size(i),
                         view.rank == 1      ? ","
                         : i + 1 < view.rank ? ", "
                                             : "");
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  const char start[10] = {'\x93',
                          'N',
                          'U',
                          'M',
                          'P',
                          'Y',
                          1,
                          0,
                          static_cast<char>(header.size() & 255),
                          static_cast<char>(header.size() >> 8)};
  file.write(start, sizeof start);
  file.write(header);
  write_elements(file, view);
}

void write_npy(const std::string& path, const View& view) {
  AtomicFile file(path);
  write_npy(file, view);
  file.publish();
}

}  // namespace undivided
