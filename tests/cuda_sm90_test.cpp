// SPDX-License-Identifier: Apache-2.0
// Claims about the sm90 family: names, sizes, who gets it, and that its kernels compile cleanly.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "cuda/cache.hpp"
#include "cuda/choose.hpp"
#include "cuda/emit.hpp"
#include "cuda/nvrtc.hpp"
#include "cuda/tuning.hpp"
#include "cuda_specs.hpp"
#include "undivided/error.hpp"
#include "undivided/mask_formats.hpp"

using namespace undivided;
using namespace undivided::cuda;

namespace {

int d_of(const KernelSpec& k) { return std::max(k.dqk, k.dv); }

std::vector<KernelSpec> sm90_specs() {
  std::vector<KernelSpec> out;
  const auto add = [&](int dqk, int dv, MaskKind mask, RowKind rows, DType type, auto change) {
    KernelSpec k;
    k.family = Family::sm90;
    k.dqk = dqk;
    k.dv = dv;
    k.mask = mask;
    k.rows = rows;
    k.kv = rows == RowKind::ragged ? KvKind::ragged : KvKind::dense;
    k.dtype = k.out = type;
    change(k);
    out.push_back(canonical(k));
  };
  const auto same = [](KernelSpec&) {};
  for (const int d : {64, 128, 256})
    for (const MaskKind mask : {MaskKind::full, MaskKind::band, MaskKind::plan})
      add(d,
          d,
          mask,
          (d == 128) == (mask == MaskKind::band) ? RowKind::ragged : RowKind::dense,
          DType::bf16,
          same);
  for (const int d : {8, 72, 96, 192}) add(d, d, MaskKind::band, RowKind::dense, DType::f16, same);
  add(128, 128, MaskKind::plan, RowKind::dense, DType::bf16, [](KernelSpec& k) {
    k.inside_program = true;
  });
  add(192, 128, MaskKind::full, RowKind::dense, DType::bf16, same);
  add(128, 256, MaskKind::band, RowKind::dense, DType::f16, same);
  add(128, 128, MaskKind::full, RowKind::dense, DType::bf16, [](KernelSpec& k) {
    k.out = DType::f32;
  });
  for (const int d : {64, 128, 256}) {
    const auto paged = [](KernelSpec& k) { k.kv = KvKind::paged; };
    const auto few = [](KernelSpec& k) {
      k.kv = KvKind::paged;
      k.packed = k.split = true;
      k.warpgroups = 1;
    };
    const auto fixed = [](KernelSpec& k) { k.fixed = true; };
    add(d, d, MaskKind::band, RowKind::ragged, DType::bf16, paged);
    add(d, d, MaskKind::band, RowKind::dense, DType::bf16, few);
    if (d < 256) continue;
    add(d, d, MaskKind::plan, RowKind::dense, DType::bf16, paged);
    add(d, d, MaskKind::plan, RowKind::dense, DType::bf16, fixed);
    add(d, d, MaskKind::band, RowKind::dense, DType::bf16, [](KernelSpec& k) {
      k.packed = true;
      k.warpgroups = d_of(k) <= 64 ? 2 : 0;
    });
  }
  return out;
}

std::vector<KernelSpec> backward_specs() {
  std::vector<KernelSpec> out;
  const auto add = [&](int dqk, int dv, MaskKind mask, auto change) {
    KernelSpec k;
    k.kind = KernelKind::backward;
    k.dqk = dqk;
    k.dv = dv;
    k.mask = mask;
    change(k);
    out.push_back(canonical(k));
    for (const KernelKind kind : {KernelKind::prepare_rows, KernelKind::gather_dq}) {
      k.kind = kind;
      out.push_back(canonical(k));
    }
  };
  const auto same = [](KernelSpec&) {};
  // Each size with each mask and each of four changes, each mask with at least three of these.
  const std::function<void(KernelSpec&)> changes[] = {
      [](KernelSpec&) {},
      [](KernelSpec& k) { k.ordered = true; },
      [](KernelSpec& k) { k.dropout = true; },
      [](KernelSpec& k) {
        k.score = true;
        k.dtype = k.out = DType::f16;
        k.rows = RowKind::ragged;
        k.kv = KvKind::ragged;
      },
  };
  constexpr MaskKind masks[] = {MaskKind::full, MaskKind::band, MaskKind::program, MaskKind::plan};
  for (int first = 1; const int d : {64, 128, 256}) {
    for (int m = 0; m < 4; ++m) add(d, d, masks[m], changes[(first + m) % 4]);
    ++first;
  }
  for (const int d : {64, 128}) {  // what most training takes
    add(d, d, MaskKind::band, same);
    add(d, d, MaskKind::band, changes[1]);
  }
  for (const auto& [capture, d] : {std::pair{Capture::atomic, 128},
                                   {Capture::largest, 128},
                                   {Capture::sums, 64},
                                   {Capture::sums, 256}})
    add(d, d, MaskKind::band, [capture](KernelSpec& k) {
      k.score = true;
      k.capture = capture;
      k.ordered = capture != Capture::atomic;
    });
  add(64, 64, MaskKind::plan, [](KernelSpec& k) {
    k.score = k.dropout = true;
    k.capture = Capture::atomic;
    k.rows = RowKind::ragged;
    k.kv = KvKind::ragged;
  });
  for (const int d : {8, 72, 96, 192}) add(d, d, MaskKind::band, same);
  add(192, 128, MaskKind::full, same);
  add(64, 256, MaskKind::band, [](KernelSpec& k) { k.out = DType::f32; });
  return out;
}

std::vector<KernelSpec> all_specs() {
  std::vector<KernelSpec> all = sm90_specs();
  for (const KernelSpec& k : backward_specs()) all.push_back(k);
  return all;
}

}  // namespace

