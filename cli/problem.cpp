// SPDX-License-Identifier: Apache-2.0
// From flags to a problem.
#include "cli/problem.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>

#include "expr/program.hpp"

namespace undivided::cli {
namespace {

const std::vector<std::string> backends{"auto", "reference", "cpu", "cuda"};
const std::vector<std::string> determinisms{"fast", "reproducible", "invariant"};
const std::vector<std::string> insides{"automatic", "bits", "program"};
const std::vector<std::string> aligns{"start", "end"};
const std::vector<std::string> precisions{"follow", "f32", "bf16", "f16", "i8/bf16", "i8/f32"};

bool ends_with_any(const std::vector<Array>& arrays, const std::string& name) {
  return std::any_of(
      arrays.begin(), arrays.end(), [&](const Array& a) { return a.name() == name; });
}

double number_of(const char* flag, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    refuse(fmt::format("{}: '{}' is not a number", flag, text));
  return value;
}

Tensor rounded_input(const char* flag, const std::string& spec, const ProblemFlags& flags) {
  Tensor t = read_named(flag, spec);
  if (flags.dtype.empty()) return t;
  const DType wanted = float_dtype_of("--dtype", flags.dtype);
  return t.dtype == wanted ? t : converted(t, wanted);
}

void load_options(const ProblemFlags& flags, LoadedProblem& p) {
  Options& o = p.options;
  const Programs programs = parse_programs(flags.mask, flags.score, flags.arrays, flags.params);
  o.mask = programs.mask;
  o.score = programs.score;
  if (!flags.align.empty()) o.align = align_of(flags.align);
  if (!flags.q_origin.empty()) o.q_origin = p.hold(read_named("--q-origin", flags.q_origin));
  if (!flags.k_origin.empty()) o.k_origin = p.hold(read_named("--k-origin", flags.k_origin));
  o.scale = flags.scale;
  if (!flags.sink.empty()) {
    Tensor sink = read_named("--sink", flags.sink);
    if (sink.dtype == DType::f64 || is_float16(sink.dtype)) sink = converted(sink, DType::f32);
    o.sink = p.hold(std::move(sink));
  }
  o.dropout = flags.dropout;
  o.seed = flags.seed;
  o.determinism =
      static_cast<Determinism>(choose("--determinism", flags.determinism, determinisms));
  o.inside = static_cast<Inside>(choose("--inside", flags.inside, insides));
  o.precision = precision_of(flags.precision);
  if (flags.backend == "reference" && !o.precision.follow)
    refuse(fmt::format("--precision is {}; --backend reference computes in float64: leave it out",
                       flags.precision));
  if (flags.k_mean == "keys") {
    p.kv.k_mean = p.hold(key_mean(p.kv));
  } else if (!flags.k_mean.empty()) {
    p.kv.k_mean = p.hold(read_named("--k-mean", flags.k_mean));
  }
  p.out_dtype =
      flags.out_dtype.empty() ? DType::f32 : float_dtype_of("--out-dtype", flags.out_dtype);
  // The kernel writes 16-bit results itself only where they are asked for in the input's type.
  if (is_float16(p.dtype)) o.out_dtype = p.out_dtype == p.dtype ? p.dtype : DType::f32;
}

void check_dtype(const ProblemFlags& flags, DType dtype) {
  if (dtype == DType::f64 && flags.backend != "reference")
    refuse("Q is f64, which only --backend reference takes; add it, or --dtype f32");
}

}  // namespace

void add_problem_flags(CLI::App& app, ProblemFlags& f) {
  const auto list = [&](const char* name, std::vector<std::string>& to, const char* help) {
    app.add_option(name, to, help)->allow_extra_args(false)->expected(1, 1 << 20);
  };
  app.add_option(
      "--q", f.q, "queries: [heads, tokens, dim], [batch, heads, tokens, dim] or ragged");
  app.add_option("--k", f.k, "keys; .npy or FILE.safetensors:NAME");
  app.add_option("--v", f.v, "values");
  app.add_option("--mask", f.mask, "which pairs take part, e.g. 'k <= q && q - k < 1024'");
  app.add_option("--score", f.score, "what happens to a score, e.g. '30 * tanh(score / 30)'");
  list("--array", f.arrays, "NAME=FILE: an array that the mask or score reads; repeatable");
  list("--param", f.params, "NAME=VALUE: a parameter of the mask or score; repeatable");
  app.add_option("--align", f.align, "start or end: which query meets which key");
  app.add_option("--q-origin", f.q_origin, "position of the first query per sequence");
  app.add_option("--k-origin", f.k_origin, "position of the first key per sequence");
  app.add_option("--scale", f.scale, "of q.k; default 1/sqrt(dim)");
  app.add_option("--sink", f.sink, "f32 [heads]: a logit that takes weight and gives no value");
  app.add_option("--dropout", f.dropout, "probability in [0, 1)");
  app.add_option("--seed", f.seed, "of the dropout");
  app.add_option("--dtype", f.dtype, "rounds Q, K, V (and dO) first: f32, f16, bf16, f64");
  app.add_option("--out-dtype", f.out_dtype, "of O: f32 (default), f16, bf16");
  app.add_option(
      "--precision",
      f.precision,
      "of the two products: follow (default), f32, bf16, f16; i8/bf16 or i8/f32 rounds Q and K to "
      "int8");
  app.add_option(
      "--k-mean",
      f.k_mean,
      "int8: f32 [kv heads, dim] or [batch, kv heads, dim] to round K without, or 'keys': "
      "the mean of the keys");
  app.add_option("--q-offsets", f.q_offsets, "ragged Q [total, heads, dim]: [batch + 1]");
  app.add_option("--k-offsets", f.k_offsets, "ragged K and V [total, heads, dim]: [batch + 1]");
  app.add_option(
      "--page-table", f.page_table, "paged K and V [page, heads, token, dim]: [batch, n]");
  app.add_option("--prefix-table",
                 f.prefix_table,
                 "paged: [n] pages that every sequence begins with; --lengths counts them");
  app.add_option("--lengths", f.lengths, "paged K and V: tokens in use, [batch]");
  app.add_option("--q-lengths", f.q_lengths, "dense Q: tokens in use, [batch]");
  app.add_option("--k-lengths", f.k_lengths, "dense K and V: tokens in use, [batch]");
  app.add_option("--backend", f.backend, "auto (the CPU, where files are), reference, cpu, cuda");
  app.add_option("--threads", f.threads, "default: all cores");
  app.add_option("--determinism", f.determinism, "fast, reproducible, invariant");
  app.add_option("--inside",
                 f.inside,
                 "what decides the pairs of a block that a mask keeps in part: automatic, bits of "
                 "the mask plan, program");
}

Tensor read_named(const char* flag, const std::string& spec) {
  Tensor t;
  in_context(flag, [&] { t = read_array(spec); });
  return t;
}

Array read_captured(const std::string& assignment) {
  const auto [name, file] = split_assignment("--array", assignment);
  Tensor t = read_named("--array", file);
  if (t.dtype == DType::i64) {
    for (std::int64_t i = 0; i < t.count(); ++i) {
      const std::int64_t value = t.ptr<std::int64_t>()[i];
      if (value != static_cast<std::int32_t>(value))
        refuse(fmt::format(
            "--array {}: element {} is {}; captured integers are int32", assignment, i, value));
    }
    t = converted(t, DType::i32);
  } else if (is_float16(t.dtype)) {
    t = converted(t, DType::f32);
  } else if (t.dtype == DType::f64) {
    refuse(
        fmt::format("--array {}: has type float64; int32, int64 that fits, float32 and bool are "
                    "allowed: save it as float32",
                    assignment));
  }
  Array array(std::vector<std::int32_t>{0});
  in_context("--array " + assignment, [&] { array = Array(t, name); });
  return array;
}

Programs parse_programs(const std::string& mask,
                        const std::string& score,
                        const std::vector<std::string>& arrays,
                        const std::vector<std::string>& params) {
  Captures given;
  for (const std::string& a : arrays) {
    given.arrays.push_back(read_captured(a));
    for (std::size_t i = 0; i + 1 < given.arrays.size(); ++i)
      if (given.arrays[i].name() == given.arrays.back().name())
        refuse(fmt::format("--array {}: that name is given twice", a));
  }
  for (const std::string& p : params) {
    const auto [name, value] = split_assignment("--param", p);
    given.params.emplace_back(name, number_of("--param", value));
  }
  Programs out;
  if (!mask.empty()) in_context("--mask", [&] { out.mask = Mask::parse(mask, given); });
  if (!score.empty()) in_context("--score", [&] { out.score = Score::parse(score, given); });
  for (const Array& a : given.arrays)
    if (!ends_with_any(out.mask.captures().arrays, a.name()) &&
        !ends_with_any(out.score.captures().arrays, a.name()))
      refuse(fmt::format("--array {0}: neither --mask nor --score reads {0}", a.name()));
  for (const auto& [name, value] : given.params) {
    bool read = false;
    for (const auto& program : {out.mask.program(), out.score.program()})
      for (const expr::ParamDecl& d : program->params) read |= d.name == name;
    if (!read) refuse(fmt::format("--param {0}: neither --mask nor --score reads {0}", name));
  }
  return out;
}

LoadedProblem load_problem(const ProblemFlags& flags) {
  for (const auto& [flag, value] :
       {std::pair{"--q", &flags.q}, {"--k", &flags.k}, {"--v", &flags.v}})
    if (value->empty()) refuse(fmt::format("{} is not given; --q, --k and --v are needed", flag));
  LoadedProblem p;
  p.q = Rows(p.hold(rounded_input("--q", flags.q, flags)));
  p.kv = dense(p.hold(rounded_input("--k", flags.k, flags)),
               p.hold(rounded_input("--v", flags.v, flags)));
  p.dtype = p.q.data.dtype;
  check_dtype(flags, p.dtype);
  const auto index = [&](const char* flag, const std::string& spec, View& to) {
    if (!spec.empty()) to = p.hold(read_named(flag, spec));
  };
  index("--q-offsets", flags.q_offsets, p.q.offsets);
  index("--q-lengths", flags.q_lengths, p.q.lengths);
  if (!flags.page_table.empty() || !flags.lengths.empty()) {
    if (!flags.k_offsets.empty() || !flags.k_lengths.empty())
      refuse(
          "--page-table and --lengths make K and V paged; --k-offsets and --k-lengths are for "
          "ragged and dense ones");
    p.kv.kind = KvKind::paged;
    index("--page-table", flags.page_table, p.kv.page_table);
    index("--lengths", flags.lengths, p.kv.lengths);
    index("--prefix-table", flags.prefix_table, p.kv.prefix_table);
  } else if (!flags.prefix_table.empty()) {
    refuse(
        "--prefix-table names the first pages of paged K and V; --page-table and --lengths are "
        "needed");
  } else if (!flags.k_offsets.empty()) {
    p.kv.kind = KvKind::ragged;
    index("--k-offsets", flags.k_offsets, p.kv.offsets);
  }
  index("--k-lengths", flags.k_lengths, p.kv.lengths);
  load_options(flags, p);
  return p;
}

LoadedProblem shape_problem(const ProblemFlags& flags, const std::string& shape, Device device) {
  std::vector<std::int64_t> sizes;
  for (std::size_t at = 0; at <= shape.size();) {
    const std::size_t end = std::min(shape.find(',', at), shape.size());
    std::int64_t n = 0;
    const auto [stop, error] = std::from_chars(shape.data() + at, shape.data() + end, n);
    if (error != std::errc() || stop != shape.data() + end || n < 0 || n > INT32_MAX)
      refuse(fmt::format("--shape is '{}'; seven whole numbers b,hq,hkv,nq,nk,d,dv are expected",
                         shape));
    sizes.push_back(n);
    at = end + 1;
  }
  if (sizes.size() != 7)
    refuse(fmt::format("--shape is '{}': {} numbers; seven are expected: b,hq,hkv,nq,nk,d,dv",
                       shape,
                       sizes.size()));
  for (const auto& [flag, value] : {std::pair{"--q", &flags.q},
                                    {"--k", &flags.k},
                                    {"--v", &flags.v},
                                    {"--q-offsets", &flags.q_offsets},
                                    {"--k-offsets", &flags.k_offsets},
                                    {"--page-table", &flags.page_table},
                                    {"--prefix-table", &flags.prefix_table},
                                    {"--lengths", &flags.lengths},
                                    {"--q-lengths", &flags.q_lengths},
                                    {"--k-lengths", &flags.k_lengths}})
    if (!value->empty())
      refuse(
          fmt::format("--shape describes dense rows without data; {} needs --q, --k and --v "
                      "instead",
                      flag));
  LoadedProblem p;
  p.dtype = flags.dtype.empty() ? DType::f32 : float_dtype_of("--dtype", flags.dtype);
  check_dtype(flags, p.dtype);
  alignas(64) static char nothing[64];  // explaining looks at shapes and alignment only
  const auto fake = [&](std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
    return View::of(nothing, p.dtype, {sizes[0], heads, tokens, dim}, device);
  };
  p.q = Rows(fake(sizes[1], sizes[3], sizes[5]));
  p.kv = dense(fake(sizes[2], sizes[4], sizes[5]), fake(sizes[2], sizes[4], sizes[6]));
  load_options(flags, p);
  return p;
}

Backend backend_of(const std::string& name) {
  return static_cast<Backend>(choose("--backend", name, backends));
}

Align align_of(const std::string& name) {
  return static_cast<Align>(choose("--align", name, aligns));
}

Precision precision_of(const std::string& name) {
  if (name.empty() || choose("--precision", name, precisions) == 0) return {};
  const std::size_t slash = name.find('/');
  if (slash != std::string::npos)
    return {DType::i8, dtype_from_name(name.substr(slash + 1)), false};
  const DType both = dtype_from_name(name);
  return {both, both, false};
}

DType float_dtype_of(const char* flag, const std::string& name) {
  static const std::vector<std::string> names{"f32", "f16", "bf16", "f64"};
  static constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::f64};
  return dtypes[choose(flag, name, names)];
}

}  // namespace undivided::cli
