// SPDX-License-Identifier: Apache-2.0
// The backward: its tasks (backward_form.hpp says which) and where their sums go. Every sum has a
// fixed order, so all forms, any number of workers and all classes of determinism give the same
// bits.
#include "cpu/backward.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "cpu/backward_form.hpp"
#include "cpu/describe.hpp"
#include "cpu/flush.hpp"
#include "cpu/gaps.hpp"
#include "cpu/sweep.hpp"
#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t rows_ahead = 8;  // rows of a list, that no processor foresees, are asked for

using Form = BackwardForm::Kind;

void zero(const View& v, Executor& executor) {  // rank 3 or 4, last axis dense
  if (!v) return;
  const std::int64_t n0 = v.rank == 4 ? v.size(0) : 1, s0 = v.rank == 4 ? v.stride[0] : 0;
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  executor.parallel_for(n0 * v.size(-3), [&](std::int64_t task, int) {
    clear_rows(static_cast<std::byte*>(v.data) +
                   (task / v.size(-3) * s0 + task % v.size(-3) * v.step(-3)) * bytes,
               v.step(-2) * bytes,
               v.size(-2),
               v.size(-1) * bytes);
  });
}

std::int64_t row_bytes(const View& v) {
  return v.size(-1) * static_cast<std::int64_t>(size_of(v.dtype));
}

class Backward final : public Prepared {
 public:
  Backward(const Spec& spec, const Bounds& bounds, const Context& context)
      : setup_(spec, bounds, context), gradient_(expr::differentiate(*spec.score)), form_(setup_) {
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
    Arena counter;
    Run::layout(counter, setup_);
    Fixed(counter, *this);
    fixed_bytes_ = counter.used();
    Arena worker;
    SweepMemory(worker, setup_, form_.buffer_keys(form_.kind));
    worker_bytes_ = worker.used();
    if (form_.alone) {
      Arena one;
      SweepMemory(one, setup_, form_.buffer_keys(Form::whole));
      alone_bytes_ = one.used();
    }
    explanation = describe_backward(setup_);
    for (std::string& note : form_.notes()) explanation.notes.push_back(std::move(note));
    explanation.workspace = workspace();
  }
  std::size_t workspace() const override {
    const std::size_t workers = worker_bytes_ * static_cast<std::size_t>(setup_.workers);
    return (fixed_bytes_ + std::max(workers, alone_bytes_) + 255) / 256 * 256;
  }
  void run(const Args& args, void* workspace, const Context& context) const override;

 private:
  struct Fixed {
    Fixed(Arena& arena, const Backward& b) {
      const BackwardForm& form = b.form_;
      lse2 = arena.take<float>(form.rows * b.setup_.heads());
      delta = arena.take<float>(form.rows * b.setup_.heads());
      pages = arena.take<std::uint8_t>(b.setup_.bounds.pages);
      if (form.kind == Form::parts) {
        parts = arena.take<float>(form.part_bytes / 4);
        used =
            arena.take<std::uint8_t>(form.chunks * form.pairs * b.setup_.spec.group * form.blocks);
      }
      if (b.setup_.spec.captured) captured = CapturedSums::Groups(arena, b.setup_, form.groups());
    }
    float *lse2, *delta, *parts = nullptr;  // parts: [chunk][head][row][padded]
    std::uint8_t *pages, *used = nullptr;   // used: [chunk][sequence][head][sub-block]
    CapturedSums::Groups captured;
  };
  struct Call;

  Setup setup_;
  expr::Gradient gradient_;
  BackwardForm form_;
  std::size_t fixed_bytes_ = 0, worker_bytes_ = 0, alone_bytes_ = 0;
};

struct Backward::Call {
  const Backward& plan;
  const Run& run;
  const Fixed& fixed;
  View lse2, delta;
  std::byte* worker_memory;
  Form form;
  std::int64_t buffer_keys;  // of a task
  bool add = false;          // dK and dV rows may be written more than once

  SweepMemory memory(int id) const {
    Arena arena(worker_memory + plan.worker_bytes_ * static_cast<std::size_t>(id));
    return SweepMemory(arena, plan.setup_, buffer_keys);
  }

