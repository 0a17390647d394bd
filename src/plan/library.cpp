// SPDX-License-Identifier: Apache-2.0
// The caches behind the verbs. Readers share a lock; making a plan happens outside it.
#include "plan/library.hpp"

#include <array>
#include <cstring>
#include <deque>
#include <string>

namespace undivided {
namespace {

std::size_t mix(std::size_t h, std::size_t x) { return (h ^ x) * 0x100000001b3ull; }

struct SpecHash {
  std::size_t operator()(const Spec* s) const { return hash_of(*s); }
};
struct SpecEqual {
  bool operator()(const Spec* a, const Spec* b) const { return a == b || *a == *b; }
};

struct PlanKey {
  const Spec* spec;
  Bounds bounds;
  Device device;
  Backend backend;
  Compile compile;
  int workers;
  friend bool operator==(const PlanKey&, const PlanKey&) = default;
};
struct PlanHash {
  std::size_t operator()(const PlanKey& k) const {
    std::size_t h = std::hash<const void*>()(k.spec);
    const Bounds& b = k.bounds;
    for (const std::int64_t x :
         {b.batch, b.kv_heads, b.total_q, b.total_k, b.max_q_len, b.max_k_len, b.pages, b.captured})
      h = mix(h, static_cast<std::size_t>(x));
    h = mix(h,
            static_cast<std::size_t>(k.device.index) * 2 + static_cast<std::size_t>(k.device.kind));
    return mix(h, static_cast<std::size_t>(k.backend) * 64 + static_cast<std::size_t>(k.workers));
  }
};

struct KeptMaskPlan {
  std::vector<std::int64_t> key;  // parameters, lengths, origins, (owner, version) pairs, device
  expr::ProgramPtr program;
  Captures captures;  // keeps owners alive, so that an address cannot be reused
  std::shared_ptr<const MaskPlan> plan;
};

struct KeptArray {
  Array array;
  std::uint64_t version;
  Device device;
  Tensor copy;
};

constexpr std::size_t most_mask_plans = 64, most_arrays = 256, most_workspaces = 16;

}  // namespace

struct Library::State {
  mutable std::shared_mutex mutex;
  std::unordered_map<const Spec*, std::shared_ptr<const Spec>, SpecHash, SpecEqual> specs;
  std::unordered_map<PlanKey, Plan, PlanHash> plans;

  std::mutex memory_mutex;
  std::deque<KeptMaskPlan> mask_plans;
  std::deque<KeptArray> arrays;
  std::vector<Tensor> workspaces;

  std::mutex backend_mutex;
  std::array<std::shared_ptr<void>, 8> backends;
};

Library::Library() : state_(std::make_unique<State>()) {}
Library::~Library() = default;

std::shared_ptr<const Spec> Library::intern(const Spec& spec) {
  {
    std::shared_lock lock(state_->mutex);
    const auto found = state_->specs.find(&spec);
    if (found != state_->specs.end()) return found->second;
  }
  std::unique_lock lock(state_->mutex);
  auto kept = std::make_shared<const Spec>(spec);
  return state_->specs.emplace(kept.get(), kept).first->second;
}

Plan Library::plan(const std::shared_ptr<const Spec>& spec,
                   const Bounds& bounds,
                   Device device,
                   const Context& context,
                   const std::function<Plan()>& make) {
  const int workers = context.executor ? context.executor->workers() : 0;
  const PlanKey key{spec.get(), bounds, device, context.backend, context.compile, workers};
  {
    std::shared_lock lock(state_->mutex);
    const auto found = state_->plans.find(key);
    if (found != state_->plans.end()) return found->second;
  }
  Plan made = make();
  std::unique_lock lock(state_->mutex);
  return state_->plans.emplace(key, std::move(made)).first->second;
}

std::shared_ptr<const MaskPlan> Library::mask_plan(
    const BoundProgram& mask,
    const std::vector<std::int64_t>& lengths_and_origins,
    Device device,
    const std::function<std::shared_ptr<const MaskPlan>()>& make) {
  std::vector<std::int64_t> key = lengths_and_origins;
  key.push_back(static_cast<std::int64_t>(device.kind) * 1024 + device.index);
  for (const double p : mask.bound.params) {
    std::int64_t bits = 0;
    static_assert(sizeof(bits) == sizeof(p));
    std::memcpy(&bits, &p, sizeof(p));
    key.push_back(bits);
  }
  for (const Array& a : mask.captures.arrays) {
    key.push_back(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(a.owner())));
    key.push_back(static_cast<std::int64_t>(a.version()));
  }
  {
    std::lock_guard lock(state_->memory_mutex);
    for (const KeptMaskPlan& kept : state_->mask_plans)
      if (kept.key == key && expr::same_structure(*kept.program, *mask.program)) return kept.plan;
  }
  std::shared_ptr<const MaskPlan> made = make();
  std::lock_guard lock(state_->memory_mutex);
  state_->mask_plans.push_back({std::move(key), mask.program, mask.captures, made});
  if (state_->mask_plans.size() > most_mask_plans) state_->mask_plans.pop_front();
  return made;
}

