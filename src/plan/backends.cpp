// SPDX-License-Identifier: Apache-2.0
// A new backend is one row here and one folder beside cpu/.
#include "plan/backends.hpp"

#include "cpu/backend.hpp"
#include "cuda/backend.hpp"
#include "ref/reference.hpp"

namespace undivided {

std::span<const BackendRow> backends() {
  static constexpr BackendRow table[] = {
      {Backend::cuda, "cuda", Device::Kind::cuda, cuda::support, cuda::prepare},
      {Backend::cpu, "cpu", Device::Kind::cpu, cpu::support, cpu::prepare},
      {Backend::reference, "reference", Device::Kind::cpu, ref::support, ref::prepare},
  };
  return table;
}

}  // namespace undivided
