// SPDX-License-Identifier: Apache-2.0
// A page for each claim: a table in Markdown and a chart in SVG, written beside each other.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace undivided::papers {

struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;
  bool dashed = false;
};
struct Chart {
  std::string title, x, y;
  std::vector<Line> lines;
  bool log_x = true, log_y = true;
};
struct Page {
  std::string title;
  std::string text;  // what was reproduced, at which scale, and what was not
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
  Chart chart;
  std::vector<std::string> missed;  // gates that were not met
};

std::string svg_of(const Chart& chart);
/// FOLDER/claims/NAME.md and FOLDER/pictures/claim_NAME.svg.
void write_page(const Page& page, const std::string& folder, const std::string& name);

/// Best time of this thread over `runs` calls, after one that warms up: a neighbour on the core
/// does not count.
double best_seconds(int runs, const std::function<void()>& run);
/// Least-squares slope of log y over log x.
double slope(const std::vector<std::pair<double, double>>& points);

// The claims, each in a file of its own.
Page chunked_memory();
Page flash_traffic();
Page block_sparse_traffic();
Page causal_gain();
Page fastformer_time();
Page grouped_decode();
Page differential_cost();
Page sparse_time();
Page needles();

}  // namespace undivided::papers
