// SPDX-License-Identifier: Apache-2.0
// Interrupts: one thread waits for the signal, removes unfinished outputs and ends the process.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <mutex>
#include <thread>

#include "cli/common.hpp"

namespace undivided::cli {
namespace {

struct Unfinished {
  std::mutex mutex;
  std::vector<std::filesystem::path> outputs;
};
Unfinished& unfinished() {
  static auto* all = new Unfinished;  // outlives the waiting thread
  return *all;
}

// Outputs are written beside their place as NAME.<process>-<number>.tmp, files or folders.
void remove_unfinished() {
  namespace fs = std::filesystem;
  const std::lock_guard lock(unfinished().mutex);
  for (const fs::path& output : unfinished().outputs) {
    std::error_code ignored;
    const std::string prefix = fmt::format("{}.{}-", output.filename().string(), ::getpid());
    const fs::path folder = output.has_parent_path() ? output.parent_path() : fs::path(".");
    for (const auto& entry : fs::directory_iterator(folder, ignored))
      if (entry.path().filename().string().starts_with(prefix))
        fs::remove_all(entry.path(), ignored);
  }
}

}  // namespace

void remember_output(const std::string& path) {
  std::error_code ignored;
  const std::lock_guard lock(unfinished().mutex);
  std::filesystem::path at(path);
  if (std::filesystem::is_symlink(at, ignored)) at = std::filesystem::weakly_canonical(at, ignored);
  unfinished().outputs.push_back(at);
}

void handle_interrupts() {
  static sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([] {
    int number = 0;
    sigwait(&signals, &number);
    remove_unfinished();
    fmt::print(stderr, "\nundivided: interrupted\n");
    _exit(exit_interrupted);
  }).detach();
}

}  // namespace undivided::cli
