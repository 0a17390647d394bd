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
  Tensor o;    ///< [batch, head, token, Dv]
  Tensor lse;  ///< float32 [batch, head, token]
  /// i32 [batch, head, room]: the token of Q (of K) in each row of the compact problem, sorted.
  /// Room is the number of tokens. On a device what is below 0 is no row; on the host lengths say
  /// how many rows there are.
  Tensor q_rows, k_rows;
  Tensor q_lengths, k_lengths;  ///< on the host: i32 [batch, head]
  /// On a device: i32 [batch, head, token], where each token is among the rows, or -1.
  Tensor q_places, k_places;
  /// On the host: i32 like q_rows, a row sees the keys first .. end - 1 of the list of its KV head.
  /// On a device: i32 [batch * KV heads, query heads of each, room of K], a key is seen by the rows
  /// first .. end - 1.
  Tensor first, end;
  Forward compact;  ///< on the host o and lse, on a device of the dense problem of these rows
  std::shared_ptr<const MaskPlan> plan;  ///< on a device: of its mask
  Options options;                       ///< as asked for
};

/// The meaning of attention() under the mask "kept (or same bucket), and k before q", at the cost
/// of the pairs that are left. Kept rows are listed, stable in time and sorted by bucket; those
/// that meet a row then lie together, and that is the mask of a dense problem. Its kernels read and
/// write rows by these lists on the host, and gathered copies on a device. Q, K and V are dense
/// f32, f16 or bf16 [batch, head, token, dim], any head dim (CUDA: f16 or bf16, at most 512), Hq %
/// Hkv == 0. They and the flags are all on the host, or all on one CUDA device; host flags are
/// copied there. With flags on the device no step of a call waits for it. Of the options scale,
/// align, determinism, precision, inside (CUDA: not bits), out_dtype and a score that reads nothing
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
/// and parameters by name. dO is on the device of Q.
Gradients sparse_attention_backward(const View& dout,
                                    const View& q,
                                    const View& k,
                                    const View& v,
                                    const SparseForward& forward,
                                    const Context& context = {});

}  // namespace undivided
