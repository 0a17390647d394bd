// SPDX-License-Identifier: Apache-2.0
// Layers without attention. Each forward is a const function; what its backward needs comes back
// through the input or a Saved struct. Backwards add to parameter gradients and return the
// gradient of the input. Instantiated for float and double.
#pragma once

#include "undivided/nn/matrix.hpp"

namespace undivided::nn {

/// y = x W^T + b. W is [out, in].
template <class T>
class Linear {
 public:
  Linear() = default;
  Linear(std::int64_t in, std::int64_t out, bool with_bias = true);
  Matrix<T> forward(const Matrix<T>& x, const Context& context = {}) const;
  Matrix<T> backward(const Matrix<T>& x, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);

  Parameter<T> weight, bias;  ///< bias has no elements when there is none
};

enum class NormKind : std::uint8_t { layer, rms };

/// LayerNorm (gain and bias) or RMSNorm (gain only) over the features.
template <class T>
class Norm {
 public:
  struct Saved {
    Matrix<T> normalised;
    std::vector<T> scale;  // 1 / deviation, by row
  };
  Norm() = default;
  explicit Norm(std::int64_t features, NormKind kind = NormKind::layer, double eps = 1e-5);
  Matrix<T> forward(const Matrix<T>& x, Saved* saved = nullptr) const;
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy);
  void collect(const std::string& prefix, ParameterList<T>& list);

  Parameter<T> weight, bias;

 private:
  NormKind kind_ = NormKind::layer;
  double eps_ = 1e-5;
};
template <class T>
Norm<T> layer_norm(std::int64_t features, double eps = 1e-5) {
  return Norm<T>(features, NormKind::layer, eps);
}
template <class T>
Norm<T> rms_norm(std::int64_t features, double eps = 1e-6) {
  return Norm<T>(features, NormKind::rms, eps);
}

/// Inverted dropout in place: Philox4x32-10 keyed by the seed and the element's index. Applying it
/// again to a gradient with the same seed is its backward. Raises Error{resolve} unless 0 <= p < 1.
template <class T>
void dropout(Matrix<T>& x, double p, std::uint64_t seed);

/// Rows of a table. One table may serve source, target and projection: gradients add up.
template <class T>
class Embedding {
 public:
  Embedding() = default;
  Embedding(std::int64_t vocabulary, std::int64_t features);
  /// scale * table[id]. Raises Error{resolve} for an id outside the vocabulary.
  Matrix<T> forward(const std::vector<std::int32_t>& ids, T scale) const;
  void backward(const std::vector<std::int32_t>& ids, T scale, const Matrix<T>& dy);
  Matrix<T> project(const Matrix<T>& x, const Context& context = {}) const;  ///< x table^T
  Matrix<T> project_backward(const Matrix<T>& x, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);

  Parameter<T> weight;
};

/// `paper`: sine and cosine alternate, exponent 2i / D. `t2t`: all sines, then all cosines, with
/// denominator D / 2 - 1, as in tensor2tensor.
enum class Positions : std::uint8_t { paper, t2t };

/// Sinusoidal positions first .. first + tokens - 1. Raises Error{resolve} for an odd width.
template <class T>
Matrix<T> sinusoidal_positions(std::int64_t tokens,
                               std::int64_t features,
                               Positions form = Positions::paper,
                               std::int64_t first = 0);

/// Rotary positions. `halves` pairs feature i with i + d / 2 (Llama), `interleaved` 2i with 2i + 1.
struct Rope {
  bool on = false;
  double base = 10000;
  enum class Pairs : std::uint8_t { halves, interleaved } pairs = Pairs::halves;
};
/// Rotates, in place, heads of width `dim` that lie side by side in each row from column `column`;
/// token t is at position first + t. `inverse` turns back, which is the backward.
template <class T>
void rotate(Matrix<T>& x,
            const Extent& extent,
            std::int64_t column,
            std::int64_t heads,
            std::int64_t dim,
            const Rope& rope,
            std::int64_t first = 0,
            bool inverse = false);

enum class Activation : std::uint8_t { relu, gelu, swiglu };

/// linear2(act(linear1(x))), or for swiglu linear2(silu(linear1(x)) * linear3(x)). GELU is the
/// exact one (erf).
template <class T>
class FeedForward {
 public:
  struct Saved {
    Matrix<T> x, before, gate, after;
    std::uint64_t seed = 0;
    bool dropped = false;
  };
  FeedForward() = default;
  FeedForward(std::int64_t features,
              std::int64_t hidden,
              Activation activation = Activation::relu,
              bool bias = true,
              double dropout = 0);
  Matrix<T> forward(const Matrix<T>& x, Pass& pass, Saved* saved = nullptr) const;
  Matrix<T> backward(const Saved& saved, const Matrix<T>& dy, const Context& context = {});
  void collect(const std::string& prefix, ParameterList<T>& list);

  Linear<T> linear1, linear2, linear3;

 private:
  Activation activation_ = Activation::relu;
  double dropout_ = 0;  // on the hidden activations; the paper has none there
};

}  // namespace undivided::nn
