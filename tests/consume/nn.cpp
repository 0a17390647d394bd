// SPDX-License-Identifier: Apache-2.0
// A consumer of undivided::nn: one layer, forward and backward.
#include <undivided/nn/nn.hpp>

int main() {
  undivided::nn::Linear<float> layer(2, 1);
  layer.weight.value = {3, 4};
  undivided::nn::Matrix<float> x(1, 2), dy(1, 1);
  x.data()[0] = x.data()[1] = dy.data()[0] = 1;
  const float y = layer.forward(x).data()[0];
  return y == 7 && layer.backward(x, dy).data()[1] == 4 ? 0 : 1;
}
