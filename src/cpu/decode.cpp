// SPDX-License-Identifier: Apache-2.0
// Where the rows of a decode tile lie, and what is asked for ahead.
#include "cpu/decode.hpp"

#include <algorithm>
#include <utility>

#include "cpu/isa.hpp"

namespace undivided::cpu {
namespace {

std::int64_t padded_columns(const Setup& setup) {
  const std::int64_t step = setup.kernels->lanes;
  return (setup.spec.dv + step - 1) / step * step;
}

std::int64_t row_bytes(const Spec& spec, std::int64_t d) {
  return d * static_cast<std::int64_t>(size_of(spec.dtype));
}

std::int64_t pieces_of(std::int64_t bytes) { return (bytes + Ahead::step - 1) / Ahead::step; }

}  // namespace

Decode::Memory::Memory(Arena& arena, const Setup& setup) {
  if (!setup.decode) return;
  kt = arena.take<float>(2 * decode_columns * key_block);
  o = arena.take<float>(setup.decode->most * padded_columns(setup));
  weights = arena.take<float>(setup.decode->weights ? setup.decode->most * key_block / 2 : 0);
  q = arena.take<float>(setup.decode->row_tile_most * max_dim);
  for (auto& r : rows) r = arena.take<const std::byte*>(2 * key_block);
  const Spec& spec = setup.spec;
  pieces = arena.take<const std::byte*>(
      key_block * (pieces_of(row_bytes(spec, spec.dqk)) + pieces_of(row_bytes(spec, spec.dv))));
}

Decode::Decode(const Run& run, const Memory& memory)
    : run_(run),
      memory_(memory),
      k_bytes_(row_bytes(run.spec, run.spec.dqk)),
      v_bytes_(row_bytes(run.spec, run.spec.dv)) {}

std::int64_t Decode::o_stride() const { return padded_columns(run_.setup); }

void Decode::begin(
    const Sequence& s, std::int64_t b, std::int64_t kv_head, int count, std::int64_t high) {
  count_ = run_.setup.decodes(count, std::min(high, s.k_len)) ? count : 0;
  if (!used()) return;
  sequence_ = s;
  b_ = b;
  kv_head_ = kv_head;
  high_ = std::min(high, s.k_len);
  next_ = -1;
  q_rows_ = false;
  ahead_ = {};
  ahead_.spent = 512;
  const int rows = std::min((count + 15) / 16 * 16, run_.setup.decode->most);
  std::fill_n(memory_.o, rows * o_stride(), 0.0f);
}

/// The rows of K of a tile, then those of V: the order of their use.
int Decode::find_rows(std::int64_t j0, const std::byte** to) const {
  const auto n = static_cast<int>(std::min<std::int64_t>(key_block, sequence_.k_len - j0));
  const Kv& kv = run_.args.kv;
  for (int done = 0; done < n;) {
    const KeyPlace place = key_place(run_.spec, kv, sequence_, b_, j0 + done);
    const KeyRun k = key_run(run_.spec, kv.k, place, kv_head_);
    const KeyRun v = key_run(run_.spec, kv.v, place, kv_head_);
    const auto count = static_cast<int>(std::min<std::int64_t>(n - done, place.count));
    // The first request of a page takes longest: asked for together, pages wait beside each other.
    if (count > 1)
      for (const std::byte* run : {k.data, v.data}) {
        __builtin_prefetch(run, 0, 2);
        __builtin_prefetch(run + 64, 0, 2);
      }
    for (int i = 0; i < count; ++i) {
      to[done + i] = k.data + i * k.stride;
      to[n + done + i] = v.data + i * v.stride;
    }
    done += count;
  }
  return n;
}

void Decode::visit(std::int64_t j0, std::int64_t at_once) {
  j0_ = j0;
  rows_ = static_cast<int>(std::min<std::int64_t>(key_block, sequence_.k_len - j0));
  at_once_ = at_once > 0 && find_groups(j0, 0) ? at_once : 0;
  if (at_once_ > 0) return;
  std::swap(memory_.rows[0], memory_.rows[1]);
  rows_ = next_ == j0 ? next_rows_ : find_rows(j0, memory_.rows[0]);
  next_ = j0 + key_block;
  next_rows_ = next_ < high_ ? find_rows(next_, memory_.rows[1]) : 0;
  ask_for_next();
  near_ = !brings_more_lines();  // Zen has 32 KB: 3 to 11 % slower
}

/// Where the groups of a tile begin, from place `to` on; false if the rows of one lie apart. From
/// there, or past the last key, the group before is named again: it is only asked for. From place 0
/// on, rows that all lie at equal distances are found once.
bool Decode::find_groups(std::int64_t j0, std::size_t to) {
  const std::size_t to_end = to + groups;
  const auto repeat = [&](std::size_t from) {
    for (; from < to_end; ++from)
      k_groups_[from] = k_groups_[from - 1], v_groups_[from] = v_groups_[from - 1];
  };
  for (std::int64_t j = j0; to < to_end; ++to, j += row_group) {
    const std::int64_t left = sequence_.k_len - j;
    if (left <= 0) return repeat(to), true;
    const KeyPlace place = key_place(run_.spec, run_.args.kv, sequence_, b_, j);
    if (place.count < std::min<std::int64_t>(row_group, left)) {
      if (to > 0) repeat(to);
      return false;
    }
    const KeyRun k = key_run(run_.spec, run_.args.kv.k, place, kv_head_);
    const KeyRun v = key_run(run_.spec, run_.args.kv.v, place, kv_head_);
    k_groups_[to] = k.data, v_groups_[to] = v.data;
    k_rows_ = {nullptr, k_groups_.data(), k.stride};
    v_rows_ = {nullptr, v_groups_.data(), v.stride};
    if (to == 0 && place.count == left) {
      k_rows_.at = k.data, v_rows_.at = v.data;
      return true;
    }
  }
  return true;
}

void Decode::ask_for_next() {
  const std::byte **rows = memory_.rows[1], **end = rows + 2 * next_rows_;
  const std::int64_t longest = std::max(k_bytes_, v_bytes_);
  if (longest > Ahead::step) {  // else rows are pieces
    const std::byte** to = memory_.pieces;
    for (int i = 0; i < 2 * next_rows_; ++i)
      for (std::int64_t at = 0; at < (i < next_rows_ ? k_bytes_ : v_bytes_); at += Ahead::step)
        *to++ = rows[i] + at;
    rows = memory_.pieces;
    end = to;
  }
  ahead_.next = rows;
  ahead_.end = end;
  ahead_.apart = longest > 64 ? 64 : 0;
  ahead_.far = longest > 128 && !brings_more_lines() ? 128 : 0;
  // The last tile's work tells how much this one's will be.
  ahead_.pace = static_cast<int>((end - rows) * Ahead::whole / std::max(ahead_.spent, 1)) + 1;
  ahead_.due = ahead_.spent = 0;
}

void Decode::scores(int first, int rows, int count, const float* q_t, float* s) {
  run_.setup.decode->scores(memory_.rows[0],
                            run_.spec.dtype,
                            first,
                            rows,
                            run_.spec.dqk,
                            q_t,
                            count,
                            run_.score_scale,
                            memory_.kt,
                            s,
                            ahead_);
}

void Decode::softmax(int first, int rows, float* s, float* m, float* l, float* alpha, int vectors) {
  constexpr std::int64_t near_bytes = 256;  // of a row: what the first cache can hold
  run_.setup.decode->softmax(s,
                             rows,
                             run_.factor,
                             run_.slack,
                             m,
                             l,
                             alpha,
                             vectors,
                             near_ ? nullptr : memory_.rows[0] + rows_ + first,
                             static_cast<int>(std::min(v_bytes_, near_bytes)),
                             ahead_);
  near_ = true;
}

std::int64_t Decode::whole(const float* q_t, float* m, float* l) {
  const DecodeProducts& products = *run_.setup.decode;
  if (!q_rows_) products.row_queries(q_t, run_.setup.qk_words(), count_, memory_.q);
  q_rows_ = true;
  RowTile tile{.k = k_rows_,
               .v = v_rows_,
               .dtype = run_.spec.dtype,
               .rows = rows_,
               .dqk = run_.spec.dqk,
               .dv = run_.spec.dv,
               .count = count_,
               .q = memory_.q,
               .scale = run_.setup.dots ? run_.score_scale : 1.0f,
               .factor = run_.factor,
               .slack = run_.slack,
               .m = m,
               .l = l,
               .o = memory_.o,
               .o_stride = o_stride(),
               .copy = memory_.kt,
               .stream = k_rows_.at && k_rows_.stride == k_bytes_};
  for (std::int64_t done = 1;; ++done) {
    const bool even = tile.k.at;
    const bool found = even || find_groups(j0_ + done * key_block, groups);
    products.row_tile(tile);
    if (!found || done == at_once_) return done;
    if (even) {
      tile.k.at += key_block * tile.k.stride;
      tile.v.at += key_block * tile.v.stride;
    } else {
      std::copy_n(k_groups_.begin() + groups, groups, k_groups_.begin());
      std::copy_n(v_groups_.begin() + groups, groups, v_groups_.begin());
    }
  }
}

void Decode::weights(int first, int rows, int query, int count, const float* p) {
  if (run_.setup.decode->weights)
    run_.setup.decode->weights(p, first, rows, query, count, memory_.weights);
}

void Decode::outputs(
    int first, int rows, int query, int count, const float* p, const float* alpha) {
  run_.setup.decode->outputs(memory_.rows[0] + rows_,
                             run_.spec.dtype,
                             first,
                             rows,
                             run_.spec.dv,
                             run_.setup.decode->weights ? memory_.weights : p,
                             alpha,
                             count,
                             memory_.o + query * o_stride(),
                             o_stride(),
                             ahead_);
}

void Decode::finish(int query, int count, float* o_t) const {
  run_.setup.decode->lanes(
      memory_.o + query * o_stride(), o_stride(), run_.spec.dtype, run_.spec.dv, count, o_t);
}

}  // namespace undivided::cpu
