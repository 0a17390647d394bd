// SPDX-License-Identifier: Apache-2.0
// The command line tool: finds the command, runs it, and turns every failure into one line and a
// code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <new>

#include "cli/common.hpp"

namespace undivided::cli {
namespace {

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// The option that a bare mask is meant for: a condition, or a call of the library.
std::string option_for(const CLI::App& app, const std::string& text) {
  for (const auto& [option, marks] : {std::pair{"--mask", "<>=!&|"}, {"--name", "("}})
    if (text.find_first_of(marks) != std::string::npos && app.get_option_no_throw(option))
      return fmt::format("{} '{}'", option, text);
  return {};
}

// What CLI11 could not place: says what came, and the nearest flag or command.
std::string complaint(const CLI::App& main, const CLI::ParseError& error) {
  const auto chosen = main.get_subcommands();
  if (chosen.empty()) {
    std::vector<std::string> commands;
    for (const CLI::App* sub : main.get_subcommands([](const CLI::App*) { return true; }))
      commands.push_back(sub->get_name());
    const auto rest = main.remaining();
    const std::string allowed = fmt::format("commands: {}", fmt::join(commands, ", "));
    if (rest.empty()) return fmt::format("no command; {}; see undivided --help", allowed);
    const std::string near = nearest(rest[0], commands);
    return fmt::format("unknown {} '{}'; {}{}",
                       rest[0].starts_with('-') ? "flag" : "command",
                       rest[0],
                       near.empty() ? "" : fmt::format("did you mean {}? ", near),
                       allowed);
  }
  const CLI::App& app = *chosen[0];
  const auto rest = app.remaining();
  if (!rest.empty()) {
    const bool flag = rest[0].starts_with('-');
    const std::string name = rest[0].substr(0, rest[0].find('='));
    const std::string near = flag ? nearest(name, flags_of(app)) : option_for(app, rest[0]);
    return fmt::format("unknown {} '{}' for {}{}; see undivided {} --help",
                       flag ? "flag" : "argument",
                       rest[0],
                       app.get_name(),
                       near.empty() ? "" : fmt::format("; nearest: {}", near),
                       app.get_name());
  }
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  return fmt::format("{}: {}; see undivided {} --help", app.get_name(), message, app.get_name());
}

int run(int argc, char** argv) {
  CLI::App main("Exact attention, every way the field computes it, on CPUs and NVIDIA GPUs.",
                "undivided");
  main.require_subcommand(1);
  main.set_version_flag("--version", tool_line());
  main.footer(
      "examples:\n"
      "  undivided demo\n"
      "  undivided attend --q Q.npy --k K.npy --v V.npy --mask 'k <= q' --out O.npy\n"
      "  undivided mask --name 'window(512, 0)' --q-len 2048 --k-len 2048\n"
      "exit codes: 0 done, 1 a check or gate failed, 2 the request cannot be honoured, 3 it "
      "failed\n"
      "while running, 130 interrupted");
  const Command commands[] = {
      add_demo(main),
      add_attend(main),
      add_check(main),
      add_bench(main),
      add_mask(main),
      add_explain(main),
      add_info(main),
      add_precompile(main),
#ifdef UNDIVIDED_WITH_NN
      add_train(main),
      add_translate(main),
      add_convert(main),
#endif
  };
  const bool json = std::any_of(
      argv + 1, argv + argc, [](const char* word) { return std::string_view(word) == "--json"; });
  try {
    main.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const auto chosen = main.get_subcommands();
    fmt::print("{}", chosen.empty() ? main.help() : chosen[0]->help());
    return exit_done;
  } catch (const CLI::CallForVersion& version) {
    fmt::print("{}\n", version.what());
    return exit_done;
  } catch (const CLI::ParseError& error) {
    print_error(json, Code::invalid_argument, Stage::parse, complaint(main, error));
    return exit_request;
  }
  try {
    for (const Command& command : commands)
      if (command.app->parsed()) {
        const int code = command.run();
        if (std::fflush(stdout) != 0)
          throw Error(Code::io, Stage::run, "standard output cannot be written");
        return code;
      }
  } catch (const Error& error) {
    print_error(json, error.code(), error.stage(), error.what());
    return exit_code_of(error);
  } catch (const std::bad_alloc&) {
    print_error(json, Code::out_of_memory, Stage::run, "out of host memory");
    return exit_running;
  } catch (const std::exception& error) {
    print_error(json, Code::driver, Stage::run, error.what());
    return exit_running;
  }
  return exit_done;
}

}  // namespace
}  // namespace undivided::cli

int main(int argc, char** argv) {
  undivided::cli::handle_interrupts();
  return undivided::cli::run(argc, argv);
}
