// SPDX-License-Identifier: Apache-2.0
// undivided precompile: the CUDA kernels that most programs need, before anybody waits for them.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <charconv>
#include <filesystem>
#include <mutex>

#include "cli/common.hpp"
#include "cuda/ahead.hpp"
#include "cuda/nvrtc.hpp"

namespace undivided::cli {
namespace {

struct PrecompileFlags {
  std::string out, arch = "sm_90";
  bool list = false, optional = false;
};

int arch_of(const std::string& name) {
  int arch = 0;
  const std::string number = name.rfind("sm_", 0) == 0 ? name.substr(3) : name;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), arch);
  if (error != std::errc() || end != number.data() + number.size() || arch < 80 || arch > 130)
    refuse(fmt::format("--arch is '{}'; sm_80 or later is expected, for example sm_90", name));
  return arch;
}

int run(const PrecompileFlags& f) {
  const int arch = arch_of(f.arch);
  const std::vector<cuda::AheadKernel> kernels = cuda::usual_kernels(arch);
  if (f.list) {
    for (const cuda::AheadKernel& k : kernels) fmt::print("{}\n", k.spec.name());
    return exit_done;
  }
  if (f.out.empty()) refuse("--out is not given; a folder for the kernels is expected");
  const cuda::NvrtcAvailability& nvrtc = cuda::nvrtc_availability();
  if (!nvrtc.ok) {
    if (!f.optional) refuse(nvrtc.reason);
    fmt::print("no kernels are compiled ahead: {}\n", nvrtc.reason);
    return exit_done;
  }
  std::error_code failed;
  std::filesystem::create_directories(f.out, failed);
  if (failed) refuse(fmt::format("--out {}: {}", f.out, failed.message()));
  const cuda::KernelCache cache(f.out, {});
  Progress progress("precompile", kernels.size());
  std::mutex lock;
  std::exception_ptr error;
  std::size_t compiled = 0;
  double seconds = 0;
  default_executor().parallel_for(std::ssize(kernels), [&](std::int64_t i, int) {
    const cuda::AheadKernel& k = kernels[static_cast<std::size_t>(i)];
    try {
      const cuda::Kernel made =
          cache.get([&](int target) { return cuda::source_of(k.spec, k.policies, target); },
                    arch,
                    Compile::allowed);
      const std::lock_guard guard(lock);
      progress.step(made.name);
      compiled += made.origin == "compiled";
      seconds += made.seconds;
    } catch (...) {
      const std::lock_guard guard(lock);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
  progress.clear();
  fmt::print("{} kernels for {} in {}: {} compiled now, {:.1f} s of compilation each\n",
             kernels.size(),
             f.arch,
             f.out,
             compiled,
             seconds / static_cast<double>(kernels.size()));
  return exit_done;
}

}  // namespace

Command add_precompile(CLI::App& main) {
  CLI::App* app =
      main.add_subcommand("precompile", "Compiles the usual CUDA kernels; needs NVRTC and no GPU");
  auto f = std::make_shared<PrecompileFlags>();
  app->add_option("--out", f->out, "folder: name it in UNDIVIDED_KERNELS, or install it");
  app->add_option("--arch", f->arch, "of the cards: sm_80, sm_86, sm_89, sm_90 (default), ...");
  app->add_flag("--list", f->list, "prints the names of the kernels and stops");
  app->add_flag("--optional", f->optional, "without NVRTC: says so and succeeds");
  app->footer(
      "examples:\n"
      "  undivided precompile --out ~/kernels && export UNDIVIDED_KERNELS=~/kernels\n"
      "  undivided precompile --arch sm_80 --list");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
