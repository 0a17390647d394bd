// SPDX-License-Identifier: Apache-2.0
// Variants of attention: Differential Transformer, Fastformer, and Rabe and Staats' chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "undivided/attention.hpp"

namespace undivided {

// ---- Differential Transformer (Ye et al. 2024) ----

/// lambda_init of a layer: 0.8 - 0.6 exp(-0.3 depth). `depth` counts layers from 0.
double differential_lambda_init(int depth);

/// Which rows of Q and K are the two components of head h. With r query heads per KV head, both
/// `interleaved` and `halves` use the flash pairing: component c of head h meets component c of KV
/// head h / r.
enum class DifferentialPairing : std::uint8_t {
  interleaved,  ///< rows 2h and 2h + 1 (unilm)
  halves,       ///< rows h and h + H (DiffLlama)
  unilm_naive,  ///< row j of Q meets row j / r of K. Refused when r > 1: it mixes components
};

/// Parameters of the first version. Vectors are f32 or f64 on the host, or f32 where Q is; the
/// heads of a layer share them.
struct DifferentialV1 {
  View q1, k1, q2, k2;       ///< [any]: lambda = exp(q1.k1) - exp(q2.k2) + lambda_init
  double lambda_init = 0.8;  ///< differential_lambda_init(depth)
  View norm_weight;          ///< [Dv], optional: the gain of the norm over each head's output
  double norm_eps = 1e-5;
  DifferentialPairing pairing = DifferentialPairing::interleaved;
};

/// Parameters of the second version: head h is attention 2h minus sigmoid(logits) times attention
/// 2h + 1, with no norm. Both must read one KV head.
struct DifferentialV2 {
  /// f32 or f64 on the host, or f32 where Q is: [batch, head, token] (ragged [head, total]), any
  /// strides.
  View logits;
};

/// Results, and what the backward needs.
struct DifferentialForward {
  Tensor o;                       ///< [batch, head, token, Dv] (ragged [total, head, Dv])
  std::vector<Forward> branches;  ///< V1: one for each component; V2: one with all 2h heads
  double lambda = 0;              ///< V1
  Options options;                ///< as asked for
};

/// V1: Q [batch, 2 heads, token, d], K [batch, 2 kv heads, token, d], V [batch, kv heads, token,
/// Dv] (Dv = 2d in the paper); O_h = (1 - lambda_init) RMSNorm(A1 - lambda A2) with A_c =
/// softmax(Q_c K_c^T) V. V2: Q has 2h heads, K and V are those of grouped attention. A mask or
/// score sees the heads of each attention call: h of them in V1, 2h in V2. Rows are dense without
/// lengths, or ragged.
///
/// On the CPU more than 64 queries run as one sweep that reads V once for both; else attention() of
/// each, then an epilogue. On CUDA (f16 or bf16) the epilogue is a kernel and rows stay on the
/// device. Only parameters that are elsewhere than they are read are copied, which waits for the
/// stream and is refused during capture: lambda is made on the host, norm_weight and logits are
/// read where Q is.
DifferentialForward differential(const Rows& q,
                                 const Kv& kv,
                                 const DifferentialV1& parameters,
                                 const Options& options = {},
                                 const Context& context = {});
DifferentialForward differential(const Rows& q,
                                 const Kv& kv,
                                 const DifferentialV2& parameters,
                                 const Options& options = {},
                                 const Context& context = {});

/// Gradients, each with the shape of its input. Those of parameters are f32 (f64 beside f64 data):
/// of vectors where the vector is, of logits where Q is. On CUDA V1 reads sums over its rows back,
/// which waits for the stream and is refused during capture.
struct DifferentialGradients {
  Tensor q, k, v;
  Tensor q1, k1, q2, k2, norm_weight;  ///< V1
  Tensor logits;                       ///< V2
  double lambda = 0;                   ///< V1: the gradient of lambda itself
};
DifferentialGradients differential_backward(const View& dout,
                                            const Rows& q,
                                            const Kv& kv,
                                            const DifferentialV1& parameters,
                                            const DifferentialForward& forward,
                                            const Context& context = {});
DifferentialGradients differential_backward(const View& dout,
                                            const Rows& q,
                                            const Kv& kv,
                                            const DifferentialV2& parameters,
                                            const DifferentialForward& forward,
                                            const Context& context = {});

// ---- Fastformer (Wu et al. 2021) ----

/// Which elements a pooling logit of head h reads. A bias of query_att or key_att adds one number
/// to all logits of a head and cancels, so there is none here.
enum class FastformerScoring : std::uint8_t {
  official,  ///< all heads: weights are [head, head * d] (the authors' notebook)
  paper,     ///< its own: weights are [head, d]
};
enum class FastformerCausal : std::uint8_t {
  none,    ///< as published: every output depends on every token
  prefix,  ///< exact: output i is Fastformer of tokens 0..i. Paper scoring; O(N^2) time
  scan,  ///< O(N), but another function: token j is pooled with its own global query, not with i's
};

struct FastformerOptions {
  FastformerScoring scoring = FastformerScoring::official;
  FastformerCausal causal = FastformerCausal::none;
  View w_query, w_key;            ///< f32 or f64: pooling weights of Q and of P
  View keep;                      ///< boolean or i32 [batch, token], optional: 0 is padding
  std::optional<double> scale{};  ///< of both logits; default 1 / sqrt(d)
};

/// O = U, the rows before the output projection: the layer is transform(U) + Q. Sums are float64.
struct FastformerForward {
  Tensor o;                    ///< [batch, head, token, d]
  Tensor alpha, beta;          ///< f64 [batch, head, token]: pooling weights; causal none only
  Tensor query, key;           ///< f64: global query and key, [batch, head, 1 or token, d]
  Tensor query_lse, pool_lse;  ///< f64 [batch, head, 1 or token]
  Forward attention;           ///< causal prefix: the ordinary attention inside
  FastformerOptions options;
};

/// alpha = softmax(w_q . Q), g = sum alpha Q; P = g * K elementwise; beta = softmax(w_k . P), c =
/// sum beta P; U = c * V elementwise. Q, K and V are f32, f16, bf16 or f64 [batch, head, token, d]
/// on the CPU. A batch item without kept tokens gives U = 0.
FastformerForward fastformer(const View& q,
                             const View& k,
                             const View& v,
                             const FastformerOptions& options,
                             const Context& context = {});

struct FastformerGradients {
  Tensor q, k, v;         ///< the dtype of Q
  Tensor w_query, w_key;  ///< their own dtype
};
FastformerGradients fastformer_backward(const View& dout,
                                        const View& q,
                                        const View& k,
                                        const View& v,
                                        const FastformerForward& forward,
                                        const Context& context = {});

// ---- Self-attention does not need O(n^2) memory (Rabe and Staats 2021) ----

/// What is kept between key chunks.
enum class Accumulate : std::uint8_t {
  summaries,  ///< one summary (values, weights, maximum) per key chunk, merged at the end (section
              ///< 4)
  running,    ///< one running summary (section 3)
};
struct Chunks {
  std::int64_t q = 1024, k = 4096;
  Accumulate accumulate = Accumulate::summaries;
};

/// Bytes beyond inputs and results that a call holds at its peak. They come from
/// context.allocator, so a counting one sees the same number.
std::size_t chunked_bytes(std::int64_t q_len,
                          std::int64_t k_len,
                          std::int64_t dv,
                          const Chunks& chunks,
                          DType dtype = DType::f32);
/// The same for the backward.
std::size_t chunked_backward_bytes(std::int64_t q_len,
                                   std::int64_t k_len,
                                   std::int64_t dv,
                                   const Chunks& chunks,
                                   DType dtype = DType::f32);

/// The meaning of attention(), by the loop of the paper: query chunks outside, key chunks inside.
/// Lengths need not be multiples of the chunks. f32 or f64 on the CPU; mask, score, align, origins
/// and scale are honoured, other options are refused by name.
Forward chunked_attention(const View& q,
                          const View& k,
                          const View& v,
                          const Options& options = {},
                          const Chunks& chunks = {},
                          const Context& context = {});
/// Gradients of Q, K and V by recomputation from Q, K, V and dO alone: neither O nor LSE is kept.
Gradients chunked_attention_backward(const View& dout,
                                     const View& q,
                                     const View& k,
                                     const View& v,
                                     const Options& options = {},
                                     const Chunks& chunks = {},
                                     const Context& context = {});

}  // namespace undivided
