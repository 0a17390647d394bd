// SPDX-License-Identifier: Apache-2.0
// undivided info: this build and this machine.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"
#include "core/build_info.hpp"
#include "core/environment.hpp"
#include "cpu/isa.hpp"
#include "cuda/driver.hpp"
#include "cuda/nvrtc.hpp"
#include "undivided/version.hpp"

namespace undivided::cli {
namespace {

int run(bool json) {
  const BuildInfo& build = build_info();
  const auto isas = cpu::available_isas();
  const int threads = default_executor().workers();
  const cuda::Availability there = cuda::availability();
  nlohmann::ordered_json gpus = nlohmann::ordered_json::array();
  std::string gpu_lines;
  if (there.ok)
    for (const cuda::DeviceInfo& d : cuda::driver().devices()) {
      gpus.push_back({{"index", d.index},
                      {"name", d.name},
                      {"arch", fmt::format("sm_{}", d.arch())},
                      {"memory", d.memory}});
      gpu_lines += fmt::format("gpu         {}: {}, sm_{}, {:.1f} GB\n",
                               d.index,
                               d.name,
                               d.arch(),
                               static_cast<double>(d.memory) * 1e-9);
    }
  const cuda::NvrtcAvailability& nvrtc = cuda::nvrtc_availability();
  if (json) {
    nlohmann::ordered_json out = {{"version", UNDIVIDED_VERSION},
                                  {"commit", build.commit},
                                  {"compiler", build.compiler},
                                  {"cpu", cpu::processor_name()},
                                  {"isa", isas},
                                  {"threads", threads},
                                  {"gpus", gpus},
                                  {"nvrtc", nullptr}};
    if (nvrtc.ok) out["nvrtc"] = nvrtc.version;
    fmt::print("{}\n", out.dump());
    return exit_done;
  }
  fmt::print("version     {} (commit {}, {}, {})\n",
             UNDIVIDED_VERSION,
             build.commit,
             build.compiler,
             build.build_type);
  fmt::print("processor   {}\n", cpu::processor_name());
  fmt::print("isa         {}; in use: {}\n", fmt::join(isas, ", "), cpu::chosen_kernels().name);
  fmt::print("threads     {}\n", threads);
  fmt::print("{}", there.ok ? gpu_lines : fmt::format("gpu         none: {}\n", there.reason));
  fmt::print("nvrtc       {}\n", nvrtc.ok ? nvrtc.version : "none: " + nvrtc.reason);
  fmt::print("\nenvironment variables:\n");
  for (const environment::Variable& v : environment::variables())
    fmt::print("  {:<20}{}: {}\n", v.name, v.meaning, v.legal);
  return exit_done;
}

}  // namespace

Command add_info(CLI::App& main) {
  CLI::App* app = main.add_subcommand("info", "This build and this machine");
  auto json = std::make_shared<bool>(false);
  app->add_flag("--json", *json, "one JSON object on stdout");
  app->footer("examples:\n  undivided info\n  undivided info --json");
  return {app, [json] { return run(*json); }};
}

}  // namespace undivided::cli