  float& number(
      const View& v, const Sequence& s, std::int64_t b, std::int64_t h, std::int64_t i) const {
    return *reinterpret_cast<float*>(scalar_address(run.spec, v, s, b, h, i));
  }

  /// delta = rowsum(dO * O) - dLSE, and LSE in log2 units, of rows [first, end) of a head.
  void statistics(const Sequence& s,
                  std::int64_t b,
                  std::int64_t h,
                  std::int64_t first,
                  std::int64_t end) const {
    const Spec& spec = run.spec;
    const Args& args = run.args;
    float x[512], y[512];
    for (std::int64_t i = first; i < end; ++i) {
      if (s.q_rows && i + rows_ahead < end)
        for (const View* v : {&args.o, &args.dout.data})
          ask_row(row_address(spec, *v, s, b, h, i + rows_ahead), row_bytes(*v));
      const auto wide = [&](const View& v, float* room) -> const float* {
        const std::byte* row = row_address(spec, v, s, b, h, i);
        if (v.dtype == DType::f32) return reinterpret_cast<const float*>(row);
        run.kernels.copy_rows(row, 0, v.dtype, 1, spec.dv, room, spec.dv, spec.dv);
        return room;
      };
      const float lse = *row_scalar(spec, args.lse, s, b, h, i);
      const float dlse = args.dlse ? *row_scalar(spec, args.dlse, s, b, h, i) : 0.0f;
      // A row without a key has no gradient, whatever came in.
      const bool none = lse == -infinity;
      number(delta, s, b, h, i) =
          none ? 0.0f : run.kernels.dot(wide(args.o, x), wide(args.dout.data, y), spec.dv) - dlse;
      number(lse2, s, b, h, i) = none ? infinity : static_cast<float>(lse * log2_e);
    }
  }

  void sink_gradient(std::int64_t h) const {
    const View& sink = run.args.sink;
    const double logit = static_cast<const float*>(sink.data)[h * sink.step(0)];
    double sum = 0;
    for (std::int64_t b = 0; b < run.batch; ++b) {
      const Sequence s = sequence(run.spec, run.args, b, h);
      for (std::int64_t i = 0; i < s.q_len; ++i) {
        const float lse = *row_scalar(run.spec, run.args.lse, s, b, h, i);
        if (lse == -infinity) continue;
        sum -= std::exp(logit - lse) * static_cast<double>(number(delta, s, b, h, i));
      }
    }
    static_cast<float*>(run.args.dsink.data)[h * run.args.dsink.step(0)] = static_cast<float>(sum);
  }

  /// dQ of one tile of queries.
  void queries(std::int64_t b,
               std::int64_t h,
               std::int64_t tile,
               int id,
               const CapturedSums::Place* captured) const {
    const Sequence s = sequence(run.spec, run.args, b, h);
    Sweep sweep(run, memory(id), lse2, delta);
    sweep.want_dq = run.spec.want_dq;
    if (captured) sweep.capture(*captured);
    sweep.run(s, b, h, tile, tile + 1, 0, s.k_len);
  }

  /// Where the dQ of a chunk goes.
  DqPart part(const Sequence& s, std::int64_t b, std::int64_t h, std::int64_t chunk) const {
    const Setup& setup = plan.setup_;
    const std::int64_t first =
        run.spec.rows == RowKind::ragged ? s.q_first : b * setup.bounds.max_q_len;
    const std::int64_t row = (chunk * setup.heads() + h) * plan.form_.rows + first;
    const std::int64_t flag = (chunk * setup.bounds.batch + b) * setup.heads() + h;
    return {fixed.parts + row * padded(setup, run.spec.dqk), fixed.used + flag * plan.form_.blocks};
  }

