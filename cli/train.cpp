// SPDX-License-Identifier: Apache-2.0
// undivided train: trains the tiny Transformer on a task, and can be stopped at any moment.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/common.hpp"
#include "cli/plot.hpp"
#include "undivided/nn/tasks.hpp"

namespace undivided::cli {
namespace {

struct TrainFlags {
  nn::TrainOptions train;
  std::string out, picture;
  std::int64_t every = 50, unseen = 500;
  double gate = -1;
  int threads = 0;
  bool fresh = false, json = false;
};

double cpu_seconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

// In place on a terminal; ten lines elsewhere.
void show(std::int64_t done, std::int64_t total, double loss) {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  const std::int64_t tenth = std::max<std::int64_t>(1, total / 10);
  if (!terminal && done % tenth != 0 && done != total) return;
  if (terminal && done % 5 != 0 && done != total) return;
  const auto filled = static_cast<std::size_t>(30 * done / total);
  fmt::print(stderr,
             "{}[{}{}] {}/{}  loss {:.4f}  {:.1f} CPU-s{}",
             terminal ? "\r" : "",
             std::string(filled, '#'),
             std::string(30 - filled, '.'),
             done,
             total,
             loss,
             cpu_seconds(),
             terminal && done != total ? "  " : "\n");
  std::fflush(stderr);
}

int run(TrainFlags f) {
  namespace fs = std::filesystem;
  choose("TASK", f.train.task, nn::task_names());
  if (f.every < 1 || f.unseen < 1) refuse("--every and --unseen are at least 1");
  f.train = nn::filled(f.train);
  if (f.gate < 0) f.gate = f.train.task == "reverse" ? .99 : .98;
  if (f.out.empty()) f.out = f.train.task + ".safetensors";
  if (!f.out.ends_with(".safetensors"))
    refuse(fmt::format("--out is '{}'; NAME.safetensors is expected", f.out));
  const std::string stem = f.out.substr(0, f.out.size() - 12),
                    checkpoint = stem + ".checkpoint.safetensors";
  if (f.picture.empty()) f.picture = stem + ".png";
  for (const std::string& path : {f.out, checkpoint, f.picture}) remember_output(path);

  const Threads threads(f.threads);
  Context context;
  context.executor = threads.executor;
  nn::Trainer trainer(f.train, context);
  if (!f.fresh && fs::exists(checkpoint)) {
    try {
      trainer.resume(checkpoint);
    } catch (const Error& e) {
      throw Error(e.code(), e.stage(), fmt::format("{}; --fresh starts anew", e.what()));
    }
    fmt::print(stderr, "going on from step {} of {}\n", trainer.done(), checkpoint);
  }
  while (!trainer.finished()) {
    const double loss = trainer.step();
    show(trainer.done(), f.train.steps, loss);
    if (trainer.done() % f.every == 0 || trainer.finished()) trainer.save(checkpoint);
  }
  // Over the last steps, as one batch is noisy.
  double loss = 0;
  const std::size_t last = std::min<std::size_t>(20, trainer.losses().size());
  for (std::size_t i = 0; i < last; ++i) loss += trainer.losses()[trainer.losses().size() - 1 - i];
  loss /= static_cast<double>(std::max<std::size_t>(1, last));

  const double exact_last = trainer.exact(f.unseen);
  double exact_mean = exact_last;
  // A rate that falls to 0 has averaged already; a constant one has not.
  const bool use_mean = f.train.decay <= 0 && f.train.snapshots > 0;
  if (f.train.snapshots > 0) {
    if (!use_mean) trainer.save_model(f.out);
    trainer.use_average();
    exact_mean = trainer.exact(f.unseen);
  }
  if (use_mean || f.train.snapshots <= 0) trainer.save_model(f.out);
  const double exact = use_mean ? exact_mean : exact_last;
  write_file(f.picture, loss_curve(trainer.losses(), "loss: " + f.train.task));
  fs::remove(checkpoint);
  const bool passed = exact >= f.gate;
  if (f.json)
    fmt::print("{}\n",
               nlohmann::ordered_json{{"task", f.train.task},
                                      {"steps", f.train.steps},
                                      {"loss", loss},
                                      {"exact", exact_last},
                                      {"exact_of_average", exact_mean},
                                      {"unseen", f.unseen},
                                      {"cpu_seconds", cpu_seconds()},
                                      {"model", f.out},
                                      {"picture", f.picture},
                                      {"passed", passed}}
                   .dump());
  else
    fmt::print(
        "{}: {} steps, loss {:.4f}, {:.1f} CPU-s\n"
        "exact on {} unseen: {:.3f} (average of {} snapshots: {:.3f}); {} the gate of {:.2f}\n"
        "model {} ({}), curve {}\n"
        "try: undivided translate {} --text '{}'\n",
        f.train.task,
        f.train.steps,
        loss,
        cpu_seconds(),
        f.unseen,
        exact_last,
        f.train.snapshots,
        exact_mean,
        passed ? "passes" : "misses",
        f.gate,
        f.out,
        use_mean ? "the average" : "the last step",
        f.picture,
        f.out,
        trainer.task().test(0).source);
  return passed ? exit_done : exit_failed;
}

}  // namespace

Command add_train(CLI::App& main) {
  CLI::App* app =
      main.add_subcommand("train", "Train a small Transformer: reverse, dates or numbers");
  auto f = std::make_shared<TrainFlags>();
  nn::TrainOptions& t = f->train;
  app->add_option("task", t.task, "reverse | dates | numbers")->capture_default_str();
  app->add_option("--out", f->out, "the model (TASK.safetensors)");
  app->add_option("--picture", f->picture, "the learning curve (PNG beside the model)");
  app->add_option("--steps", t.steps, "0: 600 for reverse, 1200 for the others");
  app->add_option("--batch", t.batch, "pairs a step")->capture_default_str();
  app->add_option("--factor", t.factor, "of the Noam rate; 0: .5 for reverse, .7 for the others");
  app->add_option("--warmup", t.warmup, "steps of rising rate")->capture_default_str();
  app->add_option("--decay", t.decay, "last share of the steps, falling to 0; 0: never")
      ->capture_default_str();
  app->add_option(
      "--smoothing", t.smoothing, "label smoothing; below 0: .1 for reverse, 0 for the others");
  app->add_option("--dropout", t.dropout)->capture_default_str();
  app->add_option("--clip", t.clip, "largest norm of the gradient; 0: any")->capture_default_str();
  app->add_option("--heads", t.heads, "of attention, in 64 features")->capture_default_str();
  app->add_option("--kv-heads", t.kv_heads, "0: as many as heads")->capture_default_str();
  app->add_option("--snapshots", t.snapshots, "averaged over the last quarter")
      ->capture_default_str();
  app->add_option("--seed", t.seed)->capture_default_str();
  app->add_option("--every", f->every, "steps between checkpoints")->capture_default_str();
  app->add_option("--unseen", f->unseen, "held-out pairs in the end")->capture_default_str();
  app->add_option(
      "--gate", f->gate, "share that must be exact (.99 for reverse, .98 for the others)");
  app->add_option("--threads", f->threads, "0: all cores")->capture_default_str();
  app->add_flag("--fresh", f->fresh, "ignore a checkpoint of an earlier run");
  app->add_flag("--json", f->json, "one JSON object on stdout");
  app->footer(
      "A stopped run goes on where its last checkpoint was and gives the same bits.\n"
      "examples:\n  undivided train reverse\n  undivided train dates --out dates.safetensors");
  return {app, [f] { return run(*f); }};
}

}  // namespace undivided::cli
