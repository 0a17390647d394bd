// SPDX-License-Identifier: Apache-2.0
// Names and text of kernel specs.
#include "cuda/spec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <vector>

#include "cuda/tuning.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

struct KindName {
  KernelKind kind;
  const char* name;      // in spec names
  const char* function;  // the template in kernels/<file>.cuh
  const char* file;
};
constexpr KindName kinds[] = {
    {KernelKind::forward, "fwd", "forward", "forward"},
    {KernelKind::combine, "combine", "combine", "combine"},
    {KernelKind::key_mass, "keymass", "key_mass", "key_mass"},
    {KernelKind::preprocess, "pre", "preprocess", "preprocess"},
    {KernelKind::backward_q, "bwdq", "backward_q", "backward_q"},
    {KernelKind::backward_kv, "bwdkv", "backward_kv", "backward_kv"},
    {KernelKind::sink_gradient, "dsink", "sink_gradient", "preprocess"},
    {KernelKind::merge, "merge", "merge", "combine"},
    {KernelKind::init, "init", "init_max_logit", "combine"},
    {KernelKind::backward, "bwd", "backward_sm90", "backward_sm90"},
    {KernelKind::prepare_rows, "rows", "prepare_rows", "backward_rows_sm90"},
    {KernelKind::gather_dq, "dq", "gather_dq", "backward_rows_sm90"},
    {KernelKind::sort_rows, "sortrows", "sort_rows", "row_lists"},
    {KernelKind::meet_rows, "meetrows", "meet_rows", "row_lists"},
    {KernelKind::plan_rows, "planrows", "plan_rows", "row_lists"},
    {KernelKind::take_rows, "takerows", "take_rows", "row_lists"},
    {KernelKind::difference, "diff", "difference", "difference"},
    {KernelKind::difference_backward, "bwddiff", "difference_backward", "difference"},
    {KernelKind::round_sums, "sums", "round_sums", "round_sums"},
};
constexpr const char* mask_names[] = {"full", "band", "program", "plan"};
constexpr const char* row_names[] = {"dense", "ragged"};
constexpr const char* kv_names[] = {"dense", "ragged", "paged"};
constexpr const char* capture_names[] = {"none", "atomic", "largest", "sums"};
constexpr const char* capture_words[] = {"", "captured", "captured_largest", "captured_sums"};

const KindName& info(KernelKind kind) { return kinds[static_cast<std::size_t>(kind)]; }

bool has_tiles(KernelKind k) {
  return k == KernelKind::forward || k == KernelKind::key_mass || k == KernelKind::backward_q ||
         k == KernelKind::backward_kv || k == KernelKind::backward || by_query_tiles(k);
}

const char* device_type(DType t) {
  if (t == DType::f16) return "Half";
  if (t == DType::bf16) return "BFloat16";
  return "float";
}
const char* flag(bool b) { return b ? "true" : "false"; }

}  // namespace

KernelSpec canonical(KernelSpec s) {
  KernelSpec none;
  if (makes_lists(s.kind) || makes_difference(s.kind)) {
    none.kind = s.kind;
    none.arch = s.arch;
    return none;
  }
  const bool tiles = has_tiles(s.kind);
  if (!tiles) {
    s.mask = none.mask;
    s.inside_program = none.inside_program;
    s.score = none.score;
    s.kv = none.kv;
    if (s.kind != KernelKind::preprocess) s.aligned = none.aligned;
    s.dqk = none.dqk;
  }
  if (s.kind != KernelKind::forward) s.packed = s.split = false;
  if (s.kind == KernelKind::backward || by_query_tiles(s.kind))
    s.family = Family::sm90;
  else if (s.kind != KernelKind::forward)
    s.family = Family::portable;
  if (by_query_tiles(s.kind)) {  // the rest says how the sums lie
    s.kv = none.kv;
    s.inside_program = none.inside_program;
    s.aligned = none.aligned;
    if (s.kind == KernelKind::gather_dq) s.dtype = none.dtype;
    if (s.kind == KernelKind::prepare_rows) s.out = DType::f32;
  }
  if (s.mask != MaskKind::plan) s.inside_program = false;
  if (s.family == Family::sm90) s.arch = 90;
  if (s.family != Family::sm90 || s.kind != KernelKind::forward) {
    s.warpgroups = none.warpgroups;
    s.fixed = none.fixed;
  }
  if (s.kind == KernelKind::key_mass || !tiles) s.dropout = false;
  if (s.kind != KernelKind::backward_q && s.kind != KernelKind::backward) s.capture = none.capture;
  if (s.kind != KernelKind::backward && !by_query_tiles(s.kind)) s.ordered = false;
  if (s.kind != KernelKind::backward_q && s.kind != KernelKind::backward_kv &&
      s.kind != KernelKind::prepare_rows)
    s.wide_dout = false;
  if (s.kind == KernelKind::key_mass) s.dv = none.dv;
  if (s.split || s.kind == KernelKind::key_mass || s.kind == KernelKind::preprocess ||
      s.kind == KernelKind::sink_gradient || s.kind == KernelKind::init)
    s.out = DType::f32;
  if (s.kind == KernelKind::combine || s.kind == KernelKind::merge ||
      s.kind == KernelKind::sink_gradient || s.kind == KernelKind::init)
    s.dtype = none.dtype;
  if (s.kind == KernelKind::sink_gradient || s.kind == KernelKind::init) s.dv = none.dv;
  if (s.kind == KernelKind::init) s.rows = none.rows;
  if (s.kind == KernelKind::round_sums) {
    KernelSpec only;
    only.kind = s.kind;
    only.arch = s.arch;
    only.out = DType::f32;
    return only;
  }
  if (s.capture == Capture::largest) s.out = DType::f32;  // it writes no other gradient
  return s;
}

