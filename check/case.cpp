// SPDX-License-Identifier: Apache-2.0
// The axes of the grid, names of cases, and which cases mean nothing.
#include "check/case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <tuple>

#include "check/gallery.hpp"
#include "undivided/error.hpp"

namespace undivided::check {
namespace {

using Words = std::string Case::*;

/// Axes whose values are words, in the order of axes() after the numeric ones.
struct WordAxis {
  const char* name;
  Words field;
  std::vector<std::string> values;  // the first is the default
};

const std::vector<WordAxis>& word_axes() {
  static const std::vector<WordAxis> table = {
      {"rows", &Case::rows, {"dense", "lengths", "ragged"}},
      {"kv",
       &Case::kv,
       {"dense", "lengths", "ragged", "page1", "page16", "page32", "page64", "page128"}},
      {"mask",
       &Case::mask,
       {"full",
        "causal",
        "window",
        "band",
        "prefix",
        "documents",
        "odd",
        "holes",
        "blocks",
        "columns"}},
      {"score", &Case::score, {"identity", "softcap", "alibi", "bias", "table", "chain"}},
      {"align", &Case::align, {"start", "end", "given"}},
      {"dropout", &Case::dropout, {"none", "some"}},
      {"sink", &Case::sink, {"none", "given"}},
      {"aux", &Case::aux, {"none", "max", "mass", "both"}},
      {"result", &Case::result, {"same", "f32", "partial"}},
      {"layout", &Case::layout, {"packed", "tokens", "padded", "unaligned"}},
      {"determinism", &Case::determinism, {"fast", "reproducible", "invariant"}},
      {"want", &Case::want, {"all", "dlse", "q", "kv"}},
      {"via", &Case::via, {"verb", "into", "plan", "maskplan", "inside"}},
      {"index", &Case::index, {"i32", "i64"}},
      {"threads", &Case::threads, {"t1", "t2"}},
      {"isa", &Case::isa, {"auto", "scalar", "avx2", "avx512", "avx512_bf16", "amx"}},
  };
  return table;
}
constexpr std::size_t numeric_axes = 7;  // op dtype dims q k heads batch

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Code::invalid_argument, Stage::parse, message);
}

std::int64_t number(std::string_view text, std::string_view whole, std::int64_t low) {
  std::int64_t n = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < low || n > (1 << 24))
    refuse(fmt::format("'{}' in a case name: a number from {} to {} is expected",
                       whole,
                       low,
                       std::int64_t{1} << 24));
  return n;
}

std::pair<std::int64_t, std::int64_t> two_numbers(std::string_view text, std::string_view whole) {
  const auto x = text.find('x');
  if (x == std::string_view::npos) {
    const auto n = number(text, whole, 1);
    return {n, n};
  }
  return {number(text.substr(0, x), whole, 1), number(text.substr(x + 1), whole, 1)};
}

/// Of those that a name spells out as axis=value.
std::size_t word_axis_index(std::string_view name) {
  std::vector<std::string_view> names;
  for (const WordAxis& w : word_axes()) {
    if (w.name == name) return numeric_axes + names.size();
    names.push_back(w.name);
  }
  refuse(fmt::format("'{}=' in a case name: axis=value has one of the axes {}, precision, seed",
                     name,
                     fmt::join(names, ", ")));
}

}  // namespace

const std::vector<Axis>& axes() {
  static const std::vector<Axis> table = [] {
    const std::vector<std::string> lengths = {
        "0", "1", "3", "7", "63", "64", "65", "127", "129", "257", "511", "1001"};
    std::vector<Axis> out = {
        {"op", {"forward", "backward"}},
        {"dtype", {"f32", "f16", "bf16"}},
        {"dims", {"64", "8", "32", "40", "72", "96", "128", "192", "256", "512", "192x128"}},
        {"q", lengths},
        {"k", lengths},
        {"heads", {"2x2", "1x1", "4x2", "3x1", "8x1"}},
        {"batch", {"1", "2", "3"}},
    };
    for (const WordAxis& w : word_axes()) out.push_back({w.name, w.values});
    return out;
  }();
  return table;
}

