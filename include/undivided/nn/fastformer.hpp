// SPDX-License-Identifier: Apache-2.0
// The layer of Fastformer (Wu et al. 2021): additive attention in linear time.
#pragma once

#include "undivided/nn/layers.hpp"
#include "undivided/variants.hpp"

namespace undivided::nn {

struct FastformerLayerOptions {
  std::int64_t dim = 0, heads = 1;
  FastformerScoring scoring = FastformerScoring::official;
  FastformerCausal causal = FastformerCausal::none;
  bool share_qv = true;  ///< values are the queries, as the authors do
  bool bias = true;
};

/// transform(U) + Q. State names are the authors': query.*, key.*, query_att.*, key_att.*,
/// transform.*, and value.* when it is not shared. A bias of query_att or key_att cancels in the
/// softmax: it is kept for their files, and its gradient is 0.
template <class T>
class Fastformer {
 public:
  struct Saved {
    Matrix<T> x, q, k, v, u;
    std::vector<std::int32_t> keep;
    FastformerForward forward;
    Extent extent;
  };
  Fastformer() = default;
  explicit Fastformer(const FastformerLayerOptions& options);

  /// Padding takes no part. Raises Error{resolve} for `causal` unless the options name a causal
  /// form.
  Matrix<T> self(const Matrix<T>& x,
                 const Extent& extent,
                 bool causal,
                 Pass& pass,
                 Saved* saved = nullptr) const;
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);
  const FastformerLayerOptions& options() const { return options_; }

  Linear<T> query, key, value, transform;
  Parameter<T> query_att, key_att, query_att_bias, key_att_bias;

 private:
  View rows(const Matrix<T>& m, const Saved& saved) const;
  FastformerLayerOptions options_;
};

}  // namespace undivided::nn
