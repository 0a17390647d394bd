// SPDX-License-Identifier: Apache-2.0
// What CUDA can do, refused by name; and the doors that the backend table opens.
#include "cuda/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cuda/choose.hpp"
#include "cuda/launch.hpp"
#include "expr/program.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

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

}  // namespace

Modules& modules(const Context& context) {
  const auto state = backend_state(context, Backend::cuda, [] {
    return std::static_pointer_cast<void>(
        std::make_shared<Modules>(driver(), KernelCache::standard()));
  });
  return *static_cast<Modules*>(state.get());
}

void launch_alone(KernelKind kind,
                  long long blocks,
                  void* params,
                  const char* what,
                  Device device,
                  const Context& context) {
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int>::max())
    throw Error(Code::invalid_argument,
                Stage::run,
                fmt::format("{} more thread blocks than one launch has: split the batch", what));
  Modules& all = modules(context);
  KernelSpec spec;
  spec.kind = kind;
  const std::shared_ptr<const LoadedKernel> kernel =
      all.get(spec, {}, device.index, context.compile);
  const DeviceScope scope(all.driver(), device.index);
  void* arguments[] = {params};
  start(all.driver(), *kernel, blocks, arguments, context.stream, false);
}

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
  if (s.listed)
    return Support::no("CUDA kernels read rows in their order", "rows without lists", describe(s));
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
  if (s.shared_pages && (s.want_dk || s.want_dv))
    return Support::no("gradients of a page that two sequences share cannot be summed on CUDA",
                       "pages of one sequence each, or no gradients of K and V",
                       "shared pages");
  // More terms could leave the 64 bits of a sum (device/captured.cuh).
  if (s.op == Operation::backward && s.captured && s.determinism != Determinism::fast &&
      term_bits(s, b) < fewest_term_bits)
    return Support::no(
        "too many pairs for ordered gradients of captured arrays",
        "2^40 pairs at the bounds; the nearest is determinism fast",
        fmt::format("{} query rows of all heads, {} keys", query_rows(s, b), b.max_k_len));
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

std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device device,
                                  const Context& context) {
  return prepare_with(modules(context), spec, bounds, device.index, context.compile);
}

}  // namespace undivided::cuda
