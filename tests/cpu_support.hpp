// SPDX-License-Identifier: Apache-2.0
// Random problems for the CPU tests, and their answers from the oracle.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/backend.hpp"
#include "cpu/isa.hpp"
#include "mask/plan.hpp"
#include "problem/bound.hpp"
#include "problem/sequence.hpp"
#include "reduced.hpp"
#include "ref/reference.hpp"
#include "undivided/attention.hpp"
#include "undivided/plan.hpp"

namespace undivided::test {

/// Forces an instruction set for as long as it lives.
struct ForcedIsa {
  explicit ForcedIsa(const std::string& name) { setenv("UNDIVIDED_ISA", name.c_str(), 1); }
  ~ForcedIsa() { unsetenv("UNDIVIDED_ISA"); }
};

/// At least the first `n` normal numbers of a seed. Every instruction set is tested with the same.
inline const std::vector<float>& normal_numbers(unsigned seed, std::int64_t n) {
  struct Stream {
    std::mt19937 engine;
    std::normal_distribution<float> normal{0.0f, 1.0f};
    std::vector<float> drawn;
  };
  static std::map<unsigned, Stream> streams;
  const auto [at, fresh] = streams.try_emplace(seed);
  Stream& s = at->second;
  if (fresh) s.engine.seed(seed);
  while (s.drawn.size() < static_cast<std::size_t>(n)) s.drawn.push_back(s.normal(s.engine));
  return s.drawn;
}

inline Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape, unsigned seed) {
  Tensor t = Tensor::empty(dtype, shape);
  const std::vector<float>& numbers = normal_numbers(seed, t.count());
  for (std::int64_t i = 0; i < t.count(); ++i)
    store_element(dtype,
                  static_cast<std::byte*>(t.data) + i * static_cast<std::int64_t>(size_of(dtype)),
                  numbers[static_cast<std::size_t>(i)]);
  return t;
}

inline Tensor index_tensor(const std::vector<std::int64_t>& values,
                           std::initializer_list<std::int64_t> shape) {
  Tensor t = Tensor::empty(DType::i64, shape);
  std::copy(values.begin(), values.end(), t.ptr<std::int64_t>());
  return t;
}

/// A problem in one line. Lengths of a ragged or paged batch differ from sequence to sequence.
struct Case {
  DType dtype = DType::f32;
  std::int64_t batch = 1, hq = 2, hkv = 2, nq = 33, nk = 33;
  std::int64_t d =
      dtype == DType::bf16 && cpu::chosen_kernels().matrix ? 32 : 16;  // tile registers
  std::int64_t dv = d;
  RowKind rows = RowKind::dense;
  KvKind kv = KvKind::dense;
  std::int64_t page = 16;
  bool lengths = false;  // dense rows and keys with lengths
  Options options{};
  bool mask_plan = false;
  unsigned seed = 1;
};

struct Data {
  Rows q;
  Kv kv;
  Tensor qt, k, v, q_offsets, k_offsets, q_lengths, k_lengths, table;
};

inline std::int64_t length_of(std::int64_t n, std::int64_t b) {  // sequence 0 is the longest
  return b == 0 ? n : std::max<std::int64_t>(0, n - 7 * b - (b % 2) * n / 2);
}