TEST(CudaSm90, NamesSayTheFamilyAndCanBeRead) {
  for (const KernelSpec& k : all_specs()) {
    EXPECT_NE(k.name().find(".sm90a."), std::string::npos) << k.name();
    EXPECT_EQ(KernelSpec::parse(k.name()), k) << k.name();
  }
  KernelSpec wide;
  wide.family = Family::sm90;
  wide.dqk = wide.dv = 264;
  EXPECT_THROW(KernelSpec::parse(canonical(wide).name()), Error);
}

TEST(CudaSm90, TilesFitTheSharedMemoryAndTheRegistersOfOneMultiprocessor) {
  for (const KernelSpec& k : all_specs()) {
    const Sm90Tile t = sm90_tile(k);
    EXPECT_LE(k.shared_memory(), 227u * 1024) << k.name();
    // What the launch gives each thread, in steps of 8, is all that the roles can share.
    const int granted = 65536 / t.threads() / 8 * 8 * (t.warpgroups + 1);
    if (t.warpgroups > 1)  // one warpgroup keeps what the launch gives
      EXPECT_LE(t.producer_registers + t.warpgroups * t.consumer_registers, granted) << k.name();
    EXPECT_EQ(t.keys % (k.mask == MaskKind::plan ? 64 : 16), 0) << k.name();
  }
}

