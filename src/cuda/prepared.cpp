// SPDX-License-Identifier: Apache-2.0
// A prepared plan: compiled and loaded once; a run fills parameters and launches.
#include <fmt/format.h>

#include <algorithm>

#include "core/environment.hpp"
#include "cuda/backend.hpp"
#include "cuda/choose.hpp"
#include "cuda/launch.hpp"
#include "cuda/tuning.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

class CudaPlan final : public Prepared {
 public:
  CudaPlan(Modules& modules, const Spec& spec, const Bounds& bounds, int device, Compile compile)
      : driver_(modules.driver()),
        device_(device),
        spec_(spec),
        bounds_(bounds),
        choice_(choose(spec, bounds, modules.driver().device(device), family(modules.driver()))) {
    const Policies policies = policies_of(spec);
    for (const KernelSpec& k : choice_.kernels)
      kernels_.push_back(modules.get(k, policies, device, compile));
    explain();
  }

  std::size_t workspace() const override { return choice_.workspace; }

  void run(const Args& args, void* workspace, const Context& context) const override {
    const DeviceScope scope(driver_, device_);
    Params p{};
    if (spec_.op == Operation::merge)
      fill_merge(spec_, args, p);
    else
      fill_problem(spec_, bounds_, args, p);
    if (spec_.op != Operation::merge && spec_.mask_plan) fill_mask_plan(args, p);
    if (spec_.op == Operation::backward) {
      fill_backward(spec_, args, p);
      zero_gradients(args, context.stream);
    }
    place(args, static_cast<std::byte*>(workspace), p);
    if (choice_.sums >= 0) {
      auto* sums = reinterpret_cast<long long*>(static_cast<std::byte*>(workspace) + choice_.sums);
      fill_sums(spec_, sums, p);
      p.term_bits = choice_.term_bits;
      if (p.sums > 0)
        driver_.cuMemsetD8Async(reinterpret_cast<DevicePtr>(sums),
                                0,
                                static_cast<std::size_t>(p.sums) * sizeof(*sums),
                                context.stream);
    }
    bool follows = false;
    for (const auto& kernel : kernels_) {
      if (kernel->spec.kind == KernelKind::sink_gradient && !p.dsink) continue;
      start_one(*kernel, p, static_cast<std::byte*>(workspace), context.stream, follows);
      follows = true;
    }
  }

 private:
  // choose() takes the sm90 family only for what it can run, on a device that can run it.
  static Family family(const Driver& driver) {
    const bool wanted = environment::cuda_family() != "portable";
    return wanted && driver.cuTensorMapEncodeTiled.found() ? Family::sm90 : Family::portable;
  }

  void start_one(const LoadedKernel& kernel,
                 Params& p,
                 std::byte* workspace,
                 StreamHandle stream,
                 bool follows) const {
    const int multiprocessors = driver_.device(device_).multiprocessors;
    if (kernel.spec.kind == KernelKind::backward)
      launch_backward_sm90(driver_, kernel, p, multiprocessors, stream, follows);
    else if (kernel.spec.family == Family::sm90 && kernel.spec.kind == KernelKind::forward)
      launch_sm90(driver_, kernel, p, multiprocessors, workspace + choice_.counter, stream);
    else
      launch(driver_, kernel, p, stream, follows);
  }

  // Kernels add to these, or write only rows that a sequence uses.
  void zero_gradients(const Args& args, StreamHandle stream) const {
    if (spec_.captured) {
      for (const View& view : args.d_arrays) zero(driver_, view, stream);
      zero(driver_, args.d_params, stream);
    }
    // Pages that no sequence uses, and packed rows past the last sequence, get no gradient.
    if (spec_.kv != KvKind::dense) {
      if (spec_.want_dk) zero(driver_, args.dk, stream);
      if (spec_.want_dv) zero(driver_, args.dv, stream);
    }
    if (spec_.rows == RowKind::ragged && spec_.want_dq) zero(driver_, args.dq, stream);
  }

