// SPDX-License-Identifier: Apache-2.0
// Scatters score-program gradients.
#include "cpu/captured.hpp"

#include <bit>

namespace undivided::cpu {
namespace {

template <class F>
void for_each_element(const View& v, F&& body) {
  std::array<std::int64_t, 4> n{1, 1, 1, 1}, step{};
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(v.rank); ++axis) {
    n[axis] = v.shape[axis];
    step[axis] = v.stride[axis];
  }
  for (std::int64_t a = 0; a < n[0]; ++a)
    for (std::int64_t b = 0; b < n[1]; ++b)
      for (std::int64_t c = 0; c < n[2]; ++c)
        for (std::int64_t d = 0; d < n[3]; ++d)
          body(static_cast<float*>(v.data)[a * step[0] + b * step[1] + c * step[2] + d * step[3]]);
}

std::int32_t as_index(float bits) { return std::bit_cast<std::int32_t>(bits); }

}  // namespace

CapturedSums::Memory::Memory(Arena& arena, const Setup& setup, bool own) {
  const std::int64_t chunk = std::int64_t{chunk_rows} * setup.kernels->lanes;
  value = arena.take<float>(chunk);
  for (float*& i : index) i = arena.take<float>(chunk);
  params = arena.take<double>(static_cast<std::int64_t>(setup.score.params));
  arrays = arena.take<float>(own ? most_elements : 0);
}

CapturedSums::Groups::Groups(Arena& arena, const Setup& setup, std::int64_t n) : count(n) {
  Arena one;
  Memory(one, setup, n > 1);
  bytes = one.used();
  base = arena.take<std::byte>(static_cast<std::int64_t>(bytes) * n);
}

CapturedSums::CapturedSums(const Run& run, const expr::Gradient& gradient, const Groups& groups)
    : run_(run), gradient_(gradient), groups_(groups) {
  for (const View& v : run.args.d_arrays)
    if (v) elements_ += v.count();
  own_ = groups.count > 1 && elements_ <= most_elements;
}

CapturedSums::Memory CapturedSums::memory(std::int64_t group) const {
  Arena arena(groups_.base + groups_.bytes * static_cast<std::size_t>(group));
  return Memory(arena, run_.setup, groups_.count > 1);
}

void CapturedSums::clear() const {
  for (std::int64_t g = 0; g < groups(); ++g) {
    const Memory m = memory(g);
    std::fill_n(m.params, run_.setup.score.params, 0.0);
    if (own_) std::fill_n(m.arrays, elements_, 0.0f);
  }
  for (const View& v : run_.args.d_arrays)
    if (v) for_each_element(v, [](float& x) { x = 0; });
}

void CapturedSums::add(const Memory& memory,
                       const Files& files,
                       int first_row,
                       int rows,
                       int lanes_in_use,
                       const float* ds) const {
  const FlatCode& code = run_.setup.gradient;
  const int lanes = run_.kernels.lanes;
  for (std::size_t t = 0; t < gradient_.terms.size(); ++t) {
    const expr::Gradient::Term& term = gradient_.terms[t];
    const auto slot = static_cast<std::size_t>(term.slot);
    const bool array = !term.is_param;
    if (array && (slot >= run_.args.d_arrays.size() || !run_.args.d_arrays[slot])) continue;
    run_.kernels.read(code.roots[t + 1], first_row, rows, files, memory.value);
    if (!array) {
      double sum = 0;
      for (int r = 0; r < rows; ++r)
        for (int lane = 0; lane < lanes_in_use; ++lane) {
          const int at = r * lanes + lane;
          if (ds[at] != 0) sum += static_cast<double>(ds[at]) * memory.value[at];
        }
      memory.params[slot] += sum;
      continue;
    }
    // Sums of a group are dense: the arrays one after the other.
    View to = run_.args.d_arrays[slot];
    if (own_) {
      float* sums = memory.arrays;
      for (std::size_t i = 0; i < slot; ++i)
        if (run_.args.d_arrays[i]) sums += run_.args.d_arrays[i].count();
      to.data = sums;
      std::int64_t stride = 1;
      for (auto axis = static_cast<std::size_t>(to.rank); axis-- > 0;) {
        to.stride[axis] = stride;
        stride *= to.shape[axis];
      }
    }
    for (std::size_t axis = 0; axis < static_cast<std::size_t>(to.rank); ++axis)
      run_.kernels.read(code.keep[t][axis], first_row, rows, files, memory.index[axis]);
    // Neighbours often share an element: they are summed before the element is touched.
    std::int64_t current = -1;
    double sum = 0;
    const auto flush = [&] {
      if (current >= 0) static_cast<float*>(to.data)[current] += static_cast<float>(sum);
    };
    for (int r = 0; r < rows; ++r)
      for (int lane = 0; lane < lanes_in_use; ++lane) {
        const int at = r * lanes + lane;
        if (ds[at] == 0) continue;
        std::int64_t offset = 0;
        for (std::size_t axis = 0; axis < static_cast<std::size_t>(to.rank); ++axis)
          offset += std::clamp<std::int64_t>(as_index(memory.index[axis][at]),
                                             0,
                                             std::max<std::int64_t>(to.shape[axis], 1) - 1) *
                    to.stride[axis];
        if (offset != current) {
          flush();
          current = offset;
          sum = 0;
        }
        sum += static_cast<double>(ds[at]) * memory.value[at];
      }
    flush();
  }
}

void CapturedSums::finish() const {
  std::int64_t at = 0;
  if (own_)
    for (const View& v : run_.args.d_arrays)
      if (v)
        for_each_element(v, [&](float& x) {
          double sum = 0;
          for (std::int64_t g = 0; g < groups(); ++g) sum += memory(g).arrays[at];
          x = static_cast<float>(sum);
          ++at;
        });
  const View& to = run_.args.d_params;
  if (!to) return;
  for (std::int64_t i = 0; i < to.size(0); ++i) {
    double sum = 0;
    for (std::int64_t g = 0; g < groups(); ++g) sum += memory(g).params[i];
    static_cast<float*>(to.data)[i * to.step(0)] = static_cast<float>(sum);
  }
}

}  // namespace undivided::cpu
