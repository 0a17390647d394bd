// SPDX-License-Identifier: Apache-2.0
// Paints a plan cell by cell; a cell is an element, a block, or a square of blocks.
#include "mask/draw.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>

#include "mask/plan.hpp"

namespace undivided::masks {
namespace {

struct Colour {
  std::uint8_t red, green, blue;
};
constexpr Colour paper{255, 255, 255}, ink{40, 44, 52};
constexpr Colour empty_colour{234, 231, 224}, partial_colour{232, 155, 48},
    full_colour{38, 98, 168};

Colour colour_of(BlockClass c) {
  return c == BlockClass::empty     ? empty_colour
         : c == BlockClass::partial ? partial_colour
                                    : full_colour;
}

// The letters that the legend needs, 5 x 7: one byte a row, bit 4 is the left column.
struct Glyph {
  char letter;
  std::array<std::uint8_t, 7> rows;
};
constexpr Glyph font[] = {
    {'0', {14, 17, 19, 21, 25, 17, 14}}, {'1', {4, 12, 4, 4, 4, 4, 14}},
    {'2', {14, 17, 1, 2, 4, 8, 31}},     {'3', {31, 2, 4, 2, 1, 17, 14}},
    {'4', {2, 6, 10, 18, 31, 2, 2}},     {'5', {31, 16, 30, 1, 1, 17, 14}},
    {'6', {6, 8, 16, 30, 17, 17, 14}},   {'7', {31, 1, 2, 4, 8, 8, 8}},
    {'8', {14, 17, 17, 14, 17, 17, 14}}, {'9', {14, 17, 17, 15, 1, 2, 12}},
    {'.', {0, 0, 0, 0, 0, 12, 12}},      {'%', {24, 25, 2, 4, 8, 19, 3}},
    {'a', {0, 0, 14, 1, 15, 17, 15}},    {'e', {0, 0, 14, 17, 31, 16, 14}},
    {'f', {6, 9, 8, 28, 8, 8, 8}},       {'i', {4, 0, 12, 4, 4, 4, 14}},
    {'k', {16, 16, 18, 20, 24, 20, 18}}, {'l', {12, 4, 4, 4, 4, 4, 14}},
    {'m', {0, 0, 26, 21, 21, 17, 17}},   {'p', {0, 0, 30, 17, 30, 16, 16}},
    {'r', {0, 0, 22, 25, 16, 16, 16}},   {'t', {8, 8, 28, 8, 8, 9, 6}},
    {'u', {0, 0, 17, 17, 17, 19, 13}},   {'y', {0, 0, 17, 17, 15, 1, 14}},
};

void fill(Picture& p, int x0, int y0, int width, int height, Colour c) {
  for (int y = std::max(y0, 0); y < std::min(y0 + height, p.height); ++y) {
    for (int x = std::max(x0, 0); x < std::min(x0 + width, p.width); ++x) {
      const auto at = (static_cast<std::size_t>(y) * static_cast<std::size_t>(p.width) +
                       static_cast<std::size_t>(x)) *
                      3;
      p.rgb[at] = c.red;
      p.rgb[at + 1] = c.green;
      p.rgb[at + 2] = c.blue;
    }
  }
}

/// Returns the x after the text.
int write(Picture& p, int x, int y, std::string_view text) {
  constexpr int scale = 2;
  for (const char letter : text) {
    const auto* glyph = std::find_if(
        std::begin(font), std::end(font), [&](const Glyph& g) { return g.letter == letter; });
    if (glyph != std::end(font))
      for (int row = 0; row < 7; ++row)
        for (int column = 0; column < 5; ++column)
          if (glyph->rows[static_cast<std::size_t>(row)] >> (4 - column) & 1)
            fill(p, x + column * scale, y + row * scale, scale, scale, ink);
    x += 6 * scale;
  }
  return x;
}

double share(const MaskPlan::Entry& e) {
  const double pairs = static_cast<double>(e.q_len) * static_cast<double>(e.k_len);
  return pairs > 0 ? 100 * static_cast<double>(e.kept_pairs) / pairs : 0;
}

}  // namespace

Picture draw(const MaskPlan& plan, const MaskPlan::Entry& e) {
  constexpr std::int64_t block = MaskPlan::block, most_elements = 512, most_cells = 768;
  const std::int64_t longest = std::max<std::int64_t>({e.q_len, e.k_len, 1});
  const bool elements = longest <= most_elements;
  // How many elements a cell covers, and how many pixels it takes.
  const std::int64_t blocks = (longest + block - 1) / block;
  const std::int64_t cell = elements ? 1 : block * ((blocks + most_cells - 1) / most_cells);
  const std::int64_t cells = (longest + cell - 1) / cell;
  const int pixels = static_cast<int>(std::max<std::int64_t>(1, 512 / cells));
  const int q_cells = static_cast<int>((e.q_len + cell - 1) / cell);
  const int k_cells = static_cast<int>((e.k_len + cell - 1) / cell);

  constexpr int margin = 12, legend = 52, legend_width = 560;
  Picture p;
  p.width = std::max(k_cells * pixels, legend_width) + 2 * margin;
  p.height = q_cells * pixels + 2 * margin + legend;
  p.rgb.resize(static_cast<std::size_t>(p.width) * static_cast<std::size_t>(p.height) * 3);
  fill(p, 0, 0, p.width, p.height, paper);
  for (int i = 0; i < q_cells; ++i) {
    for (int j = 0; j < k_cells; ++j) {
      const std::int64_t q = i * cell, k = j * cell;
      BlockClass c = plan.classify(e, q, q + cell, k, k + cell);
      if (elements && c == BlockClass::full) {  // a kept element takes the colour of its block
        const std::int64_t q0 = q / block * block, k0 = k / block * block;
        c = plan.classify(e, q0, q0 + block, k0, k0 + block);
      }
      fill(p, margin + j * pixels, margin + i * pixels, pixels, pixels, colour_of(c));
    }
  }
  int x = margin;
  const int y = q_cells * pixels + 2 * margin;
  for (const auto& [name, count, c] : {std::tuple{"empty", e.empty, BlockClass::empty},
                                       std::tuple{"partial", e.partial, BlockClass::partial},
                                       std::tuple{"full", e.full, BlockClass::full}}) {
    fill(p, x, y, 14, 14, colour_of(c));
    x = write(p, x + 20, y, fmt::format("{} {}", name, count)) + 14;
  }
  write(p, margin, y + 22, fmt::format("kept {:.2f} %", share(e)));
  return p;
}

std::string ascii(const MaskPlan& plan, const MaskPlan::Entry& e, int cells) {
  const std::int64_t longest = std::max<std::int64_t>({e.q_len, e.k_len, 1});
  const std::int64_t cell = (longest + cells - 1) / cells;
  std::string out;
  for (std::int64_t q = 0; q < e.q_len; q += cell) {
    for (std::int64_t k = 0; k < e.k_len; k += cell) {
      const BlockClass c = plan.classify(e, q, q + cell, k, k + cell);
      out += c == BlockClass::full ? "##" : c == BlockClass::partial ? "+ " : ". ";
    }
    while (!out.empty() && out.back() == ' ') out.pop_back();
    out += '\n';
  }
  return out;
}

std::string sentence(const MaskPlan::Entry& e) {
  return fmt::format("{:.2f} % of {} pairs kept; blocks of {}: {} empty, {} partial, {} full",
                     share(e),
                     e.q_len * e.k_len,
                     MaskPlan::block,
                     e.empty,
                     e.partial,
                     e.full);
}

}  // namespace undivided::masks
