// SPDX-License-Identifier: Apache-2.0
// Where the rows of a decode tile lie, and what is asked for ahead.
#include "cpu/decode.hpp"

#include <algorithm>
#include <utility>

namespace undivided::cpu {
namespace {

std::int64_t padded_columns(const Setup& setup) {
  const std::int64_t step = setup.kernels->lanes;
  return (setup.spec.dv + step - 1) / step * step;
}

}  // namespace

Decode::Memory::Memory(Arena& arena, const Setup& setup) {
  if (!setup.decode) return;
  kt = arena.take<float>(2 * decode_columns * key_block);
  o = arena.take<float>(setup.decode_most * padded_columns(setup));
  for (auto& r : rows) r = arena.take<const std::byte*>(2 * key_block);
}

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
  ahead_ = {};
  ahead_.spent = 512;
  ahead_.k_bytes = run_.spec.dqk * static_cast<std::int64_t>(size_of(run_.spec.dtype));
  ahead_.v_bytes = run_.spec.dv * static_cast<std::int64_t>(size_of(run_.spec.dtype));
  const int rows = std::min((count + 15) / 16 * 16, run_.setup.decode_most);
  std::fill_n(memory_.o, rows * o_stride(), 0.0f);
}

/// The rows of K of a tile, then those of V: the order of their use.
int Decode::find_rows(std::int64_t j0, const std::byte** to) const {
  const auto n = static_cast<int>(std::min<std::int64_t>(key_block, sequence_.k_len - j0));
  for (const View* view : {&run_.args.kv.k, &run_.args.kv.v})
    for (int done = 0; done < n;) {
      const KeyRun run =
          key_run(run_.spec, run_.args.kv, *view, sequence_, b_, kv_head_, j0 + done);
      const auto end = static_cast<int>(std::min<std::int64_t>(n, done + run.count));
      for (const std::byte* at = run.data; done < end; ++done, at += run.stride) *to++ = at;
    }
  return n;
}

void Decode::visit(std::int64_t j0) {
  std::swap(memory_.rows[0], memory_.rows[1]);
  rows_ = next_ == j0 ? next_rows_ : find_rows(j0, memory_.rows[0]);
  next_ = j0 + key_block;
  next_rows_ = next_ < high_ ? find_rows(next_, memory_.rows[1]) : 0;
  // The last tile's work tells how much this one's will be.
  const auto requests = [](std::int64_t bytes) { return (bytes + Ahead::step - 1) / Ahead::step; };
  const std::int64_t due = next_rows_ * (requests(ahead_.k_bytes) + requests(ahead_.v_bytes));
  ahead_.pace = static_cast<int>(due * Ahead::whole / std::max(ahead_.spent, 1)) + 1;
  ahead_.row = memory_.rows[1];
  ahead_.middle = ahead_.row + next_rows_;
  ahead_.end = ahead_.middle + next_rows_;
  ahead_.at = ahead_.due = ahead_.spent = 0;
  near_ = false;
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
                             static_cast<int>(std::min(ahead_.v_bytes, near_bytes)),
                             ahead_);
  near_ = true;
}

void Decode::outputs(
    int first, int rows, int query, int count, const float* p, const float* alpha) {
  run_.setup.decode->outputs(memory_.rows[0] + rows_,
                             run_.spec.dtype,
                             first,
                             rows,
                             run_.spec.dv,
                             p,
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
