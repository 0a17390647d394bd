// SPDX-License-Identifier: Apache-2.0
// The parts of Fastformer: logits from rows, pooling rows by a softmax, and their gradients.
#pragma once

#include "undivided/context.hpp"
#include "undivided/tensor.hpp"
#include "undivided/variants.hpp"

namespace undivided {

// Tensors are dense float64 on the host. X is [batch, head, token, d], logits and lse are [batch,
// head, token], w is [head, d] (paper) or [head, head * d] (official).

struct Pooling {
  FastformerScoring scoring;
  double scale;
  View keep;     // boolean or i32 [batch, token], or not given
  bool running;  // row i pools rows 0..i; else one row pools all
  Executor* executor;

  bool kept(std::int64_t b, std::int64_t i) const {
    return !keep || load_element(keep.dtype, keep.at({b, i})) != 0;
  }
};

/// logit = scale * w . x, over the head's own elements or those of all heads.
Tensor pool_logits(const Pooling& p, const Tensor& x, const Tensor& w);
/// Adds to dx and dw.
void pool_logits_backward(const Pooling& p,
                          const Tensor& dlogits,
                          const Tensor& x,
                          const Tensor& w,
                          Tensor& dx,
                          Tensor& dw);

/// G = softmax(logits over kept rows) . X: [batch, head, 1 or token, d]; a pool of nothing is 0.
struct Pooled {
  Tensor g, lse;
};
Pooled pool(const Pooling& p, const Tensor& x, const Tensor& logits);
/// Adds to dx; returns the gradient of the logits.
Tensor pool_backward(const Pooling& p,
                     const Tensor& dg,
                     const Tensor& x,
                     const Tensor& logits,
                     const Pooled& pooled,
                     Tensor& dx);

/// y = g * x elementwise, with row 0 of g for every token when it has one row.
Tensor broadcast_product(const Tensor& g, const Tensor& x, Executor& executor);
/// The gradients: adds dy * g to dx, and to dg the sums of dy * x.
void broadcast_product_backward(
    const Tensor& dy, const Tensor& g, const Tensor& x, Tensor& dg, Tensor& dx, Executor& executor);

}  // namespace undivided
