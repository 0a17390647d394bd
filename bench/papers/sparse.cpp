// SPDX-License-Identifier: Apache-2.0
// SCFA: what dropping rows, or sorting them into buckets, gains over dense causal attention.
#include "undivided/sparse.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "bench/sparse_rows.hpp"
#include "core/generator.hpp"
#include "papers/page.hpp"
#include "undivided/undivided.hpp"

namespace undivided::papers {
namespace {

constexpr std::int64_t heads = 2, dim = 64;

struct Times {
  double dense[2] = {1e300, 1e300}, sparse[2] = {1e300, 1e300};  // forward, backward
};

/// Dense and sparse by turns of equal length; the best turn of each.
template <class Rule>
Times measure(std::int64_t n, const Rule& rule, double share) {
  const auto x = [&](std::uint64_t seed) {
    return random_normal(DType::f32, {1, heads, n, dim}, seed);
  };
  const Tensor q = x(1), k = x(2), v = x(3), dout = x(4);
  Context alone;
  bench::KeptMemory memory;
  alone.executor = &inline_executor();
  alone.allocator = &memory;
  Options causally;
  causally.mask = causal();
  Times t;
  Forward f;
  SparseForward s;
  const int runs = bench::runs_beside_dense(share);
  const auto timed = [](double& best, int times, auto&& run) {
    best = std::min(best, bench::mean_seconds(times, run));
  };
  for (int turn = 0; turn < 3; ++turn) {  // the first fills the memory that is kept
    timed(t.dense[0], 1, [&] { f = attention(q, k, v, causally, alone); });
    timed(t.sparse[0], runs, [&] { s = sparse_attention(q, k, v, rule, {}, alone); });
    timed(t.dense[1], 1, [&] { attention_backward(dout, q, k, v, f, {}, alone); });
    timed(t.sparse[1], runs, [&] { sparse_attention_backward(dout, q, k, v, s, alone); });
  }
  return t;
}

}  // namespace

Page sparse_time() {
  Page page;
  page.title = "What dropped rows and buckets gain over dense causal attention";
  page.head = {"form",
               "tokens",
               "dropped",
               "pairs left",
               "forward gain",
               "of ideal",
               "backward gain",
               "of ideal"};
  page.chart = {"time of dense over sparse attention, forward and backward",
                "share of rows dropped, or 1 - 1/buckets",
                "gain",
                {}};
  page.chart.log_x = false;
  for (const bool buckets : {false, true})
    for (const std::int64_t n : {8192, 16384}) {
      const char* form = buckets ? "buckets" : "dropped";
      Line ours{fmt::format("{}, {} tokens", form, n), {}}, ideal{"ideal", {}, true};
      for (const int step : {0, 1, 2, 3}) {
        const int percent[] = {25, 50, 75, 90}, counts[] = {2, 4, 8, 16};
        const double dropped = buckets ? 1 - 1. / counts[step] : percent[step] / 100.;
        Tensor on_q =
            bench::draw(heads, n, buckets ? static_cast<std::uint64_t>(counts[step]) : 100, 5);
        Tensor on_k = buckets ? on_q : bench::draw(heads, n, 100, 6);
        if (!buckets)
          for (Tensor* t : {&on_q, &on_k}) bench::keep_from(*t, percent[step]);
        const double share = bench::share_of(on_q, on_k, buckets);
        const Times t = buckets ? measure(n, HashSparse{on_q, on_k}, share)
                                : measure(n, QkSparse{on_q, on_k}, share);
        const auto gain = [&](int d) { return t.dense[d] / t.sparse[d]; };
        page.rows.push_back(
            {form,
             fmt::format("{}", n),
             buckets ? fmt::format("{} buckets", counts[step]) : fmt::format("{} %", percent[step]),
             fmt::format("{:.4f}", share),
             fmt::format("{:.2f}", gain(0)),
             fmt::format("{:.2f}", gain(0) * share),
             fmt::format("{:.2f}", gain(1)),
             fmt::format("{:.2f}", gain(1) * share)});
        const double dense = t.dense[0] + t.dense[1], sparse = t.sparse[0] + t.sparse[1];
        ours.points.emplace_back(dropped, dense / sparse);
        ideal.points.emplace_back(dropped, 1 / share);
      }
      page.chart.lines.push_back(ours);
      if (n == 16384) page.chart.lines.push_back(ideal);
    }
  page.text =
      "Pagliardini et al. 2023: attention that drops queries and keys, or lets only rows of one\n"
      "bucket meet, costs the pairs that are left. The ideal is the dense time times their share;\n"
      "rows that lie apart, zeros for what was dropped and tiles that are kept in part are what "
      "is\n"
      "missing. Two heads of d 64 in float32 on one core, random rows and buckets, results in "
      "memory\n"
      "that the caller keeps, dense and sparse timed in turns of equal length. The paper's times "
      "are\n"
      "of an A100 and include training; those are not reproduced here.";
  return page;
}

}  // namespace undivided::papers