  void place(const Args& args, std::byte* workspace, Params& p) const {
    const long long rows = rows_of(spec_.rows, p);
    if (rows > choice_.rows)
      throw Error(
          Code::invalid_argument,
          Stage::run,
          fmt::format("the problem has {} query rows over all heads; this plan was made for "
                      "at most {}: plan again with larger bounds",
                      rows,
                      choice_.rows));
    const auto floats = [&](std::int64_t offset) {
      return offset < 0 ? nullptr : reinterpret_cast<float*>(workspace + offset);
    };
    p.partial_o = floats(choice_.partial_o);
    p.partial_lse = floats(choice_.partial_lse);
    p.delta = floats(choice_.delta);
    p.dq_sum = floats(choice_.dq_sum);
    p.row_stats = floats(choice_.row_stats);
    p.rounded_dout = floats(choice_.dout);
    p.dq_turns = reinterpret_cast<int*>(floats(choice_.dq_turns));
    if (choice_.dq_sum >= 0) {
      const KernelSpec& k = choice_.whole_backward;
      p.dq_tiles = sm90_dq_tiles(k, p.batch, p.heads, p.max_q_len, p.total_q);
      p.dq_floats = p.dq_tiles * sm90_dq_floats(k);
    }
    if (choice_.lse >= 0 && !args.lse) {
      // key_mass reads the LSE, also when the caller does not want it.
      p.lse.data = floats(choice_.lse);
      const bool ragged = spec_.rows == RowKind::ragged;
      p.lse.token = 1;
      p.lse.head = ragged ? p.total_q : p.max_q_len;
      p.lse.batch = static_cast<long long>(p.heads) * p.max_q_len;
    }
    if (choice_.split_keys > 0) {
      p.split_keys = choice_.split_keys;
      p.splits = std::clamp((p.max_k_len + p.split_keys - 1) / p.split_keys, 1, choice_.splits);
    }
  }

  void explain();

  Driver& driver_;
  int device_;
  Spec spec_;
  Bounds bounds_;
  Choice choice_;
  std::vector<std::shared_ptr<const LoadedKernel>> kernels_;
};

const char* determinism_of(const Spec& s, bool sums) {
  if (sums)
    return s.captured ? "fast: dQ and gradients of captured arrays are added in any order, dK and "
                        "dV repeat bit for bit"
                      : "fast: dQ is added in any order, dK and dV repeat bit for bit";
  if (s.op == Operation::merge) return "invariant";
  if (s.op == Operation::backward)
    return s.captured && s.determinism == Determinism::fast
               ? "fast: gradients of captured arrays are added in any order, the rest repeats "
                 "bit for bit"
               : "reproducible: repeats bit for bit";
  return s.determinism == Determinism::invariant
             ? "invariant: one grid of key tiles for every layout and height, keys never split"
             : "fast: the forward repeats bit for bit, run to run";
}

