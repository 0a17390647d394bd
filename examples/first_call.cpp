// SPDX-License-Identifier: Apache-2.0
// The first call: grouped-query causal attention on the CPU, in half precision, checked.
#include <cmath>
#include <cstdio>
#include <vector>

#include "undivided/undivided.hpp"

namespace ud = undivided;

static ud::Tensor waves(std::initializer_list<std::int64_t> shape, double c) {
  const ud::Tensor t = ud::Tensor::empty(ud::DType::bf16, shape);
  for (std::int64_t i = 0; i < t.count(); ++i)
    t.ptr<ud::BFloat16>()[i] =
        ud::to_bfloat16(static_cast<float>(std::sin(c * static_cast<double>(i + 1))));
  return t;
}

int main() {
  // [batch, head, token, dim]: 8 query heads share 2 heads of keys and values.
  const ud::Tensor q = waves({1, 8, 100, 64}, 0.37);
  const ud::Tensor k = waves({1, 2, 300, 64}, 0.11);
  const ud::Tensor v = waves({1, 2, 300, 64}, 0.23);

  // The last query meets the last key: these are the newest 100 of 300 tokens.
  const ud::Options options{.mask = ud::causal(), .align = ud::Align::end};
  const ud::Forward f = ud::attention(q, k, v, options);
  const ud::Forward exact = ud::reference(q, ud::dense(k, v), options);  // float64

  double worst = 0;
  for (std::int64_t i = 0; i < f.o.count(); ++i)
    worst = std::max(
        worst, std::fabs(ud::to_float(f.o.ptr<ud::BFloat16>()[i]) - exact.o.ptr<double>()[i]));
  std::printf("O is %s, LSE is %s\n", f.o.describe().c_str(), f.lse.describe().c_str());
  std::printf("largest distance from float64: %.5f\n", worst);

  // What ran, and why?
  const ud::Problem p = ud::resolve(q, ud::dense(k, v), options);
  std::puts(ud::plan(p.spec, p.bounds).explain().c_str());
  return worst < 0.02 ? 0 : 1;
}
