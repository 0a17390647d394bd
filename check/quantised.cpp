// SPDX-License-Identifier: Apache-2.0
// Rounds row by row in float32, like the kernels, and keeps the results as float64.
#include "check/quantised.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace undivided::check {
namespace {

/// Calls body(row of `v`, row of `out`, head) for all rows; axis 1 is the head.
template <class F>
void each_row(const View& v, const Tensor& out, F&& body) {
  const std::int64_t tokens = v.rank == 4 ? v.size(2) : 1, heads = v.size(1);
  for (std::int64_t r = 0; r < v.size(0) * heads * tokens; ++r) {
    const std::int64_t a = r / tokens / heads, h = r / tokens % heads, t = r % tokens;
    const std::byte* from =
        static_cast<const std::byte*>(v.rank == 4 ? v.at({a, h, t, 0}) : v.at({a, h, 0}));
    body(from, out.ptr<double>() + r * out.size(-1), h);
  }
}

Tensor wider(const View& v, std::int64_t columns) {
  const std::int64_t d = v.size(-1) + columns;
  return v.rank == 4 ? Tensor::empty(DType::f64, {v.size(0), v.size(1), v.size(2), d})
                     : Tensor::empty(DType::f64, {v.size(0), v.size(1), d});
}

/// x becomes a factor times whole numbers of at most 127.
void round_row(std::vector<float>& x, double* to) {
  float most = 0, wrong = 0;
  for (const float value : x) {
    most = std::max(most, std::fabs(value));
    wrong += 0 * value;  // NaN if one is not finite
  }
  const bool counts = most >= 0x1p-100f;
  const float inverse = counts ? 127.0f / most : 0.0f;
  const double factor = (counts ? most / 127.0f : 0.0f) + wrong;
  for (const float value : x) *to++ = factor * std::nearbyint(value * inverse);
}

}  // namespace

Quantised quantised(const Rows& q, const Kv& kv, const Options& options) {
  const View &query = q.data, &k = kv.k, &v = kv.v, &mean = kv.k_mean;
  const std::int64_t d = k.size(-1), group = query.size(1) / k.size(1);
  const auto mean_of = [&](std::int64_t head, std::int64_t c) {
    return mean ? *static_cast<const float*>(mean.at({head, c})) : 0.0f;
  };
  const auto row_of = [d](DType dtype, const std::byte* from) {
    std::vector<float> x;
    for (std::int64_t c = 0; c < d; ++c)
      x.push_back(static_cast<float>(
          load_element(dtype, from + c * static_cast<std::int64_t>(size_of(dtype)))));
    return x;
  };
  Quantised out{q, kv, options, {wider(query, 1), wider(k, 1), wider(v, 0)}};
  each_row(query, out.keep[0], [&](const std::byte* from, double* to, std::int64_t h) {
    std::vector<float> x = row_of(query.dtype, from);
    double dot = 0;
    for (std::int64_t c = 0; c < d; ++c)
      dot += static_cast<double>(x[static_cast<std::size_t>(c)]) *
             static_cast<double>(mean_of(h / group, c));
    round_row(x, to);
    to[d] = dot;
  });
  each_row(k, out.keep[1], [&](const std::byte* from, double* to, std::int64_t h) {
    std::vector<float> x = row_of(k.dtype, from);
    for (std::int64_t c = 0; c < d; ++c) x[static_cast<std::size_t>(c)] -= mean_of(h, c);
    round_row(x, to);
    to[d] = 1;
  });
  const DType pv = options.precision.pv;
  each_row(v, out.keep[2], [&](const std::byte* from, double* to, std::int64_t) {
    for (std::int64_t c = 0; c < v.size(-1); ++c) {
      std::array<std::byte, 8> part{};
      const auto size = static_cast<std::int64_t>(size_of(v.dtype));
      store_element(pv, part.data(), load_element(v.dtype, from + c * size));
      to[c] = load_element(pv, part.data());
    }
  });
  out.q.data = out.keep[0];
  out.kv.k = out.keep[1];
  out.kv.v = out.keep[2];
  out.kv.k_mean = {};
  out.options.precision = {};
  out.options.out_dtype.reset();
  out.options.scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(d)));
  return out;
}

}  // namespace undivided::check
