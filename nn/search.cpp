// SPDX-License-Identifier: Apache-2.0
// Greedy and beam search.
#include "undivided/nn/search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nn/blas.hpp"

namespace undivided::nn {
namespace {

template <class T>
double lse_of(const T* x, std::int64_t n) {
  const double most = static_cast<double>(*std::max_element(x, x + n));
  double sum = 0;
  for (std::int64_t j = 0; j < n; ++j) sum += std::exp(static_cast<double>(x[j]) - most);
  return most + std::log(sum);
}

std::int64_t most_tokens(const SearchOptions& o, const Tokens& source) {
  return o.most_tokens > 0 ? o.most_tokens : source.extent.tokens + 50;
}

// [layers][batch, heads, source] -> the last layer's mean over heads.
Tensor mean_of_heads(const Tensor& w) {
  const Tensor x = converted(w, DType::f32);
  const std::int64_t heads = x.size(1), keys = x.size(2);
  Tensor mean = Tensor::zeros(DType::f32, {x.size(0), keys});
  for (std::int64_t i = 0; i < x.count(); ++i)
    mean.ptr<float>()[i / (heads * keys) * keys + i % keys] +=
        x.ptr<float>()[i] / static_cast<float>(heads);
  return mean;
}

}  // namespace

double length_penalty(std::int64_t tokens, double alpha) {
  return std::pow((5. + static_cast<double>(tokens)) / 6., alpha);
}

template <class T>
std::vector<Found> greedy_search(const Seq2SeqTransformer<T>& model,
                                 const Tokens& source,
                                 const SearchOptions& options,
                                 Pass& pass,
                                 std::vector<Tensor>* weights) {
  auto state = model.start(source, pass);
  const std::size_t batch = static_cast<std::size_t>(state.batch);
  std::vector<Found> found(batch);
  std::vector<std::int32_t> last(batch, options.begin);
  std::vector<Tensor> layers;
  std::size_t open = batch;
  for (std::int64_t n = 1; n <= most_tokens(options, source) && open > 0; ++n) {
    const Matrix<T> logits = model.step(last, state, pass, weights ? &layers : nullptr);
    if (weights) weights->push_back(mean_of_heads(layers.back()));
    for (std::size_t b = 0; b < batch; ++b) {
      if (found[b].finished) continue;
      const T* x = logits.row(static_cast<std::int64_t>(b));
      const std::int64_t best = std::max_element(x, x + logits.cols()) - x;
      found[b].score += static_cast<double>(x[best]) - lse_of(x, logits.cols());
      last[b] = static_cast<std::int32_t>(best);
      if (last[b] == options.end) {
        found[b].finished = true;
        --open;
      } else {
        found[b].ids.push_back(last[b]);
      }
    }
  }
  for (Found& f : found)
    f.score /= length_penalty(static_cast<std::int64_t>(f.ids.size()) + f.finished, options.alpha);
  return found;
}

template <class T>
std::vector<Found> beam_search(const Seq2SeqTransformer<T>& model,
                               const Tokens& source,
                               const SearchOptions& options,
                               Pass& pass) {
  require(
      options.beams > 0 && options.beams < model.options().vocabulary,
      fmt::format("{} beams; 1 to {} are allowed", options.beams, model.options().vocabulary - 1));
  const std::int64_t batch = source.extent.batch, beams = options.beams;
  const std::int64_t limit = most_tokens(options, source), vocabulary = model.options().vocabulary;
  auto state = model.start(source, pass);
  std::vector<std::int32_t> parents;
  for (std::int64_t i = 0; i < batch * beams; ++i)
    parents.push_back(static_cast<std::int32_t>(i / beams));
  state.reorder(parents);

  constexpr double never = -std::numeric_limits<double>::infinity();
  struct Beam {
    std::vector<std::int32_t> ids;
    double log_p = 0;
  };
  struct Next {
    double log_p;
    std::int64_t beam, token;
  };
  std::vector<Beam> live(static_cast<std::size_t>(batch * beams));
  for (std::size_t i = 0; i < live.size(); ++i)  // beams start equal: only the first may branch
    if (i % static_cast<std::size_t>(beams) != 0) live[i].log_p = never;
  std::vector<Found> best(static_cast<std::size_t>(batch));
  std::vector<bool> done(best.size(), false);
  for (Found& f : best) f.score = never;
  std::vector<std::int32_t> last(live.size(), options.begin);

  for (std::int64_t n = 1; n <= limit; ++n) {
    const Matrix<T> logits = model.step(last, state, pass);
    std::vector<Beam> grown(live.size());
    for (std::int64_t b = 0; b < batch; ++b) {
      std::vector<Next> next;
      for (std::int64_t k = 0; k < beams; ++k) {
        const T* x = logits.row(b * beams + k);
        const double past = live[static_cast<std::size_t>(b * beams + k)].log_p;
        if (past == never) continue;
        const double lse = lse_of(x, vocabulary);
        for (std::int64_t t = 0; t < vocabulary; ++t)
          next.push_back({past + static_cast<double>(x[t]) - lse, k, t});
      }
      // 2k candidates: even if k of them end, k go on.
      const auto keep = next.begin() + std::min<std::ptrdiff_t>(2 * beams, std::ssize(next));
      std::partial_sort(next.begin(), keep, next.end(), [](const Next& p, const Next& q) {
        return p.log_p != q.log_p ? p.log_p > q.log_p
                                  : std::pair(p.beam, p.token) < std::pair(q.beam, q.token);
      });
      Found& answer = best[static_cast<std::size_t>(b)];
      std::int64_t filled = 0, rank = 0;
      for (auto it = next.begin(); it != keep && filled < beams; ++it, ++rank) {
        const Beam& from = live[static_cast<std::size_t>(b * beams + it->beam)];
        if (it->token == options.end) {
          // An end counts only among the best k, as a beam that takes it would.
          const double score = it->log_p / length_penalty(n, options.alpha);
          if (rank < beams && !done[static_cast<std::size_t>(b)] &&
              (!answer.finished || score > answer.score))
            answer = {from.ids, score, true};
          continue;
        }
        const std::size_t at = static_cast<std::size_t>(b * beams + filled++);
        grown[at] = from;
        grown[at].ids.push_back(static_cast<std::int32_t>(it->token));
        grown[at].log_p = it->log_p;
        last[at] = static_cast<std::int32_t>(it->token);
        parents[at] = static_cast<std::int32_t>(b * beams + it->beam);
      }
      for (; filled < beams; ++filled) {
        const std::size_t at = static_cast<std::size_t>(b * beams + filled);
        grown[at].log_p = never;
        parents[at] = static_cast<std::int32_t>(b * beams);
        last[at] = options.end;
      }
      // Log probabilities only fall: nothing can overtake once the best open beam, at the mildest
      // penalty it could ever get, is behind.
      const double bound = grown[static_cast<std::size_t>(b * beams)].log_p /
                           length_penalty(options.alpha > 0 ? limit : n, options.alpha);
      if (answer.finished && (beams == 1 || answer.score >= bound))
        done[static_cast<std::size_t>(b)] = true;
    }
    live = std::move(grown);
    if (std::all_of(done.begin(), done.end(), [](bool d) { return d; })) break;
    if (n < limit) state.reorder(parents);
  }
  for (std::size_t b = 0; b < best.size(); ++b)
    if (!best[b].finished) {
      const Beam& open = live[b * static_cast<std::size_t>(beams)];
      best[b] = {
          open.ids,
          open.log_p / length_penalty(static_cast<std::int64_t>(open.ids.size()), options.alpha),
          false};
    }
  return best;
}

template std::vector<Found> greedy_search(const Seq2SeqTransformer<float>&,
                                          const Tokens&,
                                          const SearchOptions&,
                                          Pass&,
                                          std::vector<Tensor>*);
template std::vector<Found> greedy_search(const Seq2SeqTransformer<double>&,
                                          const Tokens&,
                                          const SearchOptions&,
                                          Pass&,
                                          std::vector<Tensor>*);
template std::vector<Found> beam_search(const Seq2SeqTransformer<float>&,
                                        const Tokens&,
                                        const SearchOptions&,
                                        Pass&);
template std::vector<Found> beam_search(const Seq2SeqTransformer<double>&,
                                        const Tokens&,
                                        const SearchOptions&,
                                        Pass&);

}  // namespace undivided::nn
