// SPDX-License-Identifier: Apache-2.0
// Draws each program of the gallery on its own data and lists them with their text.
#include "cli/gallery.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "check/gallery.hpp"
#include "cli/common.hpp"
#include "cli/png.hpp"
#include "mask/plan.hpp"

namespace undivided::cli {
namespace {

std::shared_ptr<MaskPlan> plan_of(const check::GalleryMask& m) {
  Sequence s;
  s.q_len = m.q_len;
  s.k_len = m.k_len;
  const Positions reach{1, 1, 0, s.q_len - 1, 0, s.k_len - 1, s.q_len, s.k_len};
  return make_mask_plan(*bind(m.mask(), reach), 1, {&s, 1}, inline_executor());
}

/// What a score of 1 becomes, less 1: blue below, orange above, heads side by side.
masks::Picture draw(const check::GalleryScore& s) {
  constexpr int n = 24, heads = 4, cell = 5, gap = 8;
  const auto bound = bind(s.score(), Positions{1, heads, 0, n - 1, 0, n - 1, n, n});
  std::vector<double> scratch(bound->program->nodes.size()), change;
  double most = 1e-9;
  for (int h = 0; h < heads; ++h)
    for (int q = 0; q < n; ++q)
      for (int k = 0; k < n; ++k) {
        double result = 0;
        expr::evaluate(
            *bound->program, bound->bound, {0, h, q, k, n, n, 1}, scratch.data(), &result);
        change.push_back(result - 1);
        most = std::max(most, std::fabs(result - 1));
      }
  masks::Picture p;
  p.width = heads * (n * cell + gap) - gap;
  p.height = n * cell;
  p.rgb.assign(static_cast<std::size_t>(p.width) * static_cast<std::size_t>(p.height) * 3, 255);
  for (int y = 0; y < p.height; ++y)
    for (int x = 0; x < p.width; ++x) {
      const int h = x / (n * cell + gap), k = x % (n * cell + gap) / cell;
      if (k >= n) continue;
      const double c = change[static_cast<std::size_t>((h * n + y / cell) * n + k)] / most;
      const int full[2][3] = {{38, 98, 168}, {232, 155, 48}};
      for (std::size_t i = 0; i < 3; ++i)
        p.rgb[(static_cast<std::size_t>(y) * static_cast<std::size_t>(p.width) +
               static_cast<std::size_t>(x)) *
                  3 +
              i] = static_cast<std::uint8_t>(255 - std::fabs(c) * (255 - full[c > 0][i]));
    }
  return p;
}

std::string entry(const std::string& name,
                  const std::string& title,
                  const std::string& text,
                  const std::string& library,
                  const std::string& note,
                  bool drawn = true) {
  return fmt::format(
      "## {}{}\n\n{}```\n{}\n```\n\n{}{}",
      static_cast<char>(std::toupper(static_cast<unsigned char>(title[0]))),
      title.substr(1),
      library.empty() ? "" : fmt::format("In the library: `{}`.\n\n", library),
      text,
      note,
      drawn ? fmt::format("![{}](../pictures/gallery/{}.png)\n\n", title, name) : "");
}

/// A score that reads no position has nothing to show.
bool drawn(const check::GalleryScore& s) { return s.score().program()->reads_positions(); }

}  // namespace

std::string gallery_page() {
  std::string page =
      "# Gallery of masks and scores\n\n"
      "Each picture is drawn from the program above it; `make gallery` makes this page again. "
      "Queries go downwards, keys to the right. Blue: kept, in a block of 64 x 64 that is kept "
      "whole; orange: kept, in a block that is kept in part; grey: masked.\n\n"
      "A program is text, `ud::Mask::parse(text, {{doc, glob}})` with its arrays by name, or a "
      "lambda with the same words: `ud::mask([=](auto batch, auto head, auto q, auto k) { return "
      "k <= q && doc[q] == doc[k]; })`, where `let x = ...;` is `auto x = ...;` and `c ? a : b` "
      "is `ud::select(c, a, b)`. Scores are the same with `ud::Score::parse` and `ud::score`, "
      "whose lambda takes the score first. [Masks](masks.md) explains the language.\n\n";
  for (const check::GalleryMask& m : check::gallery_masks()) {
    const auto plan = plan_of(m);
    const MaskPlan::Entry& e = plan->entry(0, 0);
    page += entry(m.name,
                  m.title,
                  m.text,
                  m.library,
                  fmt::format("{} x {}: {}.\n\n", m.q_len, m.k_len, masks::sentence(e)));
  }
  page +=
      "# Scores\n\nPictures show what a score of 1 becomes on four heads of 24 x 24: blue less, "
      "orange more. Captured float arrays have gradients.\n\n";
  for (const check::GalleryScore& s : check::gallery_scores())
    page += entry(s.name, s.title, s.text, s.library, "", drawn(s));
  page.pop_back();
  return page;
}

int write_gallery(const std::string& folder) {
  namespace fs = std::filesystem;
  const fs::path pictures = fs::path(folder) / "pictures" / "gallery",
                 guide = fs::path(folder) / "guide";
  std::error_code failed;
  fs::create_directories(pictures, failed);
  fs::create_directories(guide, failed);
  int count = 0;
  const auto write = [&](const std::string& name, const masks::Picture& picture) {
    write_file((pictures / (name + ".png")).string(), png_of(picture));
    ++count;
  };
  for (const check::GalleryMask& m : check::gallery_masks()) {
    const auto plan = plan_of(m);
    write(m.name, masks::draw(*plan, plan->entry(0, 0)));
  }
  for (const check::GalleryScore& s : check::gallery_scores())
    if (drawn(s)) write(s.name, draw(s));
  write_file((guide / "gallery.md").string(), gallery_page());
  return count;
}

}  // namespace undivided::cli
