// SPDX-License-Identifier: Apache-2.0
// Converts a trained multi-head model to fewer KV heads in three ways and trains it a little more:
// mean pooling > the first head > random heads after 5 % of the original steps (Ainslie et al.
// 2023, figure 4), on a toy: spelt-out numbers to digits, 4 heads, 235,000 parameters.
//
// bench_gqa_uptraining [out.json [out.svg [seeds]]]; exit code 1 if the order fails anywhere.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "undivided/nn/nn.hpp"

using namespace undivided;
using namespace undivided::nn;

namespace {

constexpr double rate = 5e-4;
constexpr std::int64_t original_steps = 1200, unseen = 500;
constexpr std::array<std::int64_t, 2> groups = {1, 2};
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
  Point original;
  std::array<std::array<Curve, methods.size()>, groups.size()> curves;
};

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

Run run(std::uint64_t seed, const std::filesystem::path& folder) {
  Context context;
  context.executor = &inline_executor();
  TrainOptions options;
  options.task = "numbers";
  options.steps = original_steps;
  options.seed = seed;
  Trainer trainer(options, context);
  while (!trainer.finished()) trainer.step();
  const std::string trained = (folder / fmt::format("{}.safetensors", seed)).string();
  trainer.save_model(trained);
  Run r;
  r.seed = seed;
  r.original = held_out(trainer.model(), trainer.task(), context);
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (std::size_t m = 0; m < methods.size(); ++m) {
      ConvertOptions convert;
      convert.kv_heads = groups[g];
      convert.method = methods[m];
      convert.seed = seed;
      convert.encoder = false;  // as in the paper
      const std::string converted =
          (folder / fmt::format("{}-{}-{}.safetensors", seed, groups[g], m)).string();
      convert_heads(trained, converted, convert);
      Seq2SeqTransformer<float> model(trainer.model().options());
      adopt_heads(model, converted);
      load_parameters(converted, model.parameters());
      r.curves[g][m] = uptrain(model, trainer.task(), seed, context);
      fmt::print(stderr,
                 "seed {} to {} KV heads, {}: loss {:.3f} -> {:.4f} after 5 %\n",
                 seed,
                 groups[g],
                 method_names[m],
                 r.curves[g][m][0].loss,
                 r.curves[g][m][2].loss);
    }
  return r;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

// Loss on held-out pairs over the share of more training, one panel a number of KV heads: each seed
// a thin line, their median a thick one.
void draw(const std::vector<Run>& runs, const std::string& path) {
  constexpr std::array<const char*, 3> colours = {"#1b6ca8", "#d17a00", "#8a8a8a"};
  std::ofstream out(path);
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"330\" "
         "font-family=\"sans-serif\" font-size=\"12\">\n"
         "<rect width=\"760\" height=\"330\" fill=\"white\"/>\n";
  const auto y_of = [](double loss) { return 160 - 60 * std::log10(std::max(loss, 2e-3)); };
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const double left = 60 + 350 * static_cast<double>(g);
    const auto x_of = [&](int percent) { return left + 26. * percent; };
    out << fmt::format(
        "<text x=\"{}\" y=\"22\" font-weight=\"bold\">4 heads to {} KV head{}</text>\n",
        left,
        groups[g],
        groups[g] > 1 ? "s" : "");
    for (const double loss : {10., 1., .1, .01})
      out << fmt::format(
          "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"#ddd\"/>"
          "<text x=\"{3}\" y=\"{4}\" text-anchor=\"end\">{5}</text>\n",
          left,
          left + 260,
          y_of(loss),
          left - 6,
          y_of(loss) + 4,
          loss);
    for (const int percent : percents)
      out << fmt::format(
          "<text x=\"{}\" y=\"302\" text-anchor=\"middle\">{} %</text>\n", x_of(percent), percent);
    for (std::size_t m = 0; m < methods.size(); ++m) {
      const auto line = [&](auto&& loss_at, double width, double opacity) {
        out << fmt::format(
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\" "
            "points=\"",
            colours[m],
            width,
            opacity);
        for (std::size_t i = 0; i < percents.size(); ++i)
          out << fmt::format("{:.1f},{:.1f} ", x_of(percents[i]), y_of(loss_at(i)));
        out << "\"/>\n";
      };
      for (const Run& r : runs) line([&](std::size_t i) { return r.curves[g][m][i].loss; }, 1, .35);
      const auto middle = [&](std::size_t i) {
        std::vector<double> all;
        for (const Run& r : runs) all.push_back(r.curves[g][m][i].loss);
        return median(all);
      };
      line(middle, 2.5, 1);
      out << fmt::format("<text x=\"{}\" y=\"{:.1f}\" fill=\"{}\">{}</text>\n",
                         x_of(10) + 6,
                         y_of(middle(3)) + 4,
                         colours[m],
                         method_names[m]);
    }
    out << fmt::format(
        "<text x=\"{}\" y=\"322\" text-anchor=\"middle\">more training, of the original "
        "steps</text>\n",
        left + 130);
  }
  out << "<text x=\"16\" y=\"170\" transform=\"rotate(-90 16 170)\" text-anchor=\"middle\">loss on "
         "held-out pairs</text>\n</svg>\n";
}

