// SPDX-License-Identifier: Apache-2.0
// Help for tests of conversion: an attention in plain loops, and its weights under the names of
// each library.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/generator.hpp"
#include "core/safetensors.hpp"
#include "undivided/error.hpp"
#include "undivided/nn/convert.hpp"

namespace undivided::nn {

using Named = std::vector<std::pair<std::string, Tensor>>;

/// An own folder that goes with the test.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "convert-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& e : std::filesystem::directory_iterator(path))
      all.push_back(e.path().filename().string());
    std::sort(all.begin(), all.end());
    return all;
  }
};

inline void save(const std::string& path,
                 const Named& tensors,
                 const std::map<std::string, std::string>& metadata = {}) {
  std::vector<std::pair<std::string, View>> views(tensors.begin(), tensors.end());
  write_safetensors(path, views, metadata);
}
inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}
inline std::string text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Row-major float64 numbers with two sizes.
struct Grid {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> v;
  Grid() = default;
  Grid(std::int64_t r, std::int64_t c) : rows(r), cols(c), v(r * c) {}
  double& at(std::int64_t r, std::int64_t c) { return v[r * cols + c]; }
  double at(std::int64_t r, std::int64_t c) const { return v[r * cols + c]; }
  static Grid random(std::int64_t r, std::int64_t c, std::uint64_t seed) {
    Grid g(r, c);
    fill_normal(view(g.v.data(), {r * c}), seed, 0, .4);
    return g;
  }
  Grid part(std::int64_t from, std::int64_t count) const {  // of the rows
    Grid g(count, cols);
    std::copy_n(v.begin() + from * cols, count * cols, g.v.begin());
    return g;
  }
  Grid turned() const {
    Grid g(cols, rows);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) g.at(c, r) = at(r, c);
    return g;
  }
  Grid over(const Grid& below) const {
    Grid g(rows + below.rows, cols);
    std::copy(below.v.begin(), below.v.end(), std::copy(v.begin(), v.end(), g.v.begin()));
    return g;
  }
  Tensor tensor(bool flat = false) const {
    const Tensor t =
        flat ? Tensor::empty(DType::f64, {rows * cols}) : Tensor::empty(DType::f64, {rows, cols});
    std::copy(v.begin(), v.end(), t.ptr<double>());
    return t;
  }
  static Grid of(const Tensor& given) {
    const Tensor t = converted(given, DType::f64);
    Grid g(t.size(0), t.rank == 1 ? 1 : t.size(1));
    std::copy_n(t.ptr<double>(), t.count(), g.v.begin());
    return g;
  }
};
inline double distance(const Grid& a, const Grid& b) {
  if (a.rows != b.rows || a.cols != b.cols) return INFINITY;
  double most = 0;
  for (std::size_t i = 0; i < a.v.size(); ++i) most = std::max(most, std::abs(a.v[i] - b.v[i]));
  return most;
}

/// One attention. Weights are [out, in]; biases are [out, 1] or empty.
struct Weights {
  std::int64_t heads = 0, kv = 0;
  Grid q, k, v, o, bq, bk, bv, bo;

  static Weights random(std::int64_t heads, std::int64_t kv, std::int64_t d, bool bias) {
    const std::int64_t features = heads * d + 2;  // heads need not fill the model's width
    Weights w{heads, kv, {}, {}, {}, {}, {}, {}, {}, {}};
    w.q = Grid::random(heads * d, features, 1);
    w.k = Grid::random(kv * d, features, 2);
    w.v = Grid::random(kv * d, features, 3);
    w.o = Grid::random(features, heads * d, 4);
    if (!bias) return w;
    w.bq = Grid::random(heads * d, 1, 5);
    w.bk = Grid::random(kv * d, 1, 6);
    w.bv = Grid::random(kv * d, 1, 7);
    w.bo = Grid::random(features, 1, 8);
    return w;
  }

