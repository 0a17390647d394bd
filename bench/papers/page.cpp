// SPDX-License-Identifier: Apache-2.0
// Writes tables and draws charts.
#include "papers/page.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>

namespace undivided::papers {
namespace {

constexpr double width = 640, height = 360, left = 80, right = 20, top = 34, bottom = 48;

/// One axis: where a value lies, and its ticks.
struct Axis {
  double low, high, from, to;
  bool log;
  double at(double v) const {
    const double a = log ? std::log(v / low) / std::log(high / low) : (v - low) / (high - low);
    return from + a * (to - from);
  }
  std::vector<double> ticks() const {
    std::vector<double> t;
    if (log) {
      const double base = high / low > 300 ? 10 : 2;
      double v = std::pow(base, std::ceil(std::log(low) / std::log(base) - 1e-9));
      for (; v <= high * 1.0001; v *= base) t.push_back(v);
    } else {
      const double raw = (high - low) / 5, ten = std::pow(10, std::floor(std::log10(raw)));
      const double step = ten * (raw / ten < 1.5 ? 1 : raw / ten < 3.5 ? 2 : 5);
      for (double v = std::ceil(low / step) * step; v <= high * 1.0001; v += step) t.push_back(v);
    }
    return t;
  }
};

Axis axis_of(const Chart& c, bool x) {
  double low = 1e300, high = -1e300;
  for (const Line& l : c.lines)
    for (const auto& p : l.points) {
      low = std::min(low, x ? p.first : p.second);
      high = std::max(high, x ? p.first : p.second);
    }
  const bool log = x ? c.log_x : c.log_y;
  if (!x) {
    if (log) {
      low /= 1.15;
      high *= 1.15;
    } else {
      low = std::min(0.0, low);
      high *= 1.08;
    }
  }
  return x ? Axis{low, high, left, width - right, log} : Axis{low, high, height - bottom, top, log};
}

std::string tick_text(double v) {
  const double k = 1024;
  if (v >= k && std::fmod(v, k) == 0) {
    if (v >= k * k * k) return fmt::format("{:g}Gi", v / k / k / k);
    return v >= k * k ? fmt::format("{:g}Mi", v / k / k) : fmt::format("{:g}Ki", v / k);
  }
  return fmt::format("{:.3g}", std::fabs(v) < 1e-12 ? 0 : v);
}

}  // namespace

std::string svg_of(const Chart& c) {
  static const char* colours[] = {"#1b6ca8", "#c7522a", "#3a7d44", "#7b4fa3", "#8a6d1d"};
  const Axis x = axis_of(c, true), y = axis_of(c, false);
  std::string s = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"18\" font-size=\"14\">{3}</text>\n",
      width,
      height,
      left,
      c.title);
  for (const double v : x.ticks())
    s += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#e4e4e4\"/>"
        "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
        x.at(v),
        top,
        height - bottom,
        height - bottom + 16,
        tick_text(v));
  for (const double v : y.ticks())
    s += fmt::format(
        "<line x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\" stroke=\"#e4e4e4\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}</text>\n",
        y.at(v),
        left,
        width - right,
        left - 6,
        y.at(v) + 4,
        tick_text(v));
  s += fmt::format(
      "<text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"middle\">{}</text>\n"
      "<text transform=\"translate(16 {:.0f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
      (left + width - right) / 2,
      height - 10,
      c.x,
      (top + height - bottom) / 2,
      c.y);
  // The legend lies where the first line does not begin; under the lines when y begins at 0.
  const auto& first = c.lines.front().points;
  const bool falls = y.at(first.front().second) < y.at(first.back().second);
  const double legend = falls || !c.log_y ? width - right - 190 : left + 6;
  const double legend_top =
      c.log_y ? top + 16 : height - bottom - 17 * static_cast<double>(c.lines.size());
  for (std::size_t i = 0; i < c.lines.size(); ++i) {
    const Line& line = c.lines[i];
    const char* colour = colours[i % std::size(colours)];
    std::string points;
    for (const auto& p : line.points)
      points += fmt::format("{:.1f},{:.1f} ", x.at(p.first), y.at(p.second));
    s += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n",
                     points,
                     colour,
                     line.dashed ? " stroke-dasharray=\"5 4\"" : "");
    const double at = legend_top + 17 * static_cast<double>(i);
    s += fmt::format(
        "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"16\" fill=\"white\" "
        "fill-opacity=\".75\"/><text x=\"{:.0f}\" y=\"{:.0f}\" fill=\"{}\">{}{}</text>\n",
        legend,
        at - 12,
        7.0 * static_cast<double>(line.name.size() + (line.dashed ? 10 : 2)),
        legend + 4,
        at,
        colour,
        line.name,
        line.dashed ? " (dashed)" : "");
  }
  return s + "</svg>\n";
}

void write_page(const Page& page, const std::string& folder, const std::string& name) {
  namespace fs = std::filesystem;
  fs::create_directories(fs::path(folder) / "claims");
  fs::create_directories(fs::path(folder) / "pictures");
  std::ofstream(fs::path(folder) / "pictures" / ("claim_" + name + ".svg")) << svg_of(page.chart);
  std::ofstream out(fs::path(folder) / "claims" / (name + ".md"));
  out << "# " << page.title << "\n\n" << page.text << "\n\n";
  out << fmt::format("| {} |\n|", fmt::join(page.head, " | "));
  for (std::size_t i = 0; i < page.head.size(); ++i) out << " --- |";
  out << "\n";
  for (const auto& row : page.rows) out << fmt::format("| {} |\n", fmt::join(row, " | "));
  out << fmt::format("\n![{}](../pictures/claim_{}.svg)\n", page.chart.title, name);
}

double best_seconds(int runs, const std::function<void()>& run) {
  const auto now = [] {
    timespec t{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  run();
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const double start = now();
    run();
    best = std::min(best, now() - start);
  }
  return best;
}

double slope(const std::vector<std::pair<double, double>>& points) {
  double x = 0, y = 0, xx = 0, xy = 0;
  const auto n = static_cast<double>(points.size());
  for (const auto& p : points) {
    const double a = std::log(p.first), b = std::log(p.second);
    x += a;
    y += b;
    xx += a * a;
    xy += a * b;
  }
  return (n * xy - x * y) / (n * xx - x * x);
}

}  // namespace undivided::papers