void CudaPlan::explain() {
  const DeviceInfo& d = driver_.device(device_);
  // The kernel that does the work names the plan.
  const auto work = [](const KernelSpec& k) {
    return k.capture == Capture::largest ? 0 : k.tile_m() * k.tile_n() * k.threads();
  };
  const auto main =
      std::max_element(kernels_.begin(), kernels_.end(), [&](const auto& a, const auto& b) {
        return work(a->spec) < work(b->spec);
      });
  Explanation& e = explanation;
  e.backend = "cuda";
  e.kernel = (*main)->info.name;
  e.tiles = (*main)->spec.tile_m() > 0
                ? fmt::format("{}x{}", (*main)->spec.tile_m(), (*main)->spec.tile_n())
                : "rows";
  e.splits = choice_.splits;
  e.determinism =
      determinism_of(spec_, choice_.dq_sum >= 0 && spec_.determinism == Determinism::fast);
  e.flops = flops(spec_, bounds_);
  e.bytes = bytes_moved(spec_, bounds_);
  if (d.tensor_flops > 0 && d.bandwidth > 0)
    e.floor_seconds = std::max(e.flops / d.tensor_flops, e.bytes / d.bandwidth);
  e.workspace = choice_.workspace;
  if (choice_.counter >= 0 || choice_.dq_sum >= 0)
    e.notes.push_back(fmt::format("sm90: TMA, wgmma and warp roles, on {}", d.name));
  else
    e.notes.push_back(
        fmt::format("portable: mma.sync and cp.async, sm_80 and later, on {}", d.name));
  if (const KernelSpec& k = (*main)->spec;
      k.family == Family::sm90 && k.kind == KernelKind::forward) {
    const Sm90Tile t = sm90_tile(k);
    e.notes.push_back(fmt::format(
        "{} warpgroups of 64 query rows{} and {}; {} stages of {} keys, {} of queries; registers "
        "{}",
        t.warpgroups,
        k.packed ? " (heads of a group packed)" : "",
        k.kv == KvKind::paged ? "two loading warps, of K and of V" : "a loading warp",
        t.stages,
        t.keys,
        t.q_stages,
        t.warpgroups == 1
            ? "as launched"
            : fmt::format(
                  "{} to load, {} to compute", t.producer_registers, t.consumer_registers)));
  }
  if (const KernelSpec& k = (*main)->spec; k.kind == KernelKind::backward) {
    const Sm90Tile t = sm90_tile(k);
    e.notes.push_back(fmt::format(
        "2 warpgroups {}{}; a warp to find tiles, one to load{}; {} stages of {} "
        "queries; registers {} to load, {} to compute",
        t.keys == 64 ? "that share 64 keys" : "of 64 keys",
        t.ctas == 2 ? ", two such CTAs that exchange dS" : "",
        t.adders == 0
            ? (k.ordered ? ", two for the turns of dQ" : "")
            : fmt::format(
                  ", {} to add dQ{}", t.adders == 1 ? "one" : "two", k.ordered ? " in order" : ""),
        t.stages,
        t.queries,
        t.producer_registers,
        t.consumer_registers));
  }
  if (choice_.not_sm90) e.notes.push_back(fmt::format("not the sm90 family: {}", choice_.not_sm90));
  for (const auto& k : kernels_) {
    const Kernel& i = k->info;
    e.notes.push_back(
        fmt::format("{}: {} registers, {} bytes of shared memory, {} bytes spilled; "
                    "NVRTC {}, {:.2f} s, {}",
                    i.name,
                    i.report.registers,
                    k->shared_memory,
                    i.report.spill_bytes,
                    i.nvrtc,
                    i.seconds,
                    i.origin == "compiled" ? "compiled now" : "from " + i.origin));
  }
  if (spec_.op != Operation::merge && mask_kind(spec_) == MaskKind::program)
    e.notes.push_back("no mask plan: the mask is evaluated on every tile of the keys");
  if (choice_.split_keys > 0)
    e.notes.push_back(
        fmt::format("keys in splits of {}, combined in a fixed order", choice_.split_keys));
}

}  // namespace

std::unique_ptr<Prepared> prepare_with(
    Modules& modules, const Spec& spec, const Bounds& bounds, int device, Compile compile) {
  const DeviceInfo& d = modules.driver().device(device);
  if (d.arch() < oldest_arch)
    throw Error(Code::unsupported,
                Stage::plan,
                fmt::format("cuda:{} ({}) has compute capability {}.{}; 8.0 or newer is needed",
                            device,
                            d.name,
                            d.major,
                            d.minor));
  try {
    return std::make_unique<CudaPlan>(modules, spec, bounds, device, compile);
  } catch (const Error& error) {
    // What fails here fails while planning, whichever driver call it was.
    if (error.stage() != Stage::run) throw;
    throw Error(error.code(), Stage::plan, error.what());
  }
}

}  // namespace undivided::cuda
