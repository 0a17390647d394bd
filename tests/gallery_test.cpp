// SPDX-License-Identifier: Apache-2.0
// Each mask and score of the gallery is what a plain loop says, and learns by the right gradients.
#include "check/gallery.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <sstream>

#include "mask/plan.hpp"
#include "undivided/undivided.hpp"

namespace undivided {
namespace {

using check::GalleryMask;
using check::GalleryScore;

template <class T>
const T* data_of(const Captures& c, const std::string& name) {
  for (const Array& a : c.arrays)
    if (a.name() == name) return static_cast<const T*>(a.view().data);
  ADD_FAILURE() << "no array " << name;
  return nullptr;
}

std::shared_ptr<MaskPlan> plan_of(const Mask& mask, std::int64_t q_len, std::int64_t k_len) {
  Sequence s;
  s.q_len = q_len;
  s.k_len = k_len;
  const std::vector<Sequence> one{s};
  return make_mask_plan(
      *bind(mask, {1, 1, 0, q_len - 1, 0, k_len - 1, q_len, k_len}), 1, one, default_executor());
}

std::vector<std::uint8_t> bits_of(const Mask& mask, std::int64_t q_len, std::int64_t k_len) {
  const auto plan = plan_of(mask, q_len, k_len);
  return export_dense(*plan, plan->entry(0, 0));
}

// A place in an image or a film, as a person would number it.
struct Place {
  int y = 0, x = 0;
};
Place row_major(int i) { return {i / 32, i % 32}; }
Place tiled(int i) {  // tiles of 4 x 8, row-major, tokens row-major inside
  const int tile = i / 32, inside = i % 32;
  return {tile / 4 * 4 + inside / 8, tile % 4 * 8 + inside % 8};
}
Place morton(int i) {
  Place p;
  for (int bit = 0; bit < 9; ++bit) {
    int& axis = bit % 2 ? p.y : p.x;
    axis |= (i >> bit & 1) << (bit / 2);
  }
  return p;
}
// The window is moved inwards at the border, so that every query sees 7 x 7 places.
bool neighbours(Place q, Place k) {
  const auto window = [](int centre, int length) {
    return std::min(std::max(centre - 3, 0), length - 7);
  };
  const int y = window(q.y, 16), x = window(q.x, 32);
  return k.y >= y && k.y < y + 7 && k.x >= x && k.x < x + 7;
}
bool near_tile(int q, int k, int count) {  // three tiles, moved inwards
  const int first = std::min(std::max(q - 1, 0), count - 3);
  return k >= first && k < first + 3;
}

using Loop = std::function<bool(int, int)>;

Loop loop_of(const GalleryMask& m) {
  const auto ints = [&](const char* name) { return data_of<std::int32_t>(m.captures, name); };
  const std::string& n = m.name;
  if (n == "causal") return [](int q, int k) { return k <= q; };
  if (n == "window") return [](int q, int k) { return k <= q && k >= q - 96; };
  if (n == "sink") return [](int q, int k) { return k <= q && (k >= q - 96 || k < 4); };
  if (n == "dilated")
    return [](int q, int k) {
      for (int step = -24; step <= 24; ++step)
        if (k == q + 4 * step) return true;
      return false;
    };
  if (n == "global") {
    const auto* g = ints("glob");
    return [=](int q, int k) { return (k >= q - 48 && k <= q + 48) || g[q] == 1 || g[k] == 1; };
  }
  if (n == "prefix") return [](int q, int k) { return k < 128 || k <= q; };
  const auto document = [](int i) {
    int id = 0;
    for (const int end : {90, 130, 280, 292, 392}) id += i >= end;
    return id;
  };
  if (n == "documents") return [=](int q, int k) { return document(q) == document(k); };
  if (n == "packed" || n == "packed-starts")
    return [=](int q, int k) { return k <= q && document(q) == document(k); };
  if (n == "shared-prefix")
    return [=](int q, int k) { return k <= q && (k < 90 || document(q) == document(k)); };
  if (n == "block-diffusion")
    return [](int q, int k) {
      const bool q_noisy = q < 256, k_noisy = k < 256;
      const int bq = (q_noisy ? q : q - 256) / 32, bk = (k_noisy ? k : k - 256) / 32;
      if (q_noisy) return k_noisy ? bq == bk : bk < bq;
      return !k_noisy && bk <= bq;
    };
  if (n == "tree")
    return [](int q, int k) {
      // The parent of a token clears its lowest digit; the first of each 128 is a root.
      for (int a = q;; a = a / 128 * 128 + (a % 128 & (a % 128 - 1))) {
        if (a == k) return true;
        if (a % 128 == 0) return false;
      }
    };
  if (n == "draft-training")
    return [](int q, int k) {
      if (q < 256) return k <= q;
      const int block = (q - 256) / 32;
      return k < 256 ? k <= 31 * block + 20 : k >= 256 + 32 * block && k <= q;
    };
  if (n == "image-text")
    return [](int q, int k) {
      const int image = k / 128;
      return q >= 110 * image + 30 && (image == 3 || q < 110 * (image + 1) + 30);
    };
  if (n == "batchify") return [](int q, int k) { return k >= q / 128 * 128 && k <= q; };
  if (n == "chunks") return [](int q, int k) { return k < (q / 48 + 1) * 48; };
  if (n == "natten") return [](int q, int k) { return neighbours(row_major(q), row_major(k)); };
  if (n == "natten-tiled") return [](int q, int k) { return neighbours(tiled(q), tiled(k)); };
  if (n == "natten-morton") return [](int q, int k) { return neighbours(morton(q), morton(k)); };
  if (n == "sliding-tile")
    return [](int q, int k) {
      return near_tile(q / 128, k / 128, 4) && near_tile(q % 128 / 32, k % 128 / 32, 4);
    };
  if (n == "sliding-tile-3d")
    return [](int q, int k) {
      if (q >= 384 || k >= 384) return true;
      const int tq = q / 8, tk = k / 8;  // tile numbers, 4 x 4 x 3
      return near_tile(tq / 12, tk / 12, 4) && near_tile(tq / 3 % 4, tk / 3 % 4, 4) &&
             tq % 3 == tk % 3;
    };
  if (n == "film-spatial")
    return [](int q, int k) { return k < 64 || std::abs(q / 64 - k / 64) < 2; };
  if (n == "film-temporal")
    return [](int q, int k) { return k < 64 || std::abs(q % 64 - k % 64) < 5; };
  if (n == "chosen-tiles") {
    const auto* keep = ints("keep");
    return [=](int q, int k) { return keep[q / 32 * 16 + k / 32] == 1; };
  }
  if (n == "strided")
    return [](int q, int k) { return k <= q && (q < k + 48 || q % 48 == k % 48); };
  if (n == "eviction")
    return [](int q, int k) { return q >= k && q < k + 1 + (k * 7919 + 13) % 400; };
  if (n == "dropped") return [](int q, int k) { return 2 * k + k * k % 3 <= 2 * q + q * 5 % 4; };
  return {};
}

TEST(Gallery, each_mask_is_what_a_loop_says) {
  for (const GalleryMask& m : check::gallery_masks()) {
    SCOPED_TRACE(m.name);
    const Loop loop = loop_of(m);
    ASSERT_TRUE(loop) << "no loop for this mask";
    const auto bits = bits_of(m.mask(), m.q_len, m.k_len);
    std::int64_t kept = 0;
    for (int q = 0; q < m.q_len; ++q)
      for (int k = 0; k < m.k_len; ++k) {
        ASSERT_EQ(bits[q * m.k_len + k], loop(q, k)) << q << ", " << k;
        kept += loop(q, k);
      }
    EXPECT_GT(kept, 0);
    EXPECT_LT(kept, m.q_len * m.k_len);
  }
}

TEST(Gallery, the_library_entry_is_the_same_mask) {
  std::map<std::string, Mask> library{{"causal()", causal()},
                                      {"causal() && window(96)", causal() && window(96)},
                                      {"prefix(128)", prefix(128)}};
  std::vector<std::int32_t> parent(512);
  for (int i = 0; i < 512; ++i)
    parent[i] = i % 128 == 0 ? -1 : i / 128 * 128 + (i % 128 & (i % 128 - 1));
  library.emplace("tree(parent)", tree(parent));
  for (const GalleryMask& m : check::gallery_masks()) {
    if (m.library.empty()) continue;
    SCOPED_TRACE(m.library);
    if (!m.captures.arrays.empty() && m.name != "tree") {
      library.insert_or_assign("documents(doc)", documents(m.captures.arrays[0]));
      library.insert_or_assign("causal() && documents(doc)",
                               causal() && documents(m.captures.arrays[0]));
    }
    ASSERT_TRUE(library.count(m.library));
    EXPECT_EQ(bits_of(library.at(m.library), m.q_len, m.k_len),
              bits_of(m.mask(), m.q_len, m.k_len));
  }
}

TEST(Gallery, programs_are_short) {
  const auto lines = [](const std::string& text) {
    return 1 + std::count(text.begin(), text.end(), '\n');
  };
  for (const GalleryMask& m : check::gallery_masks()) EXPECT_LE(lines(m.text), 5) << m.name;
  for (const GalleryScore& s : check::gallery_scores()) EXPECT_LE(lines(s.text), 3) << s.name;
}

// ---- scores ----

constexpr int n = 24, heads = 4, dim = 8;

double changed(const GalleryScore& s, double x, int h, int q, int k) {
  const auto at = [&](const char* name, std::initializer_list<std::pair<int, int>> index) {
    int offset = 0;  // pairs of (extent, index)
    for (const auto& [extent, i] : index) offset = offset * extent + i;
    return static_cast<double>(data_of<float>(s.captures, name)[offset]);
  };
  const auto whole = [&](const char* name, int offset) {
    return data_of<std::int32_t>(s.captures, name)[offset];
  };
  if (s.name == "alibi") return x - at("slope", {{heads, h}}) * (q - k);
  if (s.name == "softcap") return 20 * std::tanh(x / 20);
  if (s.name == "bias") return x + at("bias", {{heads, h}, {n, q}, {n, k}});
  if (s.name == "relu-weights") return std::log(std::pow(std::max(x, 0.001), 2));
  if (s.name == "mla-rope") {
    double dot = 0;
    for (int i = 0; i < 2; ++i)
      dot += at("qpe", {{heads, h}, {n, q}, {2, i}}) * at("kpe", {{n, k}, {2, i}});
    return x + dot / 8;
  }
  if (s.name == "sandwich") return x + at("sandwich", {{heads, h}, {n, q > k ? q - k : 0}});
  const int hops = s.name.starts_with("graph") ? whole("hops", q * n + k) : 0;
  if (s.name == "graph-spatial") return x + at("b", {{6, hops}, {heads, h}});
  if (s.name == "graph-edge") {
    double sum = 0;
    const int length = std::clamp(hops, 1, 2);
    for (int i = 0; i < length; ++i)
      sum += at("e", {{5, whole("edge", (q * n + k) * 2 + i)}, {heads, h}});
    return x + sum / length;
  }
  ADD_FAILURE() << "no loop for " << s.name;
  return 0;
}

Tensor noise(std::initializer_list<std::int64_t> shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const Tensor t = Tensor::empty(DType::f32, shape);
  for (std::int64_t i = 0; i < t.count(); ++i) t.ptr<float>()[i] = normal(random);
  return t;
}

struct Inputs {
  Tensor q = noise({1, heads, n, dim}, 1), k = noise({1, heads, n, dim}, 2),
         v = noise({1, heads, n, dim}, 3), dout = noise({1, heads, n, dim}, 4);
};

/// Softmax of the changed scores over causal keys, and the weighted values: plain loops.
std::vector<double> attended(const GalleryScore& s, const Inputs& x) {
  std::vector<double> out;
  for (int h = 0; h < heads; ++h)
    for (int q = 0; q < n; ++q) {
      std::vector<double> weight(q + 1), row(dim);
      double sum = 0;
      for (int k = 0; k <= q; ++k) {
        double dot = 0;
        for (int d = 0; d < dim; ++d)
          dot += double(x.q.ptr<float>()[(h * n + q) * dim + d]) *
                 x.k.ptr<float>()[(h * n + k) * dim + d];
        sum += weight[k] = std::exp(changed(s, dot / std::sqrt(double(dim)), h, q, k));
      }
      for (int k = 0; k <= q; ++k)
        for (int d = 0; d < dim; ++d)
          row[d] += weight[k] / sum * x.v.ptr<float>()[(h * n + k) * dim + d];
      out.insert(out.end(), row.begin(), row.end());
    }
  return out;
}

TEST(Gallery, each_score_is_what_a_loop_says) {
  const Inputs x;
  for (const GalleryScore& s : check::gallery_scores()) {
    SCOPED_TRACE(s.name);
    const auto wanted = attended(s, x);
    const Tensor o = attention(x.q, x.k, x.v, {.mask = causal(), .score = s.score()}).o;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      ASSERT_NEAR(o.ptr<float>()[i], wanted[i], 2e-5) << i;
  }
}

// The loss is the loops' own, so nothing of the library judges itself.
TEST(Gallery, captured_arrays_have_the_gradients_of_finite_differences) {
  const Inputs x;
  const auto loss = [&](const GalleryScore& s) {
    double sum = 0;
    const auto o = attended(s, x);
    for (std::size_t i = 0; i < o.size(); ++i) sum += o[i] * x.dout.ptr<float>()[i];
    return sum;
  };
  int checked = 0;
  for (const GalleryScore& s : check::gallery_scores()) {
    SCOPED_TRACE(s.name);
    const Options options{.mask = causal(), .score = s.score()};
    const Gradients g =
        attention_backward(x.dout, x.q, x.k, x.v, attention(x.q, x.k, x.v, options));
    for (const Array& a : s.captures.arrays) {
      if (a.view().dtype != DType::f32) continue;
      const Tensor* found = nullptr;
      for (const auto& [name, gradient] : g.captured)
        if (name == a.name()) found = &gradient;
      ASSERT_TRUE(found) << "no gradient of " << a.name();
      auto* values = static_cast<float*>(a.view().data);
      const std::int64_t count = a.view().count(), step = std::max<std::int64_t>(1, count / 12);
      for (std::int64_t i = 0; i < count; i += step) {
        const float kept = values[i];
        values[i] = kept + 0.002f;
        const double up = loss(s), over = values[i];
        values[i] = kept - 0.002f;
        const double slope = (up - loss(s)) / (over - values[i]);
        values[i] = kept;
        ASSERT_NEAR(found->ptr<float>()[i], slope, 2e-3 * (1 + std::abs(slope)))
            << a.name() << "[" << i << "]";
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 60);
}

}  // namespace
}  // namespace undivided
