// SPDX-License-Identifier: Apache-2.0
// undivided mask: what a mask keeps, block by block, with a picture.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"
#include "cli/gallery.hpp"
#include "cli/library_mask.hpp"
#include "cli/png.hpp"
#include "cli/problem.hpp"
#include "mask/draw.hpp"
#include "mask/plan.hpp"

namespace undivided::cli {
namespace {

struct MaskFlags {
  std::string text, name, align, png, gallery;
  std::vector<std::string> arrays, params;
  std::int64_t q_len = -1, k_len = -1, heads = 1;
  int threads = 0;
  bool json = false, list = false;
};

Mask mask_of(const MaskFlags& f) {
  if (f.text.empty() == f.name.empty())
    refuse(f.text.empty() ? "give --mask TEXT or --name LIBRARY (undivided mask --list shows them)"
                          : "both --mask and --name are given; one of them decides");
  if (!f.text.empty()) return parse_programs(f.text, "", f.arrays, f.params).mask;
  if (!f.params.empty())
    refuse("--param belongs to --mask; a library mask takes its numbers in its call");
  std::vector<Array> arrays;
  for (const std::string& a : f.arrays) arrays.push_back(read_captured(a));
  return library_mask(f.name, arrays);
}

Sequence sequence_of(const MaskFlags& f, const Mask& mask) {
  if (f.q_len < 0 || f.k_len < 0)
    refuse(fmt::format("{} is {}; a number of tokens >= 0 is expected",
                       f.q_len < 0 ? "--q-len" : "--k-len",
                       f.q_len == -1 || f.k_len == -1 ? "not given" : "negative"));
  if (f.q_len > INT32_MAX || f.k_len > INT32_MAX)
    refuse("--q-len and --k-len are at most 2147483647");
  if (f.heads < 1 || f.heads > 65535)
    refuse(fmt::format("--heads is {}; 1 to 65535 is allowed", f.heads));
  Sequence s;
  s.q_len = f.q_len;
  s.k_len = f.k_len;
  const bool read = mask.program()->reads_positions();
  if (!f.align.empty() && align_of(f.align) == Align::end && read) s.q_origin = s.k_len - s.q_len;
  if (f.align.empty() && read && s.q_len != s.k_len)
    refuse(
        fmt::format("--q-len {} and --k-len {} differ and the mask reads positions: say --align "
                    "start (first query with first key) or --align end (last with last)",
                    s.q_len,
                    s.k_len));
  return s;
}

int run(const MaskFlags& f) {
  if (f.list) {
    for (const LibraryMask& m : library_masks()) fmt::print("{:<22}{}\n", m.call, m.meaning);
    return exit_done;
  }
  if (!f.gallery.empty()) {
    const int pictures = write_gallery(f.gallery);
    fmt::print("wrote {0}/guide/gallery.md and {1} pictures in {0}/pictures/gallery\n",
               f.gallery,
               pictures);
    return exit_done;
  }
  const Mask mask = mask_of(f);
  const Sequence s = sequence_of(f, mask);
  const Threads threads(f.threads);
  if (!f.png.empty() && !f.png.ends_with(".png"))
    refuse(fmt::format("--png is '{}'; a name that ends with .png is expected", f.png));
  Positions reach{1, f.heads, 0, -1, 0, -1, s.q_len, s.k_len};
  if (s.q_len > 0 && s.k_len > 0) {
    reach.q_low = s.q_origin;
    reach.q_high = s.q_origin + s.q_len - 1;
    reach.k_high = s.k_len - 1;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto program = bind(mask, reach);
  const auto plan = make_mask_plan(*program, f.heads, {&s, 1}, *threads.executor);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  std::int64_t empty = 0, partial = 0, full = 0, rows_without_key = 0;
  for (std::int64_t h = 0; h < f.heads; ++h) {
    const MaskPlan::Entry& e = plan->entry(0, h);
    empty += e.empty;
    partial += e.partial;
    full += e.full;
    rows_without_key += e.rows_without_key;
  }
  if (!f.png.empty()) write_file(f.png, png_of(masks::draw(*plan, plan->entry(0, 0))));
  if (f.json) {
    const nlohmann::ordered_json out = {{"q_len", s.q_len},
                                        {"k_len", s.k_len},
                                        {"block", MaskPlan::block},
                                        {"empty", empty},
                                        {"partial", partial},
                                        {"full", full},
                                        {"kept_pairs", plan->kept_pairs()},
                                        {"rows_without_key", rows_without_key},
                                        {"seconds", seconds.count()}};
    fmt::print("{}\n", out.dump());
    return exit_done;
  }
  fmt::print("{}\n", mask.text());
  fmt::print("{}", masks::ascii(*plan, plan->entry(0, 0)));
  fmt::print("queries downwards, keys to the right: ## all kept, + some, . none\n");
  fmt::print("{}{}\n",
             f.heads > 1 ? fmt::format("head 0 of {}: ", f.heads) : "",
             masks::sentence(plan->entry(0, 0)));
  if (rows_without_key > 0)
    fmt::print("{} rows keep no key: their result is 0\n", rows_without_key);
  return exit_done;
}

}  // namespace

Command add_mask(CLI::App& main) {
  CLI::App* app = main.add_subcommand("mask", "What a mask keeps: counts, classes, a picture");
  auto f = std::make_shared<MaskFlags>();
  app->add_option("--mask", f->text, "a condition on q, k, head, e.g. 'k <= q && q - k < 1024'");
  app->add_option("--name", f->name, "a library mask in call syntax, e.g. 'window(512, 0)'");
  app->add_flag("--list", f->list, "prints the library masks");
  app->add_option("--gallery", f->gallery, "writes the gallery of masks into this folder");
  app->add_option("--q-len", f->q_len, "number of queries");
  app->add_option("--k-len", f->k_len, "number of keys");
  app->add_option("--align", f->align, "start or end; needed if the lengths differ");
  app->add_option("--array", f->arrays, "NAME=FILE: an array that the mask reads; repeatable")
      ->allow_extra_args(false)
      ->expected(1, 1 << 20);
  app->add_option("--param", f->params, "NAME=VALUE: a parameter of the mask; repeatable")
      ->allow_extra_args(false)
      ->expected(1, 1 << 20);
  app->add_option("--heads", f->heads, "counts are summed over so many heads (default 1)");
  app->add_option("--threads", f->threads, "default: all cores");
  app->add_option("--png", f->png, "writes a picture");
  app->add_flag("--json", f->json, "one JSON object on stdout");
  app->footer(
      "examples:\n"
      "  undivided mask --name 'window(512, 0)' --q-len 4096 --k-len 4096 --png window.png\n"
      "  undivided mask --mask 'k <= q && doc[q] == doc[k]' --array doc=ids.npy \\\n"
      "      --q-len 1000 --k-len 1000 --json\n"
      "  undivided mask --name 'flashmask(c, causal)' --array c=columns.npy \\\n"
      "      --q-len 4096 --k-len 4096 --png columns.png\n"
      "  undivided mask --name 'causal()' --q-len 1 --k-len 512 --align end");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
