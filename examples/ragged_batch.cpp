// SPDX-License-Identifier: Apache-2.0
// Sequences of different lengths, packed one after another: no padding is stored or computed.
#include <cmath>
#include <cstdio>
#include <vector>

#include "undivided/undivided.hpp"

namespace ud = undivided;

int main() {
  const std::vector<std::int32_t> offsets{0, 5, 5, 42, 60};  // lengths 5, 0, 37, 18
  const std::int64_t total = offsets.back(), heads = 4, dim = 32;
  const auto make = [&](double c) {
    const ud::Tensor t = ud::Tensor::empty(ud::DType::f32, {total, heads, dim});
    for (std::int64_t i = 0; i < t.count(); ++i)
      t.ptr<float>()[i] = static_cast<float>(std::sin(c * static_cast<double>(i + 1)));
    return t;
  };
  const ud::Tensor q = make(0.3), k = make(0.7), v = make(0.5);
  const ud::View at = ud::view(offsets.data(), {5});
  const ud::Options options{.mask = ud::causal()};
  const ud::Forward packed = ud::attention(ud::ragged(q, at), ud::ragged(k, v, at), options);
  std::printf("O is %s, LSE is %s\n", packed.o.describe().c_str(), packed.lse.describe().c_str());

  // The same, one sequence at a time: views of the packed tensors, [head, token, dim].
  double worst = 0;
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    const auto part = [&](const ud::Tensor& t) {
      return t.sliced(0, offsets[s], offsets[s + 1]).permuted({1, 0, 2});
    };
    const ud::Forward one = ud::attention(part(q), part(k), part(v), options);
    const ud::View same = part(packed.o);
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = 0; i < same.size(1); ++i)
        for (std::int64_t d = 0; d < dim; ++d)
          worst =
              std::max(worst,
                       std::fabs(static_cast<double>(*static_cast<float*>(one.o.at({h, i, d})) -
                                                     *static_cast<float*>(same.at({h, i, d})))));
    std::printf("sequence %zu has %d tokens\n", s, offsets[s + 1] - offsets[s]);
  }
  std::printf("largest difference between packed and one by one: %.2e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
