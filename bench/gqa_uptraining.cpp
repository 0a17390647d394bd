// SPDX-License-Identifier: Apache-2.0
// Converts trained multi-head models to fewer KV heads in three ways and trains them a little more:
// mean pooling > the first head > random heads after 5 % of the original steps (Ainslie et al.
// 2023, figure 4), on a toy: spelt-out numbers to digits, 4 or 8 heads, 235,000 parameters.
//
// bench_gqa_uptraining [out.json [out.svg [seeds]]]: results so far are written after each model.
// It says in how many runs the order holds, and in how many settings for the mean over seeds.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "undivided/nn/nn.hpp"

using namespace undivided;
using namespace undivided::nn;

namespace {

constexpr double rate = 5e-4;
constexpr std::int64_t original_steps = 1200, unseen = 500;
struct Setting {
  std::int64_t heads, kv_heads;
};
constexpr std::array<Setting, 5> settings = {{{4, 1}, {4, 2}, {8, 1}, {8, 2}, {8, 4}}};
constexpr std::array<int, 4> percents = {0, 1, 5, 10};
constexpr std::array<HeadMethod, 3> methods = {
    HeadMethod::mean, HeadMethod::first, HeadMethod::random};
constexpr std::array<const char*, 3> method_names = {"mean", "first", "random"};

struct Point {
  double loss = 0, exact = 0;
};
using Curve = std::array<Point, percents.size()>;
struct Run {
  std::uint64_t seed = 0;
  Setting setting{};
  Point original;
  std::array<Curve, methods.size()> curves;
  bool holds() const {
    return curves[0][2].loss < curves[1][2].loss && curves[1][2].loss < curves[2][2].loss;
  }
};

/// In how many settings does the order hold for the geometric means of the losses over all seeds?
int holding_on_average(const std::vector<Run>& runs) {
  int holding = 0;
  for (const Setting& s : settings) {
    Run all;
    for (const Run& r : runs)
      if (r.setting.heads == s.heads && r.setting.kv_heads == s.kv_heads)
        for (std::size_t m = 0; m < methods.size(); ++m)
          all.curves[m][2].loss += std::log(r.curves[m][2].loss);
    holding += all.holds();
  }
  return holding;
}

Point held_out(const Seq2SeqTransformer<float>& model, const Task& task, const Context& context) {
  std::vector<Pair> pairs;
  for (std::int64_t i = 0; i < unseen; ++i)
    pairs.push_back(task.test(static_cast<std::uint64_t>(i)));
  const Lesson lesson = lesson_of(task, pairs);
  Pass pass;
  pass.context = context;
  return {cross_entropy(model.forward(lesson.source, lesson.input, pass), lesson.targets).mean,
          exact_share(model, task, unseen, context)};
}

Curve uptrain(Seq2SeqTransformer<float>& model,
              const Task& task,
              std::uint64_t seed,
              const Context& context) {
  Adam<float> adam(model.parameters());
  Curve curve;
  for (std::size_t i = 0; i < percents.size(); ++i) {
    while (adam.steps < original_steps * percents[i] / 100) {
      const auto pairs =
          training_pairs(task, seed, static_cast<std::uint64_t>(original_steps + adam.steps), 64);
      const Lesson lesson = lesson_of(task, pairs);
      Pass pass;
      pass.context = context;
      pass.training = true;
      Seq2SeqTransformer<float>::Saved saved;
      const auto logits = model.forward(lesson.source, lesson.input, pass, &saved);
      model.backward(saved, cross_entropy(logits, lesson.targets).gradient, context);
      adam.step(rate);
    }
    curve[i] = held_out(model, task, context);
  }
  return curve;
}

// Trains one model and converts it in every setting of its heads.
std::vector<Run> runs_of(std::uint64_t seed,
                         std::int64_t heads,
                         const std::filesystem::path& folder) {
  Context context;
  context.executor = &inline_executor();
  TrainOptions options;
  options.task = "numbers";
  options.steps = original_steps;
  options.heads = heads;
  options.seed = seed;
  Trainer trainer(options, context);
  while (!trainer.finished()) trainer.step();
  const std::string trained = (folder / fmt::format("{}-{}.safetensors", seed, heads)).string(),
                    converted =
                        (folder / fmt::format("{}-{}-out.safetensors", seed, heads)).string();
  trainer.save_model(trained);
  std::vector<Run> runs;
  for (const Setting& setting : settings) {
    if (setting.heads != heads) continue;
    Run r{seed, setting, held_out(trainer.model(), trainer.task(), context), {}};
    for (std::size_t m = 0; m < methods.size(); ++m) {
      ConvertOptions convert;
      convert.kv_heads = setting.kv_heads;
      convert.method = methods[m];
      convert.seed = seed;
      convert.encoder = false;  // as in the paper
      convert_heads(trained, converted, convert);
      Seq2SeqTransformer<float> model(trainer.model().options());
      adopt_heads(model, converted);
      load_parameters(converted, model.parameters());
      r.curves[m] = uptrain(model, trainer.task(), seed, context);
      fmt::print(stderr,
                 "seed {}, {} heads to {}, {}: loss {:.3f} -> {:.4f} after 5 %\n",
                 seed,
                 heads,
                 setting.kv_heads,
                 method_names[m],
                 r.curves[m][0].loss,
                 r.curves[m][2].loss);
    }
    runs.push_back(r);
  }
  return runs;
}

// Loss on held-out pairs over the share of more training: a panel for each setting, a line for each
// seed and method.
void draw(const std::vector<Run>& runs, const std::string& path) {
  constexpr std::array<const char*, 3> colours = {"#1b6ca8", "#d17a00", "#8a8a8a"};
  constexpr double panel = 190, left_of_all = 50;
  std::ofstream out(path);
  const double width = left_of_all + panel * settings.size();
  out << fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"330\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"330\" fill=\"white\"/>\n",
      width);
  const auto y_of = [](double loss) { return 130 - 60 * std::log10(std::max(loss, 2e-3)); };
  for (std::size_t s = 0; s < settings.size(); ++s) {
    const double left = left_of_all + panel * static_cast<double>(s);
    const auto x_of = [&](int percent) { return left + 12. * percent; };
    out << fmt::format("<text x=\"{}\" y=\"22\" font-weight=\"bold\">{} heads to {}</text>\n",
                       left,
                       settings[s].heads,
                       settings[s].kv_heads);
    for (const double loss : {10., 1., .1, .01}) {
      out << fmt::format("<line x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"#ddd\"/>\n",
                         left,
                         x_of(10),
                         y_of(loss));
      if (s == 0)
        out << fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
                           left - 6,
                           y_of(loss) + 4,
                           loss);
    }
    for (const int percent : {0, 5, 10})
      out << fmt::format(
          "<text x=\"{}\" y=\"302\" text-anchor=\"middle\">{} %</text>\n", x_of(percent), percent);
    for (std::size_t m = 0; m < methods.size(); ++m)
      for (const Run& r : runs) {
        if (r.setting.heads != settings[s].heads || r.setting.kv_heads != settings[s].kv_heads)
          continue;
        out << fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"",
                           colours[m]);
        for (std::size_t i = 0; i < percents.size(); ++i)
          out << fmt::format("{:.1f},{:.1f} ", x_of(percents[i]), y_of(r.curves[m][i].loss));
        out << "\"/>\n";
        if (r.seed == 1)
          out << fmt::format("<text x=\"{}\" y=\"{:.1f}\" fill=\"{}\">{}</text>\n",
                             x_of(10) + 4,
                             y_of(r.curves[m].back().loss) + 4,
                             colours[m],
                             method_names[m]);
      }
  }
  out << fmt::format(
      "<text x=\"{}\" y=\"322\" text-anchor=\"middle\">more training, as a share of the original "
      "steps</text>\n"
      "<text x=\"12\" y=\"160\" transform=\"rotate(-90 12 160)\" text-anchor=\"middle\">loss on "
      "held-out pairs</text>\n</svg>\n",
      width / 2);
}

