// SPDX-License-Identifier: Apache-2.0
// bench_papers FOLDER [NAME...]: reproduces claims of papers and writes their pages and pictures.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>

#include "papers/page.hpp"

using namespace undivided::papers;

int main(int count, char** arguments) {
  const std::pair<const char*, Page (*)()> claims[] = {
      {"chunked_memory", chunked_memory},
      {"flash_traffic", flash_traffic},
      {"block_sparse_traffic", block_sparse_traffic},
      {"causal_gain", causal_gain},
      {"fastformer_time", fastformer_time},
      {"grouped_decode", grouped_decode},
      {"differential_cost", differential_cost},
      {"sparse_time", sparse_time},
      {"needles", needles},
  };
  const std::vector<std::string> wanted(arguments + std::min(count, 2), arguments + count);
  bool bad = count < 2;
  for (const std::string& name : wanted)
    bad |= std::none_of(
        std::begin(claims), std::end(claims), [&](auto& c) { return name == c.first; });
  if (bad) {
    fmt::print(stderr, "usage: bench_papers FOLDER [NAME...]; names:\n");
    for (const auto& claim : claims) fmt::print(stderr, "  {}\n", claim.first);
    return 2;
  }
  bool missed = false;
  for (const auto& [name, claim] : claims) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
    const Page page = claim();
    write_page(page, arguments[1], name);
    fmt::print("{}\n  {}\n", page.title, fmt::join(page.head, " | "));
    for (const auto& row : page.rows) fmt::print("  {}\n", fmt::join(row, " | "));
    for (const std::string& what : page.missed) fmt::print("  MISSED: {}\n", what);
    missed |= !page.missed.empty();
    std::fflush(stdout);
  }
  return missed ? 1 : 0;
}
