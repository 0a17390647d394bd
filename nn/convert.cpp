// SPDX-License-Identifier: Apache-2.0
// MHA to grouped attention and back: what becomes of each tensor of a checkpoint.
#include "undivided/nn/convert.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "core/raw_tensor.hpp"
#include "nn/blas.hpp"
#include "nn/convert_names.hpp"
#include "nn/regroup.hpp"

namespace undivided::nn {
namespace {

std::uint64_t mixed(std::uint64_t seed, const std::string& name) {
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return seed;
}

// The heads of one attention.
struct Heads {
  std::int64_t q = 0, from = 0, dim = 0, v_dim = 0;
  std::int64_t width(char part, std::int64_t kv) const {
    return part == 'q' ? q * dim : kv * (part == 'v' ? v_dim : dim);
  }
};

Heads heads_of(const SourceCheckpoint& source, const AttentionNames& a, std::int64_t q) {
  const auto length = [&](const Slab& s) {
    const auto& shape = source.find(s.tensor)->shape;
    const std::size_t axis = static_cast<std::size_t>(s.axis);
    require(shape.size() == (s.bias ? 1 : 2),
            fmt::format("{} is [{}]; a {} has {}",
                        s.tensor,
                        fmt::join(shape, ", "),
                        s.bias ? "bias" : "weight",
                        s.bias ? "one axis" : "two axes"));
    return shape[axis];
  };
  Slab out = *a.find('o', false);
  out.axis = 1 - out.axis;  // its inputs are the heads
  const std::int64_t o_in = length(out);
  const Slab &sq = *a.find('q', false), &sk = *a.find('k', false), &sv = *a.find('v', false);
  Heads h;
  h.q = q;
  const std::int64_t q_out = sq.parts == "q" ? length(sq) : o_in;
  require(q_out % q == 0,
          fmt::format("{}: {} rows of queries do not divide into {} heads; --heads says how many "
                      "there are",
                      a.prefix,
                      q_out,
                      q));
  h.dim = h.v_dim = q_out / q;
  const std::int64_t k_out =
      sk.parts == "k" ? length(sk) : (length(sk) - (sk.parts == "qkv" ? q_out : 0)) / 2;
  h.from = k_out / h.dim;
  require(h.from > 0 && k_out % h.dim == 0 && q % h.from == 0,
          fmt::format("{}: {} rows of keys are no heads of {} that {} query heads can share",
                      a.prefix,
                      k_out,
                      h.dim,
                      q));
  if (sv.parts == "v") h.v_dim = length(sv) / h.from;
  // Every length follows from the heads now, or the layout is not what it seems.
  for (const Slab& s : a.slabs) {
    if (s.parts == "o") continue;
    std::int64_t wanted = 0;
    for (const char part : s.parts) wanted += h.width(part, h.from);
    require(length(s) == wanted,
            fmt::format("{} has {} output features; {} query and {} KV heads of {} give {}",
                        s.tensor,
                        length(s),
                        q,
                        h.from,
                        h.dim,
                        wanted));
  }
  require(o_in == q * h.v_dim,
          fmt::format("{} reads {} features; {} heads of {} give {}",
                      out.tensor,
                      o_in,
                      q,
                      h.v_dim,
                      q * h.v_dim));
  return h;
}

// The number of query heads, from whoever knows it.
std::int64_t query_heads(const SourceCheckpoint& source,
                         const ConvertOptions& options,
                         AttentionKind kind) {
  if (options.heads > 0) return options.heads;
  const char* own =
      kind == AttentionKind::encoder ? "encoder_attention_heads" : "decoder_attention_heads";
  if (source.config.is_object())
    for (const char* key : {own, "num_attention_heads", "num_heads", "n_head"})
      if (const auto at = source.config.find(key);
          at != source.config.end() && at->is_number_unsigned() && at->get<std::int64_t>() > 0)
        return at->get<std::int64_t>();
  if (const auto at = source.metadata.find("heads"); at != source.metadata.end())
    if (!at->second.empty() && at->second.size() < 6 && at->second != "0" &&
        at->second.find_first_not_of("0123456789") == std::string::npos)
      return std::max(1, std::stoi(at->second));
  require(false,
          fmt::format("{} does not say how many query heads there are: there is no config.json "
                      "with them beside it; give --heads",
                      source.path()));
  return 0;
}

// One conversion: what each tensor becomes.
class Conversion {
 public:
  Conversion(const SourceCheckpoint& source, const ConvertOptions& options)
      : source_(source), options_(options), method_(options.method.value_or(HeadMethod::mean)) {}

