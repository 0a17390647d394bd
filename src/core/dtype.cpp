// SPDX-License-Identifier: Apache-2.0
// Element types: names, sizes, one element in and out, and copies between types.
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.hpp"
#include "undivided/error.hpp"
#include "undivided/tensor.hpp"

namespace undivided {
namespace {

constexpr std::array<const char*, 10> names_of_types{
    "f64", "f32", "f16", "bf16", "i8", "e4m3", "e5m2", "i32", "i64", "bool"};

template <class T>
T read(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <class T>
void write(void* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

template <class T>
T saturated(double value) {
  if (std::isnan(value)) return 0;
  const double rounded = std::nearbyint(value);
  // The upper limit of int64 is not a double; 2^63 is, and is already too large.
  if (rounded >= -static_cast<double>(std::numeric_limits<T>::min()))
    return std::numeric_limits<T>::max();
  if (rounded <= static_cast<double>(std::numeric_limits<T>::min()))
    return std::numeric_limits<T>::min();
  return static_cast<T>(rounded);
}

void copy_row(const View& from, const char* source, const View& to, char* target) {
  const std::size_t axis = static_cast<std::size_t>(from.rank - 1);
  const std::int64_t n = from.shape[axis];
  const auto size_from = static_cast<std::int64_t>(size_of(from.dtype));
  const auto size_to = static_cast<std::int64_t>(size_of(to.dtype));
  const std::int64_t step_from = from.stride[axis] * size_from;
  const std::int64_t step_to = to.stride[axis] * size_to;
  if (from.dtype == to.dtype) {
    if (step_from == size_from && step_to == size_to) {
      if (n > 0) std::memcpy(target, source, static_cast<std::size_t>(n * size_from));
    } else {
      for (std::int64_t i = 0; i < n; ++i)
        std::memcpy(target + i * step_to, source + i * step_from, size_of(from.dtype));
    }
  } else if (from.dtype == DType::f32 && to.dtype == DType::f16) {
    for (std::int64_t i = 0; i < n; ++i)
      write(target + i * step_to, to_half(read<float>(source + i * step_from)));
  } else if (from.dtype == DType::f32 && to.dtype == DType::bf16) {
    for (std::int64_t i = 0; i < n; ++i)
      write(target + i * step_to, to_bfloat16(read<float>(source + i * step_from)));
  } else {
    for (std::int64_t i = 0; i < n; ++i)
      store_element(
          to.dtype, target + i * step_to, load_element(from.dtype, source + i * step_from));
  }
}

void copy_axis(int axis, const View& from, const char* source, const View& to, char* target) {
  if (axis == from.rank - 1) return copy_row(from, source, to, target);
  const auto a = static_cast<std::size_t>(axis);
  const std::int64_t step_from = from.stride[a] * static_cast<std::int64_t>(size_of(from.dtype));
  const std::int64_t step_to = to.stride[a] * static_cast<std::int64_t>(size_of(to.dtype));
  for (std::int64_t i = 0; i < from.shape[a]; ++i)
    copy_axis(axis + 1, from, source + i * step_from, to, target + i * step_to);
}

}  // namespace

const char* name_of(DType dtype) { return names_of_types[static_cast<std::size_t>(dtype)]; }

DType dtype_from_name(std::string_view name) {
  std::string names;
  for (std::size_t i = 0; i < names_of_types.size(); ++i) {
    if (name == names_of_types[i]) return static_cast<DType>(i);
    names += fmt::format("{}{}", i ? ", " : "", names_of_types[i]);
  }
  throw Error(Code::invalid_argument,
              Stage::resolve,
              fmt::format("'{}' is not an element type; allowed: {}", name, names));
}

double load_element(DType dtype, const void* at) {
  switch (dtype) {
    case DType::f64:
      return read<double>(at);
    case DType::f32:
      return static_cast<double>(read<float>(at));
    case DType::f16:
      return static_cast<double>(to_float(read<Half>(at)));
    case DType::bf16:
      return static_cast<double>(to_float(read<BFloat16>(at)));
    case DType::i8:
      return read<std::int8_t>(at);
    case DType::e4m3:
      return static_cast<double>(float_from_e4m3(read<std::uint8_t>(at)));
    case DType::e5m2:
      return static_cast<double>(float_from_e5m2(read<std::uint8_t>(at)));
    case DType::i32:
      return read<std::int32_t>(at);
    case DType::i64:
      return static_cast<double>(read<std::int64_t>(at));
    case DType::boolean:
      return read<std::uint8_t>(at) != 0 ? 1 : 0;
  }
  return 0;
}

void store_element(DType dtype, void* at, double value) {
  switch (dtype) {
    case DType::f64:
      return write(at, value);
    case DType::f32:
      return write(at, static_cast<float>(value));
    case DType::f16:
      return write(at, f16_from_double(value));
    case DType::bf16:
      return write(at, bf16_from_double(value));
    case DType::i8:
      return write(at, saturated<std::int8_t>(value));
    case DType::e4m3:
      return write(at, e4m3_from_double(value));
    case DType::e5m2:
      return write(at, e5m2_from_double(value));
    case DType::i32:
      return write(at, saturated<std::int32_t>(value));
    case DType::i64:
      return write(at, saturated<std::int64_t>(value));
    case DType::boolean:
      return write(at, static_cast<std::uint8_t>(value != 0));
  }
}

void copy(const View& from, const View& to) {
  if (from.device.kind != Device::Kind::cpu || to.device.kind != Device::Kind::cpu)
    throw Error(Code::unsupported,
                Stage::resolve,
                fmt::format("copy: from {} to {}; only host views are copied here",
                            to_string(from.device),
                            to_string(to.device)));
  if (from.rank != to.rank || from.shape != to.shape)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                fmt::format("copy: shapes differ: from {} to {}", from.describe(), to.describe()));
  if (from.rank == 0 || from.count() == 0) return;
  copy_axis(0, from, static_cast<const char*>(from.data), to, static_cast<char*>(to.data));
}

Tensor converted(const View& from, DType dtype) {
  Tensor t = Tensor::empty_like(from, dtype);
  copy(from, t);
  return t;
}

}  // namespace undivided
