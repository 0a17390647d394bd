// SPDX-License-Identifier: Apache-2.0
// One point of the grid that drives tests, gradients and `undivided check`: a name is the whole
// case.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "problem/sample.hpp"
#include "undivided/plan.hpp"

namespace undivided::check {

/// A problem and a way to run it. Words are values of axes(); lengths and dims may be any number.
struct Case {
  std::string op = "forward";  // forward, backward
  DType dtype = DType::f32;
  std::int64_t d = 64, dv = 64;
  std::int64_t q_len = 64, k_len = 64;
  std::int64_t heads = 2, kv_heads = 2;
  std::int64_t batch = 1;
  std::string rows = "dense";      // dense, lengths, ragged
  std::string kv = "dense";        // dense, lengths, ragged, page1, page16, page64, page128
  std::string mask = "full";       // see make_mask; gallery/NAME too
  std::string score = "identity";  // see make_score
  std::string align = "start";     // start, end, given
  std::string dropout = "none";    // none, some
  std::string sink = "none";       // none, given
  std::string aux = "none";        // none, max, mass, both
  std::string result = "same";     // same, f32 (output dtype), partial
  std::string layout = "packed";   // packed, tokens (the other order), padded, unaligned
  std::string determinism = "fast";
  std::string want = "all";          // gradients: all, dlse (all, and LSE has one), q, kv
  std::string via = "verb";          // verb, into, plan, maskplan, inside
  std::string index = "i32";         // of lengths, offsets and tables: i32, i64
  std::string threads = "t1";        // t1, t2
  std::string isa = "auto";          // auto, scalar, avx2, avx512, avx512_bf16, amx
  std::string precision = "follow";  // or i8/bf16, i8/f32: not an axis, see all_cases
  std::uint64_t seed = 1;

  /// "forward.f32.d64.q64.k64.h2x2.b1.mask=causal": words at their default are left out.
  std::string name() const;
  /// Reads a name back. Raises Error{parse} that shows the word and the legal ones.
  static Case parse(std::string_view name);
  friend bool operator==(const Case&, const Case&) = default;

  bool backward() const { return op == "backward"; }
  bool quantised() const { return precision != "follow"; }
  /// Multiply-adds of one product over all pairs: what the oracle's time grows with.
  double cost() const;
};

/// Cases that cost more than this (about a quarter of a minute of the oracle) are compared at a
/// sample of rows that costs about `sampled_cost`.
inline constexpr double whole_cost = 2e9, sampled_cost = 5e8;
Sample sample_of(const Case& c);

/// A dimension of the grid and the values that tests walk through.
struct Axis {
  std::string name;
  std::vector<std::string> values;
};
const std::vector<Axis>& axes();
std::string get(const Case& c, std::size_t axis);
void set(Case& c, std::size_t axis, std::string_view value);

/// Empty if the case means something; else why it does not (for example: "partial results have no
/// gradient").
std::string impossible(const Case& c);
/// The pair rules alone: is there no possible case with these two values?
bool impossible_pair(std::size_t axis_a,
                     std::string_view value_a,
                     std::size_t axis_b,
                     std::string_view value_b);

/// A seeded set in which every possible pair of values of two axes occurs for each operation and
/// dtype, plus single-axis extremes: about 1,500 cases. Cheap combinations are preferred. Some of
/// the forwards come again with scores of int8, which not every backend has.
const std::vector<Case>& all_cases();
/// The masks of the gallery, forward and backward, by bits of a plan and by the program inside it.
std::vector<Case> gallery_cases();
/// Thousands of queries, tens of thousands of keys: sizes that the covering set cannot afford, of
/// which a sample of rows is compared.
std::vector<Case> large_cases();
/// A short set for sanitizers: every n-th of all_cases(), without the costly ones.
std::vector<Case> some_cases(std::size_t count);

/// The whole product, walked by number. Impossible points are skipped by the caller.
std::uint64_t product_size();
Case product_case(std::uint64_t number);

}  // namespace undivided::check
