// SPDX-License-Identifier: Apache-2.0
// Support by name; preparation compiles and loads; a run fills parameters and launches.
#include "cuda/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cuda/choose.hpp"
#include "cuda/launch.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr int oldest_arch = 80;
constexpr int widest_head = 512;

Support check_head(const char* name, int d) {
  if (d >= 8 && d <= widest_head && d % 8 == 0) return Support::yes();
  const int nearest = std::clamp((d + 7) / 8 * 8, 8, widest_head);
  return Support::no(
      fmt::format("head dim {} is not one that CUDA kernels take", name),
      fmt::format("multiples of 8 from 8 to {}; the nearest is {}", widest_head, nearest),
      fmt::format("{}", d));
}

Support check_program(const char* name, const expr::Program* program) {
  if (!program) return Support::yes();
  if (program->slots.size() > max_arrays)
    return Support::no(fmt::format("the {} captures too many arrays", name),
                       fmt::format("{} arrays", max_arrays),
                       fmt::format("{}", program->slots.size()));
  if (program->params.size() > max_values)
    return Support::no(fmt::format("the {} has too many parameters", name),
                       fmt::format("{} parameters and number literals", max_values),
                       fmt::format("{}", program->params.size()));
  return Support::yes();
}

Support check_merge(const Spec& s) {
  if (s.dtype != DType::f32)
    return Support::no("partial results are float32", "f32", name_of(s.dtype));
  if (s.out_dtype != DType::f32 && !is_float16(s.out_dtype))
    return Support::no(
        "this output type is not made on CUDA", "f32, f16, bf16", name_of(s.out_dtype));
  return check_head("Dv", s.dv);
}

class CudaPlan final : public Prepared {
 public:
  CudaPlan(Modules& modules, const Spec& spec, const Bounds& bounds, int device, Compile compile)
      : driver_(modules.driver()),
        device_(device),
        spec_(spec),
        bounds_(bounds),
        choice_(choose(spec, bounds, modules.driver().device(device))) {
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
    for (const auto& kernel : kernels_)
      if (kernel->spec.kind != KernelKind::sink_gradient || p.dsink)
        launch(driver_, *kernel, p, context.stream);
  }

 private:
  // Kernels add to these, or write only rows that a sequence uses.
  void zero_gradients(const Args& args, StreamHandle stream) const {
    if (spec_.captured) {
      for (const View& view : args.d_arrays) zero(driver_, view, stream);
      zero(driver_, args.d_params, stream);
    }
    if (spec_.kv == KvKind::paged) {
      if (spec_.want_dk) zero(driver_, args.dk, stream);
      if (spec_.want_dv) zero(driver_, args.dv, stream);
    }
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

const char* determinism_of(const Spec& s) {
  if (s.op == Operation::merge) return "invariant";
  if (s.op == Operation::backward)
    return s.captured
               ? "fast: gradients of captured arrays are added in any order, the rest repeats "
                 "bit for bit"
               : "reproducible: repeats bit for bit";
  return s.determinism == Determinism::invariant
             ? "invariant: one kernel, keys never split, rows never packed"
             : "fast: the forward repeats bit for bit, run to run";
}

void CudaPlan::explain() {
  const DeviceInfo& d = driver_.device(device_);
  // The kernel that does the work names the plan.
  const auto main =
      std::max_element(kernels_.begin(), kernels_.end(), [](const auto& a, const auto& b) {
        return a->spec.tile_m() * a->spec.tile_n() * a->spec.threads() <
               b->spec.tile_m() * b->spec.tile_n() * b->spec.threads();
      });
  Explanation& e = explanation;
  e.backend = "cuda";
  e.kernel = (*main)->info.name;
  e.tiles = (*main)->spec.tile_m() > 0
                ? fmt::format("{}x{}", (*main)->spec.tile_m(), (*main)->spec.tile_n())
                : "rows";
  e.splits = choice_.splits;
  e.determinism = determinism_of(spec_);
  e.flops = flops(spec_, bounds_);
  e.bytes = bytes_moved(spec_, bounds_);
  if (d.tensor_flops > 0 && d.bandwidth > 0)
    e.floor_seconds = std::max(e.flops / d.tensor_flops, e.bytes / d.bandwidth);
  e.workspace = choice_.workspace;
  e.notes.push_back(fmt::format("portable: mma.sync and cp.async, sm_80 and later, on {}", d.name));
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

Support support_spec(const Spec& s, const Bounds& b) {
  if (s.op != Operation::forward && s.op != Operation::backward && s.op != Operation::merge)
    return Support::no("CUDA has no kernel for this operation",
                       "forward, backward, merge",
                       fmt::format("operation {}", static_cast<int>(s.op)));
  if (b.batch * b.kv_heads * s.group > std::numeric_limits<int>::max() ||
      b.max_q_len > std::numeric_limits<int>::max() / std::max(1, s.group) ||
      b.max_k_len > std::numeric_limits<int>::max() - 4096)
    return Support::no("the problem is too large for one launch",
                       "batch times heads, and lengths times group, below 2^31",
                       fmt::format("batch {}, {} heads, lengths {} and {}",
                                   b.batch,
                                   b.kv_heads * s.group,
                                   b.max_q_len,
                                   b.max_k_len));
  if (s.op == Operation::merge) return check_merge(s);
  if (!is_float16(s.dtype))
    return Support::no(
        "CUDA kernels multiply 16-bit inputs", "f16, bf16; the nearest is bf16", name_of(s.dtype));
  if (s.out_dtype != s.dtype && s.out_dtype != DType::f32)
    return Support::no("this output type does not go with the inputs",
                       fmt::format("{}, f32", name_of(s.dtype)),
                       name_of(s.out_dtype));
  if (!s.precision.follow && (s.precision.qk != s.dtype || s.precision.pv != s.dtype))
    return Support::no(
        "CUDA kernels multiply in the type of the inputs",
        fmt::format("qk and pv {}", name_of(s.dtype)),
        fmt::format("qk {}, pv {}", name_of(s.precision.qk), name_of(s.precision.pv)));
  for (const Support& head : {check_head("Dqk", s.dqk), check_head("Dv", s.dv)})
    if (!head.ok) return head;
  for (const Support& program :
       {check_program("mask", s.mask.get()), check_program("score", s.score.get())})
    if (!program.ok) return program;
  if (s.op == Operation::backward && s.captured && s.determinism != Determinism::fast)
    return Support::no("gradients of captured arrays are added by atomics on CUDA",
                       "determinism fast, or no gradients of captured arrays",
                       s.determinism == Determinism::invariant ? "invariant" : "reproducible");
  return Support::yes();
}

Support support(const Spec& spec, const Bounds& bounds, const Context&) {
  const Availability a = availability();
  if (!a.ok) return Support::no(a.reason, "an NVIDIA GPU with its driver", "none that can be used");
  int best = 0;
  for (const DeviceInfo& d : driver().devices()) best = std::max(best, d.arch());
  if (best < oldest_arch)
    return Support::no("no GPU of this machine is new enough",
                       "compute capability 8.0 or newer",
                       fmt::format("{}.{}", best / 10, best % 10));
  return support_spec(spec, bounds);
}

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

std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device device,
                                  const Context& context) {
  return prepare_with(modules(context), spec, bounds, device.index, context.compile);
}

}  // namespace undivided::cuda
