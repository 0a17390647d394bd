// SPDX-License-Identifier: Apache-2.0
// PNG by libpng's simple interface, and base64 for pictures inside a page.
#include "cli/png.hpp"

#include <png.h>

#include "undivided/error.hpp"

namespace undivided::cli {

std::string png_of(const masks::Picture& picture) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(picture.width);
  image.height = static_cast<png_uint_32>(picture.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  std::string out;
  bool ok = png_image_write_to_memory(&image, nullptr, &size, 0, picture.rgb.data(), 0, nullptr);
  if (ok) {
    out.resize(size);
    ok = png_image_write_to_memory(&image, out.data(), &size, 0, picture.rgb.data(), 0, nullptr);
    out.resize(size);
  }
  if (!ok)
    throw Error(Code::io, Stage::run, std::string("the picture was not encoded: ") + image.message);
  return out;
}

std::string base64(const std::string& bytes) {
  static constexpr char digits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t j = 0; j < 3; ++j)
      three = three << 8 | (j < count ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (std::size_t j = 0; j < 4; ++j)
      out += j <= count ? digits[three >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

}  // namespace undivided::cli
