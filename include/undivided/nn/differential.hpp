// SPDX-License-Identifier: Apache-2.0
// The layer of the Differential Transformer (Ye et al. 2024), both versions.
#pragma once

#include "undivided/nn/layers.hpp"
#include "undivided/variants.hpp"

namespace undivided::nn {

struct DifferentialOptions {
  enum class Version : std::uint8_t {
    first,   ///< lambda from four vectors of the layer, a norm over each head
    second,  ///< lambda from each token and head, no norm
  } version = Version::first;
  std::int64_t embed_dim = 0;
  std::int64_t heads = 1;     ///< of the output; queries have twice as many
  std::int64_t kv_heads = 0;  ///< 0: as many as heads. First version: pairs of key heads
  std::int64_t head_dim = 0;  ///< of a query; 0: embed_dim / (2 heads)
  int depth = 0;              ///< of the layer, from 0: lambda_init (first version)
  double eps = 1e-5;          ///< of the norm (first version)
  Rope rope{};
};

/// Self-attention. State names of the first version: q_proj.weight, k_proj.weight, v_proj.weight,
/// out_proj.weight, lambda_q1, lambda_k1, lambda_q2, lambda_k2, subln.weight; component c of head h
/// is row 2h + c. Of the second: q_proj, k_proj, v_proj, o_proj, lambda_proj (each .weight).
template <class T>
class DifferentialAttention {
 public:
  struct Saved {
    Matrix<T> x, q, k, v, logits, out;
    DifferentialForward forward;
    Extent extent;
  };
  DifferentialAttention() = default;
  /// Raises Error{resolve} when heads do not divide. The lambda vectors begin as N(0, .1).
  explicit DifferentialAttention(const DifferentialOptions& options);

  Matrix<T> self(const Matrix<T>& x,
                 const Extent& extent,
                 bool causal,
                 Pass& pass,
                 Saved* saved = nullptr) const;
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);
  const DifferentialOptions& options() const { return options_; }

  Linear<T> q_proj, k_proj, v_proj, out;
  Parameter<T> q1, k1, q2, k2, norm_weight;  // first version
  Linear<T> lambda_proj;                     // second version

 private:
  bool first() const { return options_.version == DifferentialOptions::Version::first; }
  std::int64_t key_heads() const { return options_.kv_heads * (first() ? 2 : 1); }
  std::int64_t value_dim() const { return options_.head_dim * (first() ? 2 : 1); }
  DifferentialV1 first_parameters() const;
  DifferentialV2 second_parameters(const Saved& saved) const;
  Rows queries(const Saved& saved) const;
  Kv keys(const Saved& saved) const;
  DifferentialOptions options_;
};

}  // namespace undivided::nn
