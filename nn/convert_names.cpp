// SPDX-License-Identifier: Apache-2.0
// Names of attention projections.
#include "nn/convert_names.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "nn/blas.hpp"
#include "undivided/nn/convert.hpp"

namespace undivided::nn {
namespace {

struct Leaf {
  const char* name;
  const char* parts;
};
struct Layout {
  const char* name;
  std::vector<Leaf> leaves;
  bool transposed = false;  // weights are [in, out]
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"llama", {{"q_proj", "q"}, {"k_proj", "k"}, {"v_proj", "v"}, {"o_proj", "o"}}},
      {"bart", {{"q_proj", "q"}, {"k_proj", "k"}, {"v_proj", "v"}, {"out_proj", "o"}}},
      {"t5", {{"q", "q"}, {"k", "k"}, {"v", "v"}, {"o", "o"}}},
      // Grouped attention of our own models has the four names of llama.
      {"torch",
       {{"in_proj", "qkv"},
        {"out_proj", "o"},
        {"q_proj", "q"},
        {"k_proj", "k"},
        {"v_proj", "v"},
        {"o_proj", "o"}}},
      {"flash", {{"Wqkv", "qkv"}, {"Wq", "q"}, {"Wkv", "kv"}, {"out_proj", "o"}}},
      {"gpt2", {{"c_attn", "qkv"}, {"q_attn", "q"}, {"c_proj", "o"}}, true},
  };
  return all;
}

std::vector<std::string> components(const std::string& name) {
  std::vector<std::string> parts(1);
  for (const char c : name)
    if (c == '.')
      parts.emplace_back();
    else
      parts.back() += c;
  return parts;
}

// "h.0.attn.c_attn.weight" is prefix "h.0.attn.", leaf "c_attn".
bool split(const std::string& name, std::string& prefix, std::string& leaf, bool& bias) {
  std::string rest = name;
  bias = rest.ends_with("bias");
  const std::string end = bias ? "bias" : "weight";
  if (!rest.ends_with(end)) return false;
  rest.resize(rest.size() - end.size());
  if (rest.size() < 2 || (rest.back() != '.' && !rest.ends_with("in_proj_"))) return false;
  rest.pop_back();
  const std::size_t dot = rest.rfind('.');
  leaf = dot == std::string::npos ? rest : rest.substr(dot + 1);
  prefix = dot == std::string::npos ? "" : rest.substr(0, dot + 1);
  return true;
}

AttentionKind kind_of(const std::vector<std::string>& path) {
  AttentionKind kind = AttentionKind::self;
  for (const std::string& word : path) {
    for (const char* cross :
         {"encoder_attn", "EncDecAttention", "multihead_attn", "crossattention", "cross_attn"})
      if (word == cross) return AttentionKind::cross;
    if (word == "encoder") kind = AttentionKind::encoder;
  }
  return kind;
}

std::int64_t layer_of(const std::vector<std::string>& path) {
  for (const std::string& word : path)
    if (!word.empty() && word.size() < 10 &&
        word.find_first_not_of("0123456789") == std::string::npos)
      return std::stoll(word);
  return 0;
}

bool attention_module(const Layout& layout, const std::string& prefix) {
  const std::string name = layout.name;
  if (name == "t5")
    return prefix.ends_with("SelfAttention.") || prefix.ends_with("EncDecAttention.");
  if (name == "gpt2") return prefix.ends_with("attn.") || prefix.ends_with("attention.");
  return true;
}

std::vector<AttentionNames> attentions_in(const SourceCheckpoint& source, const Layout& layout) {
  std::map<std::string, AttentionNames> found;
  for (const auto& entry : source.entries()) {
    std::string prefix, leaf;
    bool bias = false;
    if (!split(entry.first, prefix, leaf, bias) || !attention_module(layout, prefix)) continue;
    for (const Leaf& l : layout.leaves)
      if (leaf == l.name)
        found[prefix].slabs.push_back(
            {entry.first, leaf, l.parts, bias, layout.transposed && !bias ? 1 : 0});
  }
  std::vector<AttentionNames> result;
  for (auto& [prefix, a] : found) {
    // Cross-attention of GPT-2 has Q apart, and K and V in c_attn.
    const bool apart = std::any_of(
        a.slabs.begin(), a.slabs.end(), [](const Slab& s) { return s.leaf == "q_attn"; });
    for (Slab& s : a.slabs)
      if (apart && s.leaf == "c_attn") s.parts = "kv";
    if (!a.has('k')) continue;  // an out_proj of something else
    a.prefix = prefix;
    const auto path = components(prefix);
    a.kind = kind_of(path);
    a.layer = layer_of(path);
    result.push_back(std::move(a));
  }
  std::sort(result.begin(), result.end(), [](const auto& a, const auto& b) {
    return std::tie(a.layer, a.prefix) < std::tie(b.layer, b.prefix);
  });
  return result;
}

