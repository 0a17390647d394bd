// SPDX-License-Identifier: Apache-2.0
// Small random problems and distances for the property tests.
#pragma once

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check/inputs.hpp"
#include "undivided/undivided.hpp"

namespace undivided::property {

using check::random_tensor;

inline int between(int low, int high) { return *rc::gen::inRange(low, high + 1); }
inline std::uint64_t a_seed() { return static_cast<std::uint64_t>(between(1, 1 << 30)); }

struct Shape {
  int batch, heads, kv_heads, nq, nk, d, dv;
  static Shape any(int longest = 150) {
    Shape s{};
    s.batch = between(1, 2);
    s.kv_heads = between(1, 2);
    s.heads = s.kv_heads * between(1, 3);
    s.nq = between(1, longest);
    s.nk = between(1, longest);
    s.d = 4 * between(1, 12);
    s.dv = between(0, 3) ? s.d : 4 * between(1, 12);
    return s;
  }
};

struct Data {
  Shape s;
  Tensor q, k, v;
  explicit Data(const Shape& shape, DType t = DType::f32, std::uint64_t seed = a_seed())
      : s(shape),
        q(random_tensor(t, {s.batch, s.heads, s.nq, s.d}, seed)),
        k(random_tensor(t, {s.batch, s.kv_heads, s.nk, s.d}, seed + 1)),
        v(random_tensor(t, {s.batch, s.kv_heads, s.nk, s.dv}, seed + 2)) {}
};

/// Largest difference of two tensors of one shape; infinities must be in the same places.
inline double distance(const View& a, const View& b) {
  const Tensor x = converted(a, DType::f64), y = converted(b, DType::f64);
  if (x.count() != y.count()) return INFINITY;
  double most = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    const double p = x.ptr<double>()[i], q = y.ptr<double>()[i];
    if (p == q) continue;
    most = std::max(most, std::isfinite(p) && std::isfinite(q) ? std::fabs(p - q) : INFINITY);
  }
  return most;
}
inline constexpr double tolerance = 2e-5;

inline Align any_align() { return between(0, 1) ? Align::end : Align::start; }

/// A mask without arrays: bands, sets of them, and shapes that no kernel knows.
inline Mask any_mask() {
  switch (between(0, 7)) {
    case 0:
      return full();
    case 1:
      return causal();
    case 2:
      return window(between(0, 60), between(0, 60));
    case 3:
      return causal() && window(between(0, 80));
    case 4:
      return prefix(between(0, 90));
    case 5:
      return Mask::parse("(q * 5 + k * 3 + head) % 4 != 1");
    case 6:
      return Mask::parse("k % 7 != 3 && q % 5 != 2 && k <= q + 9");
    default:
      return !window(between(0, 30)) || causal();
  }
}

}  // namespace undivided::property
