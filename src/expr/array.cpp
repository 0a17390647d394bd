// SPDX-License-Identifier: Apache-2.0
// Captured arrays: shared storage, a version, and the range of integer values.
#include <fmt/format.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "expr/internal.hpp"

namespace undivided {
namespace {

// Versions never repeat in a process, so (owner, version) stays unique when memory is reused.
std::uint64_t next_version() {
  static std::atomic<std::uint64_t> counter{0};
  return ++counter;
}

void check_kind(const View& v) {
  const bool allowed = v.dtype == DType::i32 || v.dtype == DType::f32 || v.dtype == DType::boolean;
  if (!allowed)
    expr::refuse(
        Stage::bind,
        fmt::format("a captured array of {} cannot be read by a mask or score; allowed are "
                    "i32, f32 and boolean: see converted()",
                    name_of(v.dtype)));
  if (v.rank < 1 || v.rank > max_rank)
    expr::refuse(
        Stage::bind,
        fmt::format("a captured array has rank 1 to {}, but rank {} came", max_rank, v.rank));
}

template <class T>
std::pair<std::shared_ptr<void>, View> owned(std::vector<T> values, DType dtype) {
  auto held = std::make_shared<std::vector<T>>(std::move(values));
  View v = View::of(held->data(), dtype, {static_cast<std::int64_t>(held->size())});
  return {held, v};
}

std::pair<std::int64_t, std::int64_t> scan(const View& v) {
  const auto* base = static_cast<const std::int32_t*>(v.data);
  std::array<std::int64_t, 4> shape{1, 1, 1, 1}, stride{0, 0, 0, 0};
  for (int i = 0; i < v.rank; ++i) {
    shape[static_cast<std::size_t>(4 - v.rank + i)] = v.size(i);
    stride[static_cast<std::size_t>(4 - v.rank + i)] = v.step(i);
  }
  std::int32_t low = INT32_MAX, high = INT32_MIN;
  for (std::int64_t a = 0; a < shape[0]; ++a)
    for (std::int64_t b = 0; b < shape[1]; ++b)
      for (std::int64_t c = 0; c < shape[2]; ++c) {
        const auto* row = base + a * stride[0] + b * stride[1] + c * stride[2];
        for (std::int64_t d = 0; d < shape[3]; ++d) {
          const std::int32_t x = row[d * stride[3]];
          low = x < low ? x : low;
          high = x > high ? x : high;
        }
      }
  if (low > high) return {0, 0};
  return {low, high};
}

}  // namespace

struct Array::State {
  View view;
  std::shared_ptr<void> owner;
  std::atomic<std::uint64_t> version{next_version()};
  std::optional<std::pair<std::int64_t, std::int64_t>> declared;
  std::mutex mutex;  // guards the two below
  std::uint64_t scanned_version = 0;
  std::pair<std::int64_t, std::int64_t> scanned{0, 0};
};

Array::Array(std::vector<std::int32_t> values, std::string name)
    : state_(std::make_shared<State>()), name_(std::move(name)) {
  std::tie(state_->owner, state_->view) = owned(std::move(values), DType::i32);
}

Array::Array(std::vector<float> values, std::string name)
    : state_(std::make_shared<State>()), name_(std::move(name)) {
  std::tie(state_->owner, state_->view) = owned(std::move(values), DType::f32);
}

Array::Array(Tensor data, std::string name, Range range)
    : Array(static_cast<const View&>(data), std::move(name), range) {
  state_->owner = std::move(data.owner);
}

Array::Array(View data, std::string name, Range range)
    : state_(std::make_shared<State>()), name_(std::move(name)) {
  check_kind(data);
  if (range && range->first > range->second)
    expr::refuse(Stage::bind,
                 fmt::format("array \"{}\" declares the empty range [{}, {}]; give (low, high)",
                             name_,
                             range->first,
                             range->second));
  state_->view = data;
  state_->declared = range;
}

const View& Array::view() const { return state_->view; }
const std::string& Array::name() const { return name_; }
const void* Array::owner() const { return state_.get(); }
std::uint64_t Array::version() const { return state_->version.load(); }
void Array::touch() { state_->version.store(next_version()); }

std::pair<std::int64_t, std::int64_t> Array::range() const {
  State& s = *state_;
  if (s.declared) return *s.declared;
  if (s.view.dtype == DType::boolean) return {0, 1};
  if (s.view.dtype != DType::i32)
    expr::refuse(Stage::bind,
                 fmt::format("array \"{}\" holds {}: only integer arrays have a range",
                             name_,
                             undivided::name_of(s.view.dtype)));
  if (s.view.device.kind != Device::Kind::cpu)
    expr::refuse(Stage::bind,
                 fmt::format("integer array \"{}\" lives on {} and declares no range; construct it "
                             "as Array(view, name, {{{{low, high}}}})",
                             name_,
                             to_string(s.view.device)));
  const std::scoped_lock lock(s.mutex);
  const std::uint64_t now = s.version.load();
  if (s.scanned_version != now) {
    s.scanned = scan(s.view);
    s.scanned_version = now;
  }
  return s.scanned;
}

Array Array::named(std::string name) const {
  Array other = *this;
  other.name_ = std::move(name);
  return other;
}

}  // namespace undivided
