// SPDX-License-Identifier: Apache-2.0
// Tiles of the chunked algorithm: scores of some rows against a chunk of keys, and their summary.
#pragma once

#include <optional>
#include <vector>

#include "expr/program.hpp"
#include "problem/sequence.hpp"
#include "undivided/variants.hpp"

namespace undivided {

/// A checked call: f32 or f64 on the CPU, dense.
Problem chunked_problem(const View& q,
                        const View& k,
                        const View& v,
                        const Options& options,
                        const Chunks& chunks,
                        const Context& context);

/// One (batch, head) of a problem, read as rows of T.
template <class T>
class ChunkedHead {
 public:
  ChunkedHead(const Problem& p, std::int64_t b, std::int64_t h);

  const Sequence s;
  const T* query(std::int64_t i) const { return q_ + i * q_step_; }
  const T* key(std::int64_t j) const { return k_ + j * k_step_; }
  const T* value(std::int64_t j) const { return v_ + j * v_step_; }

  /// Final scores of query i against keys [begin, end): -inf where masked. Returns the largest.
  T scores(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const;
  /// d score / d (q . k) of each pair, given query i: scale, times the derivative of the score.
  void slopes(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const;

 private:
  expr::Point point(std::int64_t i, std::int64_t j) const;
  void products(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const;

  const Problem& p_;
  std::int64_t b_, h_;
  const T *q_, *k_, *v_;
  std::int64_t q_step_, k_step_, v_step_;
  bool masked_, scored_;
  std::optional<expr::Gradient> gradient_;
};

extern template class ChunkedHead<float>;
extern template class ChunkedHead<double>;

}  // namespace undivided
