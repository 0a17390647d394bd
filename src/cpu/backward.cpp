// SPDX-License-Identifier: Apache-2.0
// The backward: who sweeps which rectangle, and where the sums go.
//
// With enough (sequence, KV head) pairs for the workers, one task sweeps all of a pair and gives
// dQ, dK and dV at once. Otherwise two passes share the work: query tiles for dQ, then key chunks
// for dK and dV, at the price of two products more. Every sum has one owner and a fixed order, so
// all classes of determinism give the same bits.
#include "cpu/backward.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "cpu/describe.hpp"
#include "cpu/sweep.hpp"
#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t chunk_keys = 512;                           // of one dK, dV task
constexpr std::int64_t most_fused_bytes = std::int64_t{64} << 20;  // dK and dV of one worker

template <class F>
void for_each_row(const View& v, F&& body) {  // rank 3 or 4, last axis dense
  const std::int64_t n0 = v.rank == 4 ? v.size(0) : 1, s0 = v.rank == 4 ? v.stride[0] : 0;
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  for (std::int64_t a = 0; a < n0; ++a)
    for (std::int64_t b = 0; b < v.size(-3); ++b)
      for (std::int64_t c = 0; c < v.size(-2); ++c)
        body(static_cast<std::byte*>(v.data) + (a * s0 + b * v.step(-3) + c * v.step(-2)) * bytes);
}

void zero(const View& v) {
  if (!v) return;
  const std::size_t bytes = static_cast<std::size_t>(v.size(-1)) * size_of(v.dtype);
  for_each_row(v, [&](std::byte* row) { std::fill_n(row, bytes, std::byte{0}); });
}

class Backward final : public Prepared {
 public:
  Backward(const Spec& spec, const Bounds& bounds, const Context& context)
      : setup_(spec, bounds, context), gradient_(expr::differentiate(*spec.score)) {
    if (setup_.score.used) {
      std::vector<std::array<std::int32_t, 4>> keep;
      expr::Program wanted = gradient_.program;
      if (setup_.spec.captured)
        for (const auto& term : gradient_.terms) keep.push_back(term.index);
      else
        wanted.roots.resize(1);  // the derivative by the score
      setup_.gradient = flatten(wanted, {.diagonals = true}, keep);
      const expr::Node& root = wanted.root();
      if (keep.empty() && root.op == expr::Op::constant && root.real == 1)
        setup_.gradient.used = false;
    }
    choose_order();
    Arena counter;
    Run::layout(counter, setup_);
    Fixed(counter, *this);
    fixed_bytes_ = counter.used();
    Arena worker;
    SweepMemory(worker, setup_, buffer_keys_);
    worker_bytes_ = worker.used();
    explanation = describe_backward(setup_);
    explanation.notes.emplace_back(fused_
                                       ? "one pass: dQ, dK and dV of a KV head by one task"
                                       : "two passes: dQ by query tiles, dK and dV by key chunks");
    if (setup_.spec.captured)
      explanation.notes.emplace_back("gradients of captured arrays are summed by one thread");
    explanation.workspace = workspace();
  }
  std::size_t workspace() const override {
    return (fixed_bytes_ + worker_bytes_ * static_cast<std::size_t>(setup_.workers) + 255) / 256 *
           256;
  }
  void run(const Args& args, void* workspace, const Context& context) const override;

 private:
  struct Fixed {
    Fixed(Arena& arena, const Backward& b) : captured(arena, b.setup_) {
      lse2 = arena.take<float>(b.rows() * b.setup_.heads());
      delta = arena.take<float>(b.rows() * b.setup_.heads());
      pages = arena.take<std::uint8_t>(b.setup_.bounds.pages);
    }
    CapturedSums::Memory captured;
    float *lse2, *delta;
    std::uint8_t* pages;
  };
  std::int64_t rows() const {
    const Bounds& b = setup_.bounds;
    return setup_.spec.rows == RowKind::ragged ? b.total_q : b.batch * b.max_q_len;
  }
  void choose_order() {
    const Bounds& b = setup_.bounds;
    const std::int64_t keys = (b.max_k_len + key_block - 1) / key_block * key_block;
    const std::int64_t bytes =
        keys * (padded(setup_, setup_.spec.dqk) + padded(setup_, setup_.spec.dv)) * 4;
    const std::int64_t tasks = b.batch * b.kv_heads, w = setup_.workers;
    const std::int64_t rounds = (tasks + w - 1) / w;
    // Two products of five more are worth it only if idle workers would cost more than that.
    fused_ = tasks > 0 && bytes <= most_fused_bytes && rounds * w * 5 <= tasks * 7;
    if (setup_.spec.captured && w > 1) fused_ = false;
    buffer_keys_ =
        fused_ ? std::max<std::int64_t>(1, keys) : chunk_keys;  // no key: one empty chunk
  }
  struct Call;

  Setup setup_;
  expr::Gradient gradient_;
  bool fused_ = false;
  std::int64_t buffer_keys_ = chunk_keys;
  std::size_t fixed_bytes_ = 0, worker_bytes_ = 0;
};

