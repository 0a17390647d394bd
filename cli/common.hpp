// SPDX-License-Identifier: Apache-2.0
// What the commands share: errors and exit codes, progress, threads, the machine's name, outputs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/array_file.hpp"
#include "undivided/context.hpp"
#include "undivided/error.hpp"

namespace CLI {
class App;
}

namespace undivided::cli {

inline constexpr int exit_done = 0, exit_failed = 1, exit_request = 2, exit_running = 3,
                     exit_interrupted = 130;

/// A subcommand: its flags are filled when `run` is called, which returns the exit code.
struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;
};
Command add_attend(CLI::App& main);
Command add_bench(CLI::App& main);
Command add_check(CLI::App& main);
Command add_convert(CLI::App& main);  // where undivided::nn is built
Command add_demo(CLI::App& main);
Command add_explain(CLI::App& main);
Command add_info(CLI::App& main);
Command add_mask(CLI::App& main);
Command add_precompile(CLI::App& main);
Command add_train(CLI::App& main);      // likewise
Command add_translate(CLI::App& main);  // likewise

/// A request that cannot be honoured: exit code 2.
[[noreturn]] void refuse(const std::string& message);
int exit_code_of(const Error& error);
/// One line on stderr; with `json` also one line {"error": ...} on stdout.
void print_error(bool json, Code code, Stage stage, const std::string& message);
/// Runs fn and puts "where: " before the message of an Error that leaves it.
void in_context(const std::string& where, const std::function<void()>& fn);

/// The candidate with the smallest edit distance, or "" if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);
/// The chosen name's place in `names`, or a refusal that lists them.
std::size_t choose(const char* flag, std::string_view value, const std::vector<std::string>& names);
std::pair<std::string, std::string> split_assignment(const char* flag, const std::string& text);

/// --threads: 0 means the default executor.
struct Threads {
  explicit Threads(int count);
  Executor* executor;

 private:
  std::shared_ptr<Executor> own_;
};

std::string tool_line();  ///< "undivided 0.1.0 (commit), Clang 19.1.7"

/// A line on stderr that says what is being done; in place on a terminal, once a stage elsewhere.
class Progress {
 public:
  Progress(std::string what, std::size_t total);
  ~Progress();
  void step(const std::string& name);
  void clear();  ///< before something else is printed

 private:
  std::string what_;
  std::size_t total_, done_ = 0;
  bool terminal_, shown_ = false;
};

/// Files that appear together at the end, and leave nothing behind when interrupted.
class Outputs {
 public:
  void open(const std::string& spec);
  void set(const std::string& spec, const Tensor& tensor) { files_.set(spec, tensor); }
  void publish() { files_.publish(); }

 private:
  OutputSet files_;
};
/// Writes one file whole or not at all.
void write_file(const std::string& path, std::string_view content);

/// Turns SIGINT and SIGTERM into: remove unfinished outputs, exit 130. Call before any thread
/// starts.
void handle_interrupts();
/// Unfinished copies of this output are removed on interrupt.
void remember_output(const std::string& path);

}  // namespace undivided::cli
