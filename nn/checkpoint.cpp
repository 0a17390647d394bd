// SPDX-License-Identifier: Apache-2.0
// Parameters and training state as safetensors files.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/safetensors.hpp"
#include "nn/blas.hpp"
#include "undivided/error.hpp"
#include "undivided/nn/optimize.hpp"
#include "undivided/nn/transformer.hpp"

namespace undivided::nn {
namespace {

template <class T>
View shaped(const Parameter<T>& p, const std::vector<T>& values) {
  T* at = const_cast<T*>(values.data());
  return p.shape.size() == 2 ? view(at, {p.shape[0], p.shape[1]}) : view(at, {p.count()});
}

using Named = std::vector<std::pair<std::string, View>>;

// Fills every view from the file, or says all that does not fit and changes nothing.
void load(const std::string& path, const Safetensors& file, const Named& wanted) {
  std::set<std::string> unexpected;
  for (const auto& entry : file.entries()) unexpected.insert(entry.name);
  std::string wrong;
  for (const auto& [name, to] : wanted) {
    const auto entry = std::find_if(file.entries().begin(),
                                    file.entries().end(),
                                    [&, n = name](const auto& e) { return e.name == n; });
    if (entry == file.entries().end()) {
      wrong += fmt::format("; missing {}", name);
      continue;
    }
    unexpected.erase(name);
    const std::vector<std::int64_t> shape(to.shape.begin(), to.shape.begin() + to.rank);
    if (entry->shape != shape)
      wrong += fmt::format("; {} is [{}], the model wants [{}]",
                           name,
                           fmt::join(entry->shape, ", "),
                           fmt::join(shape, ", "));
  }
  for (const std::string& name : unexpected) wrong += fmt::format("; unexpected {}", name);
  if (!wrong.empty())
    throw Error(Code::io, Stage::resolve, fmt::format("{} does not fit{}", path, wrong));
  std::vector<Tensor> read;
  for (const auto& named : wanted) read.push_back(file.read(named.first));
  for (std::size_t i = 0; i < wanted.size(); ++i) copy(read[i], wanted[i].second);
}

}  // namespace

template <class T>
void save_parameters(const std::string& path,
                     const ParameterList<T>& parameters,
                     const std::map<std::string, std::string>& metadata) {
  Named all;
  for (const auto& [name, p] : parameters) all.emplace_back(name, shaped(*p, p->value));
  write_safetensors(path, all, metadata);
}

template <class T>
std::map<std::string, std::string> load_parameters(const std::string& path,
                                                   const ParameterList<T>& parameters) {
  const Safetensors file = Safetensors::open(path);
  Named all;
  for (const auto& [name, p] : parameters) all.emplace_back(name, shaped(*p, p->value));
  load(path, file, all);
  return file.metadata();
}

std::map<std::string, std::string> read_metadata(const std::string& path) {
  return Safetensors::open(path).metadata();
}

template <class T>
void adopt_heads(Seq2SeqTransformer<T>& model, const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  const auto adopt = [&](MultiHeadAttention<T>& attention, const std::string& prefix) {
    AttentionOptions o = attention.options();
    o.kv_heads = o.heads;
    for (const auto& e : file.entries())
      if (e.name == prefix + ".k_proj.weight" && !e.shape.empty())
        o.kv_heads = std::max<std::int64_t>(1, e.shape[0] / o.head_dim);
    attention = MultiHeadAttention<T>(o);
  };
  for (std::size_t i = 0; i < model.encoder.size(); ++i)
    adopt(model.encoder[i].self_attn, fmt::format("encoder.layers.{}.self_attn", i));
  for (std::size_t i = 0; i < model.decoder.size(); ++i) {
    adopt(model.decoder[i].self_attn, fmt::format("decoder.layers.{}.self_attn", i));
    adopt(model.decoder[i].multihead_attn, fmt::format("decoder.layers.{}.multihead_attn", i));
  }
}
template void adopt_heads(Seq2SeqTransformer<float>&, const std::string&);
template void adopt_heads(Seq2SeqTransformer<double>&, const std::string&);

void average_files(const std::vector<std::string>& paths, const std::string& out) {
  require(!paths.empty(), "there is no file to average");
  std::vector<std::pair<std::string, Tensor>> mean;
  for (const auto& [name, tensor] : read_safetensors(paths[0]))
    mean.emplace_back(name, converted(tensor, DType::f64));
  for (std::size_t i = 1; i < paths.size(); ++i) {
    Named other;
    std::vector<Tensor> room;
    for (const auto& [name, tensor] : mean) {
      room.push_back(Tensor::empty_like(tensor, DType::f64));
      other.emplace_back(name, room.back());
    }
    load(paths[i], Safetensors::open(paths[i]), other);
    for (std::size_t t = 0; t < mean.size(); ++t)
      for (std::int64_t j = 0; j < room[t].count(); ++j)
        mean[t].second.ptr<double>()[j] += room[t].ptr<double>()[j];
  }
  Named all;
  std::vector<Tensor> rounded;
  for (auto& [name, tensor] : mean) {
    for (std::int64_t j = 0; j < tensor.count(); ++j)
      tensor.ptr<double>()[j] /= static_cast<double>(paths.size());
    rounded.push_back(converted(tensor, DType::f32));
    all.emplace_back(name, rounded.back());
  }
  write_safetensors(out, all, read_metadata(paths.back()));
}

template <class T>
void save_checkpoint(const std::string& path,
                     const Adam<T>& adam,
                     const Average<T>& average,
                     const std::vector<float>& losses,
                     std::map<std::string, std::string> metadata) {
  Named all;
  for (std::size_t i = 0; i < adam.parameters().size(); ++i) {
    const auto& [name, p] = adam.parameters()[i];
    all.emplace_back(name, shaped(*p, p->value));
    all.emplace_back("adam.first." + name, shaped(*p, adam.first[i]));
    all.emplace_back("adam.second." + name, shaped(*p, adam.second[i]));
    if (average.count > 0) all.emplace_back("average." + name, shaped(*p, average.mean[i]));
  }
  if (!losses.empty())
    all.emplace_back("losses", view(losses.data(), {static_cast<std::int64_t>(losses.size())}));
  metadata["steps"] = std::to_string(adam.steps);
  metadata["averaged"] = std::to_string(average.count);
  metadata["losses"] = std::to_string(losses.size());
  write_safetensors(path, all, metadata);
}

template <class T>
std::map<std::string, std::string> load_checkpoint(const std::string& path,
                                                   Adam<T>& adam,
                                                   Average<T>& average,
                                                   std::vector<float>& losses) {
  const Safetensors file = Safetensors::open(path);
  const auto number = [&](const char* key) -> std::int64_t {
    const auto at = file.metadata().find(key);
    if (at == file.metadata().end() || at->second.empty() || at->second.size() > 12 ||
        at->second.find_first_not_of("0123456789") != std::string::npos)
      throw Error(
          Code::io, Stage::parse, fmt::format("{} is no training checkpoint: no '{}'", path, key));
    return std::stoll(at->second);
  };
  const std::int64_t steps = number("steps"), averaged = number("averaged"),
                     past = number("losses");
  Average<T> mean;
  std::vector<float> curve(static_cast<std::size_t>(past));
  Named all;
  for (std::size_t i = 0; i < adam.parameters().size(); ++i)
    if (averaged > 0) mean.mean.emplace_back(adam.first[i].size());
  for (std::size_t i = 0; i < adam.parameters().size(); ++i) {
    const auto& [name, p] = adam.parameters()[i];
    all.emplace_back(name, shaped(*p, p->value));
    all.emplace_back("adam.first." + name, shaped(*p, adam.first[i]));
    all.emplace_back("adam.second." + name, shaped(*p, adam.second[i]));
    if (averaged > 0) all.emplace_back("average." + name, shaped(*p, mean.mean[i]));
  }
  if (past > 0) all.emplace_back("losses", view(curve.data(), {past}));
  load(path, file, all);
  adam.steps = steps;
  mean.count = averaged;
  average = std::move(mean);
  losses = std::move(curve);
  return file.metadata();
}

using Metadata = std::map<std::string, std::string>;
template void save_parameters(const std::string&, const ParameterList<float>&, const Metadata&);
template void save_parameters(const std::string&, const ParameterList<double>&, const Metadata&);
template Metadata load_parameters(const std::string&, const ParameterList<float>&);
template Metadata load_parameters(const std::string&, const ParameterList<double>&);
template void save_checkpoint(const std::string&,
                              const Adam<float>&,
                              const Average<float>&,
                              const std::vector<float>&,
                              Metadata);
template Metadata load_checkpoint(const std::string&,
                                  Adam<float>&,
                                  Average<float>&,
                                  std::vector<float>&);

}  // namespace undivided::nn
