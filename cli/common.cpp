// SPDX-License-Identifier: Apache-2.0
// Helpers of the commands.
#include "cli/common.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/build_info.hpp"
#include "undivided/version.hpp"

namespace undivided::cli {
namespace {

// Messages of the parser show the text and a caret below it; one line keeps the text.
std::string one_line(const std::string& message) {
  const std::size_t end = message.find('\n');
  if (end == std::string::npos) return message;
  std::string out = message.substr(0, end), rest = message.substr(end + 1);
  rest = rest.substr(0, rest.find('\n'));
  const std::size_t begin = rest.find_first_not_of(' ');
  if (begin != std::string::npos) out += fmt::format(", in: {}", rest.substr(begin));
  return out;
}

std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t above = row[j + 1];
      row[j + 1] = std::min({above + 1, row[j] + 1, diagonal + (a[i] != b[j])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

void refuse(const std::string& message) {
  throw Error(Code::invalid_argument, Stage::parse, message);
}

int exit_code_of(const Error& error) {
  const bool running = error.stage() == Stage::run;
  switch (error.code()) {
    case Code::out_of_memory:
      return exit_running;
    case Code::driver:
    case Code::io:
      return running ? exit_running : exit_request;
    default:
      return exit_request;
  }
}

void print_error(bool json, Code code, Stage stage, const std::string& message) {
  const std::string line = one_line(message);
  if (json) {
    const nlohmann::ordered_json body = {
        {"error", {{"code", name_of(code)}, {"stage", name_of(stage)}, {"message", line}}}};
    fmt::print("{}\n", body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    std::fflush(stdout);
  }
  fmt::print(stderr, "undivided: {}\n", line);
}

void in_context(const std::string& where, const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& e) {
    throw Error(e.code(), e.stage(), where + ": " + e.what());
  }
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t least = word.size() / 2 + 2;
  for (const std::string& c : candidates) {
    const std::size_t d = distance(word, c);
    if (d < least) {
      least = d;
      best = c;
    }
  }
  return best;
}

std::size_t choose(const char* flag,
                   std::string_view value,
                   const std::vector<std::string>& names) {
  const auto at = std::find(names.begin(), names.end(), value);
  if (at != names.end()) return static_cast<std::size_t>(at - names.begin());
  const std::string near = nearest(value, names);
  refuse(fmt::format("{} is '{}'; allowed: {}{}",
                     flag,
                     value,
                     fmt::join(names, ", "),
                     near.empty() ? "" : fmt::format("; nearest: {}", near)));
}

std::pair<std::string, std::string> split_assignment(const char* flag, const std::string& text) {
  const std::size_t at = text.find('=');
  if (at == std::string::npos || at == 0 || at + 1 == text.size())
    refuse(fmt::format("{} is '{}'; NAME=VALUE is expected", flag, text));
  return {text.substr(0, at), text.substr(at + 1)};
}

Threads::Threads(int count) {
  if (count < 0 || count > 1024)
    refuse(fmt::format("--threads is {}; 1 to 1024 is allowed (0: all cores)", count));
  if (count > 0) own_ = make_executor(count);
  executor = own_ ? own_.get() : &default_executor();
}

std::string tool_line() {
  const BuildInfo& build = build_info();
  return fmt::format("undivided {} ({}), {}", UNDIVIDED_VERSION, build.commit, build.compiler);
}

Progress::Progress(std::string what, std::size_t total)
    : what_(std::move(what)), total_(total), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { clear(); }

void Progress::step(const std::string& name) {
  ++done_;
  std::string line = fmt::format("{} {}/{}: {}", what_, done_, total_, name);
  if (terminal_) {
    line.resize(std::min<std::size_t>(line.size(), 78));
    fmt::print(stderr, "\r{:<78}", line);
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
  shown_ = true;
}

void Progress::clear() {
  if (terminal_ && shown_) fmt::print(stderr, "\r{:<78}\r", "");
  std::fflush(stderr);
  shown_ = false;
}

void Outputs::open(const std::string& spec) {
  const std::size_t at = spec.rfind(".safetensors:");
  remember_output(at == std::string::npos ? spec : spec.substr(0, at) + ".safetensors");
  files_.open(spec);
}

void write_file(const std::string& path, std::string_view content) {
  remember_output(path);
  AtomicFile file(path);
  file.write(content);
  file.publish();
}

}  // namespace undivided::cli
