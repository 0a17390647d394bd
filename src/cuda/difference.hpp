// SPDX-License-Identifier: Apache-2.0
// The epilogue of differential attention and its gradient, on rows that stay on the device.
#pragma once

#include <vector>

#include "undivided/context.hpp"
#include "undivided/tensor.hpp"

namespace undivided::cuda {

/// y = a - lambda b, or gain * weight * RMSNorm of that; kernels/difference.cuh has the equations.
/// Rows are f32, f16 or bf16 [batch, head, token, dim], dim a multiple of 8 up to 512, with unit
/// last stride.
struct Difference {
  View a, b;          // without b: a alone
  double lambda = 0;  // for all rows, or
  View logits{};      // f32 [batch, head, token]: the sigmoid is lambda. Without the norm only
  bool norm = false;
  double gain = 1, eps = 0;
  View weight{};   // f32 [dim], dense, optional: of the norm
  View offsets{};  // of packed rows (batch is 1): those past the last are left alone
};

/// Launches; waits for nothing.
void difference(const Difference& d, const View& y, const Context& context);

/// The gradients of a and b. With logits also theirs, f32 like them, and nothing is waited for.
/// With the norm it returns the gradients of weight [dim] and then of lambda, which waits for the
/// stream and is refused while it is captured.
std::vector<double> difference_backward(const Difference& d,
                                        const View& dy,
                                        const View& da,
                                        const View& db,
                                        const View& dlogits,
                                        const Context& context);

}  // namespace undivided::cuda
