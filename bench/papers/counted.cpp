// SPDX-License-Identifier: Apache-2.0
// Claims that are counted, not timed: memory of chunks, traffic of loop orders.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/generator.hpp"
#include "lab/loop_orders.hpp"
#include "papers/page.hpp"
#include "undivided/undivided.hpp"

namespace undivided::papers {
namespace {

/// Peak of the bytes that are held at once.
class Counting final : public Allocator {
 public:
  void* allocate(std::size_t bytes, Device, void*) override {
    held_ += bytes;
    peak_ = std::max(peak_, held_);
    return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  }
  void deallocate(void* p, std::size_t bytes, Device, void*) noexcept override {
    held_ -= bytes;
    std::free(p);
  }
  std::size_t peak() const { return peak_; }

 private:
  std::size_t held_ = 0, peak_ = 0;
};

constexpr double mib = 1024. * 1024;

lab::Matrix random_matrix(std::int64_t n, std::int64_t d, std::uint64_t seed) {
  lab::Matrix m(n, d);
  fill_normal(view(m.data.data(), {n * d}), seed);
  return m;
}

}  // namespace

Page chunked_memory() {
  Page page;
  page.title = "Self-attention without O(n²) memory";
  page.head = {"tokens",
               "scores, MiB",
               "chunked, MiB",
               "running, MiB",
               "ratio",
               "scores of a gradient, MiB",
               "chunked gradient, MiB",
               "ratio"};
  page.chart = {"bytes held beyond inputs and results", "tokens", "MiB", {}};
  Line standard{"n x n scores", {}, true}, chunked{"chunks with summaries", {}},
      running{"one running summary", {}}, gradient{"chunked gradient", {}};
  constexpr std::int64_t d = 64;
  Chunks one;
  one.accumulate = Accumulate::running;
  for (std::int64_t n = 1 << 10; n <= 1 << 20; n *= 4) {
    const double bytes = static_cast<double>(chunked_bytes(n, n, d, {})) / mib,
                 flat = static_cast<double>(chunked_bytes(n, n, d, one)) / mib,
                 back = static_cast<double>(chunked_backward_bytes(n, n, d, {})) / mib,
                 scores = 4. * static_cast<double>(n) * static_cast<double>(n) / mib;
    standard.points.emplace_back(n, scores);
    chunked.points.emplace_back(n, bytes);
    running.points.emplace_back(n, flat);
    gradient.points.emplace_back(n, back);
    page.rows.push_back({fmt::format("{}", n),
                         fmt::format("{:g}", scores),
                         fmt::format("{:.2f}", bytes),
                         fmt::format("{:.2f}", flat),
                         fmt::format("{:.1f}", scores / bytes),
                         fmt::format("{:g}", 2 * scores),
                         fmt::format("{:.2f}", back),
                         fmt::format("{:.1f}", 2 * scores / back)});
  }
  // The formula is what an allocator sees; the gradient runs at a quarter of the length.
  const auto rows = [](std::int64_t n, std::uint64_t seed) {
    return random_normal(DType::f32, {1, n, d}, seed);
  };
  std::string seen;
  for (const bool backward : {false, true}) {
    const std::int64_t n = backward ? 4096 : 16384;
    const Tensor q = rows(n, 1), k = rows(n, 2), v = rows(n, 3), dout = rows(n, 4);
    Counting counter;
    Context context;
    context.allocator = &counter;
    context.executor = &inline_executor();
    std::size_t results = 0, want = 0;
    if (backward) {
      const Gradients g = chunked_attention_backward(dout, q, k, v, {}, {}, context);
      results = 3 * static_cast<std::size_t>(n * d) * 4;
      want = chunked_backward_bytes(n, n, d, {});
    } else {
      const Forward f = chunked_attention(q, k, v, {}, {}, context);
      results = static_cast<std::size_t>(n * (d + 1)) * 4;
      want = chunked_bytes(n, n, d, {});
    }
    seen +=
        fmt::format("{}{} at {} tokens: {:.2f} MiB seen by the allocator, {:.2f} by the formula",
                    backward ? ";\n" : " ",
                    backward ? "gradient" : "forward",
                    n,
                    static_cast<double>(counter.peak() - results) / mib,
                    static_cast<double>(want) / mib);
    if (counter.peak() - results != want) page.missed.push_back("bytes seen are not the formula");
  }
  page.chart.lines = {standard, chunked, running, gradient};
  page.text = fmt::format(
      "Rabe and Staats 2021, table 2: 59 x less memory for a forward at 16384 tokens, 32 x for a\n"
      "gradient. One head of {} features in float32, query chunks of 1024, key chunks of 4096.\n"
      "Counted with an allocator:{}. The forward's ratio\n"
      "is the paper's. A gradient needs the scores twice (2 GiB at 16384); ours holds two chunks "
      "and\n"
      "so saves more than the paper's checkpointing, which keeps 64 MiB. Not reproduced: times on "
      "a\n"
      "TPU, training of a translation model.",
      d,
      seen);
  return page;
}

Page flash_traffic() {
  Page page;
  page.title = "FlashAttention moves N² d² / M elements";
  page.head = {
      "M, elements", "Br x Bc", "counted", "closed form", "FlashAttention-2, counted", "standard"};
  page.chart = {"elements moved, N = 1024, d = 16", "fast memory, elements", "elements", {}};
  constexpr std::int64_t n = 1024, d = 16;
  const lab::Matrix q = random_matrix(n, d, 1), k = random_matrix(n, d, 2),
                    v = random_matrix(n, d, 3);
  Line one{"FlashAttention", {}}, two{"FlashAttention-2", {}}, all{"standard", {}, true};
  const auto standard = static_cast<double>(lab::standard(q, k, v, .25).traffic.total());
  std::vector<std::pair<double, double>> inner;
  for (std::int64_t m = 4 * d; m <= 256 * d; m *= 2) {
    const lab::Blocks b = lab::blocks_for(m, d);
    const std::int64_t counted = lab::flash1(q, k, v, .25, b).traffic.total(),
                       second = lab::flash2(q, k, v, .25, b).traffic.total(),
                       tc = (n + b.k - 1) / b.k, closed = 2 * n * d + tc * (3 * n * d + 4 * n);
    if (counted != closed) page.missed.push_back("a count differs from its closed form");
    one.points.emplace_back(m, counted);
    two.points.emplace_back(m, second);
    all.points.emplace_back(m, standard);
    inner.emplace_back(m, counted - 2 * n * d);
    page.rows.push_back({fmt::format("{}", m),
                         fmt::format("{} x {}", b.q, b.k),
                         fmt::format("{}", counted),
                         fmt::format("{}", closed),
                         fmt::format("{}", second),
                         fmt::format("{:.0f}", standard)});
  }
  const double s = slope(inner);
  if (std::fabs(s + 1) > 1e-6) page.missed.push_back("slope of the traffic over M");
  page.chart.lines = {one, two, all};
  page.text = fmt::format(
      "Dao et al. 2022, theorem 2, and Dao 2023, algorithm 1. One head, N = {}, d = {}, loads and\n"
      "stores of single elements between slow memory and tiles, counted by an engine that does\n"
      "nothing else. Beyond the 2 N d of reading K and V once, the traffic has slope {:.3f} in log "
      "M.\n"
      "Counted, not measured: the bytes and times of a GPU are not reproduced here.",
      n,
      d,
      s);
  return page;
}

Page block_sparse_traffic() {
  Page page;
  page.title = "Block-sparse FlashAttention scales with the blocks that are kept";
  page.head = {"kept blocks", "share s", "counted", "2 N d + s (all - 2 N d)"};
  page.chart = {"elements moved over the share of kept blocks", "share of blocks", "elements", {}};
  page.chart.log_x = page.chart.log_y = false;
  constexpr std::int64_t n = 1024, d = 16;
  const lab::Matrix q = random_matrix(n, d, 1), k = random_matrix(n, d, 2),
                    v = random_matrix(n, d, 3);
  lab::Blocks b{16, 16};
  const std::int64_t side = n / 16, fixed = 2 * n * d,
                     all = lab::flash1(q, k, v, .25, b).traffic.total();
  Line counted{"counted", {}}, ideal{"proposition 4", {}, true};
  for (const std::int64_t of_eight : {1, 2, 3, 4, 6, 8}) {
    b.keep = [=](std::int64_t i, std::int64_t j) { return (i + j) % 8 < of_eight; };
    const double s = static_cast<double>(of_eight) / 8;
    const std::int64_t moved = lab::flash1(q, k, v, .25, b).traffic.total();
    const double want = static_cast<double>(fixed) + s * static_cast<double>(all - fixed);
    if (static_cast<double>(moved) != want) page.missed.push_back("a count is not linear in s");
    counted.points.emplace_back(s, moved);
    ideal.points.emplace_back(s, want);
    page.rows.push_back({fmt::format("{} of {}", side * side * of_eight / 8, side * side),
                         fmt::format("{}", s),
                         fmt::format("{}", moved),
                         fmt::format("{:.0f}", want)});
  }
  page.chart.lines = {counted, ideal};
  page.text =
      "Dao et al. 2022, proposition 4: with a share s of the blocks kept, Θ(N d + N² d² s / M)\n"
      "elements move. N = 1024, d = 16, blocks of 16 x 16 of a diagonal pattern. Counted; the\n"
      "paper's wall-clock gains of its butterfly pattern are not reproduced.";
  return page;
}

}  // namespace undivided::papers
