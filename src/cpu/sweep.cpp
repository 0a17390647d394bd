// SPDX-License-Identifier: Apache-2.0
// The backward of a tile (Dao 2023, algorithm 2), queries in lanes like the forward:
//
//   P = 2^(S - lse2);  dP^T = V dO^T, dropped like P;  dS = P (dP - delta)
//   dQ^T += K^T dS;  dK += dS Q;  dV += drop(P) dO
// A score program changes dS by its derivative, evaluated on the scores before it.
#include "cpu/sweep.hpp"

#include <array>

#include "cpu/flush.hpp"

namespace undivided::cpu {

SweepMemory::SweepMemory(Arena& arena, const Setup& setup, std::int64_t keys)
    : tiles(arena, setup),
      files(WorkerFiles::layout(arena, setup.gradient, *setup.kernels, setup.subs())) {
  const std::int64_t lanes = setup.kernels->lanes, all = lanes * setup.subs();
  const std::int64_t tile = lanes * key_block;
  const std::int64_t dqk = padded(setup, setup.spec.dqk), dv_columns = padded(setup, setup.spec.dv);
  do_t = arena.take<float>(all * whole_blocks(setup.spec.dv));
  dq_t = arena.take<float>(all * whole_blocks(setup.spec.dqk));
  q_rows = arena.take<float>(all * dqk);
  do_rows = arena.take<float>(all * dv_columns);
  raw = arena.take<float>(tile);
  dp = arena.take<float>(tile);
  lse2 = arena.take<float>(all);
  delta = arena.take<float>(all);
  dk = arena.take<float>(keys * dqk);
  dv = arena.take<float>(keys * dv_columns);
}

void Sweep::run(const Sequence& s,
                std::int64_t b,
                std::int64_t head,
                std::int64_t first_tile,
                std::int64_t end_tile,
                std::int64_t k0,
                std::int64_t k1) {
  const FlushToZero flush;
  ScoreTiles tiles(run_, memory_.tiles);
  const std::int64_t tile = run_.setup.tile;
  for (std::int64_t t = first_tile; t < end_tile && t * tile < s.q_len; ++t) {
    tiles.begin(
        s, b, head, t * tile, static_cast<int>(std::min<std::int64_t>(tile, s.q_len - t * tile)));
    const std::int64_t low = std::max(k0, tiles.low()), high = std::min(k1, tiles.high());
    if (low >= high && !want_dq) continue;
    load_rows(tiles, s, b, head);
    for (std::int64_t j = low; j < high; j += key_block) {
      if (!tiles.visit(j)) continue;
      tiles.load_keys();
      tiles.load_values();
      const FlatCode& code = run_.setup.gradient;
      if (code.used)
        code.run(kernels_,
                 expr::Rate::key,
                 0,
                 tiles.key_rows(),
                 memory_.files.at(0),
                 tiles.environment(0, run_.score));
      for (int sub = 0; sub < tiles.subs(); ++sub)
        if (!tiles.range(sub).empty()) step(tiles, sub, k0);
    }
    if (want_dq)
      for (int sub = 0; sub < tiles.subs(); ++sub) store_dq(tiles, sub);
  }
}

void Sweep::load_rows(ScoreTiles& tiles, const Sequence& s, std::int64_t b, std::int64_t head) {
  const Spec& spec = run_.spec;
  const View &q = run_.args.q.data, &dout = run_.args.dout.data;
  const std::int64_t lanes = kernels_.lanes;
  const std::int64_t dqk = padded(run_.setup, spec.dqk), dv = padded(run_.setup, spec.dv);
  for (int sub = 0; sub < tiles.subs(); ++sub) {
    const std::byte* rows[max_lanes];
    const int live = tiles.lanes_of(sub);
    for (int lane = 0; lane < lanes; ++lane) {
      const std::int64_t at = sub * lanes + lane, token = tiles.row(sub, lane);
      memory_.lse2[at] = memory_.delta[at] = 0;  // idle lanes: their dO is 0, so dS is 0
      if (lane >= live) continue;
      rows[lane] = row_address(spec, dout, s, b, head, token);
      memory_.lse2[at] = *row_scalar(spec, lse2_, s, b, head, token);
      memory_.delta[at] = *row_scalar(spec, delta_, s, b, head, token);
      if (!want_dkv) continue;
      kernels_.copy_rows(row_address(spec, q, s, b, head, token),
                         0,
                         q.dtype,
                         1,
                         spec.dqk,
                         memory_.q_rows + at * dqk,
                         dqk,
                         static_cast<int>(dqk));
      kernels_.copy_rows(rows[lane],
                         0,
                         dout.dtype,
                         1,
                         spec.dv,
                         memory_.do_rows + at * dv,
                         dv,
                         static_cast<int>(dv));
    }
    kernels_.pack(
        rows, live, dout.dtype, spec.dv, 1.0f, memory_.do_t + sub * lanes * whole_blocks(spec.dv));
    const FlatCode& code = run_.setup.gradient;
    if (!code.used) continue;
    const Environment env = tiles.environment(sub, run_.score);
    if (sub == 0) code.run(kernels_, expr::Rate::uniform, 0, 1, memory_.files.at(sub), env);
    code.run(kernels_, expr::Rate::query, 0, 1, memory_.files.at(sub), env);
  }
  std::fill_n(memory_.dq_t, tiles.subs() * lanes * whole_blocks(spec.dqk), 0.0f);
}

void Sweep::step(ScoreTiles& tiles, int sub, std::int64_t k0) {
  const Spec& spec = run_.spec;
  const RowRange& range = tiles.range(sub);
  const std::int64_t lanes = kernels_.lanes;
  const int rows = range.size(), vectors = tiles.vectors(sub), live = tiles.lanes_of(sub);
  float* p = tiles.scores(sub, run_.setup.gradient.used ? memory_.raw : nullptr);
  float* ds = memory_.dp + range.begin * lanes;
  kernels_.weights(p, rows, run_.factor, memory_.lse2 + sub * lanes);
  kernels_.f32.scores(tiles.values(),
                      range.begin,
                      rows,
                      spec.dv,
                      memory_.do_t + sub * lanes * whole_blocks(spec.dv),
                      1.0f,
                      ds,
                      vectors);
  if (spec.dropout) tiles.drop(sub, ds);
  kernels_.score_gradient(p, ds, rows, memory_.delta + sub * lanes);
  if (run_.setup.gradient.used) apply_gradient(tiles, sub);
  alignas(64) static constexpr auto ones = [] {
    std::array<float, max_lanes> a{};
    a.fill(1.0f);
    return a;
  }();
  if (want_dq)
    kernels_.f32.accumulate(tiles.keys(),
                            range.begin,
                            rows,
                            spec.dqk,
                            ds,
                            ones.data(),
                            memory_.dq_t + sub * lanes * whole_blocks(spec.dqk),
                            vectors);
  if (!want_dkv) return;
  const std::int64_t first = tiles.key() + range.begin - k0;
  const std::int64_t dqk = padded(run_.setup, spec.dqk), dv = padded(run_.setup, spec.dv);
  if (spec.dropout) tiles.drop(sub, p);
  if (spec.want_dv)
    kernels_.accumulate_rows(p,
                             rows,
                             live,
                             memory_.do_rows + sub * lanes * dv,
                             dv,
                             static_cast<int>(dv),
                             memory_.dv + first * dv,
                             dv);
  if (spec.want_dk)
    kernels_.accumulate_rows(ds,
                             rows,
                             live,
                             memory_.q_rows + sub * lanes * dqk,
                             dqk,
                             static_cast<int>(dqk),
                             memory_.dk + first * dqk,
                             dqk);
}

void Sweep::apply_gradient(ScoreTiles& tiles, int sub) {
  const FlatCode& code = run_.setup.gradient;
  const int lanes = kernels_.lanes;
  const Environment env = tiles.environment(sub, run_.score);
  const Files files = memory_.files.at(sub, memory_.raw);
  code.run(kernels_, expr::Rate::diagonal, 0, 0, files, env);
  tiles.by_chunks(sub, [&](int r, int n) {
    code.run(kernels_, expr::Rate::element, r, n, files, env);
    float* ds = memory_.dp + r * lanes;
    if (captured) captured->add(*captured_memory, files, r, n, tiles.lanes_of(sub), ds);
    kernels_.multiply_register(code.roots[0], r, n, files, ds);
  });
}

void Sweep::store_dq(const ScoreTiles& tiles, int sub) {
  float factor[max_lanes];
  std::byte* rows[max_lanes];
  const std::int64_t lanes = kernels_.lanes;
  for (int lane = 0; lane < tiles.lanes_of(sub); ++lane) {
    factor[lane] = static_cast<float>(run_.args.scale);
    rows[lane] = row_address(run_.spec,
                             run_.args.dq,
                             tiles.sequence(),
                             tiles.batch(),
                             tiles.head(),
                             tiles.row(sub, lane));
  }
  kernels_.unpack(memory_.dq_t + sub * lanes * whole_blocks(run_.spec.dqk),
                  factor,
                  tiles.lanes_of(sub),
                  run_.args.dq.dtype,
                  run_.spec.dqk,
                  rows);
}

}  // namespace undivided::cpu
