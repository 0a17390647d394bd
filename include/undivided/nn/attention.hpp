// SPDX-License-Identifier: Apache-2.0
// Multi-head, grouped-query and multi-query attention with projections, on undivided::attention.
#pragma once

#include "undivided/nn/layers.hpp"
#include "undivided/tensor.hpp"

namespace undivided::nn {

struct AttentionOptions {
  std::int64_t embed_dim = 0;
  std::int64_t heads = 1;
  std::int64_t kv_heads = 0;  ///< 0: as many as heads; 1: multi-query
  std::int64_t head_dim = 0;  ///< 0: embed_dim / heads
  bool bias = true;
  double dropout = 0;  ///< on the weights, in training
  Rope rope{};         ///< on queries and keys; for self-attention
};

/// Keys and values of earlier tokens, [batch, kv head, capacity, dim].
template <class T>
struct KvCache {
  std::int64_t batch = 0, capacity = 0, length = 0;
  std::int64_t heads = 0, dim = 0;
  std::vector<T> k, v;

  void reserve(std::int64_t tokens);  ///< grows and keeps what is there
  /// Sequence i becomes a copy of sequence parents[i]: one step of beam search.
  void reorder(const std::vector<std::int32_t>& parents);
};

/// State names: in_proj_weight, in_proj_bias, out_proj.* as in torch when every head has its own
/// keys; q_proj.*, k_proj.*, v_proj.*, o_proj.* when heads share them.
template <class T>
class MultiHeadAttention {
 public:
  struct Saved {
    Matrix<T> x, memory, q, kv, out;  // self-attention keeps Q, K and V together in q
    Tensor lse;
    std::vector<std::int32_t> lengths;
    Extent x_extent, kv_extent;
    bool cross = false, causal = false;
    double dropout = 0;
    std::uint64_t seed = 0;
  };

  MultiHeadAttention() = default;
  /// Raises Error{resolve} when heads do not divide.
  explicit MultiHeadAttention(const AttentionOptions& options);

  /// Keys and values come from x itself.
  Matrix<T> self(const Matrix<T>& x,
                 const Extent& extent,
                 bool causal,
                 Pass& pass,
                 Saved* saved = nullptr) const;
  /// Keys and values come from `memory`; its padding takes no part.
  Matrix<T> cross(const Matrix<T>& x,
                  const Extent& extent,
                  const Matrix<T>& memory,
                  const Extent& memory_extent,
                  Pass& pass,
                  Saved* saved = nullptr) const;
  /// The gradient of x; after cross() the one of the memory is added to *dmemory.
  Matrix<T> backward(const Saved& saved,
                     const Matrix<T>& dy,
                     const Context& context = {},
                     Matrix<T>* dmemory = nullptr);

  /// The next tokens of each sequence, causally after those in the cache, which grows by them.
  Matrix<T> step(const Matrix<T>& x, std::int64_t tokens, KvCache<T>& cache, Pass& pass) const;
  /// Projects the memory once, for step_cross().
  KvCache<T> remember(const Matrix<T>& memory,
                      const Extent& extent,
                      const Context& context = {}) const;
  /// Queries against a remembered memory. `weights`, when asked for and tokens is 1, gets the
  /// attention weights [batch, heads, memory tokens].
  Matrix<T> step_cross(const Matrix<T>& x,
                       std::int64_t tokens,
                       const KvCache<T>& memory,
                       const std::vector<std::int32_t>& lengths,
                       Pass& pass,
                       Tensor* weights = nullptr) const;

  void collect(const std::string& prefix, ParameterList<T>& list);
  const AttentionOptions& options() const { return options_; }
  bool fused() const { return options_.kv_heads == options_.heads; }

  Parameter<T> in_weight, in_bias;        // fused
  Linear<T> q_proj, k_proj, v_proj, out;  // q, k, v only when not fused

 private:
  // Q, K and V are parts 0, 1 and 2.
  std::int64_t width(int part) const;
  std::int64_t width(int first, int count) const;
  Matrix<T> project(const Matrix<T>& x, int first, int count, const Context& context) const;
  Matrix<T> project_backward(
      const Matrix<T>& x, const Matrix<T>& dy, int first, int count, const Context& context);
  Matrix<T> attend(Matrix<T> q, Matrix<T> kv, Saved& saved, Pass& pass) const;

  AttentionOptions options_;
};

}  // namespace undivided::nn