  std::vector<SafetensorsItem> items() {
    std::vector<SafetensorsItem> all = std::move(made_);
    for (const auto& entry : source_.entries())
      if (!taken_.contains(entry.first)) all.push_back(source_.item(entry.first, entry.first));
    return all;
  }

  void convert(const AttentionNames& a, const Heads& h, const std::string& layout) {
    const std::int64_t to = options_.kv_heads;
    const bool fuse = layout == "torch" && to == h.q, fused = a.find('k', false)->parts == "qkv";
    if (layout != "torch" || fuse == fused) {
      for (const Slab& s : a.slabs)
        if (s.parts != "o") make({s}, h, s.tensor);
    } else {
      // torch joins the three exactly when every head has its own keys.
      for (const bool bias : {false, true}) {
        if (!a.find('k', bias)) continue;
        const char* end = bias ? "bias" : "weight";
        if (fuse) {
          for (const char part : {'q', 'v'})
            require(a.find(part, bias),
                    fmt::format("{} has a {} of K and none of {}", a.prefix, end, part));
          make({*a.find('q', bias), *a.find('k', bias), *a.find('v', bias)},
               h,
               a.prefix + "in_proj_" + end);
        } else {
          for (const char part : {'q', 'k', 'v'})
            make({*a.find(part, bias)}, h, fmt::format("{}{}_proj.{}", a.prefix, part, end), part);
        }
        if (const Slab* o = a.find('o', bias)) {
          taken_.insert(o->tensor);
          made_.push_back(source_.item(
              o->tensor, fmt::format("{}{}.{}", a.prefix, fuse ? "out_proj" : "o_proj", end)));
        }
      }
    }
    for (const char* norm : {"k_norm.weight", "k_layernorm.weight", "k_ln.weight"})
      if (const auto* e = source_.find(a.prefix + norm)) {
        normed = true;
        if (e->shape.size() > 2 || e->shape.empty() || e->shape == std::vector{h.dim} ||
            e->shape[0] % h.from != 0)
          continue;  // one for all heads
        made_.push_back(item(e->name, e->name, to * (e->shape[0] / h.from), 0, [=, this] {
          return regroup_heads(source_.read(e->name),
                               h.from,
                               to,
                               method_ == HeadMethod::first ? HeadMethod::first : HeadMethod::mean);
        }));
        taken_.insert(e->name);
      }
  }

  bool normed = false;  // keys are normalised after their projection

