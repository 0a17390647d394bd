// SPDX-License-Identifier: Apache-2.0
// Writes the page: tables, bars as inline SVG, pictures as data URIs. No script, nothing fetched.
#include "cli/report.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "cli/png.hpp"

namespace undivided::cli {
namespace {

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

constexpr const char* head = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>undivided: exact attention, measured here</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #282c34; max-width: 64em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; margin: 1em 0 2em; }
th, td { padding: .25em .6em; border-bottom: 1px solid #eae7e0; text-align: right; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
td.note { color: #6b7280; } td.bad { color: #b91c1c; font-weight: bold; }
figure { display: inline-block; margin: .5em 1em .5em 0; } figure img { max-width: 18em; }
</style></head><body>
)";

/// One bar a row: part of the peak.
std::string bars(const std::vector<const DemoRow*>& rows) {
  constexpr int line = 22, left = 150, width = 520;
  double most = 0.05;
  for (const DemoRow* r : rows) most = std::max(most, r->of_peak);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-size=\"13\" "
      "role=\"img\" aria-label=\"percent of peak by form\">\n",
      left + width + 90,
      line * static_cast<int>(rows.size()) + 6);
  int y = 2;
  for (const DemoRow* r : rows) {
    const double length = std::max(1.0, r->of_peak / most * width);
    svg += fmt::format(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>"
        "<rect x=\"{}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\"/>"
        "<text x=\"{:.1f}\" y=\"{}\">{:.1f} %</text>\n",
        left - 8,
        y + 15,
        escaped(r->form + (r->backend == "cpu" ? "" : " (" + r->backend + ")")),
        left,
        y + 2,
        length,
        line - 6,
        r->backend == "cuda" ? "#e89b30" : "#2662a8",
        left + length + 6,
        y + 15,
        100 * r->of_peak);
    y += line;
  }
  return svg + "</svg>\n";
}

std::string table(const std::vector<const DemoRow*>& rows) {
  std::string out =
      "<table><tr><th>form</th><th>what it is</th><th>backend</th><th>error</th><th>ms</th>"
      "<th>GFLOP/s</th><th>of peak</th><th>speed-up</th></tr>\n";
  for (const DemoRow* r : rows)
    out += fmt::format(
        "<tr><td>{}</td><td class=\"note\">{}</td><td>{}</td><td{}>{:.1e}</td><td>{:.3f}</td>"
        "<td>{:.1f}</td><td>{:.1f} %</td><td>{:.0f} x</td></tr>\n",
        escaped(r->form),
        escaped(r->note),
        escaped(r->backend),
        r->passed ? "" : " class=\"bad\"",
        r->error,
        r->seconds * 1e3,
        r->gflops,
        100 * r->of_peak,
        r->speedup);
  return out + "</table>\n";
}

}  // namespace

std::string html_of(const DemoReport& report) {
  std::string out = head;
  out += fmt::format("<h1>undivided</h1>\n<p>Exact attention on this machine: {}. {}. {}.</p>\n",
                     escaped(report.machine),
                     escaped(report.tool),
                     escaped(report.peak));
  out +=
      "<p><b>error</b>: largest difference from the float64 oracle, as part of the oracle's "
      "largest "
      "value. <b>of peak</b>: of the fused multiply-adds that the threads used could do, measured "
      "in "
      "this run. <b>speed-up</b>: over the oracle's plain three loops on one thread.</p>\n";
  std::vector<std::string> inputs;
  for (const DemoRow& r : report.rows)
    if (std::find(inputs.begin(), inputs.end(), r.input) == inputs.end()) inputs.push_back(r.input);
  for (const std::string& input : inputs) {
    std::vector<const DemoRow*> rows;
    for (const DemoRow& r : report.rows)
      if (r.input == input) rows.push_back(&r);
    out += fmt::format("<h2>{}</h2>\n{}{}", escaped(input), table(rows), bars(rows));
  }
  if (!report.pictures.empty()) out += "<h2>Masks</h2>\n";
  for (const DemoPicture& p : report.pictures)
    out += fmt::format(
        "<figure><img alt=\"{0}\" src=\"data:image/png;base64,{1}\"><figcaption>{0}</figcaption>"
        "</figure>\n",
        escaped(p.title),
        base64(p.png));
  return out + "</body></html>\n";
}

}  // namespace undivided::cli