inline Data data_of(const Case& c) {
  Data x;
  std::vector<std::int64_t> q_offsets{0}, k_offsets{0}, q_lengths, k_lengths;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    q_lengths.push_back(length_of(c.nq, b));
    k_lengths.push_back(length_of(c.nk, b));
    q_offsets.push_back(q_offsets.back() + q_lengths.back());
    k_offsets.push_back(k_offsets.back() + k_lengths.back());
  }
  x.q_offsets = index_tensor(q_offsets, {c.batch + 1});
  x.k_offsets = index_tensor(k_offsets, {c.batch + 1});
  x.q_lengths = index_tensor(q_lengths, {c.batch});
  x.k_lengths = index_tensor(k_lengths, {c.batch});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (c.rows == RowKind::ragged) {
    x.qt = random_tensor(c.dtype, {q_offsets.back(), c.hq, c.d}, c.seed);
    x.q = ragged(x.qt, x.q_offsets);
  } else {
    x.qt = random_tensor(c.dtype, {c.batch, c.hq, c.nq, c.d}, c.seed);
    x.q = Rows(x.qt);
    if (c.lengths) x.q.lengths = x.q_lengths;
  }
  if (c.kv == KvKind::ragged) {
    x.k = random_tensor(c.dtype, {k_offsets.back(), c.hkv, c.d}, c.seed + 1);
    x.v = random_tensor(c.dtype, {k_offsets.back(), c.hkv, c.dv}, c.seed + 2);
    x.kv = ragged(x.k, x.v, x.k_offsets);
  } else if (c.kv == KvKind::dense) {
    x.k = random_tensor(c.dtype, {c.batch, c.hkv, c.nk, c.d}, c.seed + 1);
    x.v = random_tensor(c.dtype, {c.batch, c.hkv, c.nk, c.dv}, c.seed + 2);
    x.kv = dense(x.k, x.v);
    if (c.lengths) {
      x.kv.lengths = x.k_lengths;
      for (std::int64_t b = 0; b < c.batch; ++b)  // what lies past the length must not matter
        for (std::int64_t h = 0; h < c.hkv; ++h)
          for (std::int64_t j = k_lengths[b]; j < c.nk; ++j) {
            store_element(c.dtype, x.k.at({b, h, j, 0}), nan);
            store_element(c.dtype, x.v.at({b, h, j, 0}), nan);
          }
    }
  } else {
    const std::int64_t per = (c.nk + c.page - 1) / c.page, pages = per * c.batch + 1;
    x.k = random_tensor(c.dtype, {pages, c.hkv, c.page, c.d}, c.seed + 1);
    x.v = random_tensor(c.dtype, {pages, c.hkv, c.page, c.dv}, c.seed + 2);
    std::vector<std::int64_t> table;
    for (std::int64_t i = 0; i < per * c.batch; ++i) table.push_back(pages - 1 - i);
    x.table = index_tensor(table, {c.batch, per});
    x.kv = paged(x.k, x.v, x.table, x.k_lengths);
  }
  return x;
}

/// Outputs in the shapes that a problem wants, of a dtype for O and one for the scalars.
struct Results {
  Tensor o, lse, max_logit, key_mass;
  Results() = default;
  Results(const Problem& p, DType o_dtype, DType scalar) {
    const View& q = p.args.q.data;
    const bool is_ragged = p.spec.rows == RowKind::ragged;
    if (is_ragged) {
      o = Tensor::empty(o_dtype, {q.size(0), q.size(1), p.spec.dv});
      lse = Tensor::empty(scalar, {q.size(1), q.size(0)});
    } else {
      o = Tensor::empty(o_dtype, {q.size(0), q.size(1), q.size(2), p.spec.dv});
      lse = Tensor::empty(scalar, {q.size(0), q.size(1), q.size(2)});
    }
    // Rows that nobody computes compare equal.
    for (std::int64_t i = 0; i < lse.count(); ++i)
      store_element(
          scalar,
          static_cast<std::byte*>(lse.data) + i * static_cast<std::int64_t>(size_of(scalar)),
          -std::numeric_limits<double>::infinity());
    if (p.spec.max_logit) max_logit = Tensor::empty(scalar, {p.bounds.batch, q.size(1)});
    if (p.spec.key_mass)
      key_mass = p.spec.kv == KvKind::ragged
                     ? Tensor::empty(scalar, {q.size(1), p.bounds.total_k})
                     : Tensor::empty(scalar, {p.bounds.batch, q.size(1), p.bounds.max_k_len});
  }
  void attach(Args& args) const {
    args.o = o;
    args.lse = lse;
    args.max_logit = max_logit;
    args.key_mass = key_mass;
  }
};

