// SPDX-License-Identifier: Apache-2.0
// Trains the tiny model on a task, stops and goes on exactly, and translates with the result.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "nn/blas.hpp"
#include "undivided/error.hpp"
#include "undivided/nn/tasks.hpp"

namespace undivided::nn {
namespace {

TransformerOptions model_of(const TrainOptions& o) {
  TransformerOptions m = TransformerOptions::tiny(make_task(o.task)->vocabulary());
  m.dropout = o.dropout;
  m.heads = o.heads;
  m.kv_heads = o.kv_heads;
  return m;
}

std::string text_of(const TrainOptions& o) {
  return fmt::format(
      "{} steps {} batch {} warmup {} factor {} smoothing {} decay {} dropout {} clip {} "
      "snapshots {} heads {} kv_heads {} seed {}",
      o.task,
      o.steps,
      o.batch,
      o.warmup,
      o.factor,
      o.smoothing,
      o.decay,
      o.dropout,
      o.clip,
      o.snapshots,
      o.heads,
      o.kv_heads,
      o.seed);
}

}  // namespace

Lesson lesson_of(const Task& task, const std::vector<Pair>& pairs) {
  std::vector<std::vector<std::int32_t>> sources, inputs, outputs;
  for (const Pair& pair : pairs) {
    sources.push_back(task.encode(pair.source));
    outputs.push_back(task.encode(pair.target));
    inputs.push_back(outputs.back());
    inputs.back().insert(inputs.back().begin(), 1);
    outputs.back().push_back(2);
  }
  Lesson lesson{batch_of(sources), batch_of(inputs), batch_of(outputs).ids};
  std::replace(lesson.targets.begin(), lesson.targets.end(), 0, -1);
  return lesson;
}

std::vector<Pair> training_pairs(const Task& task,
                                 std::uint64_t seed,
                                 std::uint64_t step,
                                 std::uint64_t batch) {
  std::vector<Pair> pairs;
  for (std::uint64_t i = step * batch; i < (step + 1) * batch; ++i) {
    // A fixed pool is met in a new order each time round: numbers of pairs are hashed.
    Pass order;
    order.seed = seed ^ i * 0x2545F4914F6CDD1Du;
    pairs.push_back(task.training(seed, order.next_seed() >> 1));
  }
  return pairs;
}

double exact_share(const Seq2SeqTransformer<float>& model,
                   const Task& task,
                   std::int64_t count,
                   const Context& context) {
  require(count > 0, "at least one held-out pair is needed");
  std::int64_t right = 0;
  for (std::int64_t from = 0; from < count; from += 100) {
    std::vector<std::vector<std::int32_t>> sources;
    std::vector<std::string> wanted;
    for (std::int64_t i = from; i < std::min(count, from + 100); ++i) {
      const Pair pair = task.test(static_cast<std::uint64_t>(i));
      sources.push_back(task.encode(pair.source));
      wanted.push_back(pair.target);
    }
    Pass pass;
    pass.context = context;
    SearchOptions search;
    search.most_tokens = 20;  // longer than any answer
    const auto found = greedy_search(model, batch_of(sources), search, pass);
    for (std::size_t i = 0; i < found.size(); ++i)
      right += found[i].finished && task.decode(found[i].ids) == wanted[i];
  }
  return static_cast<double>(right) / static_cast<double>(count);
}

TrainOptions filled(TrainOptions o) {
  const bool reverse = make_task(o.task)->name() == "reverse";
  if (o.steps <= 0) o.steps = reverse ? 600 : 1200;
  if (o.factor <= 0) o.factor = reverse ? .5 : .7;
  if (o.smoothing < 0) o.smoothing = reverse ? .1 : 0;
  require(o.batch > 0 && o.warmup > 0, "batch and warmup are above 0");
  require(o.decay >= 0 && o.decay <= 1, fmt::format("decay is {}; 0 to 1 is allowed", o.decay));
  require(o.smoothing < 1, fmt::format("smoothing is {}; 0 <= eps < 1 is allowed", o.smoothing));
  require(o.dropout >= 0 && o.dropout < 1,
          fmt::format("dropout is {}; 0 <= p < 1 is allowed", o.dropout));
  return o;
}

Trainer::Trainer(const TrainOptions& options, const Context& context)
    : options_(filled(options)),
      context_(context),
      task_(make_task(options_.task)),
      model_(model_of(options_), options_.seed),
      adam_(model_.parameters()) {}

void Trainer::resume(const std::string& checkpoint) {
  const auto metadata = read_metadata(checkpoint);
  const auto was = metadata.find("run");
  if (was == metadata.end() || was->second != text_of(options_))
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("{} belongs to another run ({}); this one is {}",
                            checkpoint,
                            was == metadata.end() ? "unknown" : was->second,
                            text_of(options_)));
  load_checkpoint(checkpoint, adam_, average_, losses_);
}

