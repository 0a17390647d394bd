// SPDX-License-Identifier: Apache-2.0
// The little language: expressions over positions, traced from C++ lambdas or parsed from text.
//
// Types are bool, int32 and float32. Leaves: the positions batch, head, q, k; q_len and k_len; the
// score; constants; named parameters; loads from captured arrays. Integers are exact: a program
// whose integers may leave int32 is refused when it is bound. `/` between integers is floor
// division and `%` floor modulus; `/` with a float side is true division.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "undivided/tensor.hpp"

namespace undivided {

namespace expr {
class Program;  // the immutable SSA form (src/expr/program.hpp)
class Builder;
enum class Type : std::uint8_t { boolean, i32, f32 };
enum class Op : std::uint8_t;
}  // namespace expr

/// One value inside a program that is being built. Obtained from the arguments of a traced lambda,
/// from Array and Param, and from numbers.
class Expr {
 public:
  Expr(bool value);          // NOLINT: numbers are expressions
  Expr(int value);           // NOLINT
  Expr(std::int64_t value);  // NOLINT
  Expr(float value);         // NOLINT
  Expr(double value);        // NOLINT
  /// An Expr has no truth value while it is traced: write select(c, a, b), &&, || and ! instead of
  /// if.
  explicit operator bool() const = delete;

  // for the implementation
  Expr(std::shared_ptr<expr::Builder> builder, std::int32_t id);
  const std::shared_ptr<expr::Builder>& builder() const { return builder_; }
  std::int32_t id() const { return id_; }

 private:
  std::shared_ptr<expr::Builder> builder_;
  std::int32_t id_ = -1;
};

Expr operator+(Expr a, Expr b);
Expr operator-(Expr a, Expr b);
Expr operator*(Expr a, Expr b);
Expr operator/(Expr a, Expr b);  ///< floor division between integers
Expr operator%(Expr a, Expr b);  ///< floor modulus, integers only
Expr operator-(Expr a);
Expr operator<<(Expr a, Expr b);
Expr operator>>(Expr a, Expr b);  ///< arithmetic shift
Expr operator&(Expr a, Expr b);
Expr operator|(Expr a, Expr b);
Expr operator^(Expr a, Expr b);
Expr operator<(Expr a, Expr b);
Expr operator<=(Expr a, Expr b);
Expr operator>(Expr a, Expr b);
Expr operator>=(Expr a, Expr b);
Expr operator==(Expr a, Expr b);
Expr operator!=(Expr a, Expr b);
Expr operator&&(Expr a, Expr b);  ///< no short circuit: loads are clamped, so both sides are safe
Expr operator||(Expr a, Expr b);
Expr operator!(Expr a);
Expr abs(Expr a);
Expr min(Expr a, Expr b);
Expr max(Expr a, Expr b);
Expr clamp(Expr x, Expr lo, Expr hi);  ///< min(max(x, lo), hi)
Expr select(Expr condition, Expr a, Expr b);
Expr tanh(Expr a);
Expr exp(Expr a);
Expr log(Expr a);
Expr sqrt(Expr a);
Expr trunc(Expr a);  ///< float to int32, toward zero: the only such conversion

/// A captured array: shared handle, dtype i32, f32 or boolean, rank 1 to 4. Index it with doc[q] or
/// bias(head, q - k). Its contents are keyed by (owner, version): call touch() after changing them.
class Array {
 public:
  Array(std::vector<std::int32_t> values, std::string name = {});
  Array(std::vector<float> values, std::string name = {});
  /// Smallest and largest value of an array of integers, which kernels clamp to: needed on a
  /// device, else scanned when not given.
  using Range = std::optional<std::pair<std::int64_t, std::int64_t>>;
  /// Shares `data`. Raises Error{bind} for a wrong dtype or rank, or an empty range.
  Array(Tensor data, std::string name = {}, Range range = {});
  /// Borrows memory that must outlive every use.
  Array(View data, std::string name = {}, Range range = {});

  Expr operator[](Expr i) const;
  Expr operator()(Expr i) const;
  Expr operator()(Expr i, Expr j) const;
  Expr operator()(Expr i, Expr j, Expr l) const;
  Expr operator()(Expr i, Expr j, Expr l, Expr m) const;

  const View& view() const;
  const std::string& name() const;
  const void* owner() const;  ///< identity of the storage
  std::uint64_t version() const;
  void touch();  ///< the contents changed: plans made from them are stale
  /// Smallest and largest value of an integer array, scanned once per version (or the declared
  /// range).
  std::pair<std::int64_t, std::int64_t> range() const;
  Array named(std::string name) const;  ///< the same storage under another name

