// SPDX-License-Identifier: Apache-2.0
// The table of the gallery. Arrays are small and made by rules, so that the pictures stay the same.
#include "check/gallery.hpp"

#include <algorithm>
#include <cmath>

namespace undivided::check {
namespace {

template <class F>
Array ints(const char* name, std::int32_t n, F&& value) {
  std::vector<std::int32_t> x;
  for (std::int32_t i = 0; i < n; ++i) x.push_back(value(i));
  return Array(std::move(x), name);
}

template <class F>
Array floats(const char* name, std::initializer_list<std::int64_t> shape, F&& value) {
  const Tensor t = Tensor::zeros(DType::f32, shape);
  for (std::int64_t i = 0; i < t.count(); ++i) t.ptr<float>()[i] = static_cast<float>(value(i));
  return Array(t, name);
}

template <class F>
Array table(const char* name, std::initializer_list<std::int64_t> shape, F&& value) {
  const Tensor t = Tensor::zeros(DType::i32, shape);
  for (std::int64_t i = 0; i < t.count(); ++i) t.ptr<std::int32_t>()[i] = value(i);
  return Array(t, name);
}

/// Documents of these lengths: the id of each token, or the first token of its document.
Array documents_of(const char* name, const std::vector<std::int32_t>& lengths, bool starts) {
  std::vector<std::int32_t> x;
  for (std::size_t d = 0; d < lengths.size(); ++d) {
    const auto start = static_cast<std::int32_t>(x.size());
    x.insert(x.end(),
             static_cast<std::size_t>(lengths[d]),
             starts ? start : static_cast<std::int32_t>(d));
  }
  return Array(std::move(x), name);
}
const std::vector<std::int32_t> six_documents{90, 40, 150, 12, 100, 120};

/// A tree of drafts: where the subtree of each token begins and ends in preorder.
Captures tree_arrays() {
  std::vector<std::int32_t> enter(512), leave(512);
  for (std::int32_t i = 0; i < 512; ++i) {
    const int root = i / 128 * 128, within = i % 128;
    // Token w of a tree roots the subtree of the numbers that share its leading binary digits.
    const int size = within == 0 ? 128 : within & -within;
    enter[static_cast<std::size_t>(i)] = root + within;
    leave[static_cast<std::size_t>(i)] = root + within + size;
  }
  return {{Array(std::move(enter), "enter"), Array(std::move(leave), "leave")}, {}};
}

std::string packed_bits(const char* x, const char* shifted, int bits) {
  std::string out;
  for (int b = 0; b < bits; ++b) {
    const int shift = b + (*shifted != 0);
    out += (b ? " | " : "") + std::string(x) + (shift ? " >> " + std::to_string(shift) : "") +
           " & " + std::to_string(1 << b);
  }
  return out;
}

}  // namespace

std::vector<GalleryMask> gallery_masks() {
  std::vector<GalleryMask> all;
  const auto add = [&](const char* name,
                       const char* title,
                       std::string text,
                       const char* library = "",
                       std::vector<Array> arrays = {}) {
    all.push_back({name, title, std::move(text), library, {std::move(arrays), {}}});
  };
  const auto doc = documents_of("doc", six_documents, false);
  add("causal", "causal", "k <= q", "causal()");
  add("window", "causal sliding window", "k <= q && q - k <= 96", "causal() && window(96)");
  add("sink", "sink and window (StreamingLLM)", "k <= q && (q - k <= 96 || k < 4)");
  add("dilated", "dilated window (Longformer)", "abs(q - k) <= 96 && (q - k) % 4 == 0");
  add("global",
      "global tokens and window (Longformer)",
      "abs(q - k) <= 48 || glob[q] > 0 || glob[k] > 0",
      "",
      {ints("glob", 512, [](std::int32_t i) { return i % 170 == 20; })});
  add("prefix", "prefix language model", "k < 128 || k <= q", "prefix(128)");
  add("documents", "documents", "doc[q] == doc[k]", "documents(doc)", {doc});
  add("packed",
      "packed causal documents",
      "k <= q && doc[q] == doc[k]",
      "causal() && documents(doc)",
      {doc});
  add("packed-starts",
      "packed causal documents, by their starts",
      "start[q] <= k && k <= q",
      "",
      {documents_of("start", six_documents, true)});
  add("shared-prefix",
      "answers that share a prefix",
      "k <= q && (doc[k] == 0 || doc[q] == doc[k])",
      "",
      {doc});
  add("block-diffusion",
      "block diffusion (BD3-LM): noisy half, clean half",
      "let uq = q % 256 / 32; let uk = k % 256 / 32;\n"
      "(uq == uk && (q < 256) == (k < 256)) || (uq > uk && q < 256 && k >= 256) ||\n"
      "(uq >= uk && q >= 256 && k >= 256)");
  all.push_back({"tree",
                 "tree of drafts: each token sees its ancestors",
                 "enter[k] <= enter[q] && enter[q] < leave[k]",
                 "tree(parent)",
                 tree_arrays()});
  add("draft-training",
      "training of drafts: a context, then blocks of drafts, each behind its anchor",
      "q < 256 ? k <= q\n"
      "        : k < 256 ? k <= anchor[max(q - 256, 0) / 32]\n"
      "                  : k / 32 == q / 32 && k <= q",
      "",
      {ints("anchor", 8, [](std::int32_t i) { return 31 * i + 20; })});
  add("image-text",
      "text attends to the image before it (Flamingo)",
      "first[img[k]] <= q && q < first[img[k] + 1]",
      "",
      {ints("img", 512, [](std::int32_t k) { return k / 128; }),
       ints("first", 5, [](std::int32_t i) { return i < 4 ? 110 * i + 30 : 512; })});
  add("batchify", "a batch in one sequence", "q / 128 == k / 128 && k % 128 <= q % 128");
  add("chunks", "chunks, causal between them", "k / 48 <= q / 48");
  add("natten",
      "neighbourhood of an image of 16 x 32 (NATTEN)",
      "abs(clamp(q / 32, 3, 12) - k / 32) <= 3 &&\nabs(clamp(q % 32, 3, 28) - k % 32) <= 3");
  add("natten-tiled",
      "the same in tiles of 4 x 8",
      "let yq = q / 128 * 4 + q % 32 / 8; let yk = k / 128 * 4 + k % 32 / 8;\n"
      "let xq = q / 32 % 4 * 8 + q % 8; let xk = k / 32 % 4 * 8 + k % 8;\n"
      "abs(clamp(yq, 3, 12) - yk) <= 3 && abs(clamp(xq, 3, 28) - xk) <= 3");
  // Morton order: x from bits 0 2 4 6 8, y from bits 1 3 5 7.
  add("natten-morton",
      "the same in Morton order",
      "let xq = " + packed_bits("q", "", 5) + ";\nlet xk = " + packed_bits("k", "", 5) +
          ";\nlet yq = " + packed_bits("q", "y", 4) + ";\nlet yk = " + packed_bits("k", "y", 4) +
          ";\nabs(clamp(yq, 3, 12) - yk) <= 3 && abs(clamp(xq, 3, 28) - xk) <= 3");
  add("sliding-tile",
      "sliding tile attention, 4 x 4 tiles of an image",
      "abs(clamp(q / 128, 1, 2) - k / 128) <= 1 &&\nabs(clamp(q / 32 % 4, 1, 2) - k / 32 % 4) <= "
      "1");
  add("sliding-tile-3d",
      "sliding tile attention of a film, 4 x 4 x 3 tiles, then 128 tokens of text",
      "q >= 384 || k >= 384 || (abs(clamp(q / 96, 1, 2) - k / 96) <= 1 &&\n"
      "abs(clamp(q / 24 % 4, 1, 2) - k / 24 % 4) <= 1 && q / 8 % 3 == k / 8 % 3)");
  add("film-spatial",
      "Sparse-VideoGen, spatial: neighbouring frames and the first",
      "abs(q / 64 - k / 64) <= 1 || k < 64");
  add("film-temporal",
      "Sparse-VideoGen, temporal: the same place in every frame, and the first frame",
      "abs(q % 64 - k % 64) <= 4 || k < 64");
  add("chosen-tiles",
      "tiles chosen by the model (VSA)",
      "keep[q / 32, k / 32] > 0",
      "",
      {table("keep", {16, 16}, [](std::int64_t i) {
        const auto q = i / 16, k = i % 16;
        return std::int32_t{q == k || (7 * q + 5 * k + q * k) % 6 == 0};
      })});
  add("strided", "strided (Sparse Transformer)", "k <= q && (q - k < 48 || (q - k) % 48 == 0)");
  add("eviction",
      "random eviction: each key leaves at its own step",
      "k <= q && q < gone[k]",
      "",
      {ints("gone", 512, [](std::int32_t k) { return k + 1 + (k * 7919 + 13) % 400; })});
  add("dropped",
      "dropped tokens (SCFA): kept queries and keys by their first places",
      "tk[k] <= tq[q]",
      "",
      {ints("tk", 512, [](std::int32_t k) { return 2 * k + k * k % 3; }),
       ints("tq", 512, [](std::int32_t q) { return 2 * q + q * 5 % 4; })});
  all.back().k_len = 400;
  return all;
}

std::optional<GalleryMask> gallery_mask(std::string_view word) {
  constexpr std::string_view folder = "gallery/";
  if (!word.starts_with(folder)) return {};
  for (const GalleryMask& m : gallery_masks())
    if (word.substr(folder.size()) == m.name) return m;
  return {};
}

std::vector<GalleryScore> gallery_scores() {
  constexpr int n = 24, heads = 4;
  std::vector<GalleryScore> all;
  const auto wave = [](std::int64_t i) { return std::sin(0.7 * static_cast<double>(i) + 0.3); };
  const auto add = [&](const char* name,
                       const char* title,
                       std::string text,
                       const char* library,
                       std::vector<Array> arrays = {}) {
    all.push_back({name, title, std::move(text), library, {std::move(arrays), {}}});
  };
  add("alibi",
      "ALiBi",
      "score + slope[head] * (k - q)",
      "alibi(slope)",
      {floats("slope", {heads}, [](std::int64_t i) { return std::exp2(-2.0 * double(i + 1)); })});
  add("softcap", "tanh softcap, exact", "20.0 * tanh(score / 20.0)", "softcap(20)");
  add("bias",
      "a table of biases",
      "score + bias[head, q, k]",
      "bias(table)",
      {floats("bias", {heads, n, n}, wave)});
  add("relu-weights",
      "an activation instead of exp: weights max(score, 0)^2, normalised",
      "2.0 * log(max(score, 0.001))",
      "");
  add("mla-rope",
      "the positional half of MLA: q_pe . k_pe, here of 2 numbers a head",
      "score + 0.125 * (qpe[head, q, 0] * kpe[k, 0] + qpe[head, q, 1] * kpe[k, 1])",
      "",
      {floats("qpe", {heads, n, 2}, wave), floats("kpe", {n, 2}, wave)});
  add("sandwich",
      "Sandwich: a bias by distance, from a table",
      "score + sandwich[head, max(q - k, 0)]",
      "",
      {floats("sandwich", {heads, n}, [](std::int64_t i) {
        double sum = 0;  // Chi et al. 2023: cosines of the distance, shrunk by head
        for (int j = 0; j < 8; ++j)
          sum += std::cos(static_cast<double>(i % n) / std::pow(10000.0, j / 8.0)) - 1;
        return sum / static_cast<double>(8 * (i / n + 1));
      })});
  const auto hops = table("hops", {n, n}, [](std::int64_t i) {
    return static_cast<std::int32_t>(std::min<std::int64_t>(std::abs(i / n - i % n) % 7, 5));
  });
  add("graph-spatial",
      "Graphormer, spatial: a learned bias by the length of the shortest path",
      "score + b[hops[q, k], head]",
      "",
      {hops, floats("b", {6, heads}, wave)});
  add("graph-edge",
      "Graphormer, edges: learned biases of the edges along the path, averaged",
      "let d = max(hops[q, k], 1);\n"
      "score + (e[edge[q, k, 0], head] + (d > 1 ? e[edge[q, k, 1], head] : 0.0)) / min(d, 2)",
      "",
      {hops,
       table("edge", {n, n, 2}, [](std::int64_t i) { return static_cast<std::int32_t>(i % 5); }),
       floats("e", {5, heads}, wave)});
  return all;
}

}  // namespace undivided::check
