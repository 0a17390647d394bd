// SPDX-License-Identifier: Apache-2.0
// The gallery of masks and scores: a page and its pictures.
#pragma once

#include <string>

namespace undivided::cli {

/// The text of guide/gallery.md.
std::string gallery_page();
/// Writes FOLDER/guide/gallery.md and FOLDER/pictures/gallery/NAME.png. Returns how many pictures.
int write_gallery(const std::string& folder);

}  // namespace undivided::cli
