// SPDX-License-Identifier: Apache-2.0
// undivided check: cases of the grid against the float64 oracle.
#include "check/check.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <optional>
#include <regex>

#include "cli/common.hpp"
#include "cli/device.hpp"
#include "cli/problem.hpp"

namespace undivided::cli {
namespace {

struct CheckFlags {
  std::string name, filter, file, backend = "cpu", shard;
  std::size_t some = 0;
  bool all = false, gallery = false, large = false, json = false, list = false;
};

struct Shard {
  std::uint64_t index = 0, count = 1;
};
Shard shard_of(const std::string& text) {
  if (text.empty()) return {};
  std::smatch parts;
  if (!std::regex_match(text, parts, std::regex("([0-9]{1,9})/([0-9]{1,9})")))
    refuse(fmt::format("--shard is '{}'; I/N with 0 <= I < N is expected, e.g. 0/8", text));
  const Shard s{std::stoull(parts[1]), std::stoull(parts[2])};
  if (s.index >= s.count)
    refuse(fmt::format("--shard is '{}'; I/N with 0 <= I < N is expected, e.g. 0/8", text));
  return s;
}

std::vector<check::Case> cases_of(const CheckFlags& f) {
  std::vector<check::Case> cases;
  if (!f.name.empty()) {
    cases.push_back(check::Case::parse(f.name));
  } else if (!f.file.empty()) {
    std::ifstream in(f.file);
    if (!in) throw Error(Code::io, Stage::parse, fmt::format("--file {}: cannot be read", f.file));
    for (std::string line; std::getline(in, line);)
      if (!line.empty() && line[0] != '#') cases.push_back(check::Case::parse(line));
  } else {
    cases = f.gallery ? check::gallery_cases()
            : f.large ? check::large_cases()
            : f.some  ? check::some_cases(f.some)
                      : check::all_cases();
  }
  return cases;
}

int run(const CheckFlags& f) {
  if ((!f.name.empty()) + (!f.file.empty()) + f.all + f.gallery + f.large + (f.some > 0) > 1)
    refuse(
        "CASE, --file, --some, --all, --gallery and --large exclude each other; give one of them");
  const Backend backend =
      backend_of(f.backend) == Backend::automatic ? Backend::cpu : backend_of(f.backend);
  device_of(backend);
  const Shard shard = shard_of(f.shard);
  std::optional<std::regex> pattern;
  if (!f.filter.empty()) {
    try {
      pattern.emplace(f.filter);
    } catch (const std::regex_error& e) {
      refuse(fmt::format("--filter '{}' is not a regular expression: {}", f.filter, e.what()));
    }
  }
  const std::vector<check::Case> listed = f.all ? std::vector<check::Case>{} : cases_of(f);
  const std::uint64_t total = f.all ? check::product_size() : listed.size();
  std::uint64_t passed = 0, failed = 0, skipped = 0;
  Progress progress("check", f.all ? 0 : static_cast<std::size_t>(total));
  for (std::uint64_t i = shard.index; i < total; i += shard.count) {
    const check::Case c = f.all ? check::product_case(i) : listed[static_cast<std::size_t>(i)];
    if (f.all && !check::impossible(c).empty()) continue;
    const std::string name = c.name();
    if (pattern && !std::regex_search(name, *pattern)) continue;
    if (f.list) {
      fmt::print("{}\n", name);
      ++skipped;
      continue;
    }
    if (!f.json && total > 1) progress.step(name);
    const check::Result r = check::run_case(c, backend);
    (r.skipped ? skipped : r.passed ? passed : failed) += 1;
    if (f.json) {
      fmt::print("{}\n", r.json());
      std::fflush(stdout);
    } else if (!r.passed || total == 1) {
      progress.clear();
      fmt::print("{}  {}{}\n",
                 r.skipped  ? "skip"
                 : r.passed ? "pass"
                            : "FAIL",
                 r.name,
                 r.reason.empty()
                     ? fmt::format(": max error {:.3g}, limit {:.3g}{}{}",
                                   r.max_abs,
                                   r.limit,
                                   r.rows_compared < r.rows
                                       ? fmt::format(", {} of {} rows", r.rows_compared, r.rows)
                                       : "",
                                   r.exact_relative_l1 > 0
                                       ? fmt::format("; {:.2g} of exact attention in relative L1",
                                                     r.exact_relative_l1)
                                       : "")
                     : ": " + r.reason);
    }
  }
  progress.clear();
  if (passed + failed + skipped == 0)
    refuse(fmt::format("no case matches{}; undivided check --list shows them",
                       f.filter.empty() ? "" : fmt::format(" --filter '{}'", f.filter)));
  if (!f.json && !f.list) fmt::print("{} passed, {} failed, {} skipped\n", passed, failed, skipped);
  return failed ? exit_failed : exit_done;
}

}  // namespace

Command add_check(CLI::App& main) {
  CLI::App* app = main.add_subcommand("check", "Cases of the grid against the float64 oracle");
  auto f = std::make_shared<CheckFlags>();
  app->add_option("case", f->name, "one case by name, e.g. forward.f32.d64.q65.k65.mask=causal");
  app->add_option("--filter", f->filter, "regular expression on the names of cases");
  app->add_option("--file", f->file, "names of cases, one a line");
  app->add_flag("--all", f->all, "the whole product of the axes instead of the covering set");
  app->add_flag("--gallery", f->gallery, "every mask of the gallery instead of the covering set");
  app->add_flag("--large",
                f->large,
                "long sequences instead of the covering set: above 2e9 units of work (pairs times "
                "dims) a sample of rows is compared");
  app->add_option("--some", f->some, "N cheap cases spread over the covering set, for sanitizers")
      ->check(CLI::Range(1, 100000));
  app->add_option("--shard", f->shard, "I/N: every N-th case from the I-th on");
  app->add_option("--backend", f->backend, "auto (the CPU), reference, cpu, cuda");
  app->add_flag("--list", f->list, "prints the names and stops");
  app->add_flag("--json", f->json, "one JSON object a case on stdout");
  app->footer(
      "examples:\n"
      "  undivided check --filter 'forward.*mask=causal'\n"
      "  undivided check backward.f32.d64.q65.k129.mask=prefix\n"
      "  undivided check --all --shard 0/100 --backend cuda --json");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
