// SPDX-License-Identifier: Apache-2.0
// Small translation tasks that show whether a whole encoder-decoder learns, and their trainer.
#pragma once

#include <functional>
#include <memory>

#include "undivided/nn/optimize.hpp"
#include "undivided/nn/search.hpp"

namespace undivided::nn {

/// A source text and its translation.
struct Pair {
  std::string source, target;
};

/// Texts over a small alphabet. Ids: 0 padding, 1 begin, 2 end, then the alphabet.
class Task {
 public:
  virtual ~Task() = default;
  virtual std::string name() const = 0;
  virtual std::string alphabet() const = 0;
  /// Training pair i of the stream `seed`; the same on every machine.
  virtual Pair training(std::uint64_t seed, std::uint64_t i) const = 0;
  /// Held-out pair i, which no training pair equals.
  virtual Pair test(std::uint64_t i) const = 0;

  std::int64_t vocabulary() const { return 3 + static_cast<std::int64_t>(alphabet().size()); }
  /// Raises Error{resolve} for a character outside the alphabet.
  std::vector<std::int32_t> encode(const std::string& text) const;
  std::string decode(const std::vector<std::int32_t>& ids) const;
};
/// "reverse", "dates" or "numbers". Raises Error{resolve} that lists them.
std::shared_ptr<const Task> make_task(const std::string& name);
const std::vector<std::string>& task_names();

/// Pads to the longest.
Tokens batch_of(const std::vector<std::vector<std::int32_t>>& sequences);

/// Teacher forcing: inputs begin with id 1, targets end with id 2 and are -1 at padding.
struct Lesson {
  Tokens source, input;
  std::vector<std::int32_t> targets;
};
Lesson lesson_of(const Task& task, const std::vector<Pair>& pairs);
/// The training pairs of one step: they follow from the seed and the step alone.
std::vector<Pair> training_pairs(const Task& task,
                                 std::uint64_t seed,
                                 std::uint64_t step,
                                 std::uint64_t batch);
/// Share of `count` held-out pairs that greedy search gets exactly right.
double exact_share(const Seq2SeqTransformer<float>& model,
                   const Task& task,
                   std::int64_t count = 500,
                   const Context& context = {});

struct TrainOptions {
  std::string task = "reverse";
  std::int64_t steps = 0;  ///< 0: as the task wants
  std::int64_t batch = 64, warmup = 400;
  double factor = 0;      ///< 0: as the task wants
  double smoothing = -1;  ///< below 0: as the task wants
  double decay = .6;      ///< share of the steps over which the rate falls to 0; 0: constant Noam
  double dropout = 0;
  double clip = 1;  ///< largest norm of the gradient (some seeds leave without it); 0: any
  std::int64_t snapshots = 10;  ///< averaged over the last quarter
  std::int64_t heads = 4, kv_heads = 0;
  std::uint64_t seed = 1;
};
TrainOptions filled(TrainOptions options);  ///< what the task wants, written out

/// One run of the tiny model. Batches follow from the seed and the step alone, so a run that goes
/// on from a checkpoint gives the bits of one that was never stopped.
class Trainer {
 public:
  explicit Trainer(const TrainOptions& options, const Context& context = {});
  /// Goes on from this file. Raises Error{resolve} if it belongs to a run with other options.
  void resume(const std::string& checkpoint);
  void save(const std::string& checkpoint) const;

  double step();  ///< one batch; returns its loss
  std::int64_t done() const { return adam_.steps; }
  bool finished() const { return adam_.steps >= options_.steps; }
  void use_average();  ///< the parameters become the average of the snapshots
  /// Writes the model alone, for Translator.
  void save_model(const std::string& path);

  /// Share of `count` held-out pairs that greedy search gets exactly right.
  double exact(std::int64_t count = 500) const;
  const std::vector<float>& losses() const { return losses_; }
  const TrainOptions& options() const { return options_; }
  const Task& task() const { return *task_; }
  Seq2SeqTransformer<float>& model() { return model_; }

 private:
  TrainOptions options_;
  Context context_;
  std::shared_ptr<const Task> task_;
  Seq2SeqTransformer<float> model_;
  Adam<float> adam_;
  Average<float> average_;
  std::vector<float> losses_;
};

/// A trained model that reads and writes text.
class Translator {
 public:
  /// Raises Error{io, parse} for a file that Trainer::save_model did not write.
  explicit Translator(const std::string& path, const Context& context = {});
  struct Answer {
    std::string text;
    double score = 0;
    bool finished = false;
    Tensor weights;  ///< f32 [answer and end, source], when asked for
  };
  Answer translate(const std::string& line,
                   const SearchOptions& options,
                   bool weights = false) const;
  const Task& task() const { return *task_; }

 private:
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<const Task> task_;
  Context context_;
  std::unique_ptr<Seq2SeqTransformer<float>> model_;
};

}  // namespace undivided::nn