 private:
  // A tensor of `name` from the slabs, one after another along their axis, or from one part of one.
  void make(const std::vector<Slab>& slabs,
            const Heads& h,
            const std::string& name,
            char only = 0) {
    const std::int64_t to = options_.kv_heads;
    std::int64_t length = 0;
    for (const Slab& s : slabs) {
      taken_.insert(s.tensor);
      for (const char part : s.parts)
        if (!only || part == only) length += h.width(part, to);
    }
    made_.push_back(item(slabs[0].tensor, name, length, slabs[0].axis, [=, this] {
      const int axis = slabs[0].axis;
      const Tensor first = source_.read(slabs[0].tensor);
      Tensor all = resized(first, axis, length);
      std::int64_t at = 0;
      for (const Slab& s : slabs) {
        const Tensor whole = converted(source_.read(s.tensor), DType::f64);
        std::int64_t begin = 0;
        for (const char part : s.parts) {
          const std::int64_t width = h.width(part, h.from);
          begin += width;
          if (only && part != only) continue;
          Tensor piece = resized(whole, axis, width);
          copy_slice(whole, begin - width, piece, 0, width, axis);
          if (part != 'q') {
            if (s.bias && method_ == HeadMethod::random && to < h.from)
              piece = Tensor::zeros(DType::f64, {h.width(part, to)});
            else
              piece = regroup_heads(
                  piece, h.from, to, method_, mixed(options_.seed, s.tensor + part), axis);
          }
          copy_slice(piece, 0, all, at, piece.size(axis), axis);
          at += piece.size(axis);
        }
      }
      return converted(all, first.dtype);
    }));
    for (const Slab& s : slabs)
      require(
          source_.find(s.tensor)->dtype == source_.find(slabs[0].tensor)->dtype,
          fmt::format("{} and {} are joined and have different types", slabs[0].tensor, s.tensor));
  }

  // An item like tensor `like` with another length along one axis.
  SafetensorsItem item(const std::string& like,
                       const std::string& name,
                       std::int64_t length,
                       int axis,
                       std::function<Tensor()> values) {
    const Safetensors::Entry& e = *source_.find(like);
    static const std::set<std::string> types = {"F64", "F32", "F16", "BF16"};
    require(
        types.contains(e.dtype),
        fmt::format("{} is {}; heads of F64, F32, F16 and BF16 are converted: quantised weights "
                    "have scales that do not pool",
                    like,
                    e.dtype));
    SafetensorsItem made = source_.item(like, name);
    const std::int64_t before = made.shape[static_cast<std::size_t>(axis)];
    made.shape[static_cast<std::size_t>(axis)] = length;
    made.bytes =
        made.bytes / static_cast<std::uint64_t>(before) * static_cast<std::uint64_t>(length);
    made.write = [values = std::move(values)](AtomicFile& to) { write_elements(to, values()); };
    return made;
  }

