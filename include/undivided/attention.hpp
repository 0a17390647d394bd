// SPDX-License-Identifier: Apache-2.0
// The verbs: attention, its backward, and merging of partial results.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "undivided/context.hpp"
#include "undivided/error.hpp"
#include "undivided/expr.hpp"
#include "undivided/mask_plan.hpp"
#include "undivided/tensor.hpp"

namespace undivided {

/// Q, O and their gradients: dense [batch, head, token, dim] (or [head, token, dim] for one
/// sequence), or ragged: packed [total, head, dim] with offsets.
struct Rows {
  View data;
  View offsets;                 ///< ragged only: i32 or i64 [batch + 1], ascending from 0
  View lengths;                 ///< dense only, optional: i32 or i64 [batch], tokens in use
  std::int64_t max_length = 0;  ///< ragged on a device: an upper bound of the lengths (0: total)

  Rows() = default;
  Rows(View dense) : data(dense) {}           // NOLINT: a view is dense rows
  Rows(const Tensor& dense) : data(dense) {}  // NOLINT
};
Rows ragged(View data, View offsets);

enum class KvKind : std::uint8_t { dense, ragged, paged };

/// Keys and values. Head h of Q reads KV head h / (Hq / Hkv): MHA, GQA and MQA are shapes.
struct Kv {
  KvKind kind = KvKind::dense;
  View k;  ///< dense [batch, kv head, token, dim], ragged [total, kv head, dim], paged [page, kv
           ///< head, token, dim]
  View v;  ///< the same with dim Dv
  View offsets;       ///< ragged: i32 or i64 [batch + 1]
  View lengths;       ///< paged (required) or dense (optional): i32 or i64 [batch]
  View page_table;    ///< paged: i32 or i64 [batch, max pages]; entries past a length are ignored
  View prefix_table;  ///< paged, optional: i32 or i64 [prefix pages], the first pages of every
                      ///< sequence
  View k_mean;        ///< int8 scores, optional: f32 [kv head, dim] or [batch, kv head, dim]
  std::int64_t max_length =
      0;  ///< ragged or paged on a device: an upper bound (0: what the shapes allow)
};
Kv dense(View k, View v);
Kv ragged(View k, View v, View offsets);
Kv paged(View k_pool, View v_pool, View page_table, View lengths);
/// Every sequence begins with the same whole pages (a system prompt, say); page_table holds the
/// pages after them, and lengths count both.
Kv paged(View k_pool, View v_pool, View prefix_table, View page_table, View lengths);

/// Where position 0 is. `start`: the first query meets the first key. `end`: the last query meets
/// the last key, so query 0 is at k_len - q_len.
enum class Align : std::uint8_t { start, end };

/// What repeats bit for bit. `fast`: the forward, run to run. `reproducible`: the backward too.
/// `invariant`: a row's bits depend only on its own query, keys, mask and lengths.
enum class Determinism : std::uint8_t { fast, reproducible, invariant };

/// Number formats of the two matrix products; `follow` means those of the inputs.
///
/// qk = i8 (forward on the CPU, pv bf16 or f32): a row of Q, and one of K - k_mean, becomes
/// round(x / f) with f = max|x| / 127 of its own; scores are exact sums of those, times both
/// factors, plus scale * q.k_mean (Zhang et al. 2024, SageAttention, sections 4.1 and 4.2). k_mean
/// is data: any vector leaves the result the same but for rounding, so one mean may serve a growing
/// cache, and rows stay `invariant`. Rows that are 0, or below 2^-100, have the factor 0.
struct Precision {
  DType qk = DType::f32;
  DType pv = DType::f32;
  bool follow = true;
  friend bool operator==(const Precision&, const Precision&) = default;
};

/// Everything a call may ask for beyond Q, K and V. score = scale * q.k, then `score`, then `mask`.
struct Options {
  Mask mask{};
  Score score{};
  std::optional<Align> align{};  ///< needed when a position is read and q_len may differ from k_len
  View q_origin{}, k_origin{};   ///< explicit origins instead of align: i32 or i64 [batch]
  std::optional<double> scale{};  ///< default 1 / sqrt(Dqk)
  View sink{};                    ///< f32 [Hq]: a logit that takes weight and gives no value
  double dropout = 0;             ///< p in [0, 1): Philox4x32-10 keyed by (seed, batch, head, q, k)
  std::uint64_t seed = 0;
  Determinism determinism = Determinism::fast;
  Precision precision{};
  std::optional<DType> out_dtype{};  ///< f32 is allowed for 16-bit inputs; default: that of Q
  bool partial = false;              ///< float32 normalised O and LSE without the sink, for merge()
  bool max_logit = false;            ///< also return max_logit [batch, Hq]
  bool key_mass = false;             ///< also return key_mass [batch, Hq, k] (ragged [Hq, total_k])
  Inside inside = Inside::automatic;  ///< how a mask plan, where one is used, decides single pairs
};

/// The result of a forward, with what a backward needs to know.
struct Forward {
  Tensor o;    ///< like Q with dim Dv
  Tensor lse;  ///< float32, natural log, sink included: [batch, head, token]; ragged [head, total]
  Tensor max_logit;  ///< on request
  Tensor key_mass;   ///< on request
  Options options;   ///< as asked for, seed included
};

/// O = softmax(mask(score(scale * Q K^T))) V for each head. A row with no key gives O = 0 and LSE =
/// -inf
/// (= sink when there is one). Vaswani et al. 2017, eq. 1; online softmax by Milakov and Gimelshein
/// 2018. Raises Error{resolve} for contradictory input, Error{plan} for a combination no backend
/// has.
Forward attention(const Rows& q,
                  const Kv& kv,
                  const Options& options = {},
                  const Context& context = {});
Forward attention(const View& q,
                  const View& k,
                  const View& v,
                  const Options& options = {},
                  const Context& context = {});

/// Where attention_into writes; views not given are not written. Shapes as in Forward.
struct Outputs {
  View o{}, lse{}, max_logit{}, key_mass{};
};
void attention_into(const Outputs& out,
                    const Rows& q,
                    const Kv& kv,
                    const Options& options = {},
                    const Context& context = {});

/// The mean over its tokens of each head of K, float32 [batch, kv head, dim]: a good Kv::k_mean.
/// A sequence without keys has the mean 0. Raises Error{resolve} for K that is f64 or on a device.
Tensor key_mean(const Kv& kv, const Context& context = {});

/// What a backward should compute.
struct BackwardOptions {
  View dlse{};  ///< gradient of LSE, float32, shape of LSE
  bool q = true, k = true, v = true;
  bool captured = true;  ///< gradients of captured float arrays and float parameters of the score
  std::optional<DType>
      gradient_dtype{};  ///< f32 is allowed for 16-bit inputs; default: that of the input
};

/// Gradients, each with the shape of its input (paged: of the pools).
struct Gradients {
  Tensor q, k, v;
  Tensor sink;                                           ///< float32 [Hq], when there is a sink
  std::vector<std::pair<std::string, Tensor>> captured;  ///< float32, by array or parameter name
};
/// Gradients of attention with respect to its inputs; options, seed and LSE come from `forward`. dO
/// has the type of O, or that of the inputs beside a float32 O.
Gradients attention_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const Forward& forward,
                             const BackwardOptions& options = {},
                             const Context& context = {});
