// SPDX-License-Identifier: Apache-2.0
// The masks and score changes that models use, each as a program of a few lines, with data to draw
// and test it on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "undivided/expr.hpp"

namespace undivided::check {

struct GalleryMask {
  std::string name;     ///< of the picture's file
  std::string title;    ///< with the paper, where there is one
  std::string text;     ///< the program
  std::string library;  ///< the same from the library, as C++; empty where there is none
  Captures captures;
  std::int64_t q_len = 512, k_len = 512;
  Mask mask() const { return Mask::parse(text, captures); }
};
std::vector<GalleryMask> gallery_masks();
/// The one that a case calls gallery/NAME.
std::optional<GalleryMask> gallery_mask(std::string_view word);

struct GalleryScore {
  std::string name, title, text, library;
  Captures captures;  ///< for 4 heads and 24 tokens
  Score score() const { return Score::parse(text, captures); }
};
std::vector<GalleryScore> gallery_scores();

}  // namespace undivided::check
