// SPDX-License-Identifier: Apache-2.0
// Sample kernel specs with their policies: a set that covers the values of every axis. And a card.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/emit.hpp"
#include "cuda/spec.hpp"
#include "expr/program.hpp"
#include "undivided/undivided.hpp"

namespace undivided::cuda::samples {

inline DeviceInfo hopper_device() {
  DeviceInfo hopper;
  hopper.major = 9;
  hopper.multiprocessors = 132;
  return hopper;
}

inline std::shared_ptr<const expr::Program> lifted(const std::shared_ptr<const expr::Program>& p) {
  return std::make_shared<const expr::Program>(expr::lift(*p));
}

/// A mask that reads two arrays and the lengths, so that no shortcut applies.
inline Mask rich_mask() {
  const Array doc(std::vector<std::int32_t>(64, 1), "doc");
  Tensor flags = Tensor::zeros(DType::boolean, {2, 64});
  const Array open(flags, "open");
  return mask([=](auto b, auto h, auto q, auto k) {
    return (doc[q] == doc[k] && k <= q + h % 2) || open(b % 2, k) || q / 3 == q_len(q) - 1;
  });
}
inline Score rich_score() {
  const Array slope(std::vector<float>(8, 0.5f), "slope");
  const Array table(Tensor::zeros(DType::f32, {8, 32}), "table");
  const Param gain("gain", 0.5);
  return score([=](auto s, auto, auto h, auto q, auto k) {
           return s + slope[h] * (k - q) + Expr(gain) * table(h, clamp(q - k, 0, 31));
         }) |
         softcap(30.0f);
}

/// Calls `job` with 0 to n - 1, each once. An exception fails the test and stops nothing else.
inline void on_two_threads(std::size_t n, const std::function<void(std::size_t)>& job) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < n; i = next++) {
      try {
        job(i);
      } catch (const std::exception& e) {
        ADD_FAILURE() << e.what();
      }
    }
  };
  std::thread other(work);
  work();
  other.join();
}

struct Sample {
  KernelSpec spec;
  Policies policies;
};

inline Policies policies_for(const KernelSpec& k) {
  Spec s;
  s.op = k.kind == KernelKind::backward || k.kind == KernelKind::backward_q ||
                 k.kind == KernelKind::backward_kv
             ? Operation::backward
             : Operation::forward;
  s.captured = k.capture != Capture::none;
  s.mask = lifted(k.asks_program() ? rich_mask().program() : full().program());
  s.score = lifted(k.score ? rich_score().program() : identity().program());
  return policies_of(s);
}

/// About seventy, for the targets of the portable family.
inline std::vector<Sample> covering_set() {
  constexpr int dims[] = {8, 32, 40, 64, 72, 96, 128, 192, 256, 512};
  constexpr int archs[] = {80, 90, 86, 120, 89};
  constexpr DType types[] = {DType::bf16, DType::f16};
  constexpr MaskKind masks[] = {MaskKind::full, MaskKind::band, MaskKind::program, MaskKind::plan};
  constexpr KvKind kvs[] = {KvKind::dense, KvKind::ragged, KvKind::paged};
  std::vector<Sample> out;
  unsigned state = 12345;
  const auto pick = [&](unsigned n) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % n;
  };
  const auto add = [&](KernelKind kind, int d, unsigned i, Capture capture = Capture::none) {
    KernelSpec k;
    k.kind = kind;
    k.arch = archs[i % 5];
    k.dtype = types[pick(2)];
    k.out = pick(3) == 0 ? DType::f32 : k.dtype;
    k.dqk = d;
    k.dv = pick(4) == 0 ? dims[pick(9)] : d;
    k.mask = masks[i % 4];
    k.inside_program = i % 8 == 7;
    k.score = pick(2) == 0;
    k.rows = pick(3) == 0 ? RowKind::ragged : RowKind::dense;
    k.kv = kvs[i % 3];
    k.dropout = pick(3) == 0;
    k.aligned = pick(4) != 0;
    k.packed = k.mask != MaskKind::plan && pick(2) == 0;
    k.split = pick(3) == 0;
    k.capture = capture;
    k.score |= capture != Capture::none;
    k.wide_dout = pick(3) == 0;
    k = canonical(k);
    out.push_back({k, policies_for(k)});
  };
  unsigned i = 0;
  for (int round = 0; round < 2; ++round)
    for (const int d : dims) add(KernelKind::forward, d, i++);
  for (const int d : dims) add(KernelKind::backward_q, d, i++);
  // The longest to compile: each way of capturing at two sizes.
  for (const auto& [capture, d] : {std::pair{Capture::atomic, 40},
                                   {Capture::atomic, 256},
                                   {Capture::largest, 128},
                                   {Capture::largest, 512},
                                   {Capture::sums, 40},
                                   {Capture::sums, 256}})
    add(KernelKind::backward_q, d, i++, capture);
  for (const int d : dims) add(KernelKind::backward_kv, d, i++);
  for (const int d : {8, 64, 128, 512}) add(KernelKind::key_mass, d, i++);
  for (const KernelKind kind : {KernelKind::combine, KernelKind::merge, KernelKind::preprocess})
    for (const int d : {40, 64, 128, 512}) add(kind, d, i++);
  for (const KernelKind kind :
       {KernelKind::sink_gradient, KernelKind::init, KernelKind::round_sums})
    add(kind, 64, i++);
  for (const KernelKind kind :
       {KernelKind::sort_rows, KernelKind::meet_rows, KernelKind::plan_rows, KernelKind::take_rows})
    add(kind, 64, i++);
  for (const KernelKind kind : {KernelKind::difference, KernelKind::difference_backward})
    for (int target = 0; target < 2; ++target) add(kind, 64, i++);
  return out;
}

}  // namespace undivided::cuda::samples