std::string KernelSpec::name() const {
  std::string text = fmt::format("{}.sm{}{}.{}.o{}.d{}.v{}",
                                 info(kind).name,
                                 arch,
                                 family == Family::sm90 ? "a" : "",
                                 name_of(dtype),
                                 name_of(out),
                                 dqk,
                                 dv);
  if (has_tiles(kind))
    text += fmt::format(".m{}n{}.{}.{}",
                        tile_m(),
                        tile_n(),
                        mask_names[static_cast<int>(mask)],
                        score ? "score" : "identity");
  text += fmt::format(".{}.{}", row_names[static_cast<int>(rows)], kv_names[static_cast<int>(kv)]);
  if (inside_program) text += ".inside";
  if (packed) text += ".packed";
  if (split) text += ".split";
  if (warpgroups) text += fmt::format(".wg{}", warpgroups);
  if (fixed) text += ".fixed";
  if (dropout) text += ".dropout";
  if (!aligned) text += ".unaligned";
  if (capture != Capture::none)
    text += fmt::format(".{}", capture_words[static_cast<int>(capture)]);
  if (wide_dout) text += ".widedout";
  if (ordered) text += ".ordered";
  return text;
}

KernelSpec KernelSpec::parse(std::string_view name) {
  const auto fail = [&](const std::string& why) -> KernelSpec {
    throw Error{
        Code::invalid_argument,
        Stage::parse,
        fmt::format(
            "'{}' is not a kernel name: {}; a legal one is '{}'", name, why, KernelSpec{}.name())};
  };
  std::vector<std::string_view> words;
  for (std::string_view rest = name;;) {
    const auto dot = rest.find('.');
    words.push_back(rest.substr(0, dot));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  std::size_t at = 0;
  const auto next = [&] { return at < words.size() ? words[at++] : std::string_view{}; };
  const auto number = [&](std::string_view prefix, int& out_value) {
    const std::string_view w = next();
    if (w.substr(0, prefix.size()) != prefix) return false;
    const char* end = w.data() + w.size();
    const auto r = std::from_chars(w.data() + prefix.size(), end, out_value);
    return r.ec == std::errc{} && r.ptr == end;
  };
  const auto choice = [&](const auto& names, auto& value) {
    const std::string_view w = next();
    for (std::size_t i = 0; i < std::size(names); ++i)
      if (w == names[i]) {
        value = static_cast<std::decay_t<decltype(value)>>(i);
        return true;
      }
    return false;
  };
  const auto type = [&](std::string_view w, DType& t) {
    for (const DType d : {DType::f16, DType::bf16, DType::f32})
      if (w == name_of(d)) {
        t = d;
        return true;
      }
    return false;
  };

  KernelSpec s;
  const std::string_view kind_word = next();
  const auto* found = std::find_if(
      std::begin(kinds), std::end(kinds), [&](const KindName& k) { return kind_word == k.name; });
  if (found == std::end(kinds)) return fail("unknown kind");
  s.kind = found->kind;
  if (at < words.size() && words[at] == "sm90a") {
    s.family = Family::sm90;
    words[at].remove_suffix(1);
  }
  if (!number("sm", s.arch)) return fail("expected sm<arch> or sm90a");
  if (!type(next(), s.dtype)) return fail("expected f16 or bf16");
  const std::string_view out_word = next();
  if (out_word.empty() || out_word[0] != 'o' || !type(out_word.substr(1), s.out))
    return fail("expected of16, obf16 or of32");
  if (!number("d", s.dqk) || !number("v", s.dv)) return fail("expected d<n>.v<n>");
  if (has_tiles(s.kind)) {
    next();  // the tile follows from the rest; the whole name is compared below
    if (!choice(mask_names, s.mask)) return fail("expected full, band, program or plan");
    const std::string_view w = next();
    if (w != "score" && w != "identity") return fail("expected score or identity");
    s.score = w == "score";
  }
  if (!choice(row_names, s.rows)) return fail("expected dense or ragged rows");
  if (!choice(kv_names, s.kv)) return fail("expected dense, ragged or paged keys");
  while (at < words.size()) {
    const std::string_view w = next();
    if (w == "inside")
      s.inside_program = true;
    else if (w == "packed")
      s.packed = true;
    else if (w == "split")
      s.split = true;
    else if (w == "wg1" || w == "wg2")
      s.warpgroups = w.back() - '0';
    else if (w == "fixed")
      s.fixed = true;
    else if (w == "dropout")
      s.dropout = true;
    else if (w == "unaligned")
      s.aligned = false;
    else if (const auto* word =
                 std::find(std::begin(capture_words) + 1, std::end(capture_words), w);
             word != std::end(capture_words))
      s.capture = static_cast<Capture>(word - capture_words);
    else if (w == "widedout")
      s.wide_dout = true;
    else if (w == "ordered")
      s.ordered = true;
    else
      return fail(fmt::format("unknown word '{}'", w));
  }
  if (s.dqk < 8 || s.dqk > 512 || s.dqk % 8 || s.dv < 8 || s.dv > 512 || s.dv % 8)
    return fail("head dims are multiples of 8 from 8 to 512");
  if (s.family == Family::sm90)
    if (const char* why = nullptr; !sm90_serves(s, &why))
      return fail(fmt::format("no sm90a kernel serves {}", why));
  if (s.name() != name) return fail(fmt::format("these words mean '{}'", s.name()));
  return s;
}

std::string compose(const KernelSpec& s, std::string_view mask, std::string_view score) {
  if (s.family == Family::sm90) return compose_sm90(s, mask, score);
  const KindName& k = info(s.kind);
  std::string text = fmt::format("// {}\n#include \"kernels/{}.cuh\"\n\n", s.name(), k.file);
  text += "namespace undivided::cuda {\n\n";
  const auto entry = [&](const char* params, const char* first, const char* arguments) {
    return fmt::format(
        "\nextern \"C\" __global__ void __launch_bounds__({}, {})\n"
        "    {}(const __grid_constant__ {} p) {{\n{}  {}{}(p);\n}}\n\n"
        "}}  // namespace undivided::cuda\n",
        s.threads(),
        s.min_blocks(),
        entry_name,
        params,
        first,
        k.function,
        arguments);
  };
  if (makes_lists(s.kind)) return text + entry("ListParams", "", "");
  if (makes_difference(s.kind)) return text + entry("DifferenceParams", "", "");
  text += "struct Config {\n";
  text += fmt::format(
      "  using Element = {};\n  using Out = {};\n", device_type(s.dtype), device_type(s.out));
  const auto integer = [&](const char* name, int value) {
    text += fmt::format("  static constexpr int {} = {};\n", name, value);
  };
  const auto boolean = [&](const char* name, bool value) {
    text += fmt::format("  static constexpr bool {} = {};\n", name, flag(value));
  };
  integer("dqk", s.dqk);
  integer("dv", s.dv);
  integer("m", s.tile_m());
  integer("n", s.tile_n());
  integer("threads", s.threads());
  integer("dv_chunks", s.dv_chunks());
  integer("dv_width", s.dv_width());
  integer("chunks", s.chunks());
  text += fmt::format("  static constexpr MaskKind mask = MaskKind::{};\n",
                      mask_names[static_cast<int>(s.mask)]);
  text += fmt::format("  static constexpr RowKind rows = RowKind::{};\n",
                      row_names[static_cast<int>(s.rows)]);
  text +=
      fmt::format("  static constexpr KvKind kv = KvKind::{};\n", kv_names[static_cast<int>(s.kv)]);
  boolean("inside_program", s.inside_program);
  boolean("packed", s.packed);
  boolean("split", s.split);
  boolean("dropout", s.dropout);
  boolean("aligned", s.aligned);
  text += fmt::format("  static constexpr Capture capture = Capture::{};\n",
                      capture_names[static_cast<int>(s.capture)]);
  boolean("wide_dout", s.wide_dout);
  text += "};\n\n";
  text += mask.empty() ? std::string("using Mask = FullMask;\n") : std::string(mask);
  text += score.empty() ? std::string("using Score = IdentityScore;\n") : std::string(score);
  return text + entry("Params", "  follow();\n", "<Config, Mask, Score>");
}

}  // namespace undivided::cuda
