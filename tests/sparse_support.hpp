// SPDX-License-Identifier: Apache-2.0
// Flags, buckets, and the attention that sparse attention must equal: the oracle under a mask.
#pragma once

#include "undivided/sparse.hpp"
#include "variants_support.hpp"

namespace undivided {

struct SparseForm {
  std::int64_t heads, kv_heads, nq, nk, d, dv;
  Order order;
  Align align = Align::start;
  DType dtype = DType::f32;
};

/// 0 or 1 with a share of ones, or a bucket below `most`; not periodic.
inline Tensor numbers(std::initializer_list<std::int64_t> shape,
                      std::uint64_t seed,
                      std::uint64_t most,
                      std::uint64_t share = 0) {
  const Tensor t = Tensor::empty(DType::i32, shape);
  for (std::int64_t i = 0; i < t.count(); ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const std::uint64_t x = seed >> 33;
    t.ptr<std::int32_t>()[i] = static_cast<std::int32_t>(share ? x % 100 < share : x % most);
  }
  return t;
}

inline Mask in_order(Order order) {
  if (order == Order::none) return full();
  return mask([=](Expr, Expr, Expr q, Expr k) { return order == Order::causal ? k <= q : k < q; });
}

/// The same attention by its mask, in float64.
struct MaskedAttention {
  Forward f;
  Gradients g;
};
inline MaskedAttention masked_attention(const SparseForm& c,
                                        const View& q,
                                        const View& k,
                                        const View& v,
                                        const View& dout,
                                        const Tensor& on_q,
                                        const Tensor& on_k,
                                        bool buckets,
                                        Options options) {
  const Array a(on_q, "a"), b(on_k, "b");
  const int group = static_cast<int>(c.heads / c.kv_heads);
  // Flags are indexed from 0, positions of queries from where align puts them.
  const int shift = c.align == Align::end ? static_cast<int>(c.nk - c.nq) : 0;
  const Mask pairs = mask([=](Expr s, Expr h, Expr i, Expr j) {
    return buckets ? a(s, h, i - shift) == b(s, h / group, j)
                   : a(s, h, i - shift) != 0 && b(s, h / group, j) != 0;
  });
  options.mask = pairs && in_order(c.order);
  options.align = c.align;
  return {reference(q, dense(k, v), options), reference_backward(dout, q, dense(k, v), options)};
}

}  // namespace undivided
