// SPDX-License-Identifier: Apache-2.0
// Encoder and decoder layers and the encoder-decoder of "Attention Is All You Need" (2017).
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "undivided/nn/attention.hpp"

namespace undivided::nn {

/// Post-norm: norm(x + dropout(f(x))), as in the paper. Pre-norm: x + dropout(f(norm(x))).
template <class T>
struct Residual {
  struct Saved {
    typename Norm<T>::Saved norm;
    std::uint64_t seed = 0;
    bool dropped = false;
  };
  Norm<T> norm;
  double p = 0;
  bool norm_first = false;

  template <class F>
  Matrix<T> forward(const Matrix<T>& x, Pass& pass, Saved* saved, F&& f) const {
    Matrix<T> y = norm_first ? f(norm.forward(x, saved ? &saved->norm : nullptr)) : f(x);
    const bool drop = pass.training && p > 0;
    const std::uint64_t seed = drop ? pass.next_seed() : 0;
    if (drop) dropout(y, p, seed);
    if (saved) {
      saved->seed = seed;
      saved->dropped = drop;
    }
    y += x;
    return norm_first ? y : norm.forward(y, saved ? &saved->norm : nullptr);
  }
  template <class F>
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy, F&& f) {
    const Matrix<T> inner = norm_first ? dy : norm.backward(saved.norm, dy);
    Matrix<T> df = inner;
    if (saved.dropped) dropout(df, p, saved.seed);
    Matrix<T> dx = f(df);
    if (norm_first) dx = norm.backward(saved.norm, dx);
    dx += inner;
    return dx;
  }
};

struct LayerOptions {
  AttentionOptions attention{};  ///< of self-attention; cross-attention is the same without RoPE
  std::int64_t hidden = 2048;
  Activation activation = Activation::relu;
  NormKind norm = NormKind::layer;
  bool norm_first = false;
  double eps = 1e-5;
  double dropout = 0;         ///< on each sub-layer's output
  double hidden_dropout = 0;  ///< on the feed-forward's activations
  /// An encoder layer looks back only: a decoder-only block. A decoder layer always does.
  bool causal = false;
};

/// Self-attention is of any kind: multi-head, DifferentialAttention or Fastformer.
template <class T, class Self = MultiHeadAttention<T>>
class EncoderLayer {
 public:
  struct Saved {
    typename Self::Saved attention;
    typename FeedForward<T>::Saved feed;
    typename Residual<T>::Saved norm1, norm2;
  };
  explicit EncoderLayer(const LayerOptions& options)
    requires std::constructible_from<Self, AttentionOptions>
      : EncoderLayer(options, Self(options.attention)) {}
  /// Of options.attention embed_dim and bias are read. Raises Error{resolve} if another is set and
  /// `self` is not multi-head.
  EncoderLayer(const LayerOptions& options, Self self);
  Matrix<T> forward(const Matrix<T>& x,
                    const Extent& extent,
                    Pass& pass,
                    Saved* saved = nullptr) const;
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);

  Self self_attn;
  FeedForward<T> feed;
  Residual<T> norm1, norm2;

 private:
  bool causal_ = false;
};

template <class T>
class DecoderLayer {
 public:
  struct Saved {
    typename MultiHeadAttention<T>::Saved self, cross;
    typename FeedForward<T>::Saved feed;
    typename Residual<T>::Saved norm1, norm2, norm3;
  };
  /// Of one layer while decoding.
  struct State {
    KvCache<T> self, memory;
  };
  explicit DecoderLayer(const LayerOptions& options);
  Matrix<T> forward(const Matrix<T>& x,
                    const Extent& extent,
                    const Matrix<T>& memory,
                    const Extent& memory_extent,
                    Pass& pass,
                    Saved* saved = nullptr) const;
  /// Adds to *dmemory, which has the memory's shape.
  Matrix<T> backward(const Saved& saved,
                     const Matrix<T>& dy,
                     Matrix<T>& dmemory,
                     const Context& context = {});
  Matrix<T> step(const Matrix<T>& x,
                 std::int64_t tokens,
                 State& state,
                 const std::vector<std::int32_t>& memory_lengths,
                 Pass& pass,
                 Tensor* weights = nullptr) const;
  void collect(const std::string& prefix, ParameterList<T>& list);

