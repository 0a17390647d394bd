// SPDX-License-Identifier: Apache-2.0
// Multi-head attention: projections around the attention verbs. float runs on the backends, double
// on the oracle.
#include "undivided/nn/attention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>

#include "nn/heads.hpp"

namespace undivided::nn {

template <class T>
MultiHeadAttention<T>::MultiHeadAttention(const AttentionOptions& options) : options_(options) {
  AttentionOptions& o = options_;
  require(o.embed_dim > 0 && o.heads > 0, "attention wants embed_dim and heads above 0");
  if (o.head_dim == 0) {
    require(o.embed_dim % o.heads == 0,
            fmt::format(
                "{} features do not divide into {} heads; give head_dim", o.embed_dim, o.heads));
    o.head_dim = o.embed_dim / o.heads;
  }
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  require(o.kv_heads > 0 && o.heads % o.kv_heads == 0,
          fmt::format("{} query heads do not divide among {} key heads", o.heads, o.kv_heads));
  if (fused()) {
    in_weight = Parameter<T>({width(0, 3), o.embed_dim});
    if (o.bias) in_bias = Parameter<T>({width(0, 3)});
  } else {
    q_proj = Linear<T>(o.embed_dim, width(0), o.bias);
    k_proj = Linear<T>(o.embed_dim, width(1), o.bias);
    v_proj = Linear<T>(o.embed_dim, width(2), o.bias);
  }
  out = Linear<T>(width(0), o.embed_dim, o.bias);
}

template <class T>
std::int64_t MultiHeadAttention<T>::width(int part) const {
  return (part == 0 ? options_.heads : options_.kv_heads) * options_.head_dim;
}
template <class T>
std::int64_t MultiHeadAttention<T>::width(int first, int count) const {
  std::int64_t n = 0;
  for (int i = first; i < first + count; ++i) n += width(i);
  return n;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::project(const Matrix<T>& x,
                                         int first,
                                         int count,
                                         const Context& context) const {
  const std::int64_t in = options_.embed_dim, all = width(first, count);
  require(x.cols() == in, fmt::format("attention wants {} features; {} came", in, x.cols()));
  Matrix<T> y(x.rows(), all);
  const auto one = [&](const T* w, const T* b, std::int64_t column, std::int64_t cols) {
    if (b)
      for (std::int64_t r = 0; r < y.rows(); ++r) std::copy_n(b, cols, y.row(r) + column);
    product<T>(context,
               false,
               true,
               x.rows(),
               cols,
               in,
               x.data(),
               in,
               w,
               in,
               b ? T(1) : T(0),
               y.data() + column,
               all);
  };
  if (fused()) {
    const std::int64_t from = width(0, first);
    one(in_weight.value.data() + from * in,
        options_.bias ? in_bias.value.data() + from : nullptr,
        0,
        all);
    return y;
  }
  const Linear<T>* parts[] = {&q_proj, &k_proj, &v_proj};
  for (int i = first; i < first + count; ++i)
    one(parts[i]->weight.value.data(),
        options_.bias ? parts[i]->bias.value.data() : nullptr,
        width(first, i - first),
        width(i));
  return y;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::project_backward(
    const Matrix<T>& x, const Matrix<T>& dy, int first, int count, const Context& context) {
  const std::int64_t in = options_.embed_dim, all = dy.cols();
  Matrix<T> dx(x.rows(), in);
  const auto one = [&](const T* w, T* dw, T* db, std::int64_t column, std::int64_t cols) {
    product<T>(context,
               true,
               false,
               cols,
               in,
               x.rows(),
               dy.data() + column,
               all,
               x.data(),
               in,
               T(1),
               dw,
               in);
    product<T>(context,
               false,
               false,
               x.rows(),
               in,
               cols,
               dy.data() + column,
               all,
               w,
               in,
               T(1),
               dx.data(),
               in);
    if (db)
      for (std::int64_t r = 0; r < dy.rows(); ++r)
        for (std::int64_t j = 0; j < cols; ++j) db[j] += dy.row(r)[column + j];
  };
  if (fused()) {
    const std::int64_t from = width(0, first);
    one(in_weight.value.data() + from * in,
        in_weight.grad.data() + from * in,
        options_.bias ? in_bias.grad.data() + from : nullptr,
        0,
        all);
    return dx;
  }
  Linear<T>* parts[] = {&q_proj, &k_proj, &v_proj};
  for (int i = first; i < first + count; ++i)
    one(parts[i]->weight.value.data(),
        parts[i]->weight.grad.data(),
        options_.bias ? parts[i]->bias.grad.data() : nullptr,
        width(first, i - first),
        width(i));
  return dx;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::attend(Matrix<T> q, Matrix<T> kv, Saved& s, Pass& pass) const {
  const AttentionOptions& o = options_;
  const std::int64_t d = o.head_dim;
  const Matrix<T>& source = s.cross ? kv : q;
  const std::int64_t k_at = s.cross ? 0 : width(0);
  const View qv = heads_of(q, s.x_extent, 0, o.heads, d);
  Kv keys = dense(heads_of(source, s.kv_extent, k_at, o.kv_heads, d),
                  heads_of(source, s.kv_extent, k_at + width(1), o.kv_heads, d));
  keys.lengths = lengths_of(s.lengths);
  s.dropout = pass.training ? o.dropout : 0;
  s.seed = s.dropout > 0 ? pass.next_seed() : 0;
  const Options options = options_of(s.causal, Align::start, s.dropout, s.seed);
  s.out = Matrix<T>(q.rows(), width(0));
  const View to = heads_of(s.out, s.x_extent, 0, o.heads, d);
  if constexpr (std::is_same_v<T, float>) {
    s.lse = Tensor::empty(DType::f32, {s.x_extent.batch, o.heads, s.x_extent.tokens});
    Outputs outputs;
    outputs.o = to;
    outputs.lse = s.lse;
    attention_into(outputs, Rows(qv), keys, options, pass.context);
  } else {
    copy(reference(Rows(qv), keys, options).o, to);
  }
  Matrix<T> y = out.forward(s.out, pass.context);
  s.q = std::move(q);
  s.kv = std::move(kv);
  return y;
}

template <class T>
Matrix<T> MultiHeadAttention<T>::self(
    const Matrix<T>& x, const Extent& extent, bool causally, Pass& pass, Saved* saved) const {
  check_extent(extent, x.rows());
  Saved local;
  Saved& s = saved ? *saved : local;
  s.cross = false;
  s.causal = causally;
  s.x_extent = s.kv_extent = extent;
  s.lengths = extent.lengths;
  Matrix<T> qkv = project(x, 0, 3, pass.context);
  rotate(qkv, extent, 0, options_.heads + options_.kv_heads, options_.head_dim, options_.rope);
  if (saved) s.x = x;
  return attend(std::move(qkv), {}, s, pass);
}

template <class T>
Matrix<T> MultiHeadAttention<T>::cross(const Matrix<T>& x,
                                       const Extent& extent,
                                       const Matrix<T>& memory,
                                       const Extent& memory_extent,
                                       Pass& pass,
                                       Saved* saved) const {
  check_extent(extent, x.rows());
  check_extent(memory_extent, memory.rows());
  require(extent.batch == memory_extent.batch, "queries and memory have different batches");
  require(!options_.rope.on, "rotary positions are for self-attention; turn them off for cross");
  Saved local;
  Saved& s = saved ? *saved : local;
  s.cross = true;
  s.causal = false;
  s.x_extent = extent;
  s.kv_extent = memory_extent;
  s.lengths = memory_extent.lengths;
  if (saved) {
    s.x = x;
    s.memory = memory;
  }
  return attend(project(x, 0, 1, pass.context), project(memory, 1, 2, pass.context), s, pass);
}

template <class T>
Matrix<T> MultiHeadAttention<T>::backward(const Saved& s,
                                          const Matrix<T>& dy,
                                          const Context& context,
                                          Matrix<T>* dmemory) {
  const AttentionOptions& o = options_;
  const std::int64_t d = o.head_dim;
  require(!s.cross || dmemory, "the backward of cross-attention needs room for dmemory");
  const Matrix<T> dout = out.backward(s.out, dy, context);
  const Matrix<T>& source = s.cross ? s.kv : s.q;
  const std::int64_t k_at = s.cross ? 0 : width(0);
  Kv keys = dense(heads_of(source, s.kv_extent, k_at, o.kv_heads, d),
                  heads_of(source, s.kv_extent, k_at + width(1), o.kv_heads, d));
  keys.lengths = lengths_of(s.lengths);
  const Rows rows(heads_of(s.q, s.x_extent, 0, o.heads, d));
  const Rows drows(heads_of(dout, s.x_extent, 0, o.heads, d));
  const Options options = options_of(s.causal, Align::start, s.dropout, s.seed);
  Gradients g;
  if constexpr (std::is_same_v<T, float>)
    g = attention_backward(
        drows, rows, keys, heads_of(s.out, s.x_extent, 0, o.heads, d), s.lse, options, {}, context);
  else
    g = reference_backward(drows, rows, keys, options);
  Matrix<T> dq(s.q.rows(), s.q.cols()), dkv(s.kv.rows(), s.kv.cols());
  Matrix<T>& dsource = s.cross ? dkv : dq;
  copy(g.q, heads_of(dq, s.x_extent, 0, o.heads, d));
  copy(g.k, heads_of(dsource, s.kv_extent, k_at, o.kv_heads, d));
  copy(g.v, heads_of(dsource, s.kv_extent, k_at + width(1), o.kv_heads, d));
  if (!s.cross) {
    rotate(dq, s.x_extent, 0, o.heads + o.kv_heads, d, o.rope, 0, true);
    return project_backward(s.x, dq, 0, 3, context);
  }
  *dmemory += project_backward(s.memory, dkv, 1, 2, context);
  return project_backward(s.x, dq, 0, 1, context);
}

template <class T>
void MultiHeadAttention<T>::collect(const std::string& prefix, ParameterList<T>& list) {
  if (fused()) {
    list.emplace_back(prefix + "in_proj_weight", &in_weight);
    if (options_.bias) list.emplace_back(prefix + "in_proj_bias", &in_bias);
    out.collect(prefix + "out_proj.", list);
    return;
  }
  q_proj.collect(prefix + "q_proj.", list);
  k_proj.collect(prefix + "k_proj.", list);
  v_proj.collect(prefix + "v_proj.", list);
  out.collect(prefix + "o_proj.", list);
}

template class MultiHeadAttention<float>;
template class MultiHeadAttention<double>;

}  // namespace undivided::nn