View Library::uploaded(const Array& array,
                       Device device,
                       const std::function<Tensor(const View&)>& upload) {
  std::lock_guard lock(state_->memory_mutex);
  for (KeptArray& kept : state_->arrays) {
    if (kept.array.owner() != array.owner() || kept.device != device) continue;
    if (kept.version != array.version()) {
      kept.copy = upload(array.view());
      kept.version = array.version();
    }
    return kept.copy;
  }
  state_->arrays.push_back({array, array.version(), device, upload(array.view())});
  if (state_->arrays.size() > most_arrays) state_->arrays.pop_front();
  return state_->arrays.back().copy;
}

Library::Workspace::Workspace(Library& library,
                              std::size_t bytes,
                              Device device,
                              const Context& context)
    : library_(library), bytes_(bytes), device_(device), stream_(context.stream) {
  if (bytes == 0) return;
  if (context.allocator || device.kind != Device::Kind::cpu) {
    allocator_ = &allocator_of(context, device);
    data_ = allocator_->allocate(bytes, device, stream_);
    return;
  }
  {
    std::lock_guard lock(library_.state_->memory_mutex);
    auto& spare = library_.state_->workspaces;
    for (std::size_t i = 0; i < spare.size(); ++i)
      if (spare[i].count() >= static_cast<std::int64_t>(bytes)) {
        host_ = std::move(spare[i]);
        spare.erase(spare.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      }
  }
  if (!host_) host_ = Tensor::empty(DType::i8, {static_cast<std::int64_t>(bytes)});
  data_ = host_.data;
}

Library::Workspace::~Workspace() {
  if (allocator_) {
    allocator_->deallocate(data_, bytes_, device_, stream_);
  } else if (host_) {
    std::lock_guard lock(library_.state_->memory_mutex);
    auto& spare = library_.state_->workspaces;
    if (spare.size() == most_workspaces) spare.erase(spare.begin());
    spare.push_back(std::move(host_));
  }
}

std::shared_ptr<void> Library::backend_state(Backend backend,
                                             const std::function<std::shared_ptr<void>()>& make) {
  std::lock_guard lock(state_->backend_mutex);
  auto& kept = state_->backends[static_cast<std::size_t>(backend)];
  if (!kept) kept = make();
  return kept;
}

std::shared_ptr<void> backend_state(const Context& context,
                                    Backend backend,
                                    const std::function<std::shared_ptr<void>()>& make) {
  return library_of(context).backend_state(backend, make);
}

std::size_t Library::specs() const {
  std::shared_lock lock(state_->mutex);
  return state_->specs.size();
}
std::size_t Library::plans() const {
  std::shared_lock lock(state_->mutex);
  return state_->plans.size();
}

Library& library_of(const Context& context) {
  static Library process;
  return context.library ? *context.library : process;
}

std::shared_ptr<Library> make_library() { return std::make_shared<Library>(); }

}  // namespace undivided
