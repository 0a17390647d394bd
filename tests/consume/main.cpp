// SPDX-License-Identifier: Apache-2.0
// A program of somebody else: one call through the public headers alone.
#include <cstdio>
#include <undivided/undivided.hpp>

int main() {
  const undivided::Tensor x = undivided::Tensor::zeros(undivided::DType::f32, {1, 2, 5, 8});
  const undivided::Forward f = undivided::attention(x, x, x, {.mask = undivided::causal()});
  std::printf("undivided %s: %s\n", UNDIVIDED_VERSION, f.o.describe().c_str());
  return f.o.ptr<float>()[0] == 0 ? 0 : 1;
}
