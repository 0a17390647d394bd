// SPDX-License-Identifier: Apache-2.0
// Dynamic sparse attention: queries and keys that each head drops or sorts into buckets
// (Pagliardini et al. 2023, "Faster Causal Attention Over Large Sequences Through Sparse Flash
// Attention").
#pragma once

#include "undivided/attention.hpp"

namespace undivided {

/// Which keys a query at the same place in time may see. Time is the position before rows were
/// dropped or sorted.
enum class Order : std::uint8_t {
  none,    ///< all
  causal,  ///< k <= q
  strict,  ///< k < q: a token does not see itself
};

/// Rows that take part (section 3.1, QK-sparse). A dropped query gives O = 0 and LSE = -inf; a
/// dropped key is seen by nobody and has no gradient.
struct QkSparse {
  View q_keep;  ///< boolean or i32 [batch, query head, q]: 0 drops
  View k_keep;  ///< boolean or i32 [batch, KV head, k]
  Order order = Order::causal;
};

/// Rows meet only inside their bucket (section 3.2, hash-sparse). Queries and keys that share one
/// hash, as in Reformer, would see themselves first of all: hence the strict rule.
struct HashSparse {
  View q_bucket;  ///< i32 [batch, query head, q], any values
  View k_bucket;  ///< i32 [batch, KV head, k]
  Order order = Order::strict;
};

/// Results, and what the backward needs.
struct SparseForward {
  Tensor o;                     ///< [batch, head, token, Dv]
  Tensor lse;                   ///< float32 [batch, head, token]
  Tensor q_rows, k_rows;        ///< i32: the row of Q (of K) behind each row of the compact problem
  Tensor q_offsets, k_offsets;  ///< i32 [batch * KV heads + 1]: where its sequences begin
  Forward compact;              ///< of the ragged problem of kept rows, sorted
  Options options;              ///< as asked for
};

/// The meaning of attention() under the mask "kept (or same bucket), and k before q", at the cost
/// of the pairs that are left. For each (batch, KV head) the kept rows are gathered, stable in time
/// and sorted by bucket, into one sequence of a ragged problem whose mask compares times. Q, K and
/// V are dense f32, f16 or bf16 [batch, head, token, dim] on the host, any head dim, Hq % Hkv == 0.
/// Of the options scale, align, determinism, precision, out_dtype and a score that reads nothing
/// but the score are honoured; others are refused by name. Raises Error{resolve}.
SparseForward sparse_attention(const View& q,
                               const View& k,
                               const View& v,
                               const QkSparse& sparse,
                               const Options& options = {},
                               const Context& context = {});
SparseForward sparse_attention(const View& q,
                               const View& k,
                               const View& v,
                               const HashSparse& sparse,
                               const Options& options = {},
                               const Context& context = {});

/// Gradients of Q, K and V, zero in rows that were dropped; those of the score's captured arrays
/// and parameters by name.
Gradients sparse_attention_backward(const View& dout,
                                    const View& q,
                                    const View& k,
                                    const View& v,
                                    const SparseForward& forward,
                                    const Context& context = {});

}  // namespace undivided