  MultiHeadAttention<T> self_attn, multihead_attn;
  FeedForward<T> feed;
  Residual<T> norm1, norm2, norm3;
};

struct TransformerOptions {
  std::int64_t vocabulary = 37000;
  std::int64_t encoder_layers = 6, decoder_layers = 6;
  std::int64_t features = 512, hidden = 2048;
  std::int64_t heads = 8, kv_heads = 0;
  bool bias = true;
  double dropout = .1, attention_dropout = 0, hidden_dropout = 0;
  Activation activation = Activation::relu;
  NormKind norm = NormKind::layer;
  double eps = 1e-5;
  bool norm_first = false;
  bool final_norm = false;  ///< a norm after each stack, as pre-norm wants
  bool tie = true;          ///< one table for source, target and projection; else three
  Positions positions = Positions::paper;

  static TransformerOptions base();  ///< 63,082,496 parameters with 37,000 tokens
  static TransformerOptions big();   ///< 214,245,376
  static TransformerOptions tiny(std::int64_t vocabulary);  ///< 2 + 2 layers of 64 features
};

/// Sequences of token ids, [batch * tokens] with padding at the end of each.
struct Tokens {
  std::vector<std::int32_t> ids;
  Extent extent;
};

/// The paper's model. State names: embed.weight, encoder.layers.0.self_attn.in_proj_weight, ...
template <class T>
class Seq2SeqTransformer {
 public:
  struct Saved {
    Tokens source, target;
    std::vector<typename EncoderLayer<T>::Saved> encoder;
    std::vector<typename DecoderLayer<T>::Saved> decoder;
    typename Norm<T>::Saved encoder_norm, decoder_norm;
    Matrix<T> memory, out;
    std::uint64_t source_seed = 0, target_seed = 0;
    bool dropped = false;
  };
  /// One decoding batch.
  struct State {
    std::vector<typename DecoderLayer<T>::State> layers;
    std::vector<std::int32_t> memory_lengths;
    std::int64_t batch = 0, length = 0;
    void reorder(const std::vector<std::int32_t>& parents);
  };

  /// Parameters as the paper's authors start them: tables N(0, 1 / D), matrices Xavier-uniform.
  explicit Seq2SeqTransformer(const TransformerOptions& options, std::uint64_t seed = 0);

  Matrix<T> encode(const Tokens& source, Pass& pass, Saved* saved = nullptr) const;
  /// Logits [batch * target tokens, vocabulary].
  Matrix<T> forward(const Tokens& source,
                    const Tokens& target,
                    Pass& pass,
                    Saved* saved = nullptr) const;
  void backward(const Saved& saved, const Matrix<T>& dlogits, const Context& context = {});

  /// Incremental decoding: logits of the given next tokens, [batch * tokens, vocabulary]. `weights`
  /// gets one [batch, heads, source] tensor a layer when one token is fed.
  State start(const Tokens& source, Pass& pass) const;
  Matrix<T> step(const std::vector<std::int32_t>& ids,
                 State& state,
                 Pass& pass,
                 std::vector<Tensor>* weights = nullptr) const;

  ParameterList<T> parameters();
  const TransformerOptions& options() const { return options_; }

  Embedding<T> embed, embed_target, generator;  // the last two only when not tied
  std::vector<EncoderLayer<T>> encoder;
  std::vector<DecoderLayer<T>> decoder;
  Norm<T> encoder_norm, decoder_norm;

 private:
  Matrix<T> embedded(const Embedding<T>& table,
                     const std::vector<std::int32_t>& ids,
                     const Extent& extent,
                     std::int64_t first) const;
  TransformerOptions options_;
};

/// Gives each attention of a model the KV heads it has in a parameter file, so that the file loads.
/// Raises Error{resolve} if that number does not divide the query heads.
template <class T>
void adopt_heads(Seq2SeqTransformer<T>& model, const std::string& path);

/// Xavier-uniform on every matrix, from a seed; vectors stay as they are.
template <class T>
void xavier_uniform(const ParameterList<T>& parameters, std::uint64_t seed);

}  // namespace undivided::nn
