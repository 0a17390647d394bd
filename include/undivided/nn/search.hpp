// SPDX-License-Identifier: Apache-2.0
// Decoding with a model: greedy and beam search, on the key and value caches.
#pragma once

#include "undivided/nn/transformer.hpp"

namespace undivided::nn {

struct SearchOptions {
  std::int32_t begin = 1, end = 2;
  std::int64_t most_tokens = 0;  ///< 0: source length + 50
  std::int64_t beams = 4;
  double alpha = .6;  ///< of the length penalty ((5 + n) / 6)^alpha (Wu et al. 2016)
};
double length_penalty(std::int64_t tokens, double alpha);

struct Found {
  std::vector<std::int32_t> ids;  ///< without begin and end
  double score = 0;               ///< log probability / length penalty
  bool finished = false;          ///< reached `end`
};

/// The likeliest token each time, for every sequence of the batch. `weights`, when asked for, gets
/// the cross-attention of the last layer averaged over heads: one [batch, source] tensor a token.
template <class T>
std::vector<Found> greedy_search(const Seq2SeqTransformer<T>& model,
                                 const Tokens& source,
                                 const SearchOptions& options,
                                 Pass& pass,
                                 std::vector<Tensor>* weights = nullptr);

/// The best answer of each sequence. One beam gives what greedy_search gives.
template <class T>
std::vector<Found> beam_search(const Seq2SeqTransformer<T>& model,
                               const Tokens& source,
                               const SearchOptions& options,
                               Pass& pass);

}  // namespace undivided::nn
