// SPDX-License-Identifier: Apache-2.0
// Claims about time on one core, always beside another time or the peak of the same process.
#include <fmt/format.h>

#include <cmath>

#include "core/generator.hpp"
#include "cpu/peak.hpp"
#include "papers/page.hpp"
#include "undivided/undivided.hpp"

namespace undivided::papers {
namespace {

Context alone() {
  Context c;
  c.executor = &inline_executor();
  return c;
}
Tensor rows(std::int64_t batch, std::int64_t heads, std::int64_t n, std::int64_t d, int seed) {
  return random_normal(DType::f32, {batch, heads, n, d}, static_cast<std::uint64_t>(seed));
}
std::string ms(double seconds) { return fmt::format("{:.2f}", 1e3 * seconds); }

}  // namespace

Page causal_gain() {
  Page page;
  page.title = "What skipping blocks above the diagonal gains";
  page.head = {"tokens",
               "d",
               "forward full, ms",
               "causal, ms",
               "gain",
               "backward full, ms",
               "causal, ms",
               "gain"};
  page.chart = {"time of full over causal attention", "tokens", "gain", {}};
  page.chart.log_y = false;
  for (const std::int64_t d : {64, 128}) {
    Line forward{fmt::format("forward, d {}", d), {}},
        backward{fmt::format("backward, d {}", d), {}};
    for (const std::int64_t n : {512, 1024, 2048, 4096}) {
      const Tensor q = rows(1, 2, n, d, 1), k = rows(1, 2, n, d, 2), v = rows(1, 2, n, d, 3),
                   dout = rows(1, 2, n, d, 4);
      double t[2][2];
      for (int causally = 0; causally < 2; ++causally) {
        Options o;
        if (causally) o.mask = causal();
        const Forward f = attention(q, k, v, o, alone());
        const int runs = n >= 4096 ? 3 : 6;
        t[0][causally] = best_seconds(runs, [&] { attention(q, k, v, o, alone()); });
        t[1][causally] =
            best_seconds(runs, [&] { attention_backward(dout, q, k, v, f, {}, alone()); });
      }
      forward.points.emplace_back(n, t[0][0] / t[0][1]);
      backward.points.emplace_back(n, t[1][0] / t[1][1]);
      page.rows.push_back({fmt::format("{}", n),
                           fmt::format("{}", d),
                           ms(t[0][0]),
                           ms(t[0][1]),
                           fmt::format("{:.2f}", t[0][0] / t[0][1]),
                           ms(t[1][0]),
                           ms(t[1][1]),
                           fmt::format("{:.2f}", t[1][0] / t[1][1])});
      if (n == 4096 && t[0][0] / t[0][1] < 1.7) page.missed.push_back("causal gain below 1.7");
    }
    page.chart.lines.push_back(forward);
    page.chart.lines.push_back(backward);
  }
  page.text =
      "Dao 2023, section 3.1: a causal mask makes attention 1.7 to 1.8 x faster, because blocks "
      "above\n"
      "the diagonal are skipped and only those on it are masked. Two heads in float32 on one "
      "core;\n"
      "2 is the limit, short rows lose the half-empty blocks on the diagonal. The paper's figure "
      "is\n"
      "of an A100; that one is not reproduced here.";
  return page;
}

Page fastformer_time() {
  Page page;
  page.title = "Fastformer takes linear time";
  page.head = {"tokens", "Fastformer, ms", "attention, ms"};
  page.chart = {"time of one forward, 4 heads of 64", "tokens", "ms", {}};
  Line fast{"Fastformer", {}}, full{"attention", {}};
  const Tensor w1 = random_normal(DType::f32, {4, 256}, 5, .1),
               w2 = random_normal(DType::f32, {4, 256}, 6, .1);
  FastformerOptions o;
  o.w_query = w1;
  o.w_key = w2;
  for (std::int64_t n = 1 << 10; n <= 1 << 16; n *= 2) {
    const Tensor q = rows(1, 4, n, 64, 1), k = rows(1, 4, n, 64, 2), v = rows(1, 4, n, 64, 3);
    const double a = best_seconds(3, [&] { fastformer(q, k, v, o, alone()); });
    fast.points.emplace_back(n, 1e3 * a);
    std::string other = "-";
    if (n <= 1 << 13) {
      const double b = best_seconds(2, [&] { attention(q, k, v, {}, alone()); });
      full.points.emplace_back(n, 1e3 * b);
      other = ms(b);
    }
    page.rows.push_back({fmt::format("{}", n), ms(a), other});
  }
  const double s = slope(fast.points), t = slope(full.points);
  if (s < .9 || s > 1.1) page.missed.push_back(fmt::format("slope {:.3f}, .9 to 1.1 wanted", s));
  page.chart.lines = {fast, full};
  page.text = fmt::format(
      "Wu et al. 2021: pooling makes a layer O(N d). The verb `fastformer` (official scoring, sums "
      "in\n"
      "float64) beside float32 attention of the same shape on one core. Slope of log time over log "
      "N:\n"
      "{:.2f} against {:.2f}. Not reproduced: accuracy on Amazon, MIND or CNN/DailyMail.",
      s,
      t);
  return page;
}

Page grouped_decode() {
  Page page;
  page.title = "Sharing key heads makes decoding as fast as its bytes";
  page.head = {"key heads",
               "r",
               "bytes of K and V, MB",
               "ms a step",
               "GB/s",
               "speed-up over MHA",
               "bytes model"};
  page.chart = {"speed-up of a decode step over multi-head attention",
                "query heads per key head, r",
                "speed-up",
                {}};
  constexpr std::int64_t batch = 4, heads = 16, n = 8192, d = 128;
  const double memory = cpu::read_bandwidth();
  Line measured{"measured", {}}, model{"bytes model", {}, true};
  double mha = 0;
  const Tensor q = rows(batch, heads, 1, d, 1);
  for (const std::int64_t kv : {16, 8, 4, 2, 1}) {
    const Tensor k = rows(batch, kv, n, d, 2), v = rows(batch, kv, n, d, 3);
    const double t = best_seconds(5, [&] { attention(q, k, v, {}, alone()); });
    const double bytes = 8 * static_cast<double>(batch * kv * n * d);
    if (kv == heads) mha = t;
    const double r = static_cast<double>(heads) / static_cast<double>(kv);
    measured.points.emplace_back(r, mha / t);
    model.points.emplace_back(r, r);
    page.rows.push_back({fmt::format("{}", kv),
                         fmt::format("{:.0f}", r),
                         fmt::format("{:.1f}", 1e-6 * bytes),
                         ms(t),
                         fmt::format("{:.1f}", 1e-9 * bytes / t),
                         fmt::format("{:.2f}", mha / t),
                         fmt::format("{:.0f}", r)});
  }
  page.chart.lines = {measured, model};
  page.text = fmt::format(
      "Shazeer 2019 and Ainslie et al. 2023. One decode step of {} sequences, {} query heads of "
      "{},\n"
      "{} keys, float32, one core, which reads {:.1f} GB/s linearly. Arithmetic does not change "
      "with r,\n"
      "K and V shrink by it: a step that waits for memory alone gains r (the model). A core has "
      "few\n"
      "FLOPs per byte, so from some r on arithmetic is the limit, as it is not on a GPU. Not\n"
      "reproduced: quality after uptraining (see the converter), TPU times.",
      batch,
      heads,
      d,
      n,
      memory);
  return page;
}

Page differential_cost() {
  Page page;
  page.title = "What differential attention costs";
  page.head = {"tokens",
               "mask",
               "differential, GFLOP/s",
               "attention d 64 / 128, GFLOP/s",
               "of its rate",
               "of FMA peak",
               "over composition",
               "time over 2H heads of 64"};
  page.chart = {"rate of the fused sweep over that of attention", "tokens", "part", {}};
  page.chart.log_y = false;
  constexpr std::int64_t heads = 2, d = 64;
  std::vector<Tensor> lambda;
  DifferentialV1 p;
  for (int i = 0; i < 4; ++i)
    lambda.push_back(random_normal(DType::f32, {d}, static_cast<std::uint64_t>(7 + i), .1));
  p.q1 = lambda[0];
  p.k1 = lambda[1];
  p.q2 = lambda[2];
  p.k2 = lambda[3];
  const auto one = [](const View& v, std::int64_t c) {  // every other head
    View s = v;
    s.data = static_cast<float*>(v.data) + c * v.stride[1];
    s.shape[1] /= 2;
    s.stride[1] *= 2;
    return s;
  };
  for (const bool causally : {false, true}) {
    Line line{causally ? "causal" : "full", {}};
    for (const std::int64_t n : {512, 1024, 2048, 4096}) {
      const Tensor q = rows(1, 2 * heads, n, d, 1), k = rows(1, 2 * heads, n, d, 2),
                   v = rows(1, heads, n, 2 * d, 3), v64 = rows(1, 2 * heads, n, d, 4);
      Options o;
      if (causally) o.mask = causal();
      const double pairs = causally ? .5 * static_cast<double>(n) * static_cast<double>(n + 1)
                                    : static_cast<double>(n) * static_cast<double>(n);
      const double flops = 2 * heads * pairs * 2 * (d + 2 * d);
      double t[4] = {1e300, 1e300, 1e300, 1e300};
      for (int turn = 0; turn < 3; ++turn) {  // by turns, so that a neighbour disturbs all alike
        const int runs = n >= 4096 ? 1 : 3;
        t[0] = std::min(t[0],
                        best_seconds(runs, [&] { differential(q, dense(k, v), p, o, alone()); }));
        t[1] = std::min(t[1], best_seconds(runs, [&] {
                          attention(Rows(one(q, 0)), dense(one(k, 0), v), o, alone());
                        }));
        t[2] = std::min(t[2], best_seconds(runs, [&] {
                          for (int c = 0; c < 2; ++c)
                            attention(Rows(one(q, c)), dense(one(k, c), v), o, alone());
                        }));
        t[3] = std::min(t[3], best_seconds(runs, [&] { attention(q, k, v64, o, alone()); }));
      }
      const double peak = cpu::fma_peak_gflops(), rate = 1e-9 * flops / t[0],
                   plain = .5e-9 * flops / t[1];
      line.points.emplace_back(n, rate / plain);
      if (n >= 1024 && rate < .9 * plain)
        page.missed.push_back(
            fmt::format("n {}: {:.2f} of attention's rate, .90 wanted", n, rate / plain));
      page.rows.push_back({fmt::format("{}", n),
                           causally ? "causal" : "full",
                           fmt::format("{:.1f}", rate),
                           fmt::format("{:.1f}", plain),
                           fmt::format("{:.2f}", rate / plain),
                           fmt::format("{:.0f} %", 100 * rate / peak),
                           fmt::format("{:.2f}", t[2] / t[0]),
                           fmt::format("{:.2f}", t[0] / t[3])});
    }
    page.chart.lines.push_back(line);
  }
  page.text =
      "Ye et al. 2024: a differential head does 12 N² d FLOPs where the two heads of width d that "
      "it\n"
      "replaces do 8 N² d, so 1.5 x the time is what counting predicts (last column). The fused "
      "sweep\n"
      "does the subtraction, the norm and both softmaxes over one load of V. \"Of its rate\" "
      "compares\n"
      "with attention of one branch (queries and keys of 64, values of 128) in the same process;\n"
      "\"over composition\" is the time of two such calls over ours. One core, float32, 2 heads, "
      "best\n"
      "of several turns. The paper's 5 to 12 % lower training throughput is of a whole model on "
      "an\n"
      "H100 and is not reproduced.";
  return page;
}

}  // namespace undivided::papers
