// SPDX-License-Identifier: Apache-2.0
// Time of sparse attention over the share of rows that are dropped, or over the number of buckets,
// beside dense causal attention of the same tokens and the ideal: dense time times the share of
// pairs that are left.
//
// bench_scfa [out.svg] writes JSON; one thread, f32, 2 heads, d = 64, forward and backward.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "core/generator.hpp"
#include "undivided/sparse.hpp"
#include "undivided/undivided.hpp"

using namespace undivided;

namespace {

constexpr std::int64_t heads = 2, dim = 64;

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

struct Row {
  std::string form;
  std::int64_t tokens;
  double dropped;  // share of rows; of buckets: 1 - 1 / buckets
  double pairs;    // share of the causal pairs that are left
  double dense[2], sparse[2];
  double of_ideal(int direction) const { return dense[direction] * pairs / sparse[direction]; }
};

/// Numbers in [0, most), the same for each run.
Tensor draw(std::int64_t n, std::uint64_t most, std::uint64_t seed) {
  const Tensor t = Tensor::empty(DType::i32, {1, heads, n});
  for (std::int64_t i = 0; i < t.count(); ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    t.ptr<std::int32_t>()[i] = static_cast<std::int32_t>((seed >> 33) % most);
  }
  return t;
}

double pairs_of(const Tensor& q, const Tensor& k, std::int64_t n, bool buckets) {
  double kept = 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    std::vector<double> seen(1024, 0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int32_t a = q.ptr<std::int32_t>()[h * n + i], b = k.ptr<std::int32_t>()[h * n + i];
      if (buckets) {
        kept += seen[static_cast<std::size_t>(a)];
        ++seen[static_cast<std::size_t>(b)];
      } else {
        seen[0] += b != 0;
        if (a != 0) kept += seen[0];
      }
    }
  }
  const auto pairs = static_cast<double>(n);
  return kept / (static_cast<double>(heads) * pairs * (pairs + 1) / 2);
}

/// Dense and sparse by turns; the best of each.
void measure(Row& row, const Tensor& q_flags, const Tensor& k_flags, bool buckets) {
  const std::int64_t n = row.tokens;
  const auto x = [&](std::uint64_t seed) {
    return random_normal(DType::f32, {1, heads, n, dim}, seed);
  };
  const Tensor q = x(1), k = x(2), v = x(3), dout = x(4);
  Context context;
  context.executor = &inline_executor();
  Options causal_only;
  causal_only.mask = causal();
  std::fill_n(row.dense, 2, 1e300);
  std::fill_n(row.sparse, 2, 1e300);
  const auto timed = [](double& best, auto&& f) {
    const double start = seconds();
    f();
    best = std::min(best, seconds() - start);
  };
  for (int i = 0; i < 3; ++i) {
    Forward f;
    SparseForward s;
    timed(row.dense[0], [&] { f = attention(q, k, v, causal_only, context); });
    timed(row.dense[1], [&] { attention_backward(dout, q, k, v, f, {}, context); });
    timed(row.sparse[0], [&] {
      s = buckets ? sparse_attention(q, k, v, HashSparse{q_flags, k_flags}, {}, context)
                  : sparse_attention(q, k, v, QkSparse{q_flags, k_flags}, {}, context);
    });
    timed(row.sparse[1], [&] { sparse_attention_backward(dout, q, k, v, s, context); });
  }
}

