// SPDX-License-Identifier: Apache-2.0
// Data: a View is pointer + shape + strides + dtype + device; a Tensor is a View that owns its
// memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

namespace undivided {

/// Element types. f64 is for the oracle; i8, e4m3 and e5m2 are storage formats; i32, i64 and
/// boolean hold lengths, tables and captured arrays.
enum class DType : std::uint8_t { f64, f32, f16, bf16, i8, e4m3, e5m2, i32, i64, boolean };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
  constexpr std::uint8_t bytes[] = {8, 4, 2, 2, 1, 1, 1, 4, 8, 1};
  return bytes[static_cast<std::size_t>(dtype)];
}
const char* name_of(DType dtype);  ///< "f32", "bf16", ...
DType dtype_from_name(
    std::string_view name);  ///< raises Error{invalid_argument} that lists the names
constexpr bool is_float16(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

/// IEEE binary16 as bits; conversion rounds to nearest even.
struct Half {
  std::uint16_t bits = 0;
};
/// bfloat16 as bits; conversion rounds to nearest even, NaN stays NaN.
struct BFloat16 {
  std::uint16_t bits = 0;
};
float to_float(Half x);
float to_float(BFloat16 x);
Half to_half(float x);
BFloat16 to_bfloat16(float x);
/// One element of any dtype as a double, and back (rounded to nearest even; integers saturate).
double load_element(DType dtype, const void* at);
void store_element(DType dtype, void* at, double value);

/// Where memory lives.
struct Device {
  enum class Kind : std::uint8_t { cpu, cuda } kind = Kind::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};
inline constexpr Device cpu_device{};
std::string to_string(Device device);  ///< "cpu" or "cuda:0"

inline constexpr int max_rank = 4;

/// A strided window on memory that somebody else owns. Strides count elements; the last one must be
/// 1 for Q, K, V, O and their gradients. A default View is "not given".
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device{};
  int rank = 0;
  std::array<std::int64_t, max_rank> shape{};
  std::array<std::int64_t, max_rank> stride{};

  /// A dense row-major view.
  static View of(void* data,
                 DType dtype,
                 std::initializer_list<std::int64_t> shape,
                 Device device = {});

  explicit operator bool() const { return rank > 0; }  ///< was it given?
  std::int64_t size(int axis) const {
    return shape[static_cast<std::size_t>(axis < 0 ? axis + rank : axis)];
  }
  std::int64_t step(int axis) const {
    return stride[static_cast<std::size_t>(axis < 0 ? axis + rank : axis)];
  }
  std::int64_t count() const;    ///< number of elements
  bool contiguous() const;       ///< dense row-major?
  std::string describe() const;  ///< "f32 [2, 8, 128, 64]"

  void* at(
      std::initializer_list<std::int64_t> index) const;  ///< address of one element (unchecked)
  View permuted(std::initializer_list<int> axes) const;  ///< axis i of the result is axis axes[i]
  View sliced(int axis, std::int64_t begin, std::int64_t end) const;
  View unsqueezed(int axis) const;                    ///< a new axis of size 1
  View selected(int axis, std::int64_t index) const;  ///< drops an axis
};

template <class T>
constexpr DType dtype_of() {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<U, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<U, Half>)
    return DType::f16;
  else if constexpr (std::is_same_v<U, BFloat16>)
    return DType::bf16;
  else if constexpr (std::is_same_v<U, std::int8_t>)
    return DType::i8;
  else if constexpr (std::is_same_v<U, std::int32_t>)
    return DType::i32;
  else if constexpr (std::is_same_v<U, std::int64_t>)
    return DType::i64;
  else {
    static_assert(std::is_same_v<U, bool>, "undivided has no dtype for this element type");
    return DType::boolean;
  }
}

/// A dense view of typed memory: view(pointer, {batch, heads, tokens, dim}).
template <class T>
View view(T* data, std::initializer_list<std::int64_t> shape, Device device = {}) {
  return View::of(const_cast<std::remove_cv_t<T>*>(data), dtype_of<T>(), shape, device);
}

/// A View with a shared owner. Copies share memory.
struct Tensor : View {
  std::shared_ptr<void> owner;

  /// Uninitialised, 256-byte aligned; huge pages from 1 MiB on. Raises Error{out_of_memory}.
  static Tensor empty(DType dtype, std::initializer_list<std::int64_t> shape);
  static Tensor empty_like(const View& other, DType dtype);  ///< same shape, dense, on the host
  static Tensor zeros(DType dtype, std::initializer_list<std::int64_t> shape);
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

/// Elementwise copy between host views of equal shape, converting the element type.
void copy(const View& from, const View& to);
/// A dense host copy in another element type.
Tensor converted(const View& from, DType dtype);

}  // namespace undivided
