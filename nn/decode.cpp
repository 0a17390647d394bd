// SPDX-License-Identifier: Apache-2.0
// Key and value caches, and attention one step at a time.
#include <algorithm>
#include <type_traits>

#include "nn/heads.hpp"
#include "undivided/nn/attention.hpp"

namespace undivided::nn {
namespace {

template <class T>
void append(const Matrix<T>& x,
            const Extent& e,
            std::int64_t column,
            std::vector<T>& to,
            const KvCache<T>& c) {
  for (std::int64_t b = 0; b < e.batch; ++b)
    for (std::int64_t h = 0; h < c.heads; ++h)
      for (std::int64_t t = 0; t < e.tokens; ++t)
        std::copy_n(x.row(b * e.tokens + t) + column + h * c.dim,
                    c.dim,
                    to.data() + ((b * c.heads + h) * c.capacity + c.length + t) * c.dim);
}

}  // namespace

template <class T>
void KvCache<T>::reserve(std::int64_t tokens) {
  if (tokens <= capacity) return;
  const std::int64_t larger = std::max(tokens, 2 * capacity);
  for (std::vector<T>* one : {&k, &v}) {
    std::vector<T> grown(static_cast<std::size_t>(batch * heads * larger * dim));
    for (std::int64_t i = 0; i < batch * heads; ++i)
      std::copy_n(one->data() + i * capacity * dim, length * dim, grown.data() + i * larger * dim);
    *one = std::move(grown);
  }
  capacity = larger;
}

template <class T>
void KvCache<T>::reorder(const std::vector<std::int32_t>& parents) {
  const std::int64_t each = heads * capacity * dim,
                     count = static_cast<std::int64_t>(parents.size());
  for (const std::int32_t p : parents)
    require(p >= 0 && p < batch, fmt::format("sequence {} of {} does not exist", p, batch));
  for (std::vector<T>* one : {&k, &v}) {
    std::vector<T> chosen(static_cast<std::size_t>(count * each));
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(one->data() + parents[static_cast<std::size_t>(i)] * each,
                  each,
                  chosen.data() + i * each);
    *one = std::move(chosen);
  }
  batch = count;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::step(const Matrix<T>& x,
                                      std::int64_t tokens,
                                      KvCache<T>& cache,
                                      Pass& pass) const {
  const AttentionOptions& o = options_;
  const Extent extent{x.rows() / tokens, tokens, {}};
  check_extent(extent, x.rows());
  if (cache.length == 0) cache = {extent.batch, 0, 0, o.kv_heads, o.head_dim, {}, {}};
  require(cache.batch == extent.batch, "the cache belongs to another batch");
  Matrix<T> qkv = project(x, 0, 3, pass.context);
  rotate(qkv, extent, 0, o.heads + o.kv_heads, o.head_dim, o.rope, cache.length);
  cache.reserve(cache.length + tokens);
  append(qkv, extent, width(0), cache.k, cache);
  append(qkv, extent, width(0, 2), cache.v, cache);
  cache.length += tokens;
  const auto all = [&](std::vector<T>& one) {
    return view(one.data(), {cache.batch, cache.heads, cache.capacity, cache.dim})
        .sliced(2, 0, cache.length);
  };
  const Kv keys = dense(all(cache.k), all(cache.v));
  const Rows rows(heads_of(qkv, extent, 0, o.heads, o.head_dim));
  const Options options = options_of(tokens > 1, Align::end, 0, 0);
  Matrix<T> y(x.rows(), width(0));
  const View to = heads_of(y, extent, 0, o.heads, o.head_dim);
  if constexpr (std::is_same_v<T, float>) {
    Outputs outputs;
    outputs.o = to;
    attention_into(outputs, rows, keys, options, pass.context);
  } else {
    copy(reference(rows, keys, options).o, to);
  }
  return out.forward(y, pass.context);
}

template <class T>
KvCache<T> MultiHeadAttention<T>::remember(const Matrix<T>& memory,
                                           const Extent& extent,
                                           const Context& context) const {
  check_extent(extent, memory.rows());
  KvCache<T> cache{extent.batch, 0, 0, options_.kv_heads, options_.head_dim, {}, {}};
  cache.reserve(extent.tokens);
  const Matrix<T> kv = project(memory, 1, 2, context);
  append(kv, extent, 0, cache.k, cache);
  append(kv, extent, width(1), cache.v, cache);
  cache.length = extent.tokens;
  return cache;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::step_cross(const Matrix<T>& x,
                                            std::int64_t tokens,
                                            const KvCache<T>& memory,
                                            const std::vector<std::int32_t>& lengths,
                                            Pass& pass,
                                            Tensor* weights) const {
  const AttentionOptions& o = options_;
  const Extent extent{x.rows() / tokens, tokens, {}};
  check_extent(extent, x.rows());
  require(!weights || tokens == 1, "attention weights are returned for one token at a time");
  const auto all = [&](const std::vector<T>& one) {
    return view(one.data(), {memory.batch, memory.heads, memory.capacity, memory.dim})
        .sliced(2, 0, memory.length);
  };
  Kv keys = dense(all(memory.k), all(memory.v));
  keys.lengths = lengths_of(lengths);
  const Matrix<T> q = project(x, 0, 1, pass.context);
  const Rows rows(heads_of(q, extent, 0, o.heads, o.head_dim));
  Options options;
  options.key_mass = weights != nullptr;  // with one query, a key's mass is its weight
  const Forward f = [&] {
    if constexpr (std::is_same_v<T, float>)
      return attention(rows, keys, options, pass.context);
    else
      return reference(rows, keys, options);
  }();
  if (weights) *weights = f.key_mass;
  Matrix<T> y(x.rows(), width(0));
  copy(f.o, heads_of(y, extent, 0, o.heads, o.head_dim));
  return out.forward(y, pass.context);
}

template struct KvCache<float>;
template struct KvCache<double>;
// The other members are instantiated where they are defined.
template Matrix<float> MultiHeadAttention<float>::step(const Matrix<float>&,
                                                       std::int64_t,
                                                       KvCache<float>&,
                                                       Pass&) const;
template Matrix<double> MultiHeadAttention<double>::step(const Matrix<double>&,
                                                         std::int64_t,
                                                         KvCache<double>&,
                                                         Pass&) const;
template KvCache<float> MultiHeadAttention<float>::remember(const Matrix<float>&,
                                                            const Extent&,
                                                            const Context&) const;
template KvCache<double> MultiHeadAttention<double>::remember(const Matrix<double>&,
                                                              const Extent&,
                                                              const Context&) const;
template Matrix<float> MultiHeadAttention<float>::step_cross(const Matrix<float>&,
                                                             std::int64_t,
                                                             const KvCache<float>&,
                                                             const std::vector<std::int32_t>&,
                                                             Pass&,
                                                             Tensor*) const;
template Matrix<double> MultiHeadAttention<double>::step_cross(const Matrix<double>&,
                                                               std::int64_t,
                                                               const KvCache<double>&,
                                                               const std::vector<std::int32_t>&,
                                                               Pass&,
                                                               Tensor*) const;

}  // namespace undivided::nn
