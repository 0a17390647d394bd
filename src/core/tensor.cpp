// SPDX-License-Identifier: Apache-2.0
// Views and tensors: shapes, strides, slices, and host memory.
#include "undivided/tensor.hpp"

#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "core/host_memory.hpp"
#include "undivided/error.hpp"

namespace undivided {
namespace {

std::size_t index(int axis) { return static_cast<std::size_t>(axis); }

// A view may describe a shape without data, so this is not pointer arithmetic.
void* advanced(void* data, std::int64_t bytes) {
  return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(data) +
                                 static_cast<std::uintptr_t>(bytes));
}

std::string list_of(const View& v) {
  std::string text = "[";
  for (int i = 0; i < v.rank; ++i) text += fmt::format("{}{}", i ? ", " : "", v.shape[index(i)]);
  return text + "]";
}

void set_dense_strides(View& v) {
  std::int64_t step = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.stride[index(i)] = step;
    step *= v.shape[index(i)];
  }
}

// Sizes that cannot be counted in 63 bits are refused before anything is multiplied.
void check_shape(const View& v) {
  std::int64_t left = std::numeric_limits<std::int64_t>::max() / 16;
  for (int i = 0; i < v.rank; ++i) {
    const std::int64_t size = v.shape[index(i)];
    if (size < 0)
      throw Error(Code::invalid_argument,
                  Stage::resolve,
                  fmt::format("shape {} has a negative size; sizes are 0 or more", list_of(v)));
    if (size > 1) {
      if (size > left)
        throw Error(Code::out_of_memory,
                    Stage::resolve,
                    fmt::format("shape {} has more elements than memory can hold", list_of(v)));
      left /= size;
    }
  }
}

View shaped(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device) {
  if (shape.size() > index(max_rank))
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("a view has at most {} axes, got {}", max_rank, shape.size()));
  View v;
  v.data = data;
  v.dtype = dtype;
  v.device = device;
  v.rank = static_cast<int>(shape.size());
  std::size_t i = 0;
  for (std::int64_t size : shape) v.shape[i++] = size;
  check_shape(v);
  set_dense_strides(v);
  return v;
}

Tensor allocate(const View& like) {
  constexpr std::size_t most = std::size_t{1} << 46;  // far beyond any host of today
  const auto count = static_cast<std::size_t>(like.count());
  const std::size_t size = size_of(like.dtype), bytes = count * size + 1;
  void* memory = nullptr;
  if (count <= most / size) memory = take_host_memory(bytes);
  if (!memory)
    throw Error(
        Code::out_of_memory,
        Stage::resolve,
        fmt::format("no memory for {} ({} elements of {} bytes)", like.describe(), count, size));
  Tensor t;
  static_cast<View&>(t) = like;
  t.data = memory;
  t.owner = std::shared_ptr<void>(memory, [bytes](void* p) { return_host_memory(p, bytes); });
  return t;
}

int checked_axis(const View& v, int axis, const char* what) {
  const int positive = axis < 0 ? axis + v.rank : axis;
  if (positive < 0 || positive >= v.rank)
    throw Error(
        Code::invalid_argument,
        Stage::resolve,
        fmt::format("{}: axis {} of {}; allowed: 0 to {}", what, axis, v.describe(), v.rank - 1));
  return positive;
}

}  // namespace

std::string to_string(Device device) {
  return device.kind == Device::Kind::cpu ? std::string("cpu")
                                          : fmt::format("cuda:{}", device.index);
}

View View::of(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device) {
  return shaped(data, dtype, shape, device);
}

std::int64_t View::count() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[index(i)];
  return n;
}

bool View::contiguous() const {
  std::int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[index(i)] == 0) return true;
    if (shape[index(i)] != 1 && stride[index(i)] != expected) return false;
    expected *= shape[index(i)];
  }
  return true;
}

std::string View::describe() const {
  return rank == 0 ? std::string("not given")
                   : fmt::format("{} {}", name_of(dtype), list_of(*this));
}

void* View::at(std::initializer_list<std::int64_t> where) const {
  std::int64_t offset = 0;
  std::size_t axis = 0;
  for (std::int64_t i : where) offset += i * stride[axis++];
  return advanced(data, offset * static_cast<std::int64_t>(size_of(dtype)));
}

View View::permuted(std::initializer_list<int> axes) const {
  View v = *this;
  unsigned seen = 0;
  std::size_t i = 0;
  if (axes.size() == index(rank))
    for (int axis : axes) {
      const int from = checked_axis(*this, axis, "permuted");
      seen |= 1u << from;
      v.shape[i] = shape[index(from)];
      v.stride[i++] = stride[index(from)];
    }
  if (axes.size() != index(rank) || seen != (1u << rank) - 1)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("permuted: {} needs each axis 0 to {} once", describe(), rank - 1));
  return v;
}

View View::sliced(int axis, std::int64_t begin, std::int64_t end) const {
  const int a = checked_axis(*this, axis, "sliced");
  if (begin < 0 || end < begin || end > shape[index(a)])
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("sliced: range {}..{} of axis {} of {}; allowed: within 0..{}",
                            begin,
                            end,
                            axis,
                            describe(),
                            shape[index(a)]));
  View v = *this;
  v.data = advanced(data, begin * stride[index(a)] * static_cast<std::int64_t>(size_of(dtype)));
  v.shape[index(a)] = end - begin;
  return v;
}

View View::unsqueezed(int axis) const {
  if (rank == max_rank)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("unsqueezed: {} already has {} axes", describe(), max_rank));
  const int a = axis < 0 ? axis + rank + 1 : axis;
  if (a < 0 || a > rank)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("unsqueezed: axis {} of {}; allowed: 0 to {}", axis, describe(), rank));
  View v = *this;
  for (int i = rank; i > a; --i) {
    v.shape[index(i)] = shape[index(i - 1)];
    v.stride[index(i)] = stride[index(i - 1)];
  }
  v.stride[index(a)] = a < rank ? shape[index(a)] * stride[index(a)] : 1;
  v.shape[index(a)] = 1;
  v.rank = rank + 1;
  return v;
}

View View::selected(int axis, std::int64_t at) const {
  const int a = checked_axis(*this, axis, "selected");
  View v = sliced(a, at, at + 1);
  for (int i = a; i + 1 < rank; ++i) {
    v.shape[index(i)] = shape[index(i + 1)];
    v.stride[index(i)] = stride[index(i + 1)];
  }
  v.rank = rank - 1;
  v.shape[index(v.rank)] = 0;
  v.stride[index(v.rank)] = 0;
  return v;
}

Tensor Tensor::empty(DType dtype, std::initializer_list<std::int64_t> shape) {
  return allocate(shaped(nullptr, dtype, shape, {}));
}

Tensor Tensor::empty_like(const View& other, DType dtype) {
  View v = other;
  v.data = nullptr;
  v.dtype = dtype;
  v.device = {};
  check_shape(v);
  set_dense_strides(v);
  return allocate(v);
}

Tensor Tensor::zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor t = empty(dtype, shape);
  std::memset(t.data, 0, static_cast<std::size_t>(t.count()) * size_of(dtype));
  return t;
}

}  // namespace undivided