/// Speed-up over dense against the share that is dropped; the ideal as a line.
void draw_picture(const std::vector<Row>& rows, const char* file) {
  std::ofstream out(file);
  const auto at_x = [](double share) { return 60 + 400 * share; };
  const auto at_y = [](double ratio) { return 250 - 34 * std::log2(std::max(ratio, .5)); };
  out << R"(<svg xmlns="http://www.w3.org/2000/svg" width="620" height="320" font-family="sans-serif" font-size="12">)"
      << "\n<rect width=\"620\" height=\"320\" fill=\"white\"/>\n";
  for (const int y : {1, 2, 4, 8, 16, 32, 64})
    out << fmt::format(
        "<line x1=\"60\" x2=\"460\" y1=\"{0:.0f}\" y2=\"{0:.0f}\" stroke=\"#ddd\"/><text x=\"52\" "
        "y=\"{1:.0f}\" text-anchor=\"end\">{2}x</text>\n",
        at_y(y),
        at_y(y) + 4,
        y);
  for (const int x : {0, 25, 50, 75, 100})
    out << fmt::format(
        "<text x=\"{:.0f}\" y=\"300\" text-anchor=\"middle\">{} %</text>\n", at_x(x / 100.), x);
  out << "<text x=\"260\" y=\"316\" text-anchor=\"middle\">dropped rows, or 1 - 1/buckets</text>\n"
         "<text x=\"60\" y=\"16\">time of dense causal attention over ours, forward and backward, "
         "against the ideal</text>\n";
  const char* colours[] = {"#1b6ca8", "#c7522a", "#3a7d44", "#7b4fa3"};
  int line = 0;
  for (const char* form : {"qk", "hash"})
    for (const std::int64_t tokens : {8192, 16384}) {
      std::string ours, ideal;
      for (const Row& r : rows) {
        if (r.form != form || r.tokens != tokens) continue;
        const double dense = r.dense[0] + r.dense[1], sparse = r.sparse[0] + r.sparse[1];
        ours += fmt::format("{:.1f},{:.1f} ", at_x(r.dropped), at_y(dense / sparse));
        ideal += fmt::format("{:.1f},{:.1f} ", at_x(r.dropped), at_y(1 / r.pairs));
      }
      out << fmt::format(
          "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n"
          "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-dasharray=\"3 3\"/>\n"
          "<text x=\"470\" y=\"{}\" fill=\"{}\">{} {}k (dashed: ideal)</text>\n",
          ours,
          colours[line],
          ideal,
          colours[line],
          60 + 18 * line,
          colours[line],
          form,
          tokens / 1024);
      ++line;
    }
  out << "</svg>\n";
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<Row> rows;
  for (const std::int64_t n : {8192, 16384}) {
    for (const int dropped : {0, 25, 50, 75, 90}) {
      Row r{"qk", n, dropped / 100., 0, {}, {}};
      Tensor q = draw(n, 100, 5), k = draw(n, 100, 6);
      for (Tensor* t : {&q, &k})
        for (std::int64_t i = 0; i < t->count(); ++i)
          t->ptr<std::int32_t>()[i] = t->ptr<std::int32_t>()[i] >= dropped;
      r.pairs = pairs_of(q, k, n, false);
      measure(r, q, k, false);
      rows.push_back(r);
    }
    for (const int buckets : {2, 4, 8, 16, 64}) {
      Row r{"hash", n, 1 - 1. / buckets, 0, {}, {}};
      const Tensor both = draw(n, static_cast<std::uint64_t>(buckets), 7);
      r.pairs = pairs_of(both, both, n, true);
      measure(r, both, both, true);
      rows.push_back(r);
    }
  }
  const char* commit = std::getenv("UNDIVIDED_BENCH_COMMIT");
  std::ifstream info("/proc/cpuinfo");
  std::string processor = "unknown";
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) processor = line.substr(line.find(':') + 2);
  fmt::print(
      "{{\n \"what\": \"seconds of sparse attention and of dense causal attention, one thread, "
      "f32, {} "
      "heads, d {}\",\n \"processor\": \"{}\",\n \"commit\": \"{}\",\n \"rows\": [\n",
      heads,
      dim,
      processor,
      commit ? commit : "unknown");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& r = rows[i];
    fmt::print(
        "  {{\"form\": \"{}\", \"tokens\": {}, \"dropped\": {:.4f}, \"pairs\": {:.4f}, "
        "\"dense_forward\": {:.4f}, \"dense_backward\": {:.4f}, \"forward\": {:.4f}, \"backward\": "
        "{:.4f}, \"forward_of_ideal\": {:.3f}, \"backward_of_ideal\": {:.3f}}}{}\n",
        r.form,
        r.tokens,
        r.dropped,
        r.pairs,
        r.dense[0],
        r.dense[1],
        r.sparse[0],
        r.sparse[1],
        r.of_ideal(0),
        r.of_ideal(1),
        i + 1 < rows.size() ? "," : "");
  }
  fmt::print(" ]\n}}\n");
  if (count > 1) draw_picture(rows, arguments[1]);
}