struct Backward::Call {
  const Backward& plan;
  const Run& run;
  const Fixed& fixed;
  View lse2, delta;
  std::byte* worker_memory;
  bool add = false;  // dK and dV rows may be written more than once

  SweepMemory memory(int id) const {
    Arena arena(worker_memory + plan.worker_bytes_ * static_cast<std::size_t>(id));
    return SweepMemory(arena, plan.setup_, plan.buffer_keys_);
  }

  /// delta = rowsum(dO * O) - dLSE, and LSE in log2 units.
  void statistics(std::int64_t b, std::int64_t h) const {
    const Spec& spec = run.spec;
    const Args& args = run.args;
    const Sequence s = sequence(spec, args, b);
    float x[512], y[512];
    for (std::int64_t i = 0; i < s.q_len; ++i) {
      run.kernels.copy_rows(
          row_address(spec, args.o, s, b, h, i), 0, args.o.dtype, 1, spec.dv, x, spec.dv, spec.dv);
      run.kernels.copy_rows(row_address(spec, args.dout.data, s, b, h, i),
                            0,
                            args.dout.data.dtype,
                            1,
                            spec.dv,
                            y,
                            spec.dv,
                            spec.dv);
      const float lse = *row_scalar(spec, args.lse, s, b, h, i);
      const float dlse = args.dlse ? *row_scalar(spec, args.dlse, s, b, h, i) : 0.0f;
      // A row without a key has no gradient, whatever came in.
      const bool none = lse == -infinity;
      *row_scalar(spec, delta, s, b, h, i) = none ? 0.0f : run.kernels.dot(x, y, spec.dv) - dlse;
      *row_scalar(spec, lse2, s, b, h, i) = none ? infinity : static_cast<float>(lse * log2_e);
    }
  }

  void sink_gradient(std::int64_t h) const {
    const View& sink = run.args.sink;
    const double logit = static_cast<const float*>(sink.data)[h * sink.step(0)];
    double sum = 0;
    for (std::int64_t b = 0; b < run.batch; ++b) {
      const Sequence s = sequence(run.spec, run.args, b);
      for (std::int64_t i = 0; i < s.q_len; ++i) {
        const float lse = *row_scalar(run.spec, run.args.lse, s, b, h, i);
        if (lse == -infinity) continue;
        sum -=
            std::exp(logit - lse) * static_cast<double>(*row_scalar(run.spec, delta, s, b, h, i));
      }
    }
    static_cast<float*>(run.args.dsink.data)[h * run.args.dsink.step(0)] = static_cast<float>(sum);
  }

  /// dQ of one tile of queries (and the captured sums, when one thread does it all).
  void queries(std::int64_t b,
               std::int64_t h,
               std::int64_t tile,
               int id,
               const CapturedSums* captured) const {
    const Sequence s = sequence(run.spec, run.args, b);
    Sweep sweep(run, memory(id), lse2, delta);
    sweep.want_dq = run.spec.want_dq;
    sweep.captured = captured;
    sweep.captured_memory = &fixed.captured;
    sweep.run(s, b, h, tile, tile + 1, 0, s.k_len);
  }

  /// dK and dV of keys [k0, k1) of a KV head, from all queries of its group; dQ too when fused.
  void keys(std::int64_t b,
            std::int64_t kv_head,
            std::int64_t k0,
            int id,
            bool with_dq,
            const CapturedSums* captured) const {
    const Spec& spec = run.spec;
    const Sequence s = sequence(spec, run.args, b);
    const std::int64_t k1 = std::min(s.k_len, k0 + plan.buffer_keys_);
    if (k0 >= k1 && !(with_dq && k0 == 0)) return;
    const SweepMemory m = memory(id);
    const std::int64_t dqk = padded(plan.setup_, spec.dqk), dv = padded(plan.setup_, spec.dv);
    std::fill_n(m.dk, (k1 - k0) * dqk, 0.0f);
    std::fill_n(m.dv, (k1 - k0) * dv, 0.0f);
    Sweep sweep(run, m, lse2, delta);
    sweep.want_dq = with_dq && spec.want_dq;
    sweep.want_dkv = spec.want_dk || spec.want_dv;
    sweep.captured = captured;
    sweep.captured_memory = &fixed.captured;
    for (int g = 0; g < spec.group; ++g)
      sweep.run(s, b, kv_head * spec.group + g, 0, plan.setup_.tiles(s.q_len), k0, k1);
    const auto store =
        [&](const View& to, const float* from, std::int64_t stride, int d, float factor) {
          for (std::int64_t j = k0; j < k1; ++j)
            run.kernels.store_row(from + (j - k0) * stride,
                                  factor,
                                  to.dtype,
                                  d,
                                  key_run(spec, run.args.kv, to, s, b, kv_head, j).data,
                                  add);
        };
    if (spec.want_dk) store(run.args.dk, m.dk, dqk, spec.dqk, static_cast<float>(run.args.scale));
    if (spec.want_dv) store(run.args.dv, m.dv, dv, spec.dv, 1.0f);
  }

