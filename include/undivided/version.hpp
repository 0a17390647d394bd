// SPDX-License-Identifier: Apache-2.0
// The version of the library: semantic versioning, read by CMake from this file.
#pragma once

#define UNDIVIDED_VERSION "0.1.0"
