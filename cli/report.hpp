// SPDX-License-Identifier: Apache-2.0
// The demo's result as one self-contained page.
#pragma once

#include <string>
#include <vector>

namespace undivided::cli {

struct DemoRow {
  std::string input, form, note, backend;
  double error = 0, seconds = 0, gflops = 0, of_peak = 0, speedup = 0;
  bool passed = true;
};
struct DemoPicture {
  std::string title, png;  // PNG bytes
};
struct DemoReport {
  std::string machine, tool, peak;
  std::vector<DemoRow> rows;
  std::vector<DemoPicture> pictures;
};

std::string html_of(const DemoReport& report);

}  // namespace undivided::cli