  /// dQ of one tile of queries, from the chunks in ascending order.
  void add_parts(std::int64_t b, std::int64_t h, std::int64_t tile) const {
    const FlushToZero flush;
    const Sequence s = sequence(run.spec, run.args, b, h);
    const std::int64_t d = padded(plan.setup_, run.spec.dqk), idle = run.idle_lanes(s);
    float sum[512];
    const auto [first, end] = run.rows_of_tile(s, tile);
    if (first >= end) return;
    Gaps gaps(run.kernels, run.args.dq, b, h, s.q_rows, s.q_len, first, end);
    for (std::int64_t i = first; i < end; ++i) {
      bool some = false;
      gaps.clear_next();
      for (std::int64_t c = 0; c * chunk_keys < s.k_len; ++c) {
        const DqPart from = part(s, b, h, c);
        if (!from.used[(i + idle) / run.kernels.lanes]) continue;
        run.kernels.store_row(from.rows + i * d,
                              1.0f,
                              DType::f32,
                              run.spec.dqk,
                              reinterpret_cast<std::byte*>(sum),
                              some ? Write::add : Write::over);
        some = true;
      }
      if (!some) std::fill_n(sum, d, 0.0f);
      run.kernels.store_row(sum,
                            static_cast<float>(run.args.scale),
                            run.args.dq.dtype,
                            run.spec.dqk,
                            row_address(run.spec, run.args.dq, s, b, h, i),
                            row_write(run.spec));
    }
    gaps.clear_rest();
  }

