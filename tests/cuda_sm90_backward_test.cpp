// SPDX-License-Identifier: Apache-2.0
// Claims about the backward of the sm90 family: its kernels, who gets it, and what shares a task.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/choose.hpp"
#include "cuda/tuning.hpp"
#include "cuda_specs.hpp"

using namespace undivided;
using namespace undivided::cuda;

namespace {

/// A backward of bfloat16 that wants all three gradients.
Spec plain_backward() {
  Spec s;
  s.op = Operation::backward;
  s.dtype = s.out_dtype = s.dout_dtype = DType::bf16;
  s.group = 1;
  s.want_dq = s.want_dk = s.want_dv = true;
  return s;
}

}  // namespace

TEST(CudaSm90Backward, CtasOfABackwardShareTasksWhereAdditionsOfDqBoundIt) {
  const auto ctas = [](int dqk, int dv, bool ordered, Capture capture = Capture::none) {
    KernelSpec k;
    k.kind = KernelKind::backward;
    k.family = Family::sm90;
    k.dqk = dqk;
    k.dv = dv;
    k.ordered = ordered;
    k.capture = capture;
    const bool clusters = compose(k).find("__cluster_dims__(2, 1, 1)") != std::string::npos;
    EXPECT_EQ(clusters, sm90_tile(k).ctas == 2);
    return sm90_tile(k).ctas;
  };
  EXPECT_EQ(ctas(256, 256, false), 2);
  EXPECT_EQ(ctas(200, 64, false), 2);
  EXPECT_EQ(ctas(192, 192, false), 1);
  EXPECT_EQ(ctas(192, 192, true), 2);
  EXPECT_EQ(ctas(192, 128, true), 1);  // 128 keys a CTA
  EXPECT_EQ(ctas(64, 256, true), 1);
  EXPECT_EQ(ctas(256, 256, true, Capture::sums), 1);
}

TEST(CudaSm90Backward, IsOnePassWhereItServes) {
  const DeviceInfo hopper = samples::hopper_device();
  Spec s = plain_backward();
  s.dqk = s.dv = 128;
  s.aligned = true;
  Bounds b;
  b.batch = 2;
  b.kv_heads = 16;
  b.max_q_len = b.max_k_len = 8192;
  const auto kinds = [&] {
    std::string text;
    for (const KernelSpec& k : choose(s, b, hopper, Family::sm90).kernels)
      text += k.name().substr(0, k.name().find('.')) + " ";
    return text;
  };
  EXPECT_EQ(kinds(), "rows bwd dq ");
  s.want_dq = false;
  EXPECT_EQ(kinds(), "rows bwd ");
  s.want_dq = true;
  s.sink = true;
  EXPECT_EQ(kinds(), "rows bwd dq dsink ");
  s.sink = false;
  // A fixed order of sums needs no other kernels, and memory for its turns above d 128: up to that
  // others have turns too, since who comes first stores.
  const auto turns_are_its_own = [&](int d) {
    Spec one = s;
    one.dqk = one.dv = d;
    const Choice any = choose(one, b, hopper, Family::sm90);
    one.determinism = Determinism::reproducible;
    const Choice ordered = choose(one, b, hopper, Family::sm90);
    EXPECT_TRUE(ordered.kernels[1].ordered);
    EXPECT_FALSE(any.kernels[1].ordered);
    return ordered.workspace > any.workspace;
  };
  EXPECT_TRUE(turns_are_its_own(256));
  EXPECT_FALSE(turns_are_its_own(128));

  // A float32 dO is rounded in memory of its own.
  const Choice fast = choose(s, b, hopper, Family::sm90);
  s.dout_dtype = DType::f32;
  const Choice rounded = choose(s, b, hopper, Family::sm90);
  EXPECT_EQ(kinds(), "rows bwd dq ");
  EXPECT_TRUE(rounded.kernels[0].wide_dout);
  EXPECT_EQ(rounded.workspace, fast.workspace + 2 * 2 * 16 * 8192 * 128);
  EXPECT_FALSE(choose(s, b, hopper, Family::portable).kernels[0].wide_dout);
  EXPECT_EQ(choose(s, b, hopper, Family::portable).dout, -1);
  s.dout_dtype = DType::bf16;

  const auto refused = [&](const char* why) {
    const Choice c = choose(s, b, hopper, Family::sm90);
    EXPECT_EQ(c.kernels[1].family, Family::portable) << why;
    EXPECT_STREQ(c.not_sm90, why);
  };
  s.kv = KvKind::paged;
  refused("keys in pages");
  s.kv = KvKind::dense;
  s.dqk = s.dv = 512;
  refused("a head dim above 256");
}

TEST(CudaSm90Backward, GradientsOfCapturedArraysComeWithTheBackward) {
  const DeviceInfo hopper = samples::hopper_device();
  Spec s = plain_backward();
  s.score = samples::lifted(samples::rich_score().program());
  s.captured = true;
  const Bounds b{2, 8, 2 * 1024, 2 * 1024, 1024, 1024, 8 + 8 * 32};
  for (const int d : {64, 128, 256}) {
    s.dqk = s.dv = d;
    const auto kernels = [&](Determinism determinism) {
      s.determinism = determinism;
      std::string text;
      for (const KernelSpec& k : choose(s, b, hopper, Family::sm90).kernels) {
        const std::string name = k.name();
        text += name.substr(0, name.find('.'));
        if (k.kind == KernelKind::backward) {
          EXPECT_EQ(k.family, Family::sm90);
          text += name.substr(name.find(".captured"));
        }
        text += " ";
      }
      return text;
    };
    EXPECT_EQ(kernels(Determinism::fast), "rows bwd.captured dq ");
    for (const Determinism ordered : {Determinism::reproducible, Determinism::invariant})
      EXPECT_EQ(kernels(ordered),
                "rows bwd.captured_largest.ordered bwd.captured_sums.ordered sums dq ");
    // A pass that only looks has the tiles of the one that adds: their terms are the same.
    const std::vector<KernelSpec> both = choose(s, b, hopper, Family::sm90).kernels;
    EXPECT_EQ(both[1].tile_m(), both[2].tile_m());
    EXPECT_EQ(both[1].tile_n(), both[2].tile_n());
    EXPECT_EQ(both[1].ordered, both[2].ordered);
  }
}
