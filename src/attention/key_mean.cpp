// SPDX-License-Identifier: Apache-2.0
// The mean of K: what int8 scores are best rounded without.
#include "cpu/isa.hpp"
#include "plan/library.hpp"
#include "problem/sequence.hpp"
#include "undivided/attention.hpp"

namespace undivided {

Tensor key_mean(const Kv& kv, const Context& context) {
  const auto refuse = [](const std::string& message) {
    throw Error(Code::invalid_argument, Stage::resolve, "key_mean: " + message);
  };
  if (!kv.k) refuse("K is not given");
  if (kv.k.device.kind != Device::Kind::cpu)
    refuse("K is on " + to_string(kv.k.device) + "; the host is expected");
  if (kv.k.dtype == DType::f64) refuse("K has dtype f64; f32, f16 or bf16 is allowed");
  // Queries without tokens make it a problem, whose keys are checked like any.
  const bool single = kv.kind == KvKind::dense && kv.k.rank == 3;
  const std::int64_t batch = kv.kind == KvKind::ragged  ? kv.offsets.size(0) - 1
                             : kv.kind == KvKind::paged ? kv.lengths.size(0)
                             : single                   ? 1
                                                        : kv.k.size(0);
  const std::int64_t heads = kv.k.size(single ? 0 : 1), d = kv.k.size(-1);
  Kv keys = kv;
  keys.k_mean = {};
  const Problem p = resolve(View::of(kv.k.data, kv.k.dtype, {batch, heads, 0, d}), keys, {});
  const Tensor mean = allocate(context, p.device, DType::f32, {batch, heads, d});
  const cpu::Kernels& kernels = cpu::chosen_kernels();
  const int columns = p.spec.dqk;
  Executor& executor = context.executor ? *context.executor : default_executor();
  executor.parallel_for(batch * heads, [&](std::int64_t i, int) {
    const Sequence s = sequence(p.spec, p.args, i / heads);
    float* sum = mean.ptr<float>() + i * d;
    std::vector<float> row(static_cast<std::size_t>(d));
    std::fill_n(sum, d, 0.0f);
    const auto add = [&](float factor, bool on) {
      kernels.store_row(on ? row.data() : sum,
                        factor,
                        DType::f32,
                        columns,
                        reinterpret_cast<std::byte*>(sum),
                        on ? cpu::Write::add : cpu::Write::over);
    };
    for (std::int64_t j = 0; j < s.k_len;) {
      const KeyRun run = key_run(p.spec, p.args.kv, p.args.kv.k, s, i / heads, i % heads, j);
      for (std::int64_t r = 0; r < run.count; ++r) {
        kernels.copy_rows(
            run.data + r * run.stride, 0, kv.k.dtype, 1, columns, row.data(), d, columns);
        add(1.0f, true);
      }
      j += run.count;
    }
    if (s.k_len > 0) add(1.0f / static_cast<float>(s.k_len), false);
  });
  return mean;
}

}  // namespace undivided