  /// dK and dV of keys [k0, k1) of a KV head, from all queries of its group; dQ too in one pass.
  void keys(std::int64_t b,
            std::int64_t kv_head,
            std::int64_t k0,
            int id,
            bool one_pass,
            const CapturedSums::Place* captured) const {
    const Spec& spec = run.spec;
    const Sequence s = sequence(spec, run.args, b, kv_head * spec.group);
    const std::int64_t k1 = std::min(s.k_len, k0 + buffer_keys);
    if (k0 >= k1 && k0 > 0) return;
    const SweepMemory m = memory(id);
    const std::int64_t dqk = padded(plan.setup_, spec.dqk), dv = padded(plan.setup_, spec.dv);
    std::fill_n(m.dk, (k1 - k0) * dqk, 0.0f);
    std::fill_n(m.dv, (k1 - k0) * dv, 0.0f);
    Sweep sweep(run, m, lse2, delta);
    sweep.want_dq = one_pass && spec.want_dq;
    sweep.want_dkv = spec.want_dk || spec.want_dv;
    if (captured) sweep.capture(*captured);
    for (int g = 0; g < spec.group; ++g) {
      const std::int64_t h = kv_head * spec.group + g;
      const bool kept = sweep.want_dq && form == Form::parts;
      const Sequence mine = sequence(spec, run.args, b, h);
      const DqPart to = kept ? part(mine, b, h, k0 / chunk_keys) : DqPart{};
      const std::int64_t tiles = run.tiles(mine.q_len);
      if (form != Form::whole) {
        sweep.run(mine, b, h, 0, tiles, k0, k1, to);
        continue;
      }
      // Nobody else needs these rows: dO is still at hand when the tile reads it again.
      for (std::int64_t t = 0; t < tiles; ++t) {
        const auto [first, end] = run.rows_of_tile(mine, t);
        statistics(mine, b, h, first, end);
        sweep.run(mine, b, h, t, t + 1, k0, k1, to);
      }
    }
    const auto store =
        [&](const View& to, const float* from, std::int64_t stride, int d, float factor) {
          const auto rows_at = [&](std::int64_t j) {
            return key_run(spec, run.args.kv, to, s, b, kv_head, j);
          };
          const Write how = add ? Write::add : row_write(spec);
          Gaps gaps(run.kernels, to, b, kv_head, s.k_rows, s.k_len, k0, k1);
          for (std::int64_t j = k0; j < k1;) {
            gaps.clear_next();
            if (s.k_rows && how == Write::over && j + rows_ahead < k1)
              ask_row(rows_at(j + rows_ahead).data, row_bytes(to));
            const KeyRun rows = rows_at(j);
            const std::int64_t end = std::min(k1, j + rows.count);
            for (std::byte* at = rows.data; j < end; ++j, at += rows.stride)
              run.kernels.store_row(from + (j - k0) * stride, factor, to.dtype, d, at, how);
          }
          gaps.clear_rest();
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
               : View::of(data, DType::f32, {shared.batch, shared.heads, shared.max_q_len});
  };
  // Nobody else could take the other chunks of keys: rows are then loaded and dQ written once.
  const Form form = form_.alone && executor.workers() == 1 ? Form::whole : form_.kind;
  const std::int64_t buffer_keys = form_.buffer_keys(form);
  Call call{*this,
            shared,
            fixed,
            scalars(fixed.lse2),
            scalars(fixed.delta),
            static_cast<std::byte*>(workspace) + fixed_bytes_,
            form,
            buffer_keys};
  if (spec.q_lengths || spec.rows == RowKind::ragged) zero(args.dq, executor);
  if (spec.k_lengths || spec.kv != KvKind::dense) {
    zero(args.dk, executor);
    zero(args.dv, executor);
  }
  const bool serial = spec.kv == KvKind::paged && call.pages_are_shared();
  call.add = serial;
  if (serial && spec.out_dtype != DType::f32 && (spec.want_dk || spec.want_dv))
    throw Error(Code::unsupported,
                Stage::run,
                fmt::format("sequences share pages, and their gradients cannot be summed in {}: "
                            "ask for gradients in f32",
                            name_of(spec.out_dtype)));

  const bool capturing = spec.captured && setup_.gradient.used;
  const bool keys = spec.want_dk || spec.want_dv, one_pass = form != Form::passes;
  const bool by_keys = one_pass && (keys || capturing);
  executor.parallel_for(shared.batch * shared.heads, [&](std::int64_t i, int) {
    const std::int64_t b = i / shared.heads, h = i % shared.heads;
    const Sequence s = sequence(spec, args, b, h);
    if (s.q_len == 0) Gaps(shared.kernels, args.dq, b, h, s.q_rows, 0, 0, 0).clear_rest();
    if (!by_keys || form != Form::whole) call.statistics(s, b, h, 0, s.q_len);
  });

  CapturedSums sums(shared, gradient_, fixed.captured);
  if (spec.captured) sums.clear();
  // A group of tasks shares sums: in order, on one thread. So do rows with several writers.
  const auto run_tasks = [&](std::int64_t count, bool in_order, bool capture, auto&& task) {
    const std::int64_t groups = capture ? sums.groups() : in_order ? 1 : count;
    auto group = [&](std::int64_t g, int worker) {
      const CapturedSums::Place place{&sums, g};
      for (std::int64_t i = count * g / groups; i < count * (g + 1) / groups; ++i)
        task(i, worker, capture ? &place : nullptr);
    };
    if (in_order)
      executor.parallel_for(1, [&](std::int64_t, int worker) {
        for (std::int64_t g = 0; g < groups; ++g) group(g, worker);
      });
    else
      executor.parallel_for(groups, group);
  };
  const std::int64_t heads = shared.heads, tiles = shared.tiles(shared.max_q_len);
  const std::int64_t chunks =
      std::max<std::int64_t>(1, (shared.max_k_len + buffer_keys - 1) / buffer_keys);
  const auto key_task = [&](std::int64_t i, int worker, const CapturedSums::Place* place) {
    call.keys(i / chunks / shared.kv_heads,
              i / chunks % shared.kv_heads,
              i % chunks * buffer_keys,
              worker,
              one_pass,
              place);
  };
  const auto query_task = [&](std::int64_t i, int worker, const CapturedSums::Place* place) {
    call.queries(i / tiles / heads, i / tiles % heads, i % tiles, worker, place);
  };
  const std::int64_t key_tasks = shared.batch * shared.kv_heads * chunks;
  const std::int64_t query_tasks = shared.batch * heads * tiles;
  if (by_keys) {
    run_tasks(key_tasks, serial, capturing, key_task);
    if (form == Form::parts && spec.want_dq)
      executor.parallel_for(query_tasks, [&](std::int64_t i, int) {
        call.add_parts(i / tiles / heads, i / tiles % heads, i % tiles);
      });
  } else {
    if (spec.want_dq || capturing) run_tasks(query_tasks, false, capturing, query_task);
    if (keys) run_tasks(key_tasks, serial, false, key_task);
  }
  if (spec.captured) sums.finish();
  if (spec.sink && args.dsink)
    executor.parallel_for(shared.heads, [&](std::int64_t h, int) { call.sink_gradient(h); });
}

}  // namespace

std::unique_ptr<Prepared> prepare_backward(const Spec& spec,
                                           const Bounds& bounds,
                                           const Context& context) {
  return std::make_unique<Backward>(spec, bounds, context);
}

}  // namespace undivided::cpu
