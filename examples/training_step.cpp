// SPDX-License-Identifier: Apache-2.0
// A training step by hand: gradients of Q, K, V and of a learned bias table, with dropout.
#include <cmath>
#include <cstdio>
#include <vector>

#include "undivided/undivided.hpp"

namespace ud = undivided;

static ud::Tensor waves(std::initializer_list<std::int64_t> shape, double c) {
  const ud::Tensor t = ud::Tensor::empty(ud::DType::f32, shape);
  for (std::int64_t i = 0; i < t.count(); ++i)
    t.ptr<float>()[i] = static_cast<float>(std::sin(c * static_cast<double>(i + 1)));
  return t;
}

int main() {
  const std::int64_t n = 40;
  ud::Tensor q = waves({1, 2, n, 16}, 0.37), k = waves({1, 2, n, 16}, 0.71);
  ud::Tensor v = waves({1, 2, n, 16}, 0.53);
  const ud::Tensor target = waves({1, 2, n, 16}, 0.19);

  // A learned bias by distance. The gradient comes from the lambda; nobody writes it.
  const ud::Tensor table = ud::Tensor::zeros(ud::DType::f32, {2, 8});
  ud::Array bias(table, "bias");
  const ud::Options options{.mask = ud::causal(),
                            .score = ud::score([=](auto s, auto, auto head, auto a, auto b) {
                              return s + bias(head, ud::clamp(a - b, 0, 7));
                            }),
                            .dropout = 0.1,
                            .seed = 7,
                            .determinism = ud::Determinism::reproducible};

  double first = 0, last = 0;
  for (int step = 0; step < 20; ++step) {
    const ud::Forward f = ud::attention(q, k, v, options);
    const ud::Tensor dout = ud::Tensor::empty_like(f.o, ud::DType::f32);
    last = 0;
    for (std::int64_t i = 0; i < f.o.count(); ++i) {
      const float error = f.o.ptr<float>()[i] - target.ptr<float>()[i];
      last += 0.5 * error * error / static_cast<double>(f.o.count());
      dout.ptr<float>()[i] = error;
    }
    if (step == 0) first = last;
    const ud::Gradients g = ud::attention_backward(dout, q, k, v, f);
    const auto descend = [](const ud::Tensor& x, const ud::Tensor& dx) {
      for (std::int64_t i = 0; i < x.count(); ++i) x.ptr<float>()[i] -= 0.1f * dx.ptr<float>()[i];
    };
    descend(q, g.q);
    descend(k, g.k);
    descend(v, g.v);
    descend(table, g.captured[0].second);
    bias.touch();  // the contents changed
  }
  std::printf("loss %.4f -> %.4f; bias of head 0:", first, last);
  for (int i = 0; i < 8; ++i) std::printf(" %.3f", static_cast<double>(table.ptr<float>()[i]));
  std::puts("");
  return last < 0.7 * first ? 0 : 1;
}
