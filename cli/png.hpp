// SPDX-License-Identifier: Apache-2.0
// Pictures as PNG bytes.
#pragma once

#include <string>

#include "mask/draw.hpp"

namespace undivided::cli {

std::string png_of(const masks::Picture& picture);
std::string base64(const std::string& bytes);

}  // namespace undivided::cli
