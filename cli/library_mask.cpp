// SPDX-License-Identifier: Apache-2.0
// Reads a call such as 'prefix(128)'; '&&' joins several, as in 'causal() && window(256)'.
#include "cli/library_mask.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "cli/common.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided::cli {
namespace {

std::string trimmed(const std::string& s) {
  const auto begin = s.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : s.substr(begin, s.find_last_not_of(" \t") - begin + 1);
}

[[noreturn]] void bad_call(const std::string& call, const std::string& why) {
  std::string calls;
  for (const LibraryMask& m : library_masks())
    calls += (calls.empty() ? "" : ", ") + std::string(m.call);
  refuse(fmt::format("--name '{}': {}; library masks: {}", call, why, calls));
}

std::optional<std::int32_t> whole(const std::string& text) {
  std::int32_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return n;
}

/// Every element of an int32 array, row by row.
std::vector<std::int32_t> integers(const std::string& call, const Array& a) {
  if (a.view().dtype != DType::i32)
    bad_call(call, fmt::format("{} is {}; int32 is expected", a.name(), a.view().describe()));
  const Tensor dense = converted(a.view(), DType::i32);
  const auto* x = dense.ptr<std::int32_t>();
  return {x, x + dense.count()};
}

/// Columns [keys, columns], [heads, keys, columns] or [1, heads, keys, columns].
Mask flashmask(const std::string& call, const Array& a, bool is_causal) {
  const View& v = a.view();
  if (v.rank < 2 || (v.rank == 4 && v.size(0) != 1))
    bad_call(call,
             fmt::format("{} is {}; [keys, columns], [heads, keys, columns] or [1, heads, keys, "
                         "columns] is expected",
                         a.name(),
                         v.describe()));
  FlashMask m;
  m.causal = is_causal;
  m.heads = v.rank > 2 ? v.size(-3) : 1;
  m.keys = v.size(-2);
  m.columns = static_cast<int>(v.size(-1));
  m.values = integers(call, a);
  return import_flashmask(m);
}

Mask one_call(const std::string& call,
              const std::vector<Array>& arrays,
              std::vector<std::string>& read) {
  const std::size_t open = call.find('(');
  const std::string name = trimmed(call.substr(0, open));
  std::vector<std::string> arguments;
  if (open != std::string::npos) {
    if (call.back() != ')') bad_call(call, "it must end with ')'");
    std::string inside = call.substr(open + 1, call.size() - open - 2);
    if (!trimmed(inside).empty()) {
      for (std::size_t at = 0; at <= inside.size();) {
        const std::size_t end = std::min(inside.find(',', at), inside.size());
        arguments.push_back(trimmed(inside.substr(at, end - at)));
        at = end + 1;
      }
    }
  }
  const auto count = [&](std::size_t least, std::size_t most) {
    if (arguments.size() < least || arguments.size() > most)
      bad_call(call,
               fmt::format("{} takes {}{} arguments, and {} came",
                           name,
                           least,
                           most > least ? fmt::format(" to {}", most) : "",
                           arguments.size()));
  };
  const auto number = [&](std::size_t i) {
    const auto n = whole(arguments[i]);
    if (!n) bad_call(call, fmt::format("'{}' is not a whole number", arguments[i]));
    return *n;
  };
  if (name == "full") return count(0, 0), full();
  if (name == "causal") return count(0, 0), causal();
  if (name == "window") {
    count(1, 2);
    return arguments.size() == 1 ? window(number(0)) : window(number(0), number(1));
  }
  if (name == "prefix") return count(1, 1), prefix(number(0));
  const auto array = [&](std::size_t i) {
    for (const Array& a : arrays)
      if (a.name() == arguments[i]) return read.push_back(a.name()), a;
    bad_call(call, fmt::format("no array '{0}' is bound: add --array {0}=FILE", arguments[i]));
  };
  if (name == "documents") return count(1, 1), documents(array(0));
  if (name == "tree") return count(1, 1), tree(integers(call, array(0)));
  if (name == "flashmask") {
    count(1, 2);
    if (arguments.size() == 2 && arguments[1] != "causal")
      bad_call(call, fmt::format("'{}' is not 'causal'", arguments[1]));
    return flashmask(call, array(0), arguments.size() == 2);
  }
  const std::string near =
      nearest(name, {"full", "causal", "window", "prefix", "documents", "tree", "flashmask"});
  bad_call(
      call,
      fmt::format(
          "unknown name '{}'{}", name, near.empty() ? "" : fmt::format(", nearest: {}", near)));
}

}  // namespace

const std::vector<LibraryMask>& library_masks() {
  static const std::vector<LibraryMask> all{
      {"full()", "every pair"},
      {"causal()", "k <= q"},
      {"window(LEFT, RIGHT)", "q - k <= LEFT && k - q <= RIGHT"},
      {"window(WIDTH)", "window(WIDTH, WIDTH)"},
      {"prefix(N)", "k < N || k <= q"},
      {"documents(ARRAY)", "ARRAY[q] == ARRAY[k]; int32 [tokens] or [batch, tokens]"},
      {"tree(ARRAY)", "k is q or an ancestor of q; ARRAY holds each token's parent, -1 for a root"},
      {"flashmask(ARRAY)", "FlashMask columns [heads, keys, 2 or 4]; not causal"},
      {"flashmask(ARRAY, causal)", "FlashMask columns [heads, keys, 1 or 2] below the diagonal"},
  };
  return all;
}

Mask library_mask(const std::string& text, const std::vector<Array>& arrays) {
  std::optional<Mask> all;
  std::vector<std::string> read;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find("&&", at), text.size());
    const std::string call = trimmed(text.substr(at, end - at));
    if (call.empty()) bad_call(text, "a call is expected");
    const Mask next = one_call(call, arrays, read);
    all = all ? *all && next : next;
    at = end + 2;
  }
  for (const Array& a : arrays)
    if (std::find(read.begin(), read.end(), a.name()) == read.end())
      refuse(fmt::format("--array {0}: --name '{1}' does not read {0}", a.name(), text));
  return *all;
}

}  // namespace undivided::cli
