// SPDX-License-Identifier: Apache-2.0
// What a backend answers: can you, with what kernel, how much workspace, run.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "undivided/plan.hpp"

namespace undivided {

struct Support {
  bool ok = true;
  std::string reason, limit, got;
  static Support yes() { return {}; }
  static Support no(std::string reason, std::string limit, std::string got) {
    return {false, std::move(reason), std::move(limit), std::move(got)};
  }
};

/// A prepared kernel for one (Spec, Bounds). Immutable; run() neither allocates nor synchronises.
class Prepared {
 public:
  virtual ~Prepared() = default;
  virtual std::size_t workspace() const = 0;
  virtual void run(const Args& args, void* workspace, const Context& context) const = 0;
  Explanation explanation;
};

struct BackendRow {
  Backend id;
  const char* name;
  Device::Kind device;
  Support (*support)(const Spec&, const Bounds&, const Context&);
  std::unique_ptr<Prepared> (*prepare)(const Spec&, const Bounds&, Device, const Context&);
};

/// What a backend keeps for the life of the library that a context names (loaded modules, say):
/// made once, by the first that asks.
std::shared_ptr<void> backend_state(const Context& context,
                                    Backend backend,
                                    const std::function<std::shared_ptr<void>()>& make);

}  // namespace undivided