nlohmann::ordered_json json_of(const std::vector<Run>& runs, bool holds) {
  nlohmann::ordered_json all = {{"task", "numbers"},
                                {"heads", 4},
                                {"original_steps", original_steps},
                                {"rate", rate},
                                {"percent", percents},
                                {"order_at_5_percent_holds", holds}};
  const auto rounded = [](double x) { return std::stod(fmt::format("{:.5f}", x)); };
  for (const Run& r : runs)
    for (std::size_t g = 0; g < groups.size(); ++g)
      for (std::size_t m = 0; m < methods.size(); ++m) {
        nlohmann::ordered_json row = {{"seed", r.seed},
                                      {"original_loss", rounded(r.original.loss)},
                                      {"original_exact", r.original.exact},
                                      {"kv_heads", groups[g]},
                                      {"method", method_names[m]}};
        for (const Point& p : r.curves[g][m]) {
          row["loss"].push_back(rounded(p.loss));
          row["exact"].push_back(p.exact);
        }
        all["rows"].push_back(row);
      }
  all["cpu_seconds"] =
      std::round(static_cast<double>(std::clock()) / static_cast<double>(CLOCKS_PER_SEC));
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  const int seeds = argc > 3 ? std::atoi(argv[3]) : 5;
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
  std::vector<Run> runs(static_cast<std::size_t>(seeds));
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    workers.emplace_back([&] {
      for (std::size_t at = next++; at < runs.size(); at = next++) runs[at] = run(at + 1, folder);
    });
  for (std::thread& worker : workers) worker.join();
  fs::remove_all(folder);

  bool holds = true;
  fmt::print(
      "| seed | KV heads | method | {} % | {} % | {} % | {} % |\n|---|---|---|---|---|---|---|\n",
      percents[0],
      percents[1],
      percents[2],
      percents[3]);
  for (const Run& r : runs)
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto& c = r.curves[g];
      holds &= c[0][2].loss < c[1][2].loss && c[1][2].loss < c[2][2].loss;
      for (std::size_t m = 0; m < methods.size(); ++m) {
        fmt::print("| {} | {} | {} |", r.seed, groups[g], method_names[m]);
        for (const Point& p : c[m]) fmt::print(" {:.3f} / {:.3f} |", p.loss, p.exact);
        fmt::print("\n");
      }
    }
  fmt::print("loss / exact match on {} held-out pairs; mean < first < random in loss at 5 %: {}\n",
             unseen,
             holds ? "everywhere" : "NOT everywhere");
  if (argc > 1) std::ofstream(argv[1]) << json_of(runs, holds).dump(1) << "\n";
  if (argc > 2) draw(runs, argv[2]);
  return holds ? 0 : 1;
}
