// SPDX-License-Identifier: Apache-2.0
// Moves a problem to the device of a backend and its results back: files live on the host.
#pragma once

#include "cli/problem.hpp"
#include "undivided/undivided.hpp"

namespace undivided::cli {

/// Where the tensors of a backend live. For cuda raises Error{plan} with the reason if there is no
/// GPU.
Device device_of(Backend backend);
Tensor on_host(const Tensor& tensor);  ///< the tensor itself if it is there
/// Waits until the device has done what it was given.
void wait_for(Device device);

/// Forward, and the gradients that `backward` asks for when `dout` is given.
struct Run {
  Forward forward;
  Gradients gradients;
};
/// Everything on the host, whatever the backend. `dout` has the element type of the inputs.
Run run_on_device(const Rows& q,
                  const Kv& kv,
                  const Options& options,
                  const View& dout,
                  const BackwardOptions& backward,
                  const Context& context);

}  // namespace undivided::cli