std::string get(const Case& c, std::size_t axis) {
  const auto pair = [](std::int64_t a, std::int64_t b) { return fmt::format("{}x{}", a, b); };
  switch (axis) {
    case 0:
      return c.op;
    case 1:
      return name_of(c.dtype);
    case 2:
      return c.d == c.dv ? fmt::format("{}", c.d) : pair(c.d, c.dv);
    case 3:
      return fmt::format("{}", c.q_len);
    case 4:
      return fmt::format("{}", c.k_len);
    case 5:
      return pair(c.heads, c.kv_heads);
    case 6:
      return fmt::format("{}", c.batch);
    default:
      return c.*word_axes()[axis - numeric_axes].field;
  }
}

void set(Case& c, std::size_t axis, std::string_view value) {
  switch (axis) {
    case 0:
      if (value != "forward" && value != "backward")
        refuse(fmt::format("a case begins with forward or backward, not '{}'", value));
      c.op = value;
      return;
    case 1:
      c.dtype = dtype_from_name(value);
      if (c.dtype != DType::f32 && !is_float16(c.dtype))
        refuse(fmt::format("cases have dtype f32, f16 or bf16, not '{}'", value));
      return;
    case 2:
      std::tie(c.d, c.dv) = two_numbers(value, value);
      return;
    case 3:
      c.q_len = number(value, value, 0);
      return;
    case 4:
      c.k_len = number(value, value, 0);
      return;
    case 5:
      std::tie(c.heads, c.kv_heads) = two_numbers(value, value);
      return;
    case 6:
      c.batch = number(value, value, 0);
      return;
    default: {
      const WordAxis& w = word_axes()[axis - numeric_axes];
      const bool drawn = w.field == &Case::mask && gallery_mask(value);
      if (!drawn && std::find(w.values.begin(), w.values.end(), value) == w.values.end())
        refuse(fmt::format("'{}={}' in a case name: {} is one of {}",
                           w.name,
                           value,
                           w.name,
                           fmt::join(w.values, ", ")));
      c.*w.field = value;
    }
  }
}

std::string Case::name() const {
  std::string out = fmt::format("{}.{}.d{}.q{}.k{}.h{}.b{}",
                                op,
                                name_of(dtype),
                                get(*this, 2),
                                q_len,
                                k_len,
                                get(*this, 5),
                                batch);
  for (const WordAxis& w : word_axes())
    if (this->*w.field != w.values.front()) out += fmt::format(".{}={}", w.name, this->*w.field);
  if (quantised()) out += fmt::format(".precision={}", precision);
  if (seed != 1) out += fmt::format(".seed={}", seed);
  return out;
}

Case Case::parse(std::string_view name) {
  Case c;
  static constexpr std::string_view prefixes[] = {"", "", "d", "q", "k", "h", "b"};
  std::size_t at = 0;
  for (std::size_t axis = 0; at <= name.size() && !name.empty(); ++axis) {
    const auto dot = std::min(name.find('.', at), name.size());
    const std::string_view word = name.substr(at, dot - at);
    at = dot + 1;
    if (axis < numeric_axes) {
      if (!word.starts_with(prefixes[axis]))
        refuse(fmt::format(
            "'{}' in case '{}': {}<number> is expected here", word, name, prefixes[axis]));
      set(c, axis, word.substr(prefixes[axis].size()));
      continue;
    }
    const auto equals = word.find('=');
    if (equals == std::string_view::npos)
      refuse(fmt::format("'{}' in case '{}': axis=value is expected here", word, name));
    const std::string_view key = word.substr(0, equals), value = word.substr(equals + 1);
    if (key == "precision") {
      if (value != "i8/bf16" && value != "i8/f32")
        refuse(fmt::format("'{}' in a case name: precision is one of i8/bf16, i8/f32", word));
      c.precision = value;
    } else if (key == "seed")
      c.seed = static_cast<std::uint64_t>(number(value, word, 0));
    else
      set(c, word_axis_index(key), value);
  }
  if (const std::string why = impossible(c); !why.empty())
    refuse(fmt::format("case '{}' means nothing: {}", name, why));
  return c;
}

