// SPDX-License-Identifier: Apache-2.0
// Draws curves and maps pixel by pixel, with a 3 x 5 font.
#include "cli/plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/png.hpp"

namespace undivided::cli {
namespace {

using Colour = std::array<std::uint8_t, 3>;
constexpr Colour ink{40, 44, 52}, grid{225, 225, 225}, dots{180, 200, 225}, curve{38, 98, 168};

class Canvas {
 public:
  Canvas(int width, int height) {
    picture_.width = width;
    picture_.height = height;
    picture_.rgb.assign(static_cast<std::size_t>(width * height * 3), 255);
  }
  void fill(int x0, int y0, int width, int height, Colour c) {
    for (int y = std::max(0, y0); y < std::min(picture_.height, y0 + height); ++y)
      for (int x = std::max(0, x0); x < std::min(picture_.width, x0 + width); ++x)
        std::copy(c.begin(), c.end(), picture_.rgb.begin() + (y * picture_.width + x) * 3);
  }
  void write(int x, int y, const std::string& text, int scale = 2) {
    // Five rows of three bits, as octal digits.
    static const std::map<char, const char*> font = {
        {'0', "75557"}, {'1', "26227"}, {'2', "71747"}, {'3', "71717"}, {'4', "55711"},
        {'5', "74717"}, {'6', "74757"}, {'7', "71122"}, {'8', "75757"}, {'9', "75717"},
        {'a', "25755"}, {'b', "65656"}, {'c', "34443"}, {'d', "65556"}, {'e', "74647"},
        {'f', "74644"}, {'g', "34553"}, {'h', "55755"}, {'i', "72227"}, {'j', "11152"},
        {'k', "55655"}, {'l', "44447"}, {'m', "57755"}, {'n', "65555"}, {'o', "25552"},
        {'p', "65644"}, {'q', "25563"}, {'r', "65655"}, {'s', "34216"}, {'t', "72222"},
        {'u', "55557"}, {'v', "55552"}, {'w', "55775"}, {'x', "55255"}, {'y', "55222"},
        {'z', "71247"}, {'.', "00002"}, {',', "00024"}, {'-', "00700"}, {'/', "11244"},
        {':', "02020"}, {'$', "22022"}};
    for (const char letter : text) {
      if (const auto glyph = font.find(letter); glyph != font.end())
        for (int row = 0; row < 5; ++row)
          for (int column = 0; column < 3; ++column)
            if ((glyph->second[row] - '0') >> (2 - column) & 1)
              fill(x + column * scale, y + row * scale, scale, scale, ink);
      x += 4 * scale;
    }
  }
  std::string png() const { return png_of(picture_); }

 private:
  masks::Picture picture_;
};

}  // namespace

std::string loss_curve(const std::vector<float>& losses, const std::string& title) {
  constexpr int width = 720, height = 420, left = 70, right = 20, top = 40, bottom = 50;
  Canvas c(width, height);
  c.write(left, 12, title, 3);
  if (losses.empty()) return c.png();
  const auto safe = [](double x) { return std::log10(std::max(x, 1e-6)); };
  double low = safe(*std::min_element(losses.begin(), losses.end())),
         high = safe(*std::max_element(losses.begin(), losses.end()));
  low -= .05 * (high - low + .1);
  high += .05 * (high - low + .1);
  const double steps = static_cast<double>(losses.size());
  const auto x_of = [&](double s) {
    return left + static_cast<int>(s / steps * (width - left - right));
  };
  const auto y_of = [&](double loss) {
    return top + static_cast<int>((high - safe(loss)) / (high - low) * (height - top - bottom));
  };
  for (int decade = -6; decade < 4; ++decade)
    for (const double m : {1., 2., 5.}) {
      const double value = m * std::pow(10., decade);
      if (safe(value) < low || safe(value) > high) continue;
      c.fill(left, y_of(value), width - left - right, 1, grid);
      c.write(8, y_of(value) - 5, fmt::format("{:g}", value));
    }
  for (int i = 0; i <= 4; ++i) {
    const double s = steps * i / 4;
    c.fill(x_of(s), top, 1, height - top - bottom, grid);
    c.write(x_of(s) - 12, height - bottom + 10, fmt::format("{:.0f}", s));
  }
  c.write(width / 2 - 16, height - 18, "step");
  c.write(8, top - 18, "loss");
  double mean = losses[0];
  int before = y_of(mean);
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const int x = x_of(static_cast<double>(i));
    c.fill(x, y_of(losses[i]), 2, 2, dots);
    mean += .1 * (losses[i] - mean);
    const int y = y_of(mean);
    c.fill(x, std::min(before, y), 2, std::abs(before - y) + 2, curve);
    before = y;
  }
  return c.png();
}

std::string attention_map(const Tensor& weights,
                          const std::string& source,
                          const std::string& answer) {
  constexpr int cell = 18, edge = 28;
  const int rows = static_cast<int>(weights.size(0)), columns = static_cast<int>(weights.size(1));
  Canvas c(edge + columns * cell + 6, edge + rows * cell + 6);
  for (int j = 0; j < columns; ++j)
    c.write(edge + j * cell + 6, 10, source.substr(static_cast<std::size_t>(j), 1));
  for (int i = 0; i < rows; ++i) {
    const auto at = static_cast<std::size_t>(i);
    c.write(10, edge + i * cell + 4, at < answer.size() ? answer.substr(at, 1) : "$");
    for (int j = 0; j < columns; ++j) {
      const float w = std::clamp(weights.ptr<float>()[i * columns + j], 0.f, 1.f);
      const auto shade = [&](int full) {
        return static_cast<std::uint8_t>(std::lround(245 + w * static_cast<float>(full - 245)));
      };
      c.fill(
          edge + j * cell, edge + i * cell, cell - 1, cell - 1, {shade(20), shade(60), shade(140)});
    }
  }
  return c.png();
}

}  // namespace undivided::cli
