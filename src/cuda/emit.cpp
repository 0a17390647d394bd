// SPDX-License-Identifier: Apache-2.0
// Policies from programs, and the whole text of a kernel in one piece.
#include "cuda/emit.hpp"

#include <fmt/format.h>

#include <set>
#include <string_view>
#include <vector>

#include "cuda/embedded.hpp"
#include "expr/program.hpp"
#include "undivided/error.hpp"

namespace undivided::cuda {
namespace {

constexpr const char* positions_of_pair =
    "const Params& p, int batch, int head, int q, int k, int q_len, int k_len";

const char* cuda_type(expr::Type type) {
  return type == expr::Type::boolean ? "bool" : type == expr::Type::i32 ? "int" : "float";
}

// Names for arrays and parameters, as print_cuda writes them: env.a0, env.p0.
std::string environment_struct(const char* name, const expr::Program& program) {
  std::string members, starts;
  const auto add = [&](const std::string& member, const std::string& start) {
    members += "  " + member + ";\n";
    starts += (starts.empty() ? "\n      : " : ", ") + start;
  };
  for (std::size_t i = 0; i < program.slots.size(); ++i)
    add(fmt::format("const ArrayRef& a{}", i), fmt::format("a{0}(r.arrays[{0}])", i));
  for (std::size_t i = 0; i < program.params.size(); ++i) {
    const expr::Type type = program.params[i].type;
    const char* form = type == expr::Type::f32   ? "p{0}(r.values[{0}].f)"
                       : type == expr::Type::i32 ? "p{0}(r.values[{0}].i)"
                                                 : "p{0}(r.values[{0}].i != 0)";
    add(fmt::format("{} p{}", cuda_type(type), i), fmt::format(fmt::runtime(form), i));
  }
  return fmt::format(
      "struct {0} {{\n{1}  __device__ explicit {0}(const ProgramRef& r){2} {{}}\n}};\n",
      name,
      members,
      starts);
}

std::string indented(const std::string& statements, int by) {
  std::string text;
  for (std::size_t at = 0; at < statements.size();) {
    const std::size_t end = std::min(statements.find('\n', at), statements.size());
    text += std::string(static_cast<std::size_t>(by), ' ') + statements.substr(at, end - at) + "\n";
    at = end + 1;
  }
  return text;
}

// One function: the program's statements between the declaration of its roots and `last`. `kept`:
// see print_cuda.
std::string function(const std::string& head,
                     const char* environment,
                     const char* contents,
                     const expr::Program& program,
                     const std::string& last,
                     const char* kept = nullptr) {
  std::string text = fmt::format("  {} {{\n    const {} env(p.{});\n", head, environment, contents);
  for (std::size_t i = 0; i < program.roots.size(); ++i)
    text += fmt::format("    {} out{};\n", cuda_type(program.root(i).type), i);
  const bool score = contents == std::string_view("score");
  return text + indented(expr::print_cuda(program, score, kept), 4) + "    " + last + "\n  }\n";
}

std::string mask_text(const expr::Program& program) {
  return environment_struct("MaskArrays", program) + "struct Mask {\n" +
         function(fmt::format("static __device__ bool keep({})", positions_of_pair),
                  "MaskArrays",
                  "mask",
                  program,
                  "return out0;") +
         "};\n";
}

std::string capture_text(const expr::Gradient& gradient) {
  // The indices of each load become further roots, so that the statements leave them in out<i>.
  expr::Program program = gradient.program;
  std::string last;
  int read = 0;
  for (std::size_t i = 0; i < gradient.terms.size(); ++i) {
    const expr::Gradient::Term& term = gradient.terms[i];
    const std::size_t root = i + 1;
    if (term.is_param) {
      last += fmt::format("if (live) captured.sums[{}] += g * out{};\n    ", term.slot, root);
      continue;
    }
    std::string index;
    for (const std::int32_t node : term.index) {
      if (node < 0) break;
      index += fmt::format(", out{}", program.roots.size());
      program.roots.push_back(node);
    }
    last += fmt::format(
        "captured.template add<how, {}>(p, g * out{}, live{});\n    ", read++, root, index);
  }
  return function(fmt::format("template <Capture how>\n  static __device__ void capture({}, float "
                              "distance, float raw, float scale, float g, bool live, "
                              "Captures& captured)",
                              positions_of_pair),
                  "ScoreArrays",
                  "score",
                  program,
                  last);
}

std::string score_text(const expr::Program& program, bool backward, bool captured) {
  const std::string with_score = std::string(positions_of_pair) +
                                 ", float distance, float raw, float scale, const Fixed& fixed";
  const expr::CudaScore score = expr::cuda_score(program);
  const expr::Gradient gradient = backward ? expr::differentiate(program) : expr::Gradient{};
  expr::Program only = gradient.program;
  only.roots.resize(backward ? 1 : 0);
  // Gradients of captured arrays leave no registers for what is looked up once.
  const auto once = [&](const expr::Program& of, const char* name) {
    return captured ? expr::CudaKept{} : expr::cuda_kept(of, name);
  };
  const expr::CudaKept kept = once(program, "a"), slope = once(only, "d");
  std::string text = environment_struct("ScoreArrays", program);
  std::string reads;
  for (const expr::Gradient::Term& term : gradient.terms)
    if (captured && !term.is_param)
      reads += fmt::format(
          ", Read<{}, {}>", term.slot, program.slots[static_cast<std::size_t>(term.slot)].rank);
  text += fmt::format(
      "struct Score {{\n  static constexpr bool identity = false, linear = {};\n"
      "  static constexpr int params = {};\n  using Captures = Captured<params{}>;\n",
      score.linear,
      std::max<std::size_t>(1, program.params.size()),
      reads);
  text += fmt::format(
      "  struct Fixed {{\n{}    Fixed() = default;\n    __device__ Fixed(const Params& p, int "
      "batch, int head, int q_len, int k_len) {{\n"
      "      const ScoreArrays env(p.score);\n",
      indented(kept.members + slope.members, 4));
  for (const expr::CudaKept* k : {&kept, &slope})
    text += "      {\n" + indented(k->statements, 8) + "      }\n";
  text += "    }\n  };\n";
  text += function(fmt::format("static __device__ float apply({})", with_score),
                   "ScoreArrays",
                   "score",
                   program,
                   fmt::format("return {};", score.value),
                   captured ? nullptr : "fixed.a");
  text += fmt::format(
      "  static __device__ float unit(const Params& p, float scale) {{\n"
      "    const ScoreArrays env(p.score);\n    return {};\n  }}\n",
      score.unit);
  if (backward) {
    text += function(fmt::format("static __device__ float derivative({})", with_score),
                     "ScoreArrays",
                     "score",
                     only,
                     "return out0;",
                     captured ? nullptr : "fixed.d");
    if (captured) text += capture_text(gradient);
  }
  return text + "};\n";
}

constexpr std::string_view include_mark = "#include \"";

const EmbeddedFile* find_embedded(std::string_view name) {
  for (int i = 0; i < embedded_file_count; ++i)
    if (name == embedded_files[i].name) return &embedded_files[i];
  return nullptr;
}

void expand(std::string_view text,
            std::string_view file,
            std::set<std::string>& seen,
            std::string& out) {
  int line_number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++line_number;
    if (line.rfind("#pragma once", 0) == 0) {
      out += '\n';
    } else if (line.rfind("#include", 0) == 0) {
      const std::size_t close = line.rfind('"');
      std::string name(line.substr(include_mark.size(), close - include_mark.size()));
      if (name.rfind("cuda/", 0) == 0)
        name.erase(0, 5);  // shared headers are named as the host does
      const EmbeddedFile* found = line.rfind(include_mark, 0) == 0 ? find_embedded(name) : nullptr;
      if (!found)
        throw Error(
            Code::driver,
            Stage::plan,
            fmt::format("{}:{}: '{}' is not an embedded kernel source", file, line_number, line));
      if (seen.insert(name).second) {
        out += fmt::format("#line 1 \"{}\"\n", name);
        expand(found->text, name, seen, out);
        out += fmt::format("#line {} \"{}\"\n", line_number + 1, file);
      } else {
        out += '\n';
      }
    } else {
      out += line;
      out += '\n';
    }
  }
}

}  // namespace