inline void add_mask_plan(Problem& p) {
  std::vector<Sequence> sequences;
  for (std::int64_t b = 0; b < p.bounds.batch; ++b)
    sequences.push_back(sequence(p.spec, p.args, b));
  p.args.mask_plan = make_mask_plan(
      *p.args.mask, query_heads(p.args), sequences, inline_executor(), p.spec.inside);
  p.spec.mask_plan = true;
}

inline std::vector<std::byte> run_cpu(const Problem& p, const Context& context = {}) {
  const Support support = cpu::support(p.spec, p.bounds, context);
  EXPECT_TRUE(support.ok) << support.reason << " " << support.limit << " " << support.got;
  const auto prepared = cpu::prepare(p.spec, p.bounds, cpu_device, context);
  std::vector<std::byte> workspace(prepared->workspace() + 64, std::byte{0xff});
  auto* base = reinterpret_cast<std::byte*>(
      (reinterpret_cast<std::uintptr_t>(workspace.data()) + 63) / 64 * 64);
  prepared->run(p.args, base, context);
  return workspace;
}

/// max |a - b| over max |b| (or `least`), with equal patterns of NaN and infinity.
inline double relative_error(const View& a, const View& b, double least = 1e-30) {
  double worst = 0, largest = least;
  for (std::int64_t i = 0; i < b.count(); ++i) {
    const double x = load_element(
        a.dtype, static_cast<std::byte*>(a.data) + i * static_cast<std::int64_t>(size_of(a.dtype)));
    const double y = load_element(
        b.dtype, static_cast<std::byte*>(b.data) + i * static_cast<std::int64_t>(size_of(b.dtype)));
    if (std::isfinite(y)) largest = std::max(largest, std::fabs(y));
    if (std::isnan(x) != std::isnan(y)) return std::numeric_limits<double>::infinity();
    if (std::isinf(x) || std::isinf(y)) {
      if (x != y) return std::numeric_limits<double>::infinity();
      continue;
    }
    if (!std::isnan(x)) worst = std::max(worst, std::fabs(x - y));
  }
  return worst / largest;
}

inline double limit_of(DType out, double base = 1e-5) {
  return base + (out == DType::bf16 ? 4e-3 : out == DType::f16 ? 5e-4 : 0);
}

/// `few`: do rows keep so few keys that roundings of P average less?
inline void expect_forward(const Case& c, const Context& context = {}, bool few = false) {
  const Data x = data_of(c);
  Problem p = resolve(x.q, x.kv, c.options);
  if (c.mask_plan) add_mask_plan(p);
  const Results got(p, p.spec.out_dtype, DType::f32), want(p, DType::f64, DType::f64);
  Args oracle = p.args;
  want.attach(oracle);
  ref::forward(p.spec, oracle);
  got.attach(p.args);
  run_cpu(p, context);
  // Products of pairs round P to bf16, whatever O is written as.
  const bool tiles = p.spec.dtype == DType::bf16 && cpu::chosen_kernels().matrix;
  const bool pairs = tiles || (p.spec.dtype == DType::bf16 && cpu::bf16_dot_pays());
  // Tile registers do it for few keys too, whose roundings average less.
  EXPECT_LE(
      relative_error(got.o, want.o),
      limit_of(pairs ? DType::bf16 : p.spec.out_dtype, tiles || (pairs && few) ? 2e-3 : 1e-5));
  EXPECT_LE(relative_error(got.lse, want.lse), 1e-5);
  if (p.spec.max_logit) {
    EXPECT_LE(relative_error(got.max_logit, want.max_logit), 1e-5);
  }
  if (p.spec.key_mass) {
    EXPECT_LE(relative_error(got.key_mass, want.key_mass), 2e-5);
  }
}

}  // namespace undivided::test
