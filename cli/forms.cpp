// SPDX-License-Identifier: Apache-2.0
// Builds each form of the demo from one input.
#include "cli/forms.hpp"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "core/array_file.hpp"
#include "core/generator.hpp"

namespace undivided::cli {
namespace {

namespace fs = std::filesystem;
constexpr const char* real_file = "minilm_layer3.safetensors";

std::string find_real_file() {
  std::error_code ignored;
  std::vector<fs::path> folders;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  if (!program.empty())
    for (const char* from :
         {"../share/undivided", "data", "../data", "../../data", "../../../data"})
      folders.push_back(program / from);
#ifdef UNDIVIDED_DATA_DIR
  folders.emplace_back(UNDIVIDED_DATA_DIR);
#endif
  folders.emplace_back("data");
  for (const fs::path& folder : folders)
    if (fs::exists(folder / real_file, ignored)) return (folder / real_file).string();
  throw Error(
      Code::io,
      Stage::parse,
      fmt::format("{} is not found beside the program, in its share folder or in ./data; run "
                  "the demo from the source tree or install the package",
                  real_file));
}

Tensor vector_of(const std::vector<std::int32_t>& values) {
  Tensor t = Tensor::empty(DType::i32, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.ptr<std::int32_t>());
  return t;
}

Workload dense_work(const Input& in, std::int64_t kv_heads) {
  Workload w;
  w.keep = {in.q, in.k, in.v};
  w.q = Rows(in.q);
  w.kv = dense(in.k.sliced(1, 0, kv_heads), in.v.sliced(1, 0, kv_heads));
  return w;
}

/// [1, heads, tokens, dim] as packed [tokens, heads, dim]: a view, nothing is copied.
View packed(const View& v) { return v.selected(0, 0).permuted({1, 0, 2}); }

Workload ragged_work(const Input& in) {
  std::vector<std::int32_t> offsets{0};
  const auto n = static_cast<std::int32_t>(in.document.size());
  for (std::int32_t i = 1; i < n; ++i)
    if (in.document[static_cast<std::size_t>(i)] != in.document[static_cast<std::size_t>(i - 1)])
      offsets.push_back(i);
  offsets.push_back(n);
  Workload w;
  const Tensor at = vector_of(offsets);
  w.keep = {in.q, in.k, in.v, at};
  w.q = ragged(packed(in.q), at);
  w.kv = ragged(packed(in.k), packed(in.v), at);
  w.options.mask = causal();
  return w;
}

/// The same keys and values, cut into pages of 16 tokens that lie in another order.
Workload paged_work(const Input& in) {
  constexpr std::int64_t page = 16;
  const std::int64_t heads = in.k.size(1), tokens = in.k.size(2), dim = in.k.size(3);
  const std::int64_t pages = (tokens + page - 1) / page;
  std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
  for (std::int64_t i = 0; i < pages; ++i)  // every page once: 7 and the count share no factor
    table[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(
        std::gcd(pages, std::int64_t{7}) == 1 ? i * 7 % pages : pages - 1 - i);
  Workload w;
  const auto pool = [&](const View& from) {
    Tensor to = Tensor::zeros(DType::f32, {pages, heads, page, dim});
    for (std::int64_t i = 0; i < pages; ++i) {
      const std::int64_t begin = i * page, end = std::min(begin + page, tokens);
      copy(from.selected(0, 0).sliced(1, begin, end),
           to.selected(0, table[static_cast<std::size_t>(i)]).sliced(1, 0, end - begin));
    }
    w.keep.push_back(to);
    return to;
  };
  const Tensor k = pool(in.k), v = pool(in.v);
  Tensor at = vector_of(table);
  const Tensor lengths = vector_of({static_cast<std::int32_t>(tokens)});
  w.keep.insert(w.keep.end(), {in.q, at, lengths});
  w.q = Rows(in.q);
  w.kv = paged(k, v, at.unsqueezed(0), lengths);
  w.options.mask = causal();
  w.options.align = Align::end;
  return w;
}

}  // namespace

Input real_input() {
  const std::string file = find_real_file();
  Input in;
  in.q = read_array(file + ":q");
  in.k = read_array(file + ":k");
  in.v = read_array(file + ":v");
  const Tensor sentence = read_array(file + ":sentence");
  const auto* at = sentence.ptr<std::int32_t>();
  in.document.assign(at, at + sentence.count());
  in.name = fmt::format("MiniLM layer on a page of Alice: {} heads, {} tokens, dim {}",
                        in.q.size(1),
                        in.q.size(2),
                        in.q.size(3));
  return in;
}

Input large_input(std::int64_t heads, std::int64_t tokens, std::int64_t dim) {
  Input in;
  // Values that float16 holds exactly, so that one oracle judges every element type.
  const auto random = [&](std::uint64_t seed) {
    return converted(random_normal(DType::f16, {1, heads, tokens, dim}, seed), DType::f32);
  };
  in.q = random(1);
  in.k = random(2);
  in.v = random(3);
  for (std::int64_t i = 0; i < tokens; ++i)
    in.document.push_back(static_cast<std::int32_t>(i * 7 / std::max<std::int64_t>(tokens, 1)));
  in.name = fmt::format("seeded normal values: {} heads, {} tokens, dim {}", heads, tokens, dim);
  return in;
}

std::vector<Form> forms_of(const Input& in) {
  const std::int64_t heads = in.q.size(1), tokens = in.q.size(2);
  const std::int64_t shared = heads % 4 == 0 ? heads / 4 : 1;
  const auto width = static_cast<std::int32_t>(std::max<std::int64_t>(32, tokens / 8));
  std::vector<Form> forms;
  const auto add = [&](std::string name, std::string note, Workload w, bool backward = false) {
    forms.push_back({std::move(name), std::move(note), std::move(w), backward});
    return &forms.back().work.options;
  };
  add("MHA", "every query head has its own keys", dense_work(in, heads));
  add("GQA",
      fmt::format("{} KV heads serve {} query heads", shared, heads),
      dense_work(in, shared));
  add("MQA", "one KV head serves all", dense_work(in, 1));
  add("causal", "k <= q", dense_work(in, heads))->mask = causal();
  add("window", fmt::format("the last {} keys", width + 1), dense_work(in, heads))->mask =
      window(width, 0);
  const Array doc(in.document, "doc");
  add("documents", "a traced lambda: doc[q] == doc[k] && k <= q", dense_work(in, heads))->mask =
      mask([=](auto, auto, auto q, auto k) { return doc[q] == doc[k] && k <= q; });
  std::vector<float> slopes;
  for (std::int64_t h = 0; h < heads; ++h)
    slopes.push_back(std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(heads)));
  Options* o = add("ALiBi", "score + m[head] * (k - q), causal", dense_work(in, heads));
  o->score = alibi(Array(slopes, "m"));
  o->mask = causal();
  add("softcap", "30 * tanh(score / 30)", dense_work(in, heads))->score = softcap(30);
  add("ragged", "documents packed one after the other, causal", ragged_work(in));
  add("paged", "keys in scattered pages of 16 tokens, causal", paged_work(in));
  o = add("dropout", "a tenth of the weights dropped, by seed", dense_work(in, heads));
  o->dropout = 0.1;
  o->seed = 7;
  Workload w = dense_work(in, heads);
  w.options.mask = causal();
  w.dout = random_normal(DType::f32, {1, heads, tokens, in.v.size(3)}, 9);
  // Rounded once so that a gradient in float16 sees the same values.
  w.dout = converted(converted(w.dout, DType::f16), DType::f32);
  add("backward", "dQ, dK and dV of the causal form", std::move(w), true);
  return forms;
}

}  // namespace undivided::cli
