// SPDX-License-Identifier: Apache-2.0
// undivided convert: checkpoints with other attention heads.
#include "undivided/nn/convert.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"

namespace undivided::cli {
namespace {

struct ConvertFlags {
  std::string in, out, to, layers, method, which = "self,cross,encoder";
  nn::ConvertOptions convert;
  bool json = false;
};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text)
    if (c == ',')
      words.emplace_back();
    else
      words.back() += c;
  return words;
}

// "0-3,7"
std::vector<std::int64_t> layers_of(const std::string& text) {
  std::vector<std::int64_t> layers;
  for (const std::string& word : words_of(text)) {
    const std::size_t dash = word.find('-');
    const std::string first = word.substr(0, dash),
                      last = dash == std::string::npos ? first : word.substr(dash + 1);
    for (const std::string& number : {first, last})
      if (number.empty() || number.size() > 5 ||
          number.find_first_not_of("0123456789") != std::string::npos)
        refuse(fmt::format("--layers is '{}'; numbers and ranges as in 0-3,7 are expected", text));
    if (std::stoi(first) > std::stoi(last))
      refuse(fmt::format("--layers is '{}'; {} comes after {}", text, first, last));
    for (int i = std::stoi(first); i <= std::stoi(last); ++i) layers.push_back(i);
  }
  return layers;
}

nn::ConvertOptions options_of(const ConvertFlags& f) {
  nn::ConvertOptions o = f.convert;
  if (!f.layers.empty()) o.layers = layers_of(f.layers);
  if (!f.method.empty())
    o.method =
        static_cast<nn::HeadMethod>(choose("--method", f.method, {"mean", "first", "random"}));
  bool* const wanted[] = {&o.self, &o.cross, &o.encoder};
  for (bool* kind : wanted) *kind = false;
  for (const std::string& word : words_of(f.which))
    *wanted[choose("--which", word, {"self", "cross", "encoder"})] = true;
  return o;
}

int run(const ConvertFlags& f, const CLI::App& app) {
  if (f.to.empty() == (app.count("--kv-heads") == 0))
    refuse(f.to.empty() ? "give --kv-heads N, or --to unilm | diffllama for Differential "
                          "Transformers"
                        : "both --kv-heads and --to are given; one of them decides");
  if (!f.to.empty()) {
    choose("--to", f.to, {"unilm", "diffllama"});
    for (const char* flag : {"--heads", "--method", "--seed", "--layout", "--layers", "--which"})
      if (app.count(flag) > 0) refuse(fmt::format("{} belongs to --kv-heads, not to --to", flag));
  }
  if (app.count("--seed") > 0 && f.method != "random")
    refuse("--seed belongs to --method random; mean and first draw nothing");
  remember_output(f.out.ends_with('/') ? f.out.substr(0, f.out.size() - 1) : f.out);
  const nn::ConvertReport r = f.to.empty() ? nn::convert_heads(f.in, f.out, options_of(f))
                                           : nn::convert_differential(f.in, f.out, f.to);
  if (f.json) {
    fmt::print("{}\n",
               nlohmann::ordered_json{{"out", f.out},
                                      {"layout", r.layout},
                                      {"attentions", r.attentions},
                                      {"converted", r.converted},
                                      {"heads", r.heads},
                                      {"kv_heads_before", r.from},
                                      {"kv_heads", r.to},
                                      {"parameters_before", r.parameters},
                                      {"parameters", r.parameters_after},
                                      {"notes", r.notes}}
                   .dump());
    return exit_done;
  }
  fmt::print("{}: {} of {} attentions ({} layout), {} heads, {} -> {} KV heads\n",
             f.out,
             r.converted,
             r.attentions,
             r.layout,
             r.heads,
             r.from,
             r.to);
  fmt::print("{} -> {} parameters; K and V of a token take {:.3g} x the memory\n",
             r.parameters,
             r.parameters_after,
             static_cast<double>(r.to) / static_cast<double>(r.from));
  for (const std::string& note : r.notes) fmt::print("note: {}\n", note);
  return exit_done;
}

}  // namespace

Command add_convert(CLI::App& main) {
  CLI::App* app = main.add_subcommand(
      "convert", "Checkpoints to grouped or multi-query attention and back; DiffLlama and unilm");
  auto f = std::make_shared<ConvertFlags>();
  app->add_option("in", f->in, "a .safetensors file, an index of shards, or a folder")->required();
  app->add_option("out", f->out, "a .safetensors file, or a new folder if IN is one")->required();
  app->add_option("--kv-heads", f->convert.kv_heads, "wanted: fewer are pooled, more are repeated");
  app->add_option("--method", f->method, "mean | first | random: what a group keeps (mean)");
  app->add_option("--seed", f->convert.seed, "of --method random");
  app->add_option("--heads", f->convert.heads, "query heads, where no config.json says it");
  app->add_option("--layout", f->convert.layout, "auto | llama | bart | t5 | torch | flash | gpt2");
  app->add_option("--layers", f->layers, "only these, as in 0-3,7");
  app->add_option("--which", f->which, "of self, cross, encoder; the paper: self,cross")
      ->capture_default_str();
  app->add_option(
      "--to", f->to, "unilm | diffllama: the other layout of Differential Transformers");
  app->add_flag("--json", f->json, "one JSON object on stdout");
  app->footer(
      "examples:\n"
      "  undivided convert llama-folder llama-gqa8 --kv-heads 8\n"
      "  undivided convert numbers.safetensors mqa.safetensors --kv-heads 1 --which self,cross\n"
      "  undivided convert mqa.safetensors back.safetensors --kv-heads 4\n"
      "  undivided convert diffllama-folder unilm-folder --to unilm");
  return {app, [f, app] { return run(*f, *app); }};
}

}  // namespace undivided::cli
