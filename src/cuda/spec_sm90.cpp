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

// Forms of wgmma with n columns of both operands in shared memory, c = a b and c += a b, for rows
// of 16, for columns of 16, and for rows of a and columns of b. What is only written must be so for
// the compiler too, or its registers stay taken from one tile to the next.
std::string wgmma_shared_text(const std::string& name, int n) {
  const int regs = n / 2;
  std::string text;
  for (const bool add : {false, true})
    for (const char* form : {"rows", "columns", "rows_columns"}) {
      if (!add && form[4] == '_') continue;  // nobody asks for it
      const bool a_columns = form[0] == 'c', b_columns = a_columns || form[4] == '_';
      std::string operands;
      for (int i = 0; i < regs; ++i)
        operands +=
            fmt::format("{}\"{}f\"(c[{}][{}])", i ? ", " : "", add ? '+' : '=', i / 4, i % 4);
      text += fmt::format(
          "  static __device__ __forceinline__ void {}_{}(\n"
          "      float (&c)[{}][4], unsigned long long a, unsigned long long b) {{\n"
          "    asm volatile(\n"
          "        \"{{\\n.reg .pred p;\\nsetp.ne.b32 p, {}, 0;\\n\"\n"
          "        \"{}, %{}, %{}, p, 1, 1, {}, {};\\n}}\"\n"
          "        : {}\n        : \"l\"(a), \"l\"(b));\n  }}\n",
          add ? "add" : "set",
          form,
          n / 8,
          add ? 1 : 0,
          name,
          regs,
          regs + 1,
          a_columns ? 1 : 0,
          b_columns ? 1 : 0,
          operands);
    }
  return text;
}

}  // namespace

std::string wgmma_text(DType type, int n, bool backward) {
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
      "        : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(b));\n  }}\n",
      n / 8,
      name,
      regs,
      regs + 1,
      regs + 2,
      regs + 3,
      regs + 4,
      operands);
  if (backward) text += wgmma_shared_text(name, n);
  return text + "};\n\n";
}

std::string compose_sm90(const KernelSpec& s, std::string_view mask, std::string_view score) {
  const Sm90Tile t = sm90_tile(s);
  const bool backward = s.kind != KernelKind::forward, rows = by_query_tiles(s.kind);
  const std::string file = !backward      ? "forward_sm90"
                           : rows         ? "backward_rows_sm90"
                           : t.keys == 64 ? "backward_wide_sm90"
                                          : "backward_sm90";
  const std::string kernel = !rows                                ? file
                             : s.kind == KernelKind::prepare_rows ? "prepare_rows"
                                                                  : "gather_dq";
  std::string text = fmt::format("// {}\n#include \"kernels/{}.cuh\"\n\n", s.name(), file);
  text += "namespace undivided::cuda {\n\nstruct Config {\n";
  text += fmt::format("  using Element = {};\n  using Out = {};\n  using Grad = {};  // of dO\n",
                      element(s.dtype),
                      element(s.out),
                      element(s.wide_dout ? DType::f32 : s.dtype));
  const std::pair<const char*, int> integers[] = {
      {"dqk", s.dqk},
      {"dv", s.dv},
      {"m", t.queries},
      {"n", t.keys},
      {"ctas", t.ctas},
      {"shared_memory", static_cast<int>(s.shared_memory())},
      {"dq_floats", backward ? sm90_dq_floats(s) : 0},
      {"warpgroups", t.warpgroups},
      {"stages", t.stages},
      {"q_stages", t.q_stages},
      {"adders", t.adders},
      {"slack", t.slack},
      {"producer_registers", t.producer_registers},
      {"consumer_registers", t.consumer_registers}};
  for (const auto& [name, value] : integers)
    text += fmt::format("  static constexpr int {} = {};\n", name, value);
  text += fmt::format("  static constexpr MaskKind mask = MaskKind::{};\n", mask_name(s.mask));
  text += fmt::format("  static constexpr RowKind rows = RowKind::{};\n",
                      s.rows == RowKind::ragged ? "ragged" : "dense");
  constexpr const char* kv_kind_names[] = {"dense", "ragged", "paged"};
  text += fmt::format("  static constexpr KvKind kv = KvKind::{};\n",
                      kv_kind_names[static_cast<int>(s.kv)]);
  text += fmt::format("  static constexpr bool inside_program = {};\n", s.inside_program);
  text += fmt::format("  static constexpr bool packed = {}, split = {}, dropout = {};\n",
                      s.packed,
                      s.split,
                      s.dropout);
  text += fmt::format(
      "  static constexpr bool ordered = {}, wide_dout = {};\n", s.ordered, s.wide_dout);
  constexpr const char* captures[] = {"none", "atomic", "largest", "sums"};
  text += fmt::format("  static constexpr Capture capture = Capture::{};\n",
                      captures[static_cast<int>(s.capture)]);
  text += fmt::format("  static constexpr bool bold = {}, pingpong = {};\n}};\n\n",
                      t.bold,
                      !backward && t.takes_turns());
  const auto widths = rows       ? std::set<int>{}
                      : backward ? std::set<int>{32, 64, 128, t.queries, s.dqk, s.dv}
                                 : std::set<int>{t.keys, s.dv};
  for (const int n : widths) text += wgmma_text(s.dtype, n, backward);
  text += mask.empty() ? std::string("using Mask = FullMask;\n") : std::string(mask);
  text += score.empty() ? std::string("using Score = IdentityScore;\n") : std::string(score);
  const bool maps = !rows;
  text += fmt::format(
      "\nextern \"C\" __global__ void {}__launch_bounds__({}, {})\n"
      "    {}(const __grid_constant__ Params p{}) {{\n"
      "  follow();\n  {}<Config, Mask, Score>(p{});\n}}\n\n"
      "}}  // namespace undivided::cuda\n",
      t.ctas > 1 && !rows ? fmt::format("__cluster_dims__({}, 1, 1) ", t.ctas) : std::string(),
      s.threads(),
      s.kind == KernelKind::prepare_rows ? 3 : 1,
      entry_name,
      maps ? fmt::format(", const __grid_constant__ {} maps,\n"
                         "       const __grid_constant__ Schedule schedule",
                         backward ? "BackwardMaps" : "TensorMaps")
           : std::string(),
      kernel,
      maps ? ", maps, schedule" : "");
  return text;
}

}  // namespace undivided::cuda