MaskKind mask_kind(const Spec& spec) {
  if (spec.mask_plan) return MaskKind::plan;
  if (!spec.mask) return MaskKind::full;
  std::vector<double> values;
  for (const expr::ParamDecl& p : spec.mask->params) values.push_back(p.value);
  const expr::Band band = expr::recognise_band(*spec.mask, values);
  if (!band.is_band) return MaskKind::program;
  return band.has_left || band.has_right ? MaskKind::band : MaskKind::full;
}

bool asks_program(const Spec& spec) {
  const MaskKind kind = mask_kind(spec);
  return kind == MaskKind::program || (kind == MaskKind::plan && spec.inside == Inside::program);
}

bool plain_score(const Spec& spec) {
  return !spec.score || spec.score->root().op == expr::Op::score;
}

Policies policies_of(const Spec& spec) {
  Policies text;
  if (spec.op == Operation::merge) return text;
  if (asks_program(spec)) text.mask = mask_text(*spec.mask);
  if (!plain_score(spec))
    text.score = score_text(*spec.score, spec.op == Operation::backward, spec.captured);
  return text;
}

std::string expand_includes(const std::string& text) {
  std::set<std::string> seen;
  std::string out;
  expand(text, "kernel.cu", seen, out);
  return out;
}

KernelSource source_of(const KernelSpec& spec, const Policies& policies, int arch) {
  KernelSpec at = spec;
  at.arch = arch;
  const bool tiles = at.tile_m() > 0;  // the others read no program
  KernelSource source;
  source.name = at.name();
  source.arch = arch;
  source.specific = at.family == Family::sm90;
  source.text = expand_includes(compose(at,
                                        tiles && at.asks_program() ? policies.mask : std::string(),
                                        tiles && at.score ? policies.score : std::string()));
  return source;
}

}  // namespace undivided::cuda