Gradients attention_backward(const View& dout,
                             const View& q,
                             const View& k,
                             const View& v,
                             const Forward& forward,
                             const BackwardOptions& options = {},
                             const Context& context = {});
/// The same with explicit O and LSE, for frameworks and ring steps.
Gradients attention_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const View& o,
                             const View& lse,
                             const Options& forward_options,
                             const BackwardOptions& options = {},
                             const Context& context = {});

/// A normalised partial result over some of the keys: float32 O [batch, head, token, dim] (or
/// ragged [total, head, dim]) and LSE without the sink.
struct Partial {
  Tensor o, lse;
  bool ragged = false;  ///< o is [total, head, dim] and lse [head, total]
};
/// The partial over the union of two disjoint key sets. Associative up to rounding; a row with no
/// key (LSE = -inf) is the identity. Rabe and Staats 2021, section 3.
Partial merge(const Partial& a, const Partial& b, const Context& context = {});
/// Adds the sink once, at the end: `sink` is f32 [Hq] or not given. Returns O in `dtype`.
Partial finish(const Partial& p,
               const View& sink,
               DType dtype = DType::f32,
               const Context& context = {});

/// Classes every 64 x 64 block of the problem's mask, for Args::mask_plan. May copy device arrays
/// and synchronise; refused during graph capture.
std::shared_ptr<const MaskPlan> mask_plan(const Rows& q,
                                          const Kv& kv,
                                          const Options& options,
                                          const Context& context = {});

/// The oracle: float64 arithmetic, three loops. Same arguments and meaning as attention; outputs
/// f64 (LSE, max_logit and key_mass too).
Forward reference(const Rows& q, const Kv& kv, const Options& options = {});
Gradients reference_backward(const Rows& dout,
                             const Rows& q,
                             const Kv& kv,
                             const Options& options = {},
                             const BackwardOptions& backward = {});

}  // namespace undivided
