// SPDX-License-Identifier: Apache-2.0
// The one mutable process state: interned specs, plans, mask plans, uploaded arrays, spare
// workspaces.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "problem/bound.hpp"
#include "undivided/plan.hpp"

namespace undivided {

class Library {
 public:
  Library();
  ~Library();

  /// The canonical object of an equal spec: comparable by pointer from then on.
  std::shared_ptr<const Spec> intern(const Spec& spec);

  /// The cached plan, or the one that `make` returns.
  Plan plan(const std::shared_ptr<const Spec>& spec,
            const Bounds& bounds,
            Device device,
            const Context& context,
            const std::function<Plan()>& make);

  /// The cached mask plan of a problem whose arrays are unchanged, or the one that `make` returns.
  std::shared_ptr<const MaskPlan> mask_plan(
      const BoundProgram& mask,
      const std::vector<std::int64_t>& lengths_and_origins,
      Device device,
      const std::function<std::shared_ptr<const MaskPlan>()>& make);

  /// A device copy of a captured host array, made again when its version changes.
  View uploaded(const Array& array,
                Device device,
                const std::function<Tensor(const View&)>& upload);

  /// Memory between calls of the verbs: host workspaces are kept and handed out again.
  class Workspace {
   public:
    Workspace(Library& library, std::size_t bytes, Device device, const Context& context);
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* data() const { return data_; }

   private:
    Library& library_;
    std::size_t bytes_;
    Device device_;
    Allocator* allocator_ = nullptr;
    void* stream_ = nullptr;
    void* data_ = nullptr;
    Tensor host_;
  };

  std::shared_ptr<void> backend_state(Backend backend,
                                      const std::function<std::shared_ptr<void>()>& make);

  std::size_t specs() const;
  std::size_t plans() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The library that a context names, or the process-wide one.
Library& library_of(const Context& context);

/// The allocator that a context names, or the default of the device.
Allocator& allocator_of(const Context& context, Device device);
/// A dense tensor from the context's allocator.
Tensor allocate(const Context& context,
                Device device,
                DType dtype,
                const std::vector<std::int64_t>& shape);

}  // namespace undivided