  /// Is some page read by two places of the table?
  bool pages_are_shared() const {
    const Kv& kv = run.args.kv;
    std::fill_n(fixed.pages, kv.k.size(0), std::uint8_t{0});
    bool shared = false;
    for (std::int64_t b = 0; b < run.batch; ++b) {
      const Sequence s = sequence(run.spec, run.args, b);
      for (std::int64_t i = 0; i * kv.k.size(2) < s.k_len; ++i) {
        std::uint8_t& seen = fixed.pages[page_of(kv, b, i)];
        shared |= seen != 0;
        seen = 1;
      }
    }
    return shared;
  }
};

void Backward::run(const Args& args, void* workspace, const Context& context) const {
  Executor& executor = executor_of(context, setup_.workers);
  const Spec& spec = setup_.spec;
  for (const auto& [name, v] : {std::pair{"dQ", &args.dq}, {"dK", &args.dk}, {"dV", &args.dv}})
    want_dtype(name, *v, spec.out_dtype);
  for (const auto& [name, v] : {std::pair{"LSE", &args.lse},
                                {"the gradient of LSE", &args.dlse},
                                {"sink", &args.sink},
                                {"dsink", &args.dsink},
                                {"the gradients of parameters", &args.d_params}})
    want_dtype(name, *v, DType::f32);
  for (const View& v : args.d_arrays) want_dtype("a gradient of a captured array", v, DType::f32);
  Arena arena(workspace);
  const Run shared(setup_, args, arena);
  const Fixed fixed(arena, *this);
  const auto scalars = [&](float* data) {
    return spec.rows == RowKind::ragged
               ? View::of(data, DType::f32, {shared.heads, args.q.data.size(0)})
               : View::of(data, DType::f32, {shared.batch, shared.heads, args.q.data.size(2)});
  };
  Call call{*this,
            shared,
            fixed,
            scalars(fixed.lse2),
            scalars(fixed.delta),
            static_cast<std::byte*>(workspace) + fixed_bytes_};
  if (spec.q_lengths || spec.rows == RowKind::ragged) zero(args.dq);
  if (spec.k_lengths || spec.kv != KvKind::dense) {
    zero(args.dk);
    zero(args.dv);
  }
  const bool serial = spec.kv == KvKind::paged && call.pages_are_shared();
  call.add = serial;
  if (serial && spec.out_dtype != DType::f32 && (spec.want_dk || spec.want_dv))
    throw Error(Code::unsupported,
                Stage::run,
                fmt::format("sequences share pages, and their gradients cannot be summed in {}: "
                            "ask for gradients in f32",
                            name_of(spec.out_dtype)));

  executor.parallel_for(shared.batch * shared.heads, [&](std::int64_t i, int) {
    call.statistics(i / shared.heads, i % shared.heads);
  });
  if (spec.sink && args.dsink)
    executor.parallel_for(shared.heads, [&](std::int64_t h, int) { call.sink_gradient(h); });

  const CapturedSums sums(shared, gradient_);
  const bool capturing = spec.captured && setup_.gradient.used;
  const CapturedSums* captured = capturing ? &sums : nullptr;
  if (spec.captured) sums.clear(fixed.captured);
  const bool keys = spec.want_dk || spec.want_dv, queries = spec.want_dq || capturing;
  const std::int64_t heads = shared.heads, tiles = setup_.tiles(shared.max_q_len);
  const bool one_pass = fused_ && keys;
  if (queries && !one_pass) {
    const std::int64_t tasks = shared.batch * heads * tiles;
    auto task = [&](std::int64_t i, int worker) {
      call.queries(i / tiles / heads, i / tiles % heads, i % tiles, worker, captured);
    };
    if (capturing)  // in order, on one thread
      executor.parallel_for(1, [&](std::int64_t, int worker) {
        for (std::int64_t i = 0; i < tasks; ++i) task(i, worker);
      });
    else
      executor.parallel_for(tasks, task);
  }
  if (keys) {
    const std::int64_t chunks =
        std::max<std::int64_t>(1, (shared.max_k_len + buffer_keys_ - 1) / buffer_keys_);
    const std::int64_t each = shared.kv_heads * chunks;
    const CapturedSums* inside = one_pass ? captured : nullptr;
    auto task = [&](std::int64_t i, int worker) {
      call.keys(i / each,
                i / chunks % shared.kv_heads,
                i % chunks * buffer_keys_,
                worker,
                one_pass,
                inside);
    };
    if (inside || serial)  // rows or sums with several writers: in order, on one thread
      executor.parallel_for(1, [&](std::int64_t, int worker) {
        for (std::int64_t i = 0; i < shared.batch * each; ++i) task(i, worker);
      });
    else
      executor.parallel_for(shared.batch * each, task);
  }
  if (spec.captured) sums.finish(fixed.captured);
}

}  // namespace

std::unique_ptr<Prepared> prepare_backward(const Spec& spec,
                                           const Bounds& bounds,
                                           const Context& context) {
  return std::make_unique<Backward>(spec, bounds, context);
}

}  // namespace undivided::cpu
