// SPDX-License-Identifier: Apache-2.0
// The first half of resolve: Q, K and V, their shapes, lengths and pages.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "undivided/plan.hpp"

namespace undivided {

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(
      Code::invalid_argument, Stage::resolve, fmt::format(format, std::forward<T>(args)...));
}

inline bool on_host(const View& v) { return v.device.kind == Device::Kind::cpu; }
void want_unit_stride(const char* name, const View& v);
/// A rank-1 index view: lengths, offsets, origins. Host contents may be read afterwards.
void want_index(const char* name, const View& v, std::int64_t size, Device device);
/// One sequence may be given without its batch axis.
void add_batch_axis(View& v);

class DataResolver {
 public:
  Problem problem;
  Spec& spec = problem.spec;
  Args& args = problem.args;
  Bounds& bounds = problem.bounds;

  void rows(const Rows& q);
  void keys(const Kv& kv);
  void shapes();
  void lengths();
  bool lengths_on_host() const;
  bool shares_pages() const;  ///< a table on a device is believed to share only its prefix

 private:
  bool tables_on_host() const;
  void pages(std::int64_t batch);
};

}  // namespace undivided
