// SPDX-License-Identifier: Apache-2.0
// The text of an sm90 kernel: its configuration and the wgmma wrappers that it needs.
#include <fmt/format.h>

#include <set>

#include "cuda/tuning.hpp"

namespace undivided::cuda {
namespace {

const char* element(DType t) {
  return t == DType::f16 ? "Half" : t == DType::bf16 ? "BFloat16" : "float";
}
const char* mask_name(MaskKind m) {
  constexpr const char* names[] = {"full", "band", "program", "plan"};
  return names[static_cast<int>(m)];
}

// The two forms of wgmma with n columns. Every accumulator is an operand, so text is generated.
std::string wgmma_text(DType type, int n) {
  const char* t = type == DType::f16 ? "f16" : "bf16";
  const int regs = n / 2;
  std::string list, operands;
  for (int i = 0; i < regs; ++i) {
    list += fmt::format("{}%{}", i ? ", " : "", i);
    operands += fmt::format("{}\"+f\"(c[{}][{}])", i ? ", " : "", i / 4, i % 4);
  }
  const std::string name =
      fmt::format("wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{{}}}", n, t, t, list);
  std::string text = fmt::format("template <>\nstruct Wgmma<{}, {}> {{\n", element(type), n);
  text += fmt::format(
      "  static __device__ __forceinline__ void shared_shared(\n"
      "      float (&c)[{}][4], unsigned long long a, unsigned long long b, int accumulate) {{\n"
      "    asm volatile(\n"
      "        \"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{}, 0;\\n\"\n"
      "        \"{}, %{}, %{}, p, 1, 1, 0, 0;\\n}}\"\n"
      "        : {}\n        : \"l\"(a), \"l\"(b), \"r\"(accumulate));\n  }}\n",
      n / 8,
      regs + 2,
      name,
      regs,
      regs + 1,
      operands);
  text += fmt::format(
      "  static __device__ __forceinline__ void register_shared(\n"
      "      float (&c)[{}][4], const unsigned (&a)[4], unsigned long long b) {{\n"
      "    asm volatile(\n"
      "        \"{}, {{%{}, %{}, %{}, %{}}}, %{}, 1, 1, 1, 1;\"\n"
      "        : {}\n"
      "        : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(b));\n  }}\n}};\n\n",
      n / 8,
      name,
      regs,
      regs + 1,
      regs + 2,
      regs + 3,
      regs + 4,
      operands);
  return text;
}

}  // namespace

std::string compose_sm90(const KernelSpec& s, std::string_view mask, std::string_view score) {
  const Sm90Tile t = sm90_tile(s);
  std::string text = fmt::format("// {}\n#include \"kernels/forward_sm90.cuh\"\n\n", s.name());
  text += "namespace undivided::cuda {\n\nstruct Config {\n";
  text +=
      fmt::format("  using Element = {};\n  using Out = {};\n", element(s.dtype), element(s.out));
  const std::pair<const char*, int> integers[] = {{"dqk", s.dqk},
                                                  {"dv", s.dv},
                                                  {"m", t.warpgroups * 64},
                                                  {"n", t.keys},
                                                  {"warpgroups", t.warpgroups},
                                                  {"stages", t.stages},
                                                  {"q_stages", t.q_stages},
                                                  {"slack", t.slack},
                                                  {"producer_registers", t.producer_registers},
                                                  {"consumer_registers", t.consumer_registers}};
  for (const auto& [name, value] : integers)
    text += fmt::format("  static constexpr int {} = {};\n", name, value);
  text += fmt::format("  static constexpr MaskKind mask = MaskKind::{};\n", mask_name(s.mask));
  text += fmt::format("  static constexpr RowKind rows = RowKind::{};\n",
                      s.rows == RowKind::ragged ? "ragged" : "dense");
  text += fmt::format("  static constexpr KvKind kv = KvKind::{};\n",
                      s.kv == KvKind::ragged ? "ragged" : "dense");
  text += fmt::format("  static constexpr bool dropout = {};\n", s.dropout);
  text += "  static constexpr bool pingpong = false;\n};\n\n";
  for (const int n : std::set<int>{t.keys, s.dv}) text += wgmma_text(s.dtype, n);
  text += mask.empty() ? std::string("using Mask = FullMask;\n") : std::string(mask);
  text += score.empty() ? std::string("using Score = IdentityScore;\n") : std::string(score);
  text += fmt::format(
      "\nextern \"C\" __global__ void __launch_bounds__({}, 1)\n"
      "    {}(const __grid_constant__ Params p, const __grid_constant__ TensorMaps maps,\n"
      "       const __grid_constant__ Schedule schedule) {{\n"
      "  forward_sm90<Config, Mask, Score>(p, maps, schedule);\n}}\n\n"
      "}}  // namespace undivided::cuda\n",
      t.threads(),
      entry_name);
  return text;
}

}  // namespace undivided::cuda