  const SourceCheckpoint& source_;
  const ConvertOptions& options_;
  HeadMethod method_;
  std::vector<SafetensorsItem> made_;
  std::set<std::string> taken_;
};

// What a loader reads beside the weights. `counts` has the KV heads of each attention.
void describe(const std::vector<std::pair<std::string, std::int64_t>>& counts,
              std::map<std::string, std::string>& metadata,
              nlohmann::ordered_json& config,
              ConvertReport& report) {
  const bool uniform = std::all_of(
      counts.begin(), counts.end(), [&](const auto& c) { return c.second == counts[0].second; });
  if (report.layout == "torch")
    metadata["kv_heads"] = uniform ? std::to_string(counts[0].second) : "by attention";
  const char* key = report.layout == "flash" && !config.contains("num_key_value_heads")
                        ? "n_head_kv"
                        : "num_key_value_heads";
  if (config.is_object()) {
    if (uniform) {
      config[key] = counts[0].second;
    } else {
      config.erase(key);
      for (const auto& [prefix, n] : counts) config["undivided_kv_heads"][prefix] = n;
      report.notes.push_back(fmt::format(
          "attentions differ in KV heads now, which {} cannot say: config.json lists them under "
          "undivided_kv_heads, and no other loader reads that",
          key));
    }
  } else if (report.layout != "torch") {
    report.notes.push_back(
        uniform
            ? fmt::format("there was no config.json; loaders want {} = {}", key, counts[0].second)
            : "attentions differ in KV heads now");
  }
  if (report.layout == "t5" || report.layout == "bart" || report.layout == "gpt2")
    report.notes.push_back(fmt::format(
        "transformers' own {} classes give every query head its own keys; loading this wants "
        "attention with shared KV heads",
        report.layout == "t5"     ? "T5"
        : report.layout == "bart" ? "BART and Marian"
                                  : "GPT-2"));
  if (report.layout == "t5")
    report.notes.push_back(
        "relative_attention_bias belongs to query heads and stays; scores have no 1 / sqrt(d)");
}

}  // namespace

ConvertReport convert_heads(const std::string& in,
                            const std::string& out,
                            const ConvertOptions& options) {
  require(options.kv_heads > 0,
          fmt::format("kv_heads is {}; a number above 0 is expected", options.kv_heads));
  const SourceCheckpoint source(in);
  check_target(source, out);
  ConvertReport report;
  report.layout = options.layout;
  report.to = options.kv_heads;
  const auto attentions = find_attentions(source, report.layout);
  std::set<std::int64_t> missing(options.layers.begin(), options.layers.end()), layers;
  for (const AttentionNames& a : attentions) {
    missing.erase(a.layer);
    layers.insert(a.layer);
  }
  require(missing.empty(),
          fmt::format("there is no layer {}; the checkpoint has {} to {}",
                      fmt::join(missing, ", "),
                      *layers.begin(),
                      *layers.rbegin()));

  Conversion conversion(source, options);
  std::vector<std::pair<std::string, std::int64_t>> counts;
  for (const AttentionNames& a : attentions) {
    ++report.attentions;
    const std::int64_t q = query_heads(source, options, a.kind);
    const Heads h = heads_of(source, a, q);
    counts.emplace_back(a.prefix.substr(0, a.prefix.empty() ? 0 : a.prefix.size() - 1), h.from);
    const bool wanted = (a.kind == AttentionKind::self    ? options.self
                         : a.kind == AttentionKind::cross ? options.cross
                                                          : options.encoder) &&
                        (options.layers.empty() ||
                         std::count(options.layers.begin(), options.layers.end(), a.layer) > 0);
    if (!wanted || h.from == options.kv_heads) continue;
    require(q % options.kv_heads == 0,
            fmt::format("{}: {} query heads cannot share {} KV heads; allowed: {}",
                        a.prefix,
                        q,
                        options.kv_heads,
                        divisors(q)));
    require(h.from % options.kv_heads == 0 || options.kv_heads % h.from == 0,
            fmt::format("{}: {} KV heads are grouped already and do not regroup into {}; expand "
                        "them to {} first",
                        a.prefix,
                        h.from,
                        options.kv_heads,
                        q));
    require(options.kv_heads < h.from || !options.method,
            fmt::format("{}: {} KV heads become {} by repeating them; a method is for fewer heads",
                        a.prefix,
                        h.from,
                        options.kv_heads));
    ++report.converted;
    report.heads = q;
    report.from = h.from;
    counts.back().second = options.kv_heads;
    conversion.convert(a, h, report.layout);
  }
  require(report.converted > 0,
          fmt::format("nothing to convert: of {} attentions ({} layout) {}",
                      report.attentions,
                      report.layout,
                      std::all_of(counts.begin(),
                                  counts.end(),
                                  [&](auto& c) { return c.second == options.kv_heads; })
                          ? fmt::format("all have {} KV heads already", options.kv_heads)
                          : "none that was asked for has another number of KV heads"));
  if (conversion.normed && report.to < report.from)
    report.notes.push_back(
        "keys are normalised after their projection (k_norm): pooled weights are not the mean of "
        "normalised keys, so expect to need more training");

  const auto count = [](const std::vector<std::int64_t>& shape) {
    std::int64_t n = 1;
    for (const std::int64_t size : shape) n *= size;
    return n;
  };
  for (const auto& entry : source.entries()) report.parameters += count(entry.second->shape);
  std::vector<SafetensorsItem> items = conversion.items();
  for (const SafetensorsItem& item : items) report.parameters_after += count(item.shape);
  auto metadata = source.metadata;
  auto config = source.config;
  describe(counts, metadata, config, report);
  write_checkpoint(out, source.folder(), std::move(items), metadata, config);
  return report;
}

}  // namespace undivided::nn