  static Grid linear(const Grid& x, const Grid& w, const Grid& b) {
    Grid y(x.rows, w.rows);
    for (std::int64_t i = 0; i < x.rows; ++i)
      for (std::int64_t j = 0; j < w.rows; ++j) {
        double sum = b.v.empty() ? 0 : b.v[j];
        for (std::int64_t c = 0; c < x.cols; ++c) sum += x.at(i, c) * w.at(j, c);
        y.at(i, j) = sum;
      }
    return y;
  }
  /// Query head h reads KV head h / (heads / kv).
  Grid attend(const Grid& x) const {
    const Grid Q = linear(x, q, bq), K = linear(x, k, bk), V = linear(x, v, bv);
    const std::int64_t d = q.rows / heads, n = x.rows;
    Grid all(n, heads * d);
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t g = h / (heads / kv);
        std::vector<double> p(n);
        double total = 0;
        for (std::int64_t j = 0; j < n; ++j) {
          double s = 0;
          for (std::int64_t c = 0; c < d; ++c) s += Q.at(i, h * d + c) * K.at(j, g * d + c);
          total += p[j] = std::exp(s / std::sqrt(double(d)));
        }
        for (std::int64_t j = 0; j < n; ++j)
          for (std::int64_t c = 0; c < d; ++c)
            all.at(i, h * d + c) += p[j] / total * V.at(j, g * d + c);
      }
    return linear(all, o, bo);
  }
};

/// A way of naming them, with what lies in one tensor.
struct Naming {
  const char* title;
  const char* layout;
  const char* prefix;
  bool bias;
  std::vector<std::pair<std::string, std::string>> parts;  // name, parts: "qkv", "o"
  bool transposed = false;
  std::vector<std::pair<std::string, std::string>> grouped{};  // names when heads share keys
};

inline void PrintTo(const Naming& n, std::ostream* out) { *out << n.title; }

inline Named named(const Naming& n, const Weights& w) {
  Named all;
  const auto add = [&](const std::string& name, Grid g, bool flat) {
    if (!flat && n.transposed) g = g.turned();
    all.emplace_back(n.prefix + name + (flat ? "bias" : "weight"), g.tensor(flat));
  };
  for (const auto& [name, parts] : w.kv != w.heads && !n.grouped.empty() ? n.grouped : n.parts) {
    Grid weight(0, parts == "o" ? w.o.cols : w.q.cols), bias(0, 1);
    for (const char part : parts) {
      weight = weight.over(part == 'q' ? w.q : part == 'k' ? w.k : part == 'v' ? w.v : w.o);
      if (n.bias)
        bias = bias.over(part == 'q' ? w.bq : part == 'k' ? w.bk : part == 'v' ? w.bv : w.bo);
    }
    add(name, weight, false);
    if (n.bias) add(name, bias, true);
  }
  return all;
}

/// The weights in a file again; it holds no other names than these and `others`.
inline Weights loaded(const Naming& n,
                      const std::string& path,
                      std::int64_t heads,
                      std::int64_t kv,
                      std::int64_t d,
                      std::size_t others = 0) {
  const Safetensors file = Safetensors::open(path);
  Weights w{heads, kv, {}, {}, {}, {}, {}, {}, {}, {}};
  const auto& names = kv != heads && !n.grouped.empty() ? n.grouped : n.parts;
  EXPECT_EQ(file.entries().size(), names.size() * (n.bias ? 2 : 1) + others);
  for (const auto& [name, parts] : names)
    for (const bool bias : {false, true}) {
      if (bias && !n.bias) continue;
      Grid g = Grid::of(file.read(n.prefix + name + (bias ? "bias" : "weight")));
      if (n.transposed && !bias) g = g.turned();
      std::int64_t at = 0;
      for (const char part : parts) {
        const std::int64_t rows = part == 'o' ? g.rows : part == 'q' ? heads * d : kv * d;
        Grid& to = bias ? (part == 'q'   ? w.bq
                           : part == 'k' ? w.bk
                           : part == 'v' ? w.bv
                                         : w.bo)
                        : (part == 'q'   ? w.q
                           : part == 'k' ? w.k
                           : part == 'v' ? w.v
                                         : w.o);
        to = g.part(at, rows);
        at += rows;
      }
      EXPECT_EQ(at, g.rows) << name;
    }
  return w;
}

inline void expect_refusal(const std::function<void()>& f, const std::vector<std::string>& words) {
  try {
    f();
    ADD_FAILURE() << "nothing was refused; expected: " << words[0];
  } catch (const Error& e) {
    for (const std::string& word : words)
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos)
          << "'" << word << "' is not in: " << e.what();
  }
}

}  // namespace undivided::nn