TEST(CudaSm90, IsTakenOnlyWhereItServes) {
  const DeviceInfo hopper = samples::hopper_device();
  DeviceInfo ada = hopper;
  ada.major = 8;
  ada.minor = 9;
  Spec s;
  s.op = Operation::forward;
  s.dtype = s.out_dtype = DType::bf16;
  s.dqk = s.dv = 128;
  s.group = 1;
  s.aligned = true;
  Bounds b;
  b.batch = 2;
  b.kv_heads = 16;
  b.max_q_len = b.max_k_len = 8192;
  const auto taken = [&](const DeviceInfo& d, Family preferred = Family::sm90) {
    return choose(s, b, d, preferred).kernels.front().family == Family::sm90;
  };
  EXPECT_TRUE(taken(hopper));
  EXPECT_GE(choose(s, b, hopper, Family::sm90).workspace, 4u);
  EXPECT_FALSE(taken(hopper, Family::portable));
  EXPECT_FALSE(taken(ada));
  for (const Determinism determinism : {Determinism::invariant, Determinism::fast})
    for (const KvKind kv : {KvKind::paged, KvKind::dense})
      for (const std::int64_t q_len : {1, 8192}) {
        s.determinism = determinism;
        s.kv = kv;
        b.max_q_len = q_len;
        EXPECT_TRUE(taken(hopper)) << q_len;
      }
  s.aligned = false;
  EXPECT_FALSE(taken(hopper));
  EXPECT_NE(choose(s, b, hopper, Family::sm90).not_sm90, nullptr);
}

namespace {

struct Short {
  Spec spec;
  Bounds bounds;
  Short(int group, std::int64_t batch, std::int64_t kv_heads, std::int64_t q_len, int k_len) {
    spec.op = Operation::forward;
    spec.dtype = spec.out_dtype = DType::bf16;
    spec.dqk = spec.dv = 128;
    spec.group = group;
    spec.aligned = true;
    bounds.batch = batch;
    bounds.kv_heads = kv_heads;
    bounds.max_q_len = q_len;
    bounds.max_k_len = k_len;
  }
  Choice choice() const {
    const DeviceInfo hopper = samples::hopper_device();
    return choose(spec, bounds, hopper, Family::sm90);
  }
};

}  // namespace

TEST(CudaSm90, FewRowsArePackedAndTheirKeysSplit) {
  const Choice one = Short(8, 1, 8, 1, 131072).choice();
  const KernelSpec& k = one.kernels.front();
  EXPECT_TRUE(k.packed && k.split);
  EXPECT_EQ(k.warpgroups, 1);
  EXPECT_EQ(one.split_keys % k.tile_n(), 0);
  EXPECT_GE(8 * one.splits, 120);  // all multiprocessors
  EXPECT_EQ(one.kernels.back().kind, KernelKind::combine);
  // Two query tokens are the same work.
  EXPECT_EQ(Short(8, 1, 8, 2, 131072).choice().kernels.front(), k);

  const Choice many = Short(8, 64, 8, 1, 8192).choice();  // 512 tiles: no splits
  EXPECT_FALSE(many.kernels.front().split);
  EXPECT_EQ(many.partial_o, -1);
  EXPECT_EQ(Short(8, 1, 8, 16, 4096).choice().kernels.front().warpgroups, 0);  // 128 rows
  EXPECT_FALSE(Short(8, 1, 8, 4096, 4096).choice().kernels.front().packed);
  EXPECT_FALSE(Short(1, 1, 8, 1, 4096).choice().kernels.front().packed);
}

// What decides a row's bits is the key tile, the reference of its softmax and the order of keys.
TEST(CudaSm90, InvariantRowsHaveOneKeyGrid) {
  for (const int d : {64, 128, 192, 256}) {
    int keys = 0;
    for (const KvKind kv : {KvKind::dense, KvKind::ragged, KvKind::paged})
      for (const std::int64_t q_len : {1, 64, 1024, 8192})
        for (const bool plan : {false, true}) {
          Short s(4, 2, 2, q_len, 8192);
          s.spec.determinism = Determinism::invariant;
          s.spec.kv = kv;
          s.spec.dqk = s.spec.dv = d;
          s.spec.mask_plan = plan;
          const Choice c = s.choice();
          const KernelSpec& k = c.kernels.front();
          EXPECT_EQ(k.family, Family::sm90);
          EXPECT_TRUE(k.fixed);
          EXPECT_FALSE(k.split);
          EXPECT_EQ(sm90_tile(k).slack, d > 128 ? 8 : 0);
          if (keys == 0) keys = k.tile_n();
          EXPECT_EQ(k.tile_n(), keys) << k.name();
        }
  }
}

