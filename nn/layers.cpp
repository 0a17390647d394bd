// SPDX-License-Identifier: Apache-2.0
// Encoder and decoder layers.
#include <type_traits>

#include "nn/blas.hpp"
#include "undivided/nn/differential.hpp"
#include "undivided/nn/fastformer.hpp"
#include "undivided/nn/transformer.hpp"

namespace undivided::nn {
namespace {

template <class T>
Residual<T> residual(const LayerOptions& o) {
  return {Norm<T>(o.attention.embed_dim, o.norm, o.eps), o.dropout, o.norm_first};
}
template <class T>
FeedForward<T> feed_of(const LayerOptions& o) {
  return FeedForward<T>(
      o.attention.embed_dim, o.hidden, o.activation, o.attention.bias, o.hidden_dropout);
}
/// A self-attention that was built elsewhere has its own options.
template <class T, class Self>
const LayerOptions& checked(const LayerOptions& o) {
  const AttentionOptions& a = o.attention;
  if constexpr (!std::is_same_v<Self, MultiHeadAttention<T>>)
    require(a.heads == 1 && a.kv_heads == 0 && a.head_dim == 0 && a.dropout == 0 && !a.rope.on,
            "a layer around a given self-attention reads embed_dim and bias of options.attention; "
            "set heads, kv_heads, head_dim, dropout and rope on the attention itself");
  return o;
}
AttentionOptions without_rope(AttentionOptions o) {
  o.rope.on = false;
  return o;
}

}  // namespace

template <class T, class Self>
EncoderLayer<T, Self>::EncoderLayer(const LayerOptions& o, Self self)
    : self_attn(std::move(self)),
      feed(feed_of<T>(checked<T, Self>(o))),
      norm1(residual<T>(o)),
      norm2(residual<T>(o)),
      causal_(o.causal) {}

template <class T, class Self>
Matrix<T> EncoderLayer<T, Self>::forward(const Matrix<T>& x,
                                         const Extent& extent,
                                         Pass& pass,
                                         Saved* s) const {
  const Matrix<T> a = norm1.forward(x, pass, s ? &s->norm1 : nullptr, [&](const Matrix<T>& in) {
    return self_attn.self(in, extent, causal_, pass, s ? &s->attention : nullptr);
  });
  return norm2.forward(a, pass, s ? &s->norm2 : nullptr, [&](const Matrix<T>& in) {
    return feed.forward(in, pass, s ? &s->feed : nullptr);
  });
}

template <class T, class Self>
Matrix<T> EncoderLayer<T, Self>::backward(const Saved& s,
                                          const Matrix<T>& dy,
                                          const Context& context) {
  const Matrix<T> da = norm2.backward(
      s.norm2, dy, [&](const Matrix<T>& d) { return feed.backward(s.feed, d, context); });
  return norm1.backward(
      s.norm1, da, [&](const Matrix<T>& d) { return self_attn.backward(s.attention, d, context); });
}

template <class T, class Self>
void EncoderLayer<T, Self>::collect(const std::string& prefix, ParameterList<T>& list) {
  self_attn.collect(prefix + "self_attn.", list);
  feed.collect(prefix, list);
  norm1.norm.collect(prefix + "norm1.", list);
  norm2.norm.collect(prefix + "norm2.", list);
}

template <class T>
DecoderLayer<T>::DecoderLayer(const LayerOptions& o)
    : self_attn(o.attention),
      multihead_attn(without_rope(o.attention)),
      feed(feed_of<T>(o)),
      norm1(residual<T>(o)),
      norm2(residual<T>(o)),
      norm3(residual<T>(o)) {}

template <class T>
Matrix<T> DecoderLayer<T>::forward(const Matrix<T>& x,
                                   const Extent& extent,
                                   const Matrix<T>& memory,
                                   const Extent& memory_extent,
                                   Pass& pass,
                                   Saved* s) const {
  const Matrix<T> a = norm1.forward(x, pass, s ? &s->norm1 : nullptr, [&](const Matrix<T>& in) {
    return self_attn.self(in, extent, true, pass, s ? &s->self : nullptr);
  });
  const Matrix<T> b = norm2.forward(a, pass, s ? &s->norm2 : nullptr, [&](const Matrix<T>& in) {
    return multihead_attn.cross(in, extent, memory, memory_extent, pass, s ? &s->cross : nullptr);
  });
  return norm3.forward(b, pass, s ? &s->norm3 : nullptr, [&](const Matrix<T>& in) {
    return feed.forward(in, pass, s ? &s->feed : nullptr);
  });
}

template <class T>
Matrix<T> DecoderLayer<T>::backward(const Saved& s,
                                    const Matrix<T>& dy,
                                    Matrix<T>& dmemory,
                                    const Context& context) {
  const Matrix<T> db = norm3.backward(
      s.norm3, dy, [&](const Matrix<T>& d) { return feed.backward(s.feed, d, context); });
  const Matrix<T> da = norm2.backward(s.norm2, db, [&](const Matrix<T>& d) {
    return multihead_attn.backward(s.cross, d, context, &dmemory);
  });
  return norm1.backward(
      s.norm1, da, [&](const Matrix<T>& d) { return self_attn.backward(s.self, d, context); });
}

template <class T>
Matrix<T> DecoderLayer<T>::step(const Matrix<T>& x,
                                std::int64_t tokens,
                                State& state,
                                const std::vector<std::int32_t>& memory_lengths,
                                Pass& pass,
                                Tensor* weights) const {
  const Matrix<T> a = norm1.forward(x, pass, nullptr, [&](const Matrix<T>& in) {
    return self_attn.step(in, tokens, state.self, pass);
  });
  const Matrix<T> b = norm2.forward(a, pass, nullptr, [&](const Matrix<T>& in) {
    return multihead_attn.step_cross(in, tokens, state.memory, memory_lengths, pass, weights);
  });
  return norm3.forward(
      b, pass, nullptr, [&](const Matrix<T>& in) { return feed.forward(in, pass); });
}

template <class T>
void DecoderLayer<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  self_attn.collect(prefix + "self_attn.", list);
  multihead_attn.collect(prefix + "multihead_attn.", list);
  feed.collect(prefix, list);
  norm1.norm.collect(prefix + "norm1.", list);
  norm2.norm.collect(prefix + "norm2.", list);
  norm3.norm.collect(prefix + "norm3.", list);
}

template class EncoderLayer<float>;
template class EncoderLayer<double>;
template class EncoderLayer<float, DifferentialAttention<float>>;
template class EncoderLayer<double, DifferentialAttention<double>>;
template class EncoderLayer<float, Fastformer<float>>;
template class EncoderLayer<double, Fastformer<double>>;
template class DecoderLayer<float>;
template class DecoderLayer<double>;

}  // namespace undivided::nn
