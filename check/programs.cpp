// SPDX-License-Identifier: Apache-2.0
// Library masks and scores, and traced and parsed ones that no kernel knows by shape.
#include "check/programs.hpp"

#include <algorithm>
#include <cmath>

#include "check/gallery.hpp"
#include "check/random.hpp"
#include "undivided/error.hpp"
#include "undivided/mask_formats.hpp"

namespace undivided::check {
namespace {

std::vector<float> normals(std::size_t n, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(random.normal());
  return out;
}

Tensor table(std::initializer_list<std::int64_t> shape, std::uint64_t seed) {
  const Tensor t = Tensor::empty(DType::f32, shape);
  const auto values = normals(static_cast<std::size_t>(t.count()), seed);
  std::copy(values.begin(), values.end(), t.ptr<float>());
  return t;
}

/// Document of each position: runs of 5 to 40 tokens, another cut for each sequence.
Array document_ids(const Extents& e, std::uint64_t seed) {
  const std::int64_t tokens = std::max(e.q, e.k);
  const Tensor id = Tensor::empty(DType::i32, {e.batch, tokens});
  Random random(seed);
  for (std::int64_t b = 0; b < e.batch; ++b) {
    std::int32_t current = 0;
    std::int64_t left = 0;
    for (std::int64_t t = 0; t < tokens; ++t, --left) {
      if (left <= 0) {
        left = 5 + random.below(36);
        ++current;
      }
      *static_cast<std::int32_t*>(id.at({b, t})) = current;
    }
  }
  return Array(id, "doc");
}

/// Two stretches of queries that each key masks, anywhere; some keys mask none or all of them.
FlashMask columns(const Extents& e, std::uint64_t seed) {
  FlashMask m;
  m.keys = std::max<std::int64_t>(1, std::max(e.q, e.k));
  m.columns = 4;
  Random random(seed + 4);
  const auto any = [&] {
    return static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(m.keys) + 1));
  };
  for (std::int64_t k = 0; k < m.keys; ++k) {
    const std::int32_t low = k % 7 == 0 ? 0 : any(), upper = any() / 4;
    m.values.insert(m.values.end(), {low, low + any() / 2, upper, upper + any() / 4});
  }
  return m;
}

Array slopes(std::int64_t heads) {
  std::vector<float> m;
  for (std::int64_t h = 0; h < heads; ++h)
    m.push_back(std::ldexp(1.0f, -static_cast<int>(h % 6) - 2));
  return Array(m, "slope");
}

}  // namespace

Mask make_mask(const std::string& name, const Extents& e, std::uint64_t seed) {
  if (const auto drawn = gallery_mask(name)) return drawn->mask();
  if (name == "full") return full();
  if (name == "causal") return causal();
  if (name == "window") return window(33, 0);
  if (name == "band") return window(20, 45);
  if (name == "prefix") return prefix(37);
  if (name == "documents") return causal() && documents(document_ids(e, seed));
  if (name == "columns") return import_flashmask(columns(e, seed));
  if (name == "odd") return Mask::parse("(q * 7 + k * 3 + head + batch) % 5 != 2");
  if (name == "holes")
    return mask([](auto, auto, auto q, auto k) { return q % 3 != 1 && k * 2 <= q + k_len(k); });
  if (name == "blocks") {
    const Tensor keep = Tensor::empty(DType::boolean, {8, 8});
    Random random(seed + 3);
    for (std::int64_t i = 0; i < 64; ++i) keep.ptr<bool>()[i] = random.below(5) < 2;
    const Array a(keep, "keep");
    const Param reach("reach", 300);
    return mask([=](auto, auto, auto q, auto k) {
      return a(clamp(q >> 4, 0, 7), clamp(k >> 4, 0, 7)) && q - k <= Expr(reach);
    });
  }
  throw Error(Code::invalid_argument, Stage::parse, "no case mask is called '" + name + "'");
}

Score make_score(const std::string& name, const Extents& e, std::uint64_t seed) {
  if (name == "identity") return identity();
  if (name == "softcap") return softcap(2.0f);
  if (name == "alibi") return alibi(slopes(e.heads));
  if (name == "bias") {
    // One table for each head while it stays small.
    const bool small = e.heads * e.q * e.k <= 400000;
    return bias(
        Array(small ? table({e.heads, e.q, e.k}, seed + 1) : table({e.q, e.k}, seed + 1), "bias"));
  }
  if (name == "table") {
    const Array t(table({e.heads, 17}, seed + 2), "relative");
    const Param gain("gain", 0.75);
    return score([=](auto s, auto, auto head, auto q, auto k) {
      return s + Expr(gain) * t(head, clamp(q - k, -8, 8) + 8);
    });
  }
  if (name == "chain") return softcap(2.5f) | alibi(slopes(e.heads));
  throw Error(Code::invalid_argument, Stage::parse, "no case score is called '" + name + "'");
}

}  // namespace undivided::check