void Trainer::save(const std::string& checkpoint) const {
  save_checkpoint(checkpoint, adam_, average_, losses_, {{"run", text_of(options_)}});
}

double Trainer::step() {
  const Lesson lesson = lesson_of(*task_,
                                  training_pairs(*task_,
                                                 options_.seed,
                                                 static_cast<std::uint64_t>(adam_.steps),
                                                 static_cast<std::uint64_t>(options_.batch)));
  Pass pass;
  pass.context = context_;
  pass.training = true;
  pass.seed = options_.seed * 7919 + static_cast<std::uint64_t>(adam_.steps);
  Seq2SeqTransformer<float>::Saved saved;
  const Matrix<float> logits = model_.forward(lesson.source, lesson.input, pass, &saved);
  const Loss<float> loss = cross_entropy(logits, lesson.targets, options_.smoothing);
  if (!std::isfinite(loss.mean))
    throw Error(Code::driver,
                Stage::run,
                fmt::format("the loss is not finite at step {}", adam_.steps + 1));
  model_.backward(saved, loss.gradient, context_);
  if (options_.clip > 0) clip_gradients(adam_.parameters(), options_.clip);
  const Noam rate{
      model_.options().features, options_.warmup, options_.factor, options_.steps, options_.decay};
  adam_.step(rate.at(adam_.steps + 1));
  losses_.push_back(static_cast<float>(loss.mean));
  const std::int64_t every =
      std::max<std::int64_t>(1, options_.steps / 4 / std::max<std::int64_t>(1, options_.snapshots));
  const std::int64_t left = options_.steps - adam_.steps;
  if (left >= 0 && left % every == 0 && left / every < options_.snapshots)
    average_.add(adam_.parameters());
  return loss.mean;
}

void Trainer::use_average() { average_.assign_to(adam_.parameters()); }

void Trainer::save_model(const std::string& path) {
  save_parameters(path,
                  model_.parameters(),
                  {{"task", options_.task},
                   {"heads", std::to_string(model_.options().heads)},
                   {"kv_heads", std::to_string(options_.kv_heads)}});
}

double Trainer::exact(std::int64_t count) const {
  return exact_share(model_, *task_, count, context_);
}

Translator::Translator(const std::string& path, const Context& context)
    : metadata_(read_metadata(path)), context_(context) {
  const auto task = metadata_.find("task");
  if (task == metadata_.end())
    throw Error(
        Code::io, Stage::parse, path + " is no model that training wrote: no task is named in it");
  TrainOptions options;
  options.task = task->second;
  if (const auto heads = metadata_.find("heads"); heads != metadata_.end()) {
    if (heads->second.empty() || heads->second.size() > 2 ||
        heads->second.find_first_not_of("0123456789") != std::string::npos)
      throw Error(Code::io,
                  Stage::parse,
                  fmt::format("{}: '{}' is no number of heads", path, heads->second));
    options.heads = std::stoll(heads->second);
  }
  task_ = make_task(options.task);
  model_ = std::make_unique<Seq2SeqTransformer<float>>(model_of(options));
  adopt_heads(*model_, path);  // convert may have changed them
  load_parameters(path, model_->parameters());
}

Translator::Answer Translator::translate(const std::string& line,
                                         const SearchOptions& options,
                                         bool weights) const {
  require(!line.empty(), "there is nothing to translate");
  require(line.size() <= 1000,
          fmt::format("the line has {} characters; 1000 are allowed", line.size()));
  Pass pass;
  pass.context = context_;
  const Tokens source = batch_of({task_->encode(line)});
  const Found found = options.beams == 1 ? greedy_search(*model_, source, options, pass)[0]
                                         : beam_search(*model_, source, options, pass)[0];
  Answer answer{task_->decode(found.ids), found.score, found.finished, {}};
  if (!weights) return answer;
  // The weights of the answer itself, whichever search found it: its tokens are fed again.
  auto state = model_->start(source, pass);
  const std::int64_t rows = static_cast<std::int64_t>(found.ids.size()) + found.finished;
  answer.weights = Tensor::zeros(DType::f32, {rows, source.extent.tokens});
  for (std::int64_t t = 0; t < rows; ++t) {
    std::vector<Tensor> layers;
    model_->step({t == 0 ? options.begin : found.ids[static_cast<std::size_t>(t - 1)]},
                 state,
                 pass,
                 &layers);
    const Tensor last = layers.back();
    for (std::int64_t h = 0; h < last.size(1); ++h)
      for (std::int64_t k = 0; k < last.size(2); ++k)
        answer.weights.ptr<float>()[t * last.size(2) + k] +=
            last.ptr<float>()[h * last.size(2) + k] / static_cast<float>(last.size(1));
  }
  return answer;
}

}  // namespace undivided::nn
