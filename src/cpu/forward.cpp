// SPDX-License-Identifier: Apache-2.0
// The forward: macro-tiles of queries against key blocks, online softmax in lanes.
//
//   for each key block, for each sub-block of 32 queries:
//     S^T = K Q^T; score program; mask; m' = max(m, S); P = 2^(S - m'); l, O rescaled; O^T += V^T P
// (Dao et al. 2022, algorithm 1; Dao 2023, section 3.1.) With few tasks the keys are split at
// multiples of 256 and the parts merged in ascending order (Rabe and Staats 2021, section 3).
#include "cpu/forward.hpp"

#include <atomic>
#include <bit>

#include "cpu/describe.hpp"
#include "cpu/gaps.hpp"
#include "cpu/key_mass.hpp"
#include "cpu/row_end.hpp"
#include "cpu/row_state.hpp"

namespace undivided::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t split_unit = 256;

/// Scratch of one worker.
struct Worker {
  Worker(Arena& arena, const Setup& setup)
      : tiles(arena, setup, setup.dots && setup.dots->accumulate_blocks ? waiting_blocks : 1),
        rows(arena, setup) {}
  ScoreTiles::Memory tiles;
  RowState rows;
};

/// Unnormalised O with its m and l, of each row and key split.
struct Parts {
  float *o = nullptr, *m = nullptr, *l = nullptr;
};