TEST(CudaSm90, ForwardKernelsDoNotSpillAndBackwardOnesLittle) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  const KernelCache cache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {});
  const std::vector<KernelSpec> all = all_specs();
  samples::on_two_threads(all.size(), [&](std::size_t number) {
    const KernelSpec& spec = all[number];
    const Kernel k =
        cache.get([&](int arch) { return source_of(spec, samples::policies_for(spec), arch); },
                  90,
                  Compile::allowed);
    // The consumers of the backward take all registers but 24 to 40 a thread of the loader, which
    // spills scalars, most of them where it walks a plan. At d 64 consumers spill too: 128 queries
    // with a program are still 1.2 to 1.3 times as fast as 64.
    const bool loader = spec.kind == KernelKind::backward;
    const bool tight = loader && (spec.tile_m() == 128 || spec.score || spec.asks_program() ||
                                  spec.mask == MaskKind::plan);
    // With 40 registers the loader of paged keys lets consumers have 80 keys at d 256: 0.95 of
    // dense keys, 0.87 with 64.
    const bool paged_80 = !loader && spec.kv == KvKind::paged && spec.tile_n() == 80;
    const bool captured = spec.capture != Capture::none;  // and indices of elements
    const bool tall = spec.tile_m() == 128;
    const int spills = captured   ? (tall ? 2112 : 1664)
                       : tight    ? (tall ? 896 : 768)
                       : loader   ? 96
                       : paged_80 ? 128
                                  : 0;
    EXPECT_LE(k.report.spill_bytes, spills) << k.name;
    // 28 KB of first-level cache are left for the stacks of 256 threads.
    const int stack = captured   ? (tall ? 288 : 256)
                      : tight    ? (tall ? 192 : 160)
                      : loader   ? 64
                      : paged_80 ? 32
                                 : 0;
    EXPECT_LE(k.report.stack_bytes, stack) << k.name;
  });
}

TEST(CudaSm90, PlansWithoutBitsAskTheProgramForwardAndBackward) {
  if (!nvrtc_availability().ok) GTEST_SKIP() << "no NVRTC: " << nvrtc_availability().reason;
  FlashMask columns;
  columns.columns = 4;
  columns.keys = 1024;
  columns.values.assign(4096, 7);
  const DeviceInfo hopper = samples::hopper_device();
  const KernelCache cache(std::string(UNDIVIDED_BINARY_DIR) + "/kernel-cache", {});
  int compiled = 0;
  for (const Operation op : {Operation::forward, Operation::backward})
    for (const int d : {64, 128}) {
      Spec s;
      s.op = op;
      s.dtype = s.out_dtype = s.dout_dtype = DType::bf16;
      s.dqk = s.dv = d;
      s.mask = samples::lifted(import_flashmask(columns).program());
      s.score = samples::lifted(identity().program());
      s.mask_plan = true;
      s.inside = Inside::program;
      s.want_dq = s.want_dk = s.want_dv = op == Operation::backward;
      const Bounds b{2, 8, 2 * 1024, 2 * 1024, 1024, 1024, 0};
      for (const KernelSpec& k : choose(s, b, hopper, Family::sm90).kernels) {
        if (k.family != Family::sm90) continue;
        const auto spills = [&](KernelSpec spec) {
          return cache
              .get([&](int arch) { return source_of(spec, policies_of(s), arch); },
                   90,
                   Compile::allowed)
              .report.spill_bytes;
        };
        KernelSpec bits = k;
        bits.inside_program = false;
        // Scalars of the program; bits come with the queries, and their addresses take none.
        EXPECT_LE(spills(k), spills(bits) + 128) << k.name();
        compiled += k.inside_program;
      }
    }
  EXPECT_EQ(compiled, 4);
}