 private:
  struct State;
  std::shared_ptr<State> state_;
  std::string name_;
};

/// A named run-time number: changing it never recompiles. A float parameter has a gradient.
class Param {
 public:
  Param(std::string name, std::int32_t value);
  Param(std::string name, double value);
  operator Expr() const;  // NOLINT
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  expr::Type type_;
  double value_;
};

/// Names for the arrays and parameters that a text mentions.
struct Captures {
  std::vector<Array> arrays;  ///< bound by their name()
  std::vector<std::pair<std::string, double>> params;
};

/// Which pairs (q, k) take part. The default keeps all of them.
class Mask {
 public:
  Mask();
  /// Parses "k <= q && q - k < 1024". Raises Error{parse} with the position and what was expected.
  static Mask parse(std::string_view text, const Captures& captures = {});
  std::string text() const;  ///< canonical text; parses back to an equal mask
  const std::shared_ptr<const expr::Program>& program() const { return program_; }
  const Captures& captures() const { return captures_; }
  /// Same program by structure, same parameters, same arrays by identity.
  friend bool operator==(const Mask& a, const Mask& b);

  Mask(std::shared_ptr<const expr::Program> program, Captures captures);

 private:
  std::shared_ptr<const expr::Program> program_;
  Captures captures_;
};
Mask operator&&(const Mask& a, const Mask& b);
Mask operator||(const Mask& a, const Mask& b);
Mask operator!(const Mask& a);

/// What happens to a score before the softmax. The default leaves it alone.
class Score {
 public:
  Score();
  static Score parse(std::string_view text, const Captures& captures = {});
  std::string text() const;
  const std::shared_ptr<const expr::Program>& program() const { return program_; }
  const Captures& captures() const { return captures_; }
  friend bool operator==(const Score& a, const Score& b);

  Score(std::shared_ptr<const expr::Program> program, Captures captures);

 private:
  std::shared_ptr<const expr::Program> program_;
  Captures captures_;
};
/// First a, then b: softcap(30) | alibi(slopes).
Score operator|(const Score& a, const Score& b);

namespace expr {
/// Leaves of the program being traced, all in one builder.
struct Leaves {
  Expr score, batch, head, q, k, q_len, k_len;
};
Leaves begin_trace();
Mask finish_mask(const Expr& root);
Score finish_score(const Expr& root);
}  // namespace expr

/// The lengths of the sequence, for use inside a traced lambda: q_len(q), k_len(q).
Expr q_len(const Expr& any);
Expr k_len(const Expr& any);

/// Traces fn(batch, head, q, k) once, on symbols, and keeps the program.
template <class F>
Mask mask(F&& fn) {
  static_assert(std::is_invocable_v<F, Expr, Expr, Expr, Expr>,
                "undivided::mask wants a callable of four positions: [=](auto batch, auto head, "
                "auto q, auto k) -> condition");
  auto at = expr::begin_trace();
  return expr::finish_mask(fn(at.batch, at.head, at.q, at.k));
}

/// Traces fn(score, batch, head, q, k) once; its gradient is derived when a backward asks for it.
template <class F>
Score score(F&& fn) {
  static_assert(std::is_invocable_v<F, Expr, Expr, Expr, Expr, Expr>,
                "undivided::score wants a callable of a score and four positions: [=](auto score, "
                "auto batch, auto head, auto q, auto k) -> score");
  auto at = expr::begin_trace();
  return expr::finish_score(fn(at.score, at.batch, at.head, at.q, at.k));
}

// ---- the library: each is a program in the language, nothing more ----
Mask full();
Mask causal();                                       ///< k <= q
Mask window(std::int32_t left, std::int32_t right);  ///< q - k <= left && k - q <= right
Mask window(std::int32_t width);                     ///< window(width, width)
Mask prefix(std::int32_t n);                         ///< k < n || k <= q
Mask documents(const Array& id);  ///< id[q] == id[k]; id is i32 [tokens] or [batch, tokens]
/// k is q or an ancestor of q: parent[i] < i is the parent of token i, -1 for a root (speculative
/// decoding). A chain is causal(). Raises Error{bind}.
Mask tree(const std::vector<std::int32_t>& parent);
Score identity();
Score softcap(float cap);         ///< cap * tanh(score / cap)
Score alibi(const Array& slope);  ///< score + slope[head] * (k - q); slope is f32 [heads]
Score bias(const Array& table);   ///< score + table[q, k], [head, q, k] or [batch, head, q, k]
/// score + table[bucket(k - q), head]: relative position buckets, half of them exact, the rest
/// logarithmic up to max_distance (Raffel et al. 2020, section 2.1). table is f32 [buckets, heads].
Score t5_bias(const Array& table, bool bidirectional = true, std::int32_t max_distance = 128);

}  // namespace undivided
