// SPDX-License-Identifier: Apache-2.0
// Differential Transformers between unilm's layout and DiffLlama's.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/raw_tensor.hpp"
#include "nn/blas.hpp"
#include "nn/convert_files.hpp"
#include "undivided/nn/convert.hpp"

namespace undivided::nn {
namespace {

// One attention and its sizes. `pairs` are heads in the paper's sense, two components each.
struct Differential {
  std::string prefix;
  std::int64_t dim = 0, pairs = 0, kv_pairs = 0;
};

// Row `row` of the target's Q, K or V comes from this row of the source. Components lie side by
// side (2h + c) in unilm and in halves (h + c * pairs) in DiffLlama; the rows of a rotated head are
// pairs (2i, 2i + 1) in unilm and halves (i, i + d / 2) in DiffLlama.
std::int64_t source_row(
    std::int64_t row, std::int64_t dim, std::int64_t pairs, bool rotated, bool to_unilm) {
  std::int64_t head = row / dim, i = row % dim;
  const std::int64_t half = dim / 2;
  if (to_unilm) {
    head = head / 2 + head % 2 * pairs;
    if (rotated) i = i / 2 + i % 2 * half;
  } else {
    head = head % pairs * 2 + head / pairs;
    if (rotated) i = i % half * 2 + i / half;
  }
  return head * dim + i;
}

Tensor permuted_rows(
    const Tensor& from, std::int64_t dim, std::int64_t pairs, bool rotated, bool to_unilm) {
  const Tensor wide = converted(from, DType::f64), made = Tensor::empty_like(wide, DType::f64);
  const std::int64_t rows = wide.size(0), width = wide.rank == 1 ? 1 : wide.size(1);
  for (std::int64_t r = 0; r < rows; ++r)
    std::copy_n(wide.ptr<double>() + source_row(r, dim, pairs, rotated, to_unilm) * width,
                width,
                made.ptr<double>() + r * width);
  return converted(made, from.dtype);
}

// unilm's norm has a gain, DiffLlama's none: it moves into the columns of the output projection.
Tensor scaled_columns(const Tensor& from, const Tensor& gain) {
  const Tensor made = converted(from, DType::f64), by = converted(gain, DType::f64);
  const std::int64_t cols = made.size(1);
  for (std::int64_t i = 0; i < made.count(); ++i)
    made.ptr<double>()[i] *= by.ptr<double>()[i % cols % by.count()];
  return converted(made, from.dtype);
}

const Safetensors::Entry& needed(const SourceCheckpoint& source, const std::string& name) {
  const Safetensors::Entry* e = source.find(name);
  require(e != nullptr, fmt::format("{} has no {}", source.path(), name));
  static const std::set<std::string> types = {"F64", "F32", "F16", "BF16"};
  require(types.contains(e->dtype),
          fmt::format("{} is {}; F64, F32, F16 and BF16 are converted", name, e->dtype));
  return *e;
}

Differential sizes(const SourceCheckpoint& source, const std::string& prefix, const char* out) {
  Differential d;
  d.prefix = prefix;
  for (const char* name : {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"}) {
    const auto& e = needed(source, prefix + name);
    if (d.dim == 0 && e.shape.size() == 1) d.dim = e.shape[0];
    require(e.shape == std::vector{d.dim} && d.dim > 0 && d.dim % 2 == 0,
            fmt::format("{} wants the shape [head dim], even and the same for all four", e.name));
  }
  const auto heads = [&](const std::string& name, std::size_t axis) {
    const auto& e = needed(source, prefix + name);
    require(e.shape.size() == 2 && e.shape[axis] > 0 && e.shape[axis] % (2 * d.dim) == 0,
            fmt::format("{} is not made of pairs of heads of {} features", e.name, d.dim));
    return e.shape[axis] / (2 * d.dim);
  };
  d.pairs = heads("q_proj.weight", 0);
  d.kv_pairs = heads("k_proj.weight", 0);
  require(d.pairs % d.kv_pairs == 0 && heads("v_proj.weight", 0) == d.kv_pairs &&
              heads(std::string(out) + ".weight", 1) == d.pairs,
          fmt::format("{}: Q, K, V and {} have sizes that do not go together", prefix, out));
  return d;
}

}  // namespace

ConvertReport convert_differential(const std::string& in,
                                   const std::string& out,
                                   const std::string& to) {
  require(
      to == "unilm" || to == "diffllama",
      fmt::format("'{}' is no layout of Differential Transformers; allowed: unilm, diffllama", to));
  const SourceCheckpoint source(in);
  check_target(source, out);
  const bool to_unilm = to == "unilm";
  const char *old_out = to_unilm ? "o_proj" : "out_proj",
             *new_out = to_unilm ? "out_proj" : "o_proj";
  ConvertReport report;
  report.layout = to;
  std::vector<SafetensorsItem> items;
  std::set<std::string> taken;
  bool gain = false;
  const auto add =
      [&](const std::string& name, const std::string& as, std::function<Tensor()> make) {
        taken.insert(name);
        SafetensorsItem item = source.item(name, as);
        if (make)
          item.write = [make = std::move(make)](AtomicFile& f) { write_elements(f, make()); };
        items.push_back(std::move(item));
      };
  for (const auto& entry : source.entries()) {
    if (!entry.first.ends_with("lambda_q1")) continue;
    const std::string prefix = entry.first.substr(0, entry.first.size() - 9);
    require(!source.find(prefix + new_out + ".weight"),
            fmt::format("{}: {}{}.weight says that it is in {}'s layout already",
                        source.path(),
                        prefix,
                        new_out,
                        to));
    const Differential d = sizes(source, prefix, old_out);
    ++report.attentions;
    report.heads = to_unilm ? d.pairs : 2 * d.pairs;
    report.from = report.to = to_unilm ? d.kv_pairs : 2 * d.kv_pairs;
    for (const char part : {'q', 'k', 'v'})
      for (const char* end : {"weight", "bias"}) {
        const std::string name = fmt::format("{}{}_proj.{}", prefix, part, end);
        if (!source.find(name)) continue;
        const std::int64_t pairs = part == 'q' ? d.pairs : d.kv_pairs;
        require(needed(source, name).shape[0] == 2 * pairs * d.dim,
                fmt::format("{} does not have {} features", name, 2 * pairs * d.dim));
        add(name, name, [=, &source] {
          return permuted_rows(source.read(name), d.dim, pairs, part != 'v', to_unilm);
        });
      }
    const std::string o = prefix + old_out, made = prefix + new_out, norm = prefix + "subln.weight";
    std::function<Tensor()> fold;
    if (source.find(norm)) {
      require(!to_unilm, fmt::format("{} is there, which DiffLlama does not have", norm));
      require(needed(source, norm).shape == std::vector{2 * d.dim},
              fmt::format("{} wants {} features", norm, 2 * d.dim));
      gain = true;
      taken.insert(norm);
      fold = [=, &source] { return scaled_columns(source.read(o + ".weight"), source.read(norm)); };
    }
    add(o + ".weight", made + ".weight", fold);
    if (source.find(o + ".bias")) add(o + ".bias", made + ".bias", {});
    if (to_unilm) {
      SafetensorsItem ones = source.item(prefix + "lambda_q1", norm);
      ones.shape = {2 * d.dim};
      ones.bytes *= 2;
      ones.write = [=, type = source.read(prefix + "lambda_q1").dtype](AtomicFile& f) {
        Tensor one = Tensor::empty(DType::f64, {2 * d.dim});
        std::fill_n(one.ptr<double>(), one.count(), 1.);
        write_elements(f, converted(one, type));
      };
      items.push_back(std::move(ones));
    }
  }
  require(
      report.attentions > 0,
      fmt::format("{} is no Differential Transformer: there is no lambda_q1 in it", source.path()));
  report.converted = report.attentions;
  for (const auto& entry : source.entries())
    if (!taken.contains(entry.first)) items.push_back(source.item(entry.first, entry.first));
  auto config = source.config;
  if (config.is_object()) {
    config["model_type"] = to_unilm ? "unilm-diff-transformer" : "diffllama";
    config.erase("architectures");
    if (!to_unilm) config["architectures"] = {"DiffLlamaForCausalLM"};
    config["num_attention_heads"] = report.heads;
    config["num_key_value_heads"] = report.to;
  }
  if (gain) report.notes.push_back("subln.weight is part of o_proj now, rounded to its type");
  report.notes.push_back(
      to_unilm ? "unilm's norm has eps 1e-5; DiffLlama took it from rms_norm_eps"
               : "rms_norm_eps of config.json is also the eps of the norm over heads, which unilm "
                 "fixes at 1e-5");
  for (const SafetensorsItem& item : items) {
    std::int64_t n = 1;
    for (const std::int64_t size : item.shape) n *= size;
    report.parameters_after += n;
  }
  for (const auto& entry : source.entries()) {
    std::int64_t n = 1;
    for (const std::int64_t size : entry.second->shape) n *= size;
    report.parameters += n;
  }
  write_checkpoint(out, source.folder(), std::move(items), source.metadata, config);
  return report;
}

}  // namespace undivided::nn