nlohmann::ordered_json json_of(const std::vector<Run>& runs) {
  nlohmann::ordered_json all = {{"task", "numbers"},
                                {"original_steps", original_steps},
                                {"rate", rate},
                                {"percent", percents},
                                {"settings", runs.size()},
                                {"order_at_5_percent_holds", 0},
                                {"of_5_settings_on_average", holding_on_average(runs)}};
  const auto rounded = [](double x) { return std::stod(fmt::format("{:.5f}", x)); };
  int holding = 0;
  for (const Run& r : runs) {
    holding += r.holds();
    for (std::size_t m = 0; m < methods.size(); ++m) {
      nlohmann::ordered_json row = {{"seed", r.seed},
                                    {"heads", r.setting.heads},
                                    {"kv_heads", r.setting.kv_heads},
                                    {"original_loss", rounded(r.original.loss)},
                                    {"original_exact", r.original.exact},
                                    {"method", method_names[m]}};
      for (const Point& p : r.curves[m]) {
        row["loss"].push_back(rounded(p.loss));
        row["exact"].push_back(p.exact);
      }
      all["rows"].push_back(row);
    }
  }
  all["order_at_5_percent_holds"] = holding;
  all["cpu_seconds"] =
      std::round(static_cast<double>(std::clock()) / static_cast<double>(CLOCKS_PER_SEC));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  const int seeds = argc > 3 ? std::atoi(argv[3]) : 1;
  if (seeds < 1 || seeds > 100) {
    fmt::print(stderr, "seeds is {}; 1 to 100 is allowed\n", argv[3]);
    return 2;
  }
  std::string name = (fs::temp_directory_path() / "undivided-gqa-XXXXXX").string();
  if (!::mkdtemp(name.data())) {
    fmt::print(stderr, "{} cannot be made\n", name);
    return 3;
  }
  const fs::path folder(name);
  std::vector<Run> runs;
  std::mutex mutex;
  std::atomic<int> next{0};
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    workers.emplace_back([&] {
      for (int at = next++; at < 2 * seeds; at = next++) {
        // The model with 8 heads first: it has more settings.
        const auto more = runs_of(static_cast<std::uint64_t>(1 + at / 2), at % 2 ? 4 : 8, folder);
        const std::lock_guard lock(mutex);
        runs.insert(runs.end(), more.begin(), more.end());
        std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
          return std::tie(a.seed, a.setting.heads, a.setting.kv_heads) <
                 std::tie(b.seed, b.setting.heads, b.setting.kv_heads);
        });
        if (argc > 1) std::ofstream(argv[1]) << json_of(runs).dump(1) << "\n";
        if (argc > 2) draw(runs, argv[2]);
      }
    });
  for (std::thread& worker : workers) worker.join();
  fs::remove_all(folder);

  std::size_t holding = 0;
  fmt::print("| seed | heads | method | 0 % | 1 % | 5 % | 10 % |\n|---|---|---|---|---|---|---|\n");
  for (const Run& r : runs) {
    holding += r.holds();
    for (std::size_t m = 0; m < methods.size(); ++m) {
      fmt::print(
          "| {} | {} to {} | {} |", r.seed, r.setting.heads, r.setting.kv_heads, method_names[m]);
      for (const Point& p : r.curves[m]) fmt::print(" {:.3f} / {:.3f} |", p.loss, p.exact);
      fmt::print("\n");
    }
  }
  fmt::print(
      "loss / exact match on {} held-out pairs; loss at 5 %: mean < first < random in {} of {} "
      "runs, "
      "in {} of {} settings for the mean over seeds\n",
      unseen,
      holding,
      runs.size(),
      holding_on_average(runs),
      settings.size());
  return 0;
}
