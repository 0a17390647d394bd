// SPDX-License-Identifier: Apache-2.0
// Claims that need a GPU: every mask of the catalogue and every kind of FlashMask columns gives
// what the CPU gives, by bits of the plan and by programs over columns, forward and backward.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "flashmask_kinds.hpp"
#include "mask_catalogue.hpp"
#include "variants_support.hpp"

namespace undivided {
namespace {

constexpr Device gpu{Device::Kind::cuda, 0};

class GpuMasks : public ::testing::Test {
 protected:
  void SetUp() override {
    const cuda::Availability here = cuda::availability();
    if (!here.ok) GTEST_SKIP() << "no GPU: " << here.reason;
  }
};

/// Largest difference over the largest value; -inf must be met exactly.
double difference(const Tensor& on_device, const Tensor& want) {
  const Tensor got = cuda::to_host(on_device);
  double largest = 1e-6, worst = 0;
  for (std::int64_t i = 0; i < want.count(); ++i) {
    const double x = value(want, i), y = value(got, i);
    if (x == y) continue;
    if (!std::isfinite(x) || !std::isfinite(y)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(x));
    worst = std::max(worst, std::abs(x - y));
  }
  return worst / largest;
}

struct Data {
  std::int64_t n;
  Tensor q = noise(DType::f16, {1, 4, n, 64}, 0), k = noise(DType::f16, {1, 2, n, 64}, 1),
         v = noise(DType::f16, {1, 2, n, 64}, 2), dout = noise(DType::f16, {1, 4, n, 64}, 3);
  Tensor on_q = cuda::to_device(q, gpu), on_k = cuda::to_device(k, gpu),
         on_v = cuda::to_device(v, gpu), on_dout = cuda::to_device(dout, gpu);

  void compare(const Mask& mask) const {
    Options options;
    options.mask = mask;
    options.align = Align::start;
    const Forward want = attention(q, k, v, options);
    const Gradients slopes = attention_backward(dout, q, k, v, want);
    // Automatic is the program for masks by columns; others would compile a kernel each.
    for (const Inside inside : {Inside::bits, Inside::automatic}) {
      SCOPED_TRACE(inside == Inside::bits ? "bits" : "automatic");
      options.inside = inside;
      const Forward f = attention(on_q, on_k, on_v, options);
      EXPECT_LT(difference(f.o, want.o), 2e-2) << "O";
      EXPECT_LT(difference(f.lse, want.lse), 2e-2) << "LSE";
      const Gradients g = attention_backward(on_dout, on_q, on_k, on_v, f);
      EXPECT_LT(difference(g.q, slopes.q), 2e-2) << "dQ";
      EXPECT_LT(difference(g.k, slopes.k), 2e-2) << "dK";
      EXPECT_LT(difference(g.v, slopes.v), 2e-2) << "dV";
    }
  }
};

TEST_F(GpuMasks, TheCatalogueGivesWhatTheCpuGives) {
  const Data data{2048};
  const testing::MaskCatalogue catalogue(2048);
  EXPECT_EQ(catalogue.masks().size(), 26u);
  for (const testing::CatalogueMask& m : catalogue.masks()) {
    SCOPED_TRACE(m.name);
    data.compare(catalogue.mask(m));
  }
}

TEST_F(GpuMasks, EveryKindOfFlashMaskGivesWhatTheCpuGives) {
  const Data data{715};
  for (const flashmask::Kind& kind : flashmask::kinds(715)) {
    SCOPED_TRACE(kind.name);
    data.compare(import_flashmask(kind.mask));
  }
}

}  // namespace
}  // namespace undivided
