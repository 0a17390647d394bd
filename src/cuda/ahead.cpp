// SPDX-License-Identifier: Apache-2.0
// The usual grid, through choose(): what a call would ask for is what is compiled.
#include "cuda/ahead.hpp"

#include <set>

#include "cuda/choose.hpp"
#include "expr/program.hpp"

namespace undivided::cuda {
namespace {

std::shared_ptr<const expr::Program> lifted(const std::shared_ptr<const expr::Program>& p) {
  return std::make_shared<const expr::Program>(expr::lift(*p));
}

/// A card of that generation. Only its kind matters: kernels do not know the number of
/// multiprocessors.
DeviceInfo card(int arch) {
  DeviceInfo d;
  d.major = arch / 10;
  d.minor = arch % 10;
  d.multiprocessors = 132;
  return d;
}

Spec spec_of(DType dtype, int d, KvKind kv, bool plan, bool capped, int group) {
  Spec s;
  s.dtype = s.out_dtype = s.dout_dtype = dtype;
  s.dqk = s.dv = d;
  s.group = group;
  s.rows = kv == KvKind::ragged ? RowKind::ragged : RowKind::dense;
  s.kv = kv;
  s.page = kv == KvKind::paged ? PageClass::multiple_of_64 : PageClass::none;
  s.origin = Origin::end;
  s.mask_plan = plan;
  // A planned mask is read from bit tiles, so any mask that is no band stands for all.
  s.mask = lifted((plan ? prefix(64) : causal()).program());
  s.score = lifted((capped ? softcap(30) : identity()).program());
  return s;
}

}  // namespace

std::vector<AheadKernel> usual_kernels(int arch) {
  const DeviceInfo device = card(arch);
  std::vector<AheadKernel> out;
  std::set<std::string> seen;
  const auto add = [&](const Spec& spec, const Bounds& bounds) {
    const Policies policies = policies_of(spec);
    for (const KernelSpec& k : choose(spec, bounds, device, Family::sm90).kernels)
      if (seen.insert(source_of(k, policies, arch).hash()).second) out.push_back({k, policies});
  };
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const int d : {64, 128, 256})
      for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged})
        for (const bool plan : {false, true})
          for (const bool capped : {false, true}) {
            const std::int64_t keys = 4096;
            add(spec_of(dtype, d, kv, plan, capped, 1),
                {8, 32, 8 * keys, 8 * keys, keys, keys, 4096});
            // Few tiles.
            if (kv == KvKind::dense)
              add(spec_of(dtype, d, kv, plan, capped, 1), {1, 8, 1024, 1024, 1024, 1024, 0});
            // Decode: one query, keys split; grouped heads share a tile.
            if (!plan && kv != KvKind::ragged)
              for (const int group : {1, 4})
                add(spec_of(dtype, d, kv, plan, capped, group),
                    {1, 8, 1, 2 * keys, 1, 2 * keys, 4096});
          }
  return out;
}

}  // namespace undivided::cuda