void raise(float* to, float value) {  // maximum: the order of tasks does not matter
  std::atomic_ref<float> cell(*to);
  float old = cell.load(std::memory_order_relaxed);
  while (value > old && !cell.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
}

class Forward final : public Prepared {
 public:
  Forward(const Spec& spec, const Bounds& bounds, const Context& context)
      : setup_(spec, bounds, context) {
    choose_splits();
    Arena counter;
    layout(counter);
    fixed_bytes_ = counter.used();
    Arena worker;
    Worker(worker, setup_);
    worker_bytes_ = worker.used();
    workspace_ = fixed_bytes_ + worker_bytes_ * static_cast<std::size_t>(setup_.workers);
    explanation = describe_forward(setup_, splits_, split_keys_);
    explanation.workspace = workspace();
  }
  std::size_t workspace() const override { return (workspace_ + 255) / 256 * 256; }
  void run(const Args& args, void* workspace, const Context& context) const override;

 private:
  void choose_splits() {
    const Bounds& b = setup_.bounds;
    const std::int64_t tasks =
        b.batch * (setup_.packed ? b.kv_heads : setup_.heads()) * setup_.tiles(setup_.max_rows());
    const std::int64_t wanted = 2 * setup_.workers;
    if (setup_.spec.determinism == Determinism::invariant || setup_.workers == 1 || tasks == 0 ||
        tasks >= wanted || b.max_k_len < 2 * split_unit)
      return;
    const std::int64_t units = (b.max_k_len + split_unit - 1) / split_unit;
    const std::int64_t pieces = std::min(units, (wanted + tasks - 1) / tasks);
    split_keys_ = (units + pieces - 1) / pieces * split_unit;
    splits_ = (b.max_k_len + split_keys_ - 1) / split_keys_;
  }
  std::int64_t lse_rows() const {
    const Bounds& b = setup_.bounds;
    return setup_.spec.rows == RowKind::ragged ? b.total_q : b.batch * b.max_q_len;
  }
  struct Fixed {
    Parts parts;
    float* lse = nullptr;
  };
  Fixed layout(Arena& arena) const {
    Run::layout(arena, setup_);
    return layout_rest(arena);
  }
  Fixed layout_rest(Arena& arena) const {
    Fixed f;
    if (splits_ > 1) {
      const Bounds& b = setup_.bounds;
      const std::int64_t rows =
          b.batch * (setup_.packed ? b.kv_heads : setup_.heads()) * setup_.max_rows() * splits_;
      f.parts.o = arena.take<float>(rows * setup_.spec.dv);
      f.parts.m = arena.take<float>(rows);
      f.parts.l = arena.take<float>(rows);
    }
    if (setup_.spec.key_mass) f.lse = arena.take<float>(lse_rows() * setup_.heads());
    return f;
  }

  Setup setup_;
  std::int64_t splits_ = 1, split_keys_ = 0;
  std::size_t fixed_bytes_ = 0, worker_bytes_ = 0, workspace_ = 0;
};

/// One call: what the tasks of its phases do.
class Call {
 public:
  Call(const Run& run, std::byte* worker_memory, std::size_t worker_bytes, Parts parts, View lse)
      : run_(run),
        setup_(run.setup),
        kernels_(run.kernels),
        worker_memory_(worker_memory),
        worker_bytes_(worker_bytes),
        parts_(parts),
        lse_(lse) {}

  Worker worker(int id) const {
    Arena arena(worker_memory_ + worker_bytes_ * static_cast<std::size_t>(id));
    return Worker(arena, setup_);
  }

  /// Rows past the lengths, or of no list, hold zeros and -inf, whatever was there.
  void clear_unused(Executor& executor) const {
    const Spec& spec = run_.spec;
    const Args& args = run_.args;
    const auto size = static_cast<std::int64_t>(size_of(spec.out_dtype));
    executor.parallel_for(run_.batch * run_.heads, [&](std::int64_t task, int) {
      const std::int64_t b = task / run_.heads, h = task % run_.heads;
      Sequence s = sequence(spec, args, b, h);
      std::int64_t first = s.q_len, end = s.q_len;
      if (spec.rows == RowKind::dense) end = args.q.data.size(2);
      if (spec.rows == RowKind::ragged && b + 1 == run_.batch)
        end = args.q.data.size(0) - s.q_first;
      if (spec.listed) {  // LSE of all; those of the lists are written later, and so are Gaps
        first = 0;
        s.q_rows = nullptr;
      }
      if (first >= end) return;
      if (args.o && (!spec.listed || s.q_len == 0))
        clear_rows(row_address(spec, args.o, s, b, h, first),
                   args.o.stride[spec.rows == RowKind::ragged ? 0 : 2] * size,
                   end - first,
                   spec.dv * size);
      for (std::int64_t i = first; lse_ && i < end; ++i)
        *row_scalar(spec, lse_, s, b, h, i) = -infinity;
    });
    if (args.max_logit)
      for (std::int64_t b = 0; b < run_.batch; ++b)
        for (std::int64_t h = 0; h < run_.heads; ++h)
          *static_cast<float*>(args.max_logit.at({b, h})) = -infinity;
  }

  /// Keys [low, high) of one macro-tile; ends in O, or in parts when the keys are split.
  void tile(std::int64_t b,
            std::int64_t head,
            std::int64_t index,
            std::int64_t split,
            std::int64_t splits,
            std::int64_t split_keys,
            int id) const {
    const Sequence s = sequence(run_.spec, run_.args, b, head);
    const auto [first, past] = run_.rows_of_tile(s, index);
    if (first >= past) return;
    const int count = static_cast<int>(past - first);
    const Worker w = worker(id);
    ScoreTiles tiles(run_, w.tiles);
    tiles.begin(s, b, head, first, count);
    w.rows.clear(tiles.subs());
    const std::int64_t low = std::max(tiles.low(), split * split_keys);
    const std::int64_t high =
        splits == 1 ? tiles.high() : std::min(tiles.high(), (split + 1) * split_keys);
    tiles.absorb_until(high);
    const auto end = [&](int sub) {
      splits == 1 ? finish(tiles, w, sub) : keep_part(tiles, w, sub, split, splits);
    };
    Gaps gaps;
    if (split == 0 && s.q_rows) {
      gaps = Gaps(kernels_, run_.args.o, b, head, s.q_rows, s.q_len, first, first + count);
      std::int64_t steps = 1;  // tiles that these rows meet
      for (int sub = 0; sub < tiles.subs(); ++sub)
        steps += (s.end[tiles.row(sub, tiles.lanes_of(sub) - 1)] - s.first[tiles.row(sub, 0)]) /
                 key_block;
      gaps.spread(steps);
    }
    // Lines of O come while the last products of their row are made, unless they go past the
    // caches.
    const bool asks = splits == 1 && run_.args.o && row_write(run_.spec) != Write::past;
    int asked = 0;
    for (std::int64_t j = low; j < high; j += key_block) {
      if (!tiles.visit(j)) continue;
      tiles.load_keys();
      tiles.load_values();
      const int ending = asks ? tiles.ending(asked) : 0;
      const int share = (ending - asked + tiles.met() - 1) / tiles.met();
      const auto ask = [&] {
        const int from = asked;
        asked = std::min(ending, from + share);
        if (from < asked) tiles.ask_rows(run_.args.o, from, asked);
      };
      w.rows.absorb(run_, tiles, ask, [&] { gaps.clear_some(); });
      w.rows.finish(tiles, false, end);
    }
    w.rows.finish(tiles, true, end);
    gaps.clear_rest();
  }

  /// Merges the parts of one macro-tile's rows in ascending order of keys.
  void merge(std::int64_t b, std::int64_t head, std::int64_t index, std::int64_t splits) const {
    const Sequence s = sequence(run_.spec, run_.args, b, head);
    const std::int64_t end = std::min(run_.rows_of(s), (index + 1) * run_.tile);
    float sum[512];
    const std::int64_t dv = run_.spec.dv;
    for (std::int64_t row = index * run_.tile; row < end; ++row) {
      const std::int64_t at = part(b, head, row, splits);
      float m = -infinity, l = 0;
      for (std::int64_t i = 0; i < splits; ++i) m = std::max(m, parts_.m[at + i]);
      std::fill_n(sum, dv, 0.0f);
      for (std::int64_t i = 0; i < splits; ++i) {
        if (parts_.l[at + i] == 0) continue;
        const float weight = std::exp2(parts_.m[at + i] - m);
        l += weight * parts_.l[at + i];
        const float* o = parts_.o + (at + i) * dv;
        for (std::int64_t c = 0; c < dv; ++c) sum[c] += weight * o[c];
      }
      const std::int64_t token = run_.token_of(row), h = run_.head_of(head, row);
      const RowEnd end_of = row_end(h, m, l);
      write_scalars(s, b, h, token, m, l, end_of);
      if (!run_.args.o) continue;
      if (end_of.factor == 0) std::fill_n(sum, dv, 0.0f);
      kernels_.store_row(sum,
                         end_of.factor == 0 ? 1.0f : end_of.factor,
                         run_.args.o.dtype,
                         run_.spec.dv,
                         row_address(run_.spec, run_.args.o, s, b, h, token),
                         Write::over);
    }
  }

 private:
  std::int64_t part(std::int64_t b,
                    std::int64_t head,
                    std::int64_t row,
                    std::int64_t splits) const {
    return ((b * run_.task_heads() + head) * setup_.max_rows() + row) * splits;
  }

  RowEnd row_end(std::int64_t h, float m, float l) const {
    const View& sink = run_.args.sink;
    return end_of_row(
        m, l, run_.spec.sink ? static_cast<const float*>(sink.data)[h * sink.step(0)] : -infinity);
  }

  void write_scalars(const Sequence& s,
                     std::int64_t b,
                     std::int64_t h,
                     std::int64_t token,
                     float m,
                     float l,
                     const RowEnd& end) const {
    if (lse_) *row_scalar(run_.spec, lse_, s, b, h, token) = end.lse;
    if (run_.args.max_logit && l != 0)
      raise(static_cast<float*>(run_.args.max_logit.at({b, h})), static_cast<float>(m * ln_2));
  }

  void finish(const ScoreTiles& tiles, const Worker& w, int sub) const {
    const float *m = w.rows.m(sub), *l = w.rows.l(sub);
    float factor[max_lanes], lse[max_lanes];
    std::byte* rows[max_lanes];
    if (!run_.spec.sink) kernels_.end_rows(m, l, factor, lse);
    for (int lane = 0; lane < tiles.lanes_of(sub); ++lane) {
      const std::int64_t row = tiles.row(sub, lane);
      const std::int64_t token = run_.token_of(row), h = run_.head_of(tiles.head(), row);
      const RowEnd end =
          run_.spec.sink ? row_end(h, m[lane], l[lane]) : RowEnd{factor[lane], lse[lane]};
      write_scalars(tiles.sequence(), tiles.batch(), h, token, m[lane], l[lane], end);
      factor[lane] = end.factor;
      if (run_.args.o)
        rows[lane] = row_address(run_.spec, run_.args.o, tiles.sequence(), tiles.batch(), h, token);
    }
    const auto unpack = setup_.dots ? setup_.dots->unpack : kernels_.unpack;
    if (run_.args.o)
      unpack(w.rows.o(sub),
             factor,
             tiles.lanes_of(sub),
             run_.args.o.dtype,
             run_.spec.dv,
             rows,
             row_write(run_.spec));
  }

  void keep_part(const ScoreTiles& tiles,
                 const Worker& w,
                 int sub,
                 std::int64_t split,
                 std::int64_t splits) const {
    float one[max_lanes];
    std::byte* rows[max_lanes];
    for (int lane = 0; lane < tiles.lanes_of(sub); ++lane) {
      const std::int64_t at =
          part(tiles.batch(), tiles.head(), tiles.row(sub, lane), splits) + split;
      one[lane] = 1;
      rows[lane] = reinterpret_cast<std::byte*>(parts_.o + at * run_.spec.dv);
      parts_.m[at] = w.rows.m(sub)[lane];
      parts_.l[at] = w.rows.l(sub)[lane];
    }
    kernels_.unpack(
        w.rows.o(sub), one, tiles.lanes_of(sub), DType::f32, run_.spec.dv, rows, Write::over);
  }

  const Run& run_;
  const Setup& setup_;
  const Kernels& kernels_;
  std::byte* worker_memory_;
  std::size_t worker_bytes_;
  Parts parts_;
  View lse_;
};

void Forward::run(const Args& args, void* workspace, const Context& context) const {
  Executor& executor = executor_of(context, setup_.workers);
  const Spec& spec = setup_.spec;
  want_dtype("O", args.o, spec.out_dtype);
  for (const auto& [name, v] : {std::pair{"LSE", &args.lse},
                                {"max_logit", &args.max_logit},
                                {"key_mass", &args.key_mass},
                                {"sink", &args.sink}})
    want_dtype(name, *v, DType::f32);
  Arena arena(workspace);
  const Run shared(setup_, args, arena);
  const Fixed fixed = layout_rest(arena);
  View lse = args.lse;
  if (!lse && spec.key_mass)
    lse = spec.rows == RowKind::ragged
              ? View::of(fixed.lse, DType::f32, {shared.heads, args.q.data.size(0)})
              : View::of(fixed.lse, DType::f32, {shared.batch, shared.heads, args.q.data.size(2)});
  const Call call(
      shared, static_cast<std::byte*>(workspace) + fixed_bytes_, worker_bytes_, fixed.parts, lse);
  call.clear_unused(executor);
  const std::int64_t heads = shared.task_heads();
  const std::int64_t rows = shared.max_q_len * (setup_.packed ? spec.group : 1);
  const std::int64_t tiles = shared.tiles(rows);
  // Splits lie at fixed keys, so those beyond this call's longest sequence are empty for all.
  const std::int64_t splits =
      splits_ == 1 ? 1
                   : std::max<std::int64_t>(1, (shared.max_k_len + split_keys_ - 1) / split_keys_);
  executor.parallel_for(shared.batch * heads * tiles * splits, [&](std::int64_t i, int worker) {
    // Late tiles first: under a causal mask they are the long ones.
    const std::int64_t row = i / splits;
    call.tile(row / tiles / heads,
              row / tiles % heads,
              tiles - 1 - row % tiles,
              i % splits,
              splits,
              split_keys_,
              worker);
  });
  if (splits > 1)
    executor.parallel_for(shared.batch * heads * tiles, [&](std::int64_t i, int) {
      call.merge(i / tiles / heads, i / tiles % heads, i % tiles, splits);
    });
  if (args.key_mass)
    write_key_mass(shared, lse, executor, [&](int id) { return call.worker(id).tiles; });
}

}  // namespace

std::unique_ptr<Prepared> prepare_forward(const Spec& spec,
                                          const Bounds& bounds,
                                          const Context& context) {
  return std::make_unique<Forward>(spec, bounds, context);
}

}  // namespace undivided::cpu
