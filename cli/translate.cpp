// SPDX-License-Identifier: Apache-2.0
// undivided translate: answers lines with a model that train wrote.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"
#include "cli/plot.hpp"
#include "undivided/nn/tasks.hpp"

namespace undivided::cli {
namespace {

struct TranslateFlags {
  std::string model, text, map;
  nn::SearchOptions search;
  int threads = 1;
  bool json = false;
};

void answer(const TranslateFlags& f, const nn::Translator& translator, const std::string& line) {
  const auto a = translator.translate(line, f.search, !f.map.empty());
  if (!f.map.empty()) write_file(f.map, attention_map(a.weights, line, a.text));
  if (f.json)
    fmt::print(
        "{}\n",
        nlohmann::ordered_json{
            {"source", line}, {"answer", a.text}, {"score", a.score}, {"finished", a.finished}}
            .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  else
    fmt::print("{}\n", a.text);
  std::fflush(stdout);
}

int run(const TranslateFlags& f) {
  const Threads threads(f.threads);
  Context context;
  context.executor = threads.executor;
  const nn::Translator translator(f.model, context);
  if (!f.text.empty()) {
    answer(f, translator, f.text);
    return exit_done;
  }
  std::string held;  // with a map: the one line that it can show
  for (std::string line; std::getline(std::cin, line);) {
    if (line.empty()) continue;
    if (f.map.empty()) {
      answer(f, translator, line);
      continue;
    }
    if (!held.empty()) refuse("--map draws one line; stdin has more: give one, or --text");
    held = line;
  }
  if (!held.empty()) answer(f, translator, held);
  return exit_done;
}

}  // namespace

Command add_translate(CLI::App& main) {
  CLI::App* app = main.add_subcommand("translate", "Answer lines with a model that train wrote");
  auto f = std::make_shared<TranslateFlags>();
  app->add_option("model", f->model, "NAME.safetensors")->required();
  app->add_option("--text", f->text, "the line; without it lines come from stdin");
  app->add_option("--beams", f->search.beams, "1 is greedy")->capture_default_str();
  app->add_option("--alpha", f->search.alpha, "length penalty")->capture_default_str();
  app->add_option("--map", f->map, "PNG of the last layer's cross-attention, mean over heads");
  app->add_option("--threads", f->threads, "0: all cores")->capture_default_str();
  app->add_flag("--json", f->json, "one JSON object a line");
  app->footer(
      "examples:\n  undivided translate reverse.safetensors --text 3141592653 --map map.png\n"
      "  echo 'forty-two thousand one hundred seven' | undivided translate numbers.safetensors");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
