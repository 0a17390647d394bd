// SPDX-License-Identifier: Apache-2.0
// The encoder-decoder: embeddings, stacks, projection, and incremental decoding.
#include "undivided/nn/transformer.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/generator.hpp"
#include "nn/blas.hpp"

namespace undivided::nn {

TransformerOptions TransformerOptions::base() { return {}; }
TransformerOptions TransformerOptions::big() {
  TransformerOptions o;
  o.features = 1024;
  o.hidden = 4096;
  o.heads = 16;
  o.dropout = .3;
  return o;
}
TransformerOptions TransformerOptions::tiny(std::int64_t vocabulary) {
  TransformerOptions o;
  o.vocabulary = vocabulary;
  o.encoder_layers = o.decoder_layers = 2;
  o.features = 64;
  o.hidden = 256;
  o.heads = 4;
  o.dropout = 0;
  return o;
}

template <class T>
void xavier_uniform(const ParameterList<T>& parameters, std::uint64_t seed) {
  std::uint64_t i = 0;
  for (const auto& [name, p] : parameters) {
    ++i;
    if (p->shape.size() != 2) continue;
    const double most = std::sqrt(6. / static_cast<double>(p->shape[0] + p->shape[1]));
    fill_uniform(view(p->value.data(), {p->count()}), seed * 1000003 + i, -most, most);
  }
}

template <class T>
Seq2SeqTransformer<T>::Seq2SeqTransformer(const TransformerOptions& o, std::uint64_t seed)
    : options_(o) {
  LayerOptions layer;
  layer.attention.embed_dim = o.features;
  layer.attention.heads = o.heads;
  layer.attention.kv_heads = o.kv_heads;
  layer.attention.bias = o.bias;
  layer.attention.dropout = o.attention_dropout;
  layer.hidden = o.hidden;
  layer.activation = o.activation;
  layer.norm = o.norm;
  layer.norm_first = o.norm_first;
  layer.eps = o.eps;
  layer.dropout = o.dropout;
  layer.hidden_dropout = o.hidden_dropout;
  require(o.vocabulary > 3, fmt::format("a vocabulary of {} is too small", o.vocabulary));
  for (std::int64_t i = 0; i < o.encoder_layers; ++i) encoder.emplace_back(layer);
  for (std::int64_t i = 0; i < o.decoder_layers; ++i) decoder.emplace_back(layer);
  embed = Embedding<T>(o.vocabulary, o.features);
  if (!o.tie) {
    embed_target = Embedding<T>(o.vocabulary, o.features);
    generator = Embedding<T>(o.vocabulary, o.features);
  }
  if (o.final_norm) encoder_norm = decoder_norm = Norm<T>(o.features, o.norm, o.eps);
  xavier_uniform(parameters(), seed);
  const double deviation = 1 / std::sqrt(static_cast<double>(o.features));
  std::uint64_t i = 0;
  for (Embedding<T>* table : {&embed, &embed_target, &generator})
    if (table->weight.count() > 0)
      fill_normal(view(table->weight.value.data(), {table->weight.count()}),
                  seed * 1000003 + 999983 + i++,
                  0,
                  deviation);
}

template <class T>
ParameterList<T> Seq2SeqTransformer<T>::parameters() {
  ParameterList<T> list;
  embed.collect("embed.", list);
  if (!options_.tie) embed_target.collect("embed_target.", list);
  for (std::size_t i = 0; i < encoder.size(); ++i)
    encoder[i].collect(fmt::format("encoder.layers.{}.", i), list);
  if (options_.final_norm) encoder_norm.collect("encoder.norm.", list);
  for (std::size_t i = 0; i < decoder.size(); ++i)
    decoder[i].collect(fmt::format("decoder.layers.{}.", i), list);
  if (options_.final_norm) decoder_norm.collect("decoder.norm.", list);
  if (!options_.tie) generator.collect("generator.", list);
  return list;
}

template <class T>
Matrix<T> Seq2SeqTransformer<T>::embedded(const Embedding<T>& table,
                                          const std::vector<std::int32_t>& ids,
                                          const Extent& extent,
                                          std::int64_t first) const {
  require(extent.batch > 0 && static_cast<std::int64_t>(ids.size()) == extent.rows(),
          fmt::format(
              "{} tokens came for {} sequences of {}", ids.size(), extent.batch, extent.tokens));
  Matrix<T> x =
      table.forward(ids, static_cast<T>(std::sqrt(static_cast<double>(options_.features))));
  const Matrix<T> pe =
      sinusoidal_positions<T>(extent.tokens, options_.features, options_.positions, first);
  for (std::int64_t r = 0; r < x.rows(); ++r)
    for (std::int64_t j = 0; j < x.cols(); ++j) x.row(r)[j] += pe.row(r % extent.tokens)[j];
  return x;
}

template <class T>
Matrix<T> Seq2SeqTransformer<T>::encode(const Tokens& source, Pass& pass, Saved* s) const {
  Matrix<T> x = embedded(embed, source.ids, source.extent, 0);
  const bool drop = pass.training && options_.dropout > 0;
  const std::uint64_t seed = drop ? pass.next_seed() : 0;
  if (drop) dropout(x, options_.dropout, seed);
  if (s) {
    s->source = source;
    s->source_seed = seed;
    s->encoder.resize(encoder.size());
  }
  for (std::size_t i = 0; i < encoder.size(); ++i)
    x = encoder[i].forward(x, source.extent, pass, s ? &s->encoder[i] : nullptr);
  return options_.final_norm ? encoder_norm.forward(x, s ? &s->encoder_norm : nullptr) : x;
}

template <class T>
Matrix<T> Seq2SeqTransformer<T>::forward(const Tokens& source,
                                         const Tokens& target,
                                         Pass& pass,
                                         Saved* s) const {
  Matrix<T> memory = encode(source, pass, s);
  Matrix<T> x = embedded(options_.tie ? embed : embed_target, target.ids, target.extent, 0);
  const bool drop = pass.training && options_.dropout > 0;
  const std::uint64_t seed = drop ? pass.next_seed() : 0;
  if (drop) dropout(x, options_.dropout, seed);
  if (s) {
    s->target = target;
    s->target_seed = seed;
    s->dropped = drop;
    s->decoder.resize(decoder.size());
  }
  for (std::size_t i = 0; i < decoder.size(); ++i)
    x = decoder[i].forward(
        x, target.extent, memory, source.extent, pass, s ? &s->decoder[i] : nullptr);
  if (options_.final_norm) x = decoder_norm.forward(x, s ? &s->decoder_norm : nullptr);
  Matrix<T> logits = (options_.tie ? embed : generator).project(x, pass.context);
  if (s) {
    s->memory = std::move(memory);
    s->out = std::move(x);
  }
  return logits;
}

template <class T>
void Seq2SeqTransformer<T>::backward(const Saved& s,
                                     const Matrix<T>& dlogits,
                                     const Context& context) {
  const T scale = static_cast<T>(std::sqrt(static_cast<double>(options_.features)));
  Matrix<T> d = (options_.tie ? embed : generator).project_backward(s.out, dlogits, context);
  if (options_.final_norm) d = decoder_norm.backward(s.decoder_norm, d);
  Matrix<T> dmemory(s.memory.rows(), s.memory.cols());
  for (std::size_t i = decoder.size(); i-- > 0;)
    d = decoder[i].backward(s.decoder[i], d, dmemory, context);
  if (s.dropped) dropout(d, options_.dropout, s.target_seed);
  (options_.tie ? embed : embed_target).backward(s.target.ids, scale, d);
  if (options_.final_norm) dmemory = encoder_norm.backward(s.encoder_norm, dmemory);
  for (std::size_t i = encoder.size(); i-- > 0;)
    dmemory = encoder[i].backward(s.encoder[i], dmemory, context);
  if (s.dropped) dropout(dmemory, options_.dropout, s.source_seed);
  embed.backward(s.source.ids, scale, dmemory);
}

template <class T>
void Seq2SeqTransformer<T>::State::reorder(const std::vector<std::int32_t>& parents) {
  for (auto& layer : layers) {
    if (layer.self.length > 0) layer.self.reorder(parents);
    layer.memory.reorder(parents);
  }
  if (!memory_lengths.empty()) {
    std::vector<std::int32_t> chosen;
    for (const std::int32_t p : parents)
      chosen.push_back(memory_lengths[static_cast<std::size_t>(p)]);
    memory_lengths = std::move(chosen);
  }
  batch = static_cast<std::int64_t>(parents.size());
}

template <class T>
typename Seq2SeqTransformer<T>::State Seq2SeqTransformer<T>::start(const Tokens& source,
                                                                   Pass& pass) const {
  require(!pass.training, "decoding runs without dropout; training must be off");
  const Matrix<T> memory = encode(source, pass);
  State state;
  state.memory_lengths = source.extent.lengths;
  state.batch = source.extent.batch;
  for (const auto& layer : decoder) {
    state.layers.emplace_back();
    state.layers.back().memory = layer.multihead_attn.remember(memory, source.extent, pass.context);
  }
  return state;
}

template <class T>
Matrix<T> Seq2SeqTransformer<T>::step(const std::vector<std::int32_t>& ids,
                                      State& state,
                                      Pass& pass,
                                      std::vector<Tensor>* weights) const {
  require(!pass.training, "decoding runs without dropout; training must be off");
  const Extent extent{state.batch, static_cast<std::int64_t>(ids.size()) / state.batch, {}};
  Matrix<T> x = embedded(options_.tie ? embed : embed_target, ids, extent, state.length);
  if (weights) weights->assign(decoder.size(), {});
  for (std::size_t i = 0; i < decoder.size(); ++i)
    x = decoder[i].step(x,
                        extent.tokens,
                        state.layers[i],
                        state.memory_lengths,
                        pass,
                        weights ? &(*weights)[i] : nullptr);
  state.length += extent.tokens;
  if (options_.final_norm) x = decoder_norm.forward(x);
  return (options_.tie ? embed : generator).project(x, pass.context);
}

template void xavier_uniform(const ParameterList<float>&, std::uint64_t);
template void xavier_uniform(const ParameterList<double>&, std::uint64_t);
template class Seq2SeqTransformer<float>;
template class Seq2SeqTransformer<double>;

}  // namespace undivided::nn
