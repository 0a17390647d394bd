// SPDX-License-Identifier: Apache-2.0
// Decoding with a paged cache: one new token a step for each sequence, pages taken as needed, and
// one plan that is warm from the first step on.
#include <cmath>
#include <cstdio>
#include <vector>

#include "undivided/undivided.hpp"

namespace ud = undivided;

int main() {
  const std::int64_t batch = 3, heads = 8, kv_heads = 2, dim = 64, page = 16, pages = 24;
  const ud::Tensor pool_k = ud::Tensor::zeros(ud::DType::f32, {pages, kv_heads, page, dim});
  const ud::Tensor pool_v = ud::Tensor::zeros(ud::DType::f32, {pages, kv_heads, page, dim});
  std::vector<std::int32_t> table(static_cast<std::size_t>(batch * 8), -1), lengths{0, 20, 45};
  std::int32_t next_free = 0;
  const auto append = [&](std::int64_t b, std::int32_t token) {
    std::int32_t& id = table[static_cast<std::size_t>(b * 8 + token / page)];
    if (id < 0) id = next_free++;
    for (std::int64_t h = 0; h < kv_heads; ++h)
      for (std::int64_t d = 0; d < dim; ++d) {
        const double x = 0.1 * static_cast<double>(d + 1) * (token + 1 + static_cast<double>(b));
        *static_cast<float*>(pool_k.at({id, h, token % page, d})) = static_cast<float>(std::sin(x));
        *static_cast<float*>(pool_v.at({id, h, token % page, d})) = static_cast<float>(std::cos(x));
      }
  };
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int32_t t = 0; t < lengths[static_cast<std::size_t>(b)]; ++t) append(b, t);

  const ud::Tensor q = ud::Tensor::empty(ud::DType::f32, {batch, heads, 1, dim});
  const ud::Tensor o = ud::Tensor::empty(ud::DType::f32, {batch, heads, 1, dim});
  for (std::int64_t i = 0; i < q.count(); ++i)
    q.ptr<float>()[i] = static_cast<float>(std::sin(0.3 * static_cast<double>(i + 1)));
  const ud::Kv kv = ud::paged(
      pool_k, pool_v, ud::view(table.data(), {batch, 8}), ud::view(lengths.data(), {batch}));

  // Plan once, for as many keys as the table can name.
  ud::Problem p = ud::resolve(q, kv, {}, {.o = o});
  p.bounds.max_k_len = 8 * page;
  p.bounds.total_k = batch * p.bounds.max_k_len;
  const ud::Plan plan = ud::plan(p.spec, p.bounds);
  const ud::Tensor room =
      ud::Tensor::empty(ud::DType::i8, {static_cast<std::int64_t>(plan.workspace()) + 1});
  std::printf("kernel %s\n", plan.explanation().kernel.c_str());

  for (int step = 0; step < 10; ++step) {
    for (std::int64_t b = 0; b < batch; ++b) append(b, lengths[static_cast<std::size_t>(b)]++);
    plan.run(p.args, room.data);  // the views are the same; only contents changed
  }
  std::printf("lengths %d %d %d, %d pages in use, o[0] = %.4f\n",
              lengths[0],
              lengths[1],
              lengths[2],
              next_free,
              static_cast<double>(o.ptr<float>()[0]));

  const ud::Forward exact = ud::reference(ud::Rows(q), kv);
  double worst = 0;
  for (std::int64_t i = 0; i < o.count(); ++i)
    worst = std::max(worst, std::fabs(o.ptr<float>()[i] - exact.o.ptr<double>()[i]));
  std::printf("largest distance from float64: %.2e\n", worst);
  return worst < 1e-5 ? 0 : 1;
}