double Case::cost() const {
  return static_cast<double>(batch * heads) * static_cast<double>(q_len * k_len) *
         static_cast<double>(d + dv + 48) * (backward() ? 2.5 : 1);
}

Sample sample_of(const Case& c) {
  if (c.cost() <= whole_cost) return {};
  return {static_cast<std::int64_t>(std::ceil(c.cost() / sampled_cost))};
}

std::string impossible(const Case& c) {
  if (const auto drawn = gallery_mask(c.mask);
      drawn && (c.q_len > drawn->q_len || c.k_len > drawn->k_len || c.align == "given"))
    return "the arrays of the gallery are as long as its pictures";
  if (c.heads % c.kv_heads != 0) return "query heads must be a multiple of KV heads";
  if (c.backward()) {
    if (c.aux != "none") return "a backward has no auxiliary outputs";
    if (c.result == "partial") return "partial results have no gradient";
    if (c.quantised()) return "scores of int8 have no gradient";
  } else if (c.want != "all") {
    return "a forward has no gradients to choose from";
  }
  if (c.result == "partial" && c.sink != "none") return "a partial result excludes the sink";
  if (c.dtype == DType::f32 && c.result == "f32")
    return "f32 results of f32 inputs are the default";
  if ((c.via == "maskplan" || c.via == "inside") &&
      (c.mask == "full" || c.mask == "causal" || c.mask == "window" || c.mask == "band"))
    return "bands need no mask plan";
  // Arrays that are indexed by position start at 0.
  const bool by_position = c.mask == "documents" || c.mask == "columns" || c.score == "bias";
  if (c.align == "end" && by_position && c.q_len > 0 && c.k_len > 0 &&
      (c.q_len > c.k_len || (c.batch > 1 && c.kv != "dense" && c.rows == "dense")))
    return "aligned at the end, the first positions are negative and not indices";
  return {};
}

bool impossible_pair(std::size_t axis_a,
                     std::string_view value_a,
                     std::size_t axis_b,
                     std::string_view value_b) {
  const auto either = [&](std::string_view axis, std::string_view value, auto&& other) {
    if (axes()[axis_a].name == axis && value_a == value) return other(axes()[axis_b].name, value_b);
    if (axes()[axis_b].name == axis && value_b == value) return other(axes()[axis_a].name, value_a);
    return false;
  };
  using View = std::string_view;
  const auto is_band = [](View axis, View value) {
    return axis == "mask" &&
           (value == "full" || value == "causal" || value == "window" || value == "band");
  };
  return either("op",
                "backward",
                [](View axis, View value) {
                  return (axis == "aux" && value != "none") ||
                         (axis == "result" && value == "partial");
                }) ||
         either("op",
                "forward",
                [](View axis, View value) { return axis == "want" && value != "all"; }) ||
         either("result",
                "partial",
                [](View axis, View value) {
                  return (axis == "sink" && value == "given") || (axis == "want" && value != "all");
                }) ||
         either("dtype",
                "f32",
                [](View axis, View value) { return axis == "result" && value == "f32"; }) ||
         either("via", "maskplan", is_band) || either("via", "inside", is_band) ||
         // A gradient excludes auxiliary outputs, so wanting part of it does too.
         (axes()[axis_a].name == "aux" && value_a != "none" && axes()[axis_b].name == "want" &&
          value_b != "all") ||
         (axes()[axis_b].name == "aux" && value_b != "none" && axes()[axis_a].name == "want" &&
          value_a != "all");
}

}  // namespace undivided::check
