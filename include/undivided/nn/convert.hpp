// SPDX-License-Identifier: Apache-2.0
// Checkpoints with other attention heads: MHA to grouped and multi-query attention and back, and
// the two layouts of Differential Transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "undivided/tensor.hpp"

namespace undivided::nn {

/// What becomes of the KV heads that share a group (Ainslie et al. 2023, section 2.1 and figure 4).
enum class HeadMethod : std::uint8_t {
  mean,   ///< their mean
  first,  ///< the first of them
  random  ///< a normal draw with the deviation of the tensor it replaces; biases become 0
};

/// Heads that lie one after another along `axis` of a weight or bias: `from` of them become `to`.
/// Fewer heads: neighbours share a group, as query head h reads KV head h / (heads / kv_heads).
/// More heads: each is repeated, which changes no attention output. The dtype (f64, f32, f16, bf16)
/// stays; a mean is rounded once. Raises Error{resolve} when heads or groups do not divide.
Tensor regroup_heads(const View& weights,
                     std::int64_t from,
                     std::int64_t to,
                     HeadMethod method = HeadMethod::mean,
                     std::uint64_t seed = 0,
                     int axis = 0);

struct ConvertOptions {
  std::int64_t kv_heads = 0;    ///< wanted
  std::int64_t heads = 0;       ///< query heads; 0: as config.json or the file's metadata says
  std::string layout = "auto";  ///< one of convert_layouts()
  /// Of a group; default mean. Refused where heads are repeated instead.
  std::optional<HeadMethod> method{};
  std::uint64_t seed = 0;
  std::vector<std::int64_t> layers{};  ///< empty: all
  /// Which attention: self-attention of the decoder or of an only stack, cross-attention, and
  /// self-attention of the encoder. The paper converts the first two.
  bool self = true, cross = true, encoder = true;
};

struct ConvertReport {
  std::string layout;
  std::int64_t attentions = 0, converted = 0;  ///< found, and changed
  std::int64_t heads = 0, from = 0, to = 0;    ///< query heads, KV heads before and after
  std::int64_t parameters = 0, parameters_after = 0;
  std::vector<std::string> notes;  ///< what the reader of the result must know
};

/// llama (also Mistral, Qwen), bart (also Marian), t5, torch (nn.MultiheadAttention, and our own
/// models), flash (flash_attn), gpt2.
const std::vector<std::string>& convert_layouts();

/// Reads `in` (a .safetensors file, an index of shards, or a folder with config.json), changes the
/// K and V projections and writes `out` (a file for a file, a folder for a folder), whole or not at
/// all. Everything else passes through byte by byte. Raises Error{resolve} with the reason when
/// that cannot be done, Error{io} for broken files.
ConvertReport convert_heads(const std::string& in,
                            const std::string& out,
                            const ConvertOptions& options);

/// Between unilm's MultiheadDiffAttn (components side by side, out_proj, a gain in subln.weight,
/// interleaved rotary pairs) and transformers' DiffLlama (components in halves, o_proj, no gain,
/// rotary pairs in halves). `to`: "unilm" or "diffllama". In the report heads are attention heads
/// of the target's own count.
ConvertReport convert_differential(const std::string& in,
                                   const std::string& out,
                                   const std::string& to);

}  // namespace undivided::nn
