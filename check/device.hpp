// SPDX-License-Identifier: Apache-2.0
// Where a case runs: host memory as it is, or copies on a CUDA device.
#pragma once

#include <string>
#include <vector>

#include "check/inputs.hpp"

namespace undivided::check {

/// Copies buffers to the device of a backend and back. For host backends it changes nothing.
class Place {
 public:
  Place(Backend backend, const Context& context);

  /// The same inputs with Q, K, V, dO, sink and dLSE on the device. Lengths, tables and origins
  /// stay on the host: verbs take them.
  Inputs bring(const Inputs& host);
  /// A view of the same shape and strides whose memory is a copy of all of `buffer`.
  View bring(const Buffer& buffer);
  /// Copies what a backend wrote (guards included) back into the buffer that was brought.
  void fetch(const Buffer& buffer);
  /// A host copy of any dense tensor.
  Tensor host(const View& v) const;
  Device device() const { return device_; }

 private:
  struct Copy {
    View host, device;  // whole storages
    Tensor owner;
  };
  const Copy& copy_of(const Buffer& buffer);
  Context context_;
  Device device_;
  std::vector<Copy> copies_;
};

/// Empty when the backend can run here, else the reason: "no GPU: ...".
std::string missing(Backend backend);

}  // namespace undivided::check
