// SPDX-License-Identifier: Apache-2.0
// The backward of a tile (Dao 2023, algorithm 2), queries in lanes like the forward:
//
//   P = 2^(S - lse2);  dP^T = V dO^T, dropped like P;  dS = P (dP - delta)
//   dQ^T += K^T dS;  dK += dS Q;  dV += drop(P) dO
// A score program changes dS by its derivative, evaluated on the scores before it. P and dS of a
// few sub-blocks wait for each other, then dK and dV of the key block take them at once.
#include "cpu/sweep.hpp"

#include <array>

#include "cpu/flush.hpp"
#include "cpu/gaps.hpp"

namespace undivided::cpu {

SweepMemory::SweepMemory(Arena& arena, const Setup& setup, std::int64_t keys)
    : tiles(arena, setup),
      files(WorkerFiles::layout(arena, setup.gradient, *setup.kernels, setup.subs())) {
  const std::int64_t lanes = setup.kernels->lanes, all = lanes * setup.subs();
  const std::int64_t tile = lanes * key_block;
  const std::int64_t dqk = padded(setup, setup.spec.dqk), dv_columns = padded(setup, setup.spec.dv);
  do_t = arena.take<float>(all * whole_blocks(setup.words(setup.spec.dv)));
  q_rows = arena.take<float>(all * dqk);
  do_rows = arena.take<float>(all * dv_columns);
  p = arena.take<float>(waiting_lanes * key_block);
  ds = arena.take<float>(waiting_lanes * key_block);
  p_pairs = arena.take<float>(setup.dots ? waiting_lanes / 2 * key_block : 0);
  ds_pairs = arena.take<float>(setup.dots ? waiting_lanes / 2 * key_block : 0);
  rounded = arena.take<std::byte>(setup.dots ? lanes * setup.spec.dv * 2 : 0);
  dq_t = arena.take<float>(all * whole_blocks(setup.spec.dqk));
  dq_part = arena.take<float>(all * whole_blocks(setup.spec.dqk));
  summed = arena.take<Summed>(setup.subs());
  loaded = arena.take<bool>(setup.subs());
  raw = arena.take<float>(tile);
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
                std::int64_t k1,
                const DqPart& part) {
  const FlushToZero flush;
  ScoreTiles tiles(run_, memory_.tiles);
  const std::int64_t tile = run_.tile;
  const int at_once = waiting_lanes / kernels_.lanes;
  tiles.use(memory_.p, at_once);
  for (std::int64_t t = first_tile; t < end_tile; ++t) {
    const auto [first_row, end_row] = run_.rows_of_tile(s, t);
    if (first_row >= end_row) break;
    tiles.begin(s, b, head, first_row, static_cast<int>(end_row - first_row));
    const std::int64_t low = std::max(k0, tiles.low()), high = std::min(k1, tiles.high());
    std::fill_n(memory_.loaded, tiles.subs(), false);
    for (int sub = 0; sub < ScoreTiles::ahead; ++sub) tiles.ask_sub(run_.args.dout.data, sub);
    std::fill_n(memory_.summed, tiles.subs(), Summed::nothing);
    if (const FlatCode& code = run_.setup.gradient; code.used && low < high)
      code.run(kernels_,
               expr::Rate::uniform,
               0,
               1,
               memory_.files.at(0),
               tiles.environment(0, run_.score));
    for (std::int64_t j = low; j < high; j += key_block) {
      if (j % chunk_keys == 0) end_chunk(tiles);
      if (!tiles.visit(j)) continue;
      load_keys(tiles);
      for (int first = 0; first < tiles.subs(); first += at_once) {
        const int end = std::min(tiles.subs(), first + at_once);
        for (int sub = first; sub < end; ++sub) {
          if (tiles.range(sub).empty()) continue;
          tiles.prefetch();
          load_rows(tiles, sub);
          if (tiles.two_at_once(sub)) load_rows(tiles, sub + 1);
          step(tiles, sub, sub - first);
        }
        if (want_dkv) accumulate_keys(tiles, first, end, k0);
      }
    }
    if (!want_dq) continue;
    end_chunk(tiles);
    Gaps gaps;
    if (!part.rows)
      gaps = Gaps(kernels_, run_.args.dq, b, head, s.q_rows, s.q_len, first_row, end_row);
    for (int sub = 0; sub < tiles.subs(); ++sub) {
      for (int lane = 0; lane < tiles.lanes_of(sub); ++lane) gaps.clear_next();
      const bool some = memory_.summed[sub] != Summed::nothing;
      if (part.used) part.used[t * tile / kernels_.lanes + sub] = some;
      if (some || !part.used) store_dq(tiles, sub, part);
    }
    gaps.clear_rest();
  }
}

void Sweep::load_rows(ScoreTiles& tiles, int sub) {
  if (memory_.loaded[sub]) return;
  memory_.loaded[sub] = true;
  const Spec& spec = run_.spec;
  const View &q = run_.args.q.data, &dout = run_.args.dout.data;
  const std::int64_t lanes = kernels_.lanes;
  const Dots* pairs = run_.setup.dots;
  const std::byte *q_rows[max_lanes], *rows[max_lanes];
  const int live = tiles.lanes_of(sub);
  tiles.ask_sub(dout, sub + ScoreTiles::ahead);
  for (int lane = 0; lane < lanes; ++lane) {
    const std::int64_t at = sub * lanes + lane, token = tiles.row(sub, lane);
    memory_.lse2[at] = memory_.delta[at] = 0;  // idle lanes: what they become meets zeros
    if (lane >= live) continue;
    q_rows[lane] = tiles.address(q, sub, lane);
    rows[lane] = tiles.address(dout, sub, lane);
    const auto scalar = [&](const View& v) {
      return *reinterpret_cast<const float*>(
          scalar_address(spec, v, tiles.sequence(), tiles.batch(), tiles.head(), token));
    };
    memory_.lse2[at] = scalar(lse2_);
    memory_.delta[at] = scalar(delta_);
    if (pairs && dout.dtype != DType::bf16) {  // operands of the dot are rounded
      float wide[max_dim];
      std::byte* to = memory_.rounded + lane * spec.dv * 2;
      kernels_.copy_rows(rows[lane], 0, dout.dtype, 1, spec.dv, wide, spec.dv, spec.dv);
      kernels_.store_row(wide, 1.0f, DType::bf16, spec.dv, to, Write::over);
      rows[lane] = to;
    }
  }
  float* do_t = memory_.do_t + sub * lanes * whole_blocks(run_.setup.words(spec.dv));
  if (pairs)
    kernels_.pack_words(rows, live, 2 * spec.dv, do_t);
  else
    kernels_.pack(rows, live, dout.dtype, spec.dv, 1.0f, do_t);
  const int at_once = tiles.sequence().q_rows ? 1 : live;
  const auto keep = [&](const std::byte* const* from, DType dtype, int d, float* to) {
    const std::int64_t columns = padded(run_.setup, d);
    to += sub * lanes * columns;
    if (pairs)
      pairs->pair_queries(from, live, d, to, columns);
    else  // rows of a head lie at one distance, but for those of a list
      for (int lane = 0; lane < live; lane += at_once)
        kernels_.copy_rows(from[lane],
                           at_once > 1 ? from[1] - from[0] : 0,
                           dtype,
                           at_once,
                           d,
                           to + lane * columns,
                           columns,
                           static_cast<int>(columns));
  };
  if (want_dkv) {
    keep(q_rows, q.dtype, spec.dqk, memory_.q_rows);
    keep(rows, dout.dtype, spec.dv, memory_.do_rows);
  }
  if (const FlatCode& code = run_.setup.gradient; code.used)
    code.run(kernels_,
             expr::Rate::query,
             0,
             1,
             memory_.files.at(sub),
             tiles.environment(sub, run_.score));
}

void Sweep::load_keys(ScoreTiles& tiles) {
  tiles.load_keys();
  tiles.load_gradient();
  const FlatCode& code = run_.setup.gradient;
  if (code.used)
    code.run(kernels_,
             expr::Rate::key,
             0,
             tiles.key_rows(),
             memory_.files.at(0),
             tiles.environment(0, run_.score));
}

void Sweep::step(ScoreTiles& tiles, int sub, int slot) {
  const Spec& spec = run_.spec;
  const RowRange& range = tiles.range(sub);
  const std::int64_t lanes = kernels_.lanes, tile = key_block * lanes;
  const int rows = range.size();
  float* p = tiles.scores(sub, run_.setup.gradient.used ? memory_.raw : nullptr);
  float* ds = memory_.ds + slot * tile + range.begin * lanes;
  kernels_.weights(p, rows, run_.factor, memory_.lse2 + sub * lanes);
  const Setup& setup = run_.setup;
  const int words = setup.words(spec.dv);
  const std::int64_t apart = lanes * whole_blocks(words);
  const float* do_t = memory_.do_t + sub * apart;
  if (tiles.two_at_once(sub))
    setup.products().scores_of_two(
        tiles.values(), range.begin, rows, words, do_t, apart, 1.0f, ds, tile);
  else if (sub % 2 == 0 || !tiles.two_at_once(sub - 1))
    tiles.by_vectors(sub, [&](int lane, int begin, int end, int vectors) {
      float* to = ds + (begin - range.begin) * lanes + lane;
      if (begin < end)
        setup.products().scores(
            tiles.values(), begin, end - begin, words, do_t + lane, 1.0f, to, vectors);
    });
  if (spec.dropout) tiles.drop(sub, ds);
  kernels_.score_gradient(p, ds, rows, memory_.delta + sub * lanes);
  if (setup.gradient.used) apply_gradient(tiles, sub, slot);
  if (spec.dropout && want_dkv) tiles.drop(sub, p);
  if (setup.dots) {
    const std::int64_t at = (slot * key_block + range.begin) * lanes / 2;
    if (want_dkv) setup.dots->pair_lanes(p, rows, memory_.p_pairs + at);
    if (want_dkv) setup.dots->pair_lanes(ds, rows, memory_.ds_pairs + at);
    setup.dots->pair_rows(ds, rows, tiles.vectors(sub));
  }
  if (!want_dq) return;
  alignas(64) static constexpr auto ones = [] {
    std::array<float, max_lanes> a{};
    a.fill(1.0f);
    return a;
  }();
  Summed& summed = memory_.summed[sub];
  const bool begins = summed == Summed::nothing || summed == Summed::whole;
  if (begins) summed = summed == Summed::nothing ? Summed::first : Summed::more;
  float* dq = (summed == Summed::first ? memory_.dq_t : memory_.dq_part) +
              sub * lanes * whole_blocks(spec.dqk);
  const int of_word = setup.dots ? 2 : 1;  // rows
  tiles.by_vectors(sub, [&](int lane, int begin, int end, int vectors) {
    if (begin == end && !begins) return;
    setup.products().accumulate(tiles.keys(),
                                begin / of_word,
                                (end - begin + of_word - 1) / of_word,
                                spec.dqk,
                                ds + std::max(0, begin - range.begin) / of_word * lanes + lane,
                                begins ? nullptr : ones.data(),
                                dq + lane,
                                vectors);
  });
}

void Sweep::apply_gradient(ScoreTiles& tiles, int sub, int slot) {
  const FlatCode& code = run_.setup.gradient;
  const int lanes = kernels_.lanes;
  const Environment env = tiles.environment(sub, run_.score);
  const Files files = memory_.files.at(sub, memory_.raw);
  code.run(kernels_, expr::Rate::diagonal, 0, 0, files, env);
  tiles.by_chunks(sub, [&](int r, int n) {
    code.run(kernels_, expr::Rate::element, r, n, files, env);
    float* ds = memory_.ds + (slot * key_block + r) * lanes;
    if (captured_) captured_->add(captured_memory_, files, r, n, tiles.lanes_of(sub), ds);
    kernels_.multiply_register(code.roots[0], r, n, files, ds);
  });
}

/// dK and dV of the key block from the tiles that wait. Their ranges of rows may differ: rows
/// between two edges take the same tiles.
void Sweep::accumulate_keys(const ScoreTiles& tiles, int first_sub, int end_sub, std::int64_t k0) {
  const Dots* pairs = run_.setup.dots;
  const std::int64_t lanes = kernels_.lanes, words = pairs ? lanes / 2 : lanes;
  const float *p = pairs ? memory_.p_pairs : memory_.p, *ds = pairs ? memory_.ds_pairs : memory_.ds;
  const auto accumulate = pairs ? pairs->accumulate_keys : kernels_.accumulate_keys;
  for (int begin = 0; begin < key_block;) {
    Outer of_v[waiting_lanes / 4], of_k[waiting_lanes / 4];
    int count = 0, end = key_block;
    for (int sub = first_sub; sub < end_sub; ++sub) {
      tiles.by_vectors(sub, [&](int lane, int first, int last, int vectors) {
        if (last <= begin) return;
        end = std::min(end, first > begin ? first : last);
        if (first > begin) return;
        const std::int64_t word = run_.setup.words(lane);
        const std::int64_t at = (std::int64_t{sub - first_sub} * key_block + begin) * words + word;
        const int queries =
            run_.setup.words(std::min(tiles.lanes_of(sub) - lane, vectors * kernels_.width));
        of_v[count] = {p + at, memory_.do_rows + (sub * lanes + word) * dv_, queries};
        of_k[count] = {ds + at, memory_.q_rows + (sub * lanes + word) * dqk_, queries};
        ++count;
      });
    }
    const std::int64_t row = tiles.key() + begin - k0;
    const auto add = [&](const Outer* parts, std::int64_t columns, float* to) {
      accumulate(parts,
                 count,
                 end - begin,
                 columns,
                 static_cast<int>(columns),
                 to + row * columns,
                 columns);
    };
    if (count > 0 && run_.spec.want_dv) add(of_v, dv_, memory_.dv);
    if (count > 0 && run_.spec.want_dk) add(of_k, dqk_, memory_.dk);
    begin = end;
  }
}

void Sweep::end_chunk(const ScoreTiles& tiles) {
  const std::int64_t count = kernels_.lanes * whole_blocks(run_.spec.dqk);
  for (int sub = 0; sub < tiles.subs(); ++sub) {
    Summed& summed = memory_.summed[sub];
    if (summed == Summed::more)
      kernels_.store_row(memory_.dq_part + sub * count,
                         1.0f,
                         DType::f32,
                         static_cast<int>(count),
                         reinterpret_cast<std::byte*>(memory_.dq_t + sub * count),
                         Write::add);
    if (summed != Summed::nothing) summed = Summed::whole;
  }
}

void Sweep::store_dq(const ScoreTiles& tiles, int sub, const DqPart& part) {
  float* dq = memory_.dq_t + sub * kernels_.lanes * whole_blocks(run_.spec.dqk);
  if (memory_.summed[sub] == Summed::nothing)
    std::fill_n(dq, kernels_.lanes * whole_blocks(run_.spec.dqk), 0.0f);
  float factor[max_lanes];
  std::byte* rows[max_lanes];
  std::fill_n(factor, kernels_.lanes, part.rows ? 1.0f : static_cast<float>(run_.args.scale));
  for (int lane = 0; lane < tiles.lanes_of(sub); ++lane)
    rows[lane] = part.rows ? reinterpret_cast<std::byte*>(part.rows + tiles.row(sub, lane) * dqk_)
                           : tiles.address(run_.args.dq, sub, lane);
  kernels_.unpack(dq,
                  factor,
                  tiles.lanes_of(sub),
                  part.rows ? DType::f32 : run_.args.dq.dtype,
                  run_.spec.dqk,
                  rows,
                  part.rows ? Write::over : row_write(run_.spec));
}

}  // namespace undivided::cpu