// llama and bart share three names: the fourth tells them apart. A torch model without any fused
// attention looks like llama; what our own training writes beside it tells.
std::vector<AttentionNames> own(const SourceCheckpoint& source, const Layout& layout) {
  const std::string name = layout.name;
  std::vector<AttentionNames> all = attentions_in(source, layout);
  const bool ours = source.metadata.contains("kv_heads");
  bool fused = ours;
  for (const AttentionNames& a : all) fused |= a.find('k', false)->leaf == "in_proj";
  if (name == "torch") return fused ? all : std::vector<AttentionNames>{};
  if (name != "llama" && name != "bart") return all;
  const std::string other = name == "llama" ? "out_proj.weight" : "o_proj.weight";
  std::erase_if(all, [&](const AttentionNames& a) {
    return source.find(a.prefix + other) || source.find(a.prefix + "in_proj_weight") || ours ||
           (name == "bart" && !a.has('o'));
  });
  return all;
}

}  // namespace

const Slab* AttentionNames::find(char part, bool bias) const {
  for (const Slab& s : slabs)
    if (s.bias == bias && s.parts.find(part) != std::string::npos) return &s;
  return nullptr;
}

const std::vector<std::string>& convert_layouts() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Layout& l : layouts()) all.emplace_back(l.name);
    return all;
  }();
  return names;
}

std::vector<AttentionNames> find_attentions(const SourceCheckpoint& source, std::string& layout) {
  require(
      layout == "auto" || std::count(convert_layouts().begin(), convert_layouts().end(), layout),
      fmt::format("there is no layout '{}'; allowed: auto, {}",
                  layout,
                  fmt::join(convert_layouts(), ", ")));
  std::vector<AttentionNames> all;
  std::vector<std::string> fitting;
  for (const Layout& l : layouts()) {
    if (layout != "auto" && layout != l.name) continue;
    auto found = own(source, l);
    if (found.empty()) continue;
    fitting.emplace_back(l.name);
    all = std::move(found);
  }
  if (fitting.empty()) {
    std::vector<std::string> some;
    for (const auto& entry : source.entries())
      if (some.size() < 4) some.push_back(entry.first);
    require(false,
            fmt::format("{} has no attention that {} knows; it has {} tensors: {}{}",
                        source.path(),
                        layout == "auto"
                            ? fmt::format("a layout ({})", fmt::join(convert_layouts(), ", "))
                            : "layout " + layout,
                        source.entries().size(),
                        fmt::join(some, ", "),
                        source.entries().size() > some.size() ? ", ..." : ""));
  }
  require(fitting.size() == 1,
          fmt::format("{} has attention in several layouts; say which one to convert: {}",
                      source.path(),
                      fmt::join(fitting, ", ")));
  layout = fitting[0];
  for (const AttentionNames& a : all) {
    for (const char part : {'q', 'v', 'o'})
      require(a.has(part),
              fmt::format("{}: {} has no weight of the {} projection ({} layout)",
                          source.path(),
                          a.prefix,
                          part,
                          layout));
    for (const char* extra : {"bias_k", "bias_v"})
      require(!source.find(a.prefix + extra),
              fmt::format(
                  "{}: {}{} is there; a key and value that belong to no token are not converted",
                  source.path(),
                  a.prefix,
                  extra));
    for (const char* extra : {"lambda_q1", "lambda_proj.weight"})
      require(!source.find(a.prefix + extra),
              fmt::format("{}: {}{} says that this is a Differential Transformer, whose KV heads "
                          "come in pairs; its groups are not changed. allowed: --to unilm or --to "
                          "diffllama, which keep them",
                          source.path(),
                          a.prefix,
                          extra));
  }
  return all;
}

}  // namespace undivided::nn
