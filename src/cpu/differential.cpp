// SPDX-License-Identifier: Apache-2.0
// Differential attention on the forward's tiles: for each key block, V is loaded once, and each
// branch c does
//   S_c^T = K_c Q_c^T; score program; mask; online softmax; O_c^T += V^T P_c
// (Ye et al. 2024, eq. 1). Subtracting P_1 and P_2 before the product with V would need both row
// sums first, that is the scores twice: as many FLOPs (12 N^2 d) and no fewer bytes.
#include "cpu/differential.hpp"

#include <array>

#include "cpu/row_end.hpp"
#include "cpu/row_state.hpp"

namespace undivided::cpu {
namespace {

/// Scratch of one worker.
struct Worker {
  struct Branch {
    Branch(Arena& arena, const Setup& setup) : tiles(arena, setup), rows(arena, setup) {}
    ScoreTiles::Memory tiles;
    RowState rows;
  };
  Worker(Arena& arena, const Setup& setup) : branch{Branch(arena, setup), Branch(arena, setup)} {
    branch[1].tiles.v_blocks = branch[0].tiles.v_blocks;  // one copy of V serves both
  }
  std::array<Branch, 2> branch;
};

class Call {
 public:
  Call(const Branches& b, const Setup& setup, const Run* const (&runs)[2], const RowsDone& done)
      : branches_(b), setup_(setup), runs_{runs[0], runs[1]}, done_(done) {}

  void tile(std::int64_t b, std::int64_t h, std::int64_t index, Worker& worker) const {
    const Run& run = *runs_[0];
    const Sequence s = sequence(run.spec, run.args, b);
    const std::int64_t first = index * setup_.tile;
    if (first >= s.q_len) return;
    const int count = static_cast<int>(std::min<std::int64_t>(setup_.tile, s.q_len - first));
    ScoreTiles both[2] = {ScoreTiles(run, worker.branch[0].tiles),
                          ScoreTiles(*runs_[1], worker.branch[1].tiles)};
    for (int c = 0; c < 2; ++c) {
      both[c].begin(s, b, branches_.paired ? 2 * h + c : h, first, count);
      rows_of(worker, c).clear(both[c].subs());
    }
    const std::int64_t high = std::max(both[0].high(), both[1].high());
    for (std::int64_t j = std::min(both[0].low(), both[1].low()); j < high; j += key_block) {
      bool loaded = false;
      for (int c = 0; c < 2; ++c) {
        ScoreTiles& tiles = both[c];
        if (!tiles.visit(j)) continue;
        tiles.load_keys();
        if (!loaded) tiles.load_values();
        loaded = true;
        rows_of(worker, c).absorb(run, tiles, [] {}, [] {});
      }
    }
    for (int c = 0; c < 2; ++c)
      rows_of(worker, c).finish(
          both[c], true, [&](int sub) { finish(*runs_[c], both[c], rows_of(worker, c), sub); });
    const bool packed_rows = run.spec.rows == RowKind::ragged;
    done_(packed_rows ? 0 : b, h, first + (packed_rows ? s.q_first : 0), count);
  }

  /// Packed rows after the last sequence hold zeros and -inf.
  void clear_unused(std::int64_t heads) const {
    const Run& run = *runs_[0];
    if (run.spec.rows != RowKind::ragged || run.batch == 0) return;
    const Sequence s = sequence(run.spec, run.args, run.batch - 1);
    const std::int64_t first = s.q_first + s.q_len, end = run.args.q.data.size(0);
    for (std::int64_t h = 0; h < heads && first < end; ++h) {
      for (int c = 0; c < 2; ++c)
        for (std::int64_t i = s.q_len; i < end - s.q_first; ++i) {
          const Args& args = runs_[c]->args;
          const std::int64_t head = branches_.paired ? 2 * h + c : h;
          std::byte* row = row_address(run.spec, args.o, s, run.batch - 1, head, i);
          std::fill_n(reinterpret_cast<float*>(row), run.spec.dv, 0.0f);
          *row_scalar(run.spec, args.lse, s, run.batch - 1, head, i) =
              -std::numeric_limits<float>::infinity();
        }
      done_(0, h, first, end - first);
    }
  }

 private:
  static const RowState& rows_of(const Worker& worker, int c) {
    return worker.branch[static_cast<std::size_t>(c)].rows;
  }

  void finish(const Run& run, const ScoreTiles& tiles, const RowState& state, int sub) const {
    float factor[max_lanes];
    std::byte* rows[max_lanes];
    for (int lane = 0; lane < tiles.lanes_of(sub); ++lane) {
      const std::int64_t token = tiles.row(sub, lane);
      const RowEnd end = end_of_row(
          state.m(sub)[lane], state.l(sub)[lane], -std::numeric_limits<double>::infinity());
      factor[lane] = end.factor;
      *row_scalar(run.spec, run.args.lse, tiles.sequence(), tiles.batch(), tiles.head(), token) =
          end.lse;
      rows[lane] =
          row_address(run.spec, run.args.o, tiles.sequence(), tiles.batch(), tiles.head(), token);
    }
    run.kernels.unpack(
        state.o(sub), factor, tiles.lanes_of(sub), DType::f32, run.spec.dv, rows, Write::over);
  }

  const Branches& branches_;
  const Setup& setup_;
  const Run* runs_[2];
  const RowsDone& done_;
};

}  // namespace

Differential::Differential(const Branches& branches, const Context& context)
    : branches_(branches), setup_(branches.spec, branches.bounds, context) {
  Arena shared, worker;
  Run::layout(shared, setup_);
  Run::layout(shared, setup_);
  Worker(worker, setup_);
  shared_bytes_ = shared.used();
  worker_bytes_ = worker.used();
}

void Differential::run(void* workspace, const RowsDone& done, const Context& context) const {
  Executor& executor = executor_of(context, setup_.workers);
  Arena arena(workspace);
  const Run first(setup_, *branches_.args[0], arena), second(setup_, *branches_.args[1], arena);
  const Run* const runs[2] = {&first, &second};
  const Call call(branches_, setup_, runs, done);
  const std::int64_t heads = branches_.paired ? first.heads / 2 : first.heads;
  const std::int64_t tiles = setup_.tiles(first.max_q_len);
  call.clear_unused(heads);
  executor.parallel_for(first.batch * heads * tiles, [&](std::int64_t i, int id) {
    Arena mine(static_cast<std::byte*>(workspace) + shared_bytes_ +
               worker_bytes_ * static_cast<std::size_t>(id));
    Worker worker(mine, setup_);
    // Late tiles first: under a causal mask they are the long ones.
    call.tile(i / tiles / heads, i / tiles % heads, tiles - 1 - i % tiles, worker);
  });
}

}  // namespace undivided::cpu
