// SPDX-License-Identifier: Apache-2.0
// Plain float32 attention, one head and one row at a time.
#include "check/twin.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "core/philox.hpp"
#include "problem/bound.hpp"
#include "problem/sequence.hpp"

namespace undivided::check {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
using Floats = std::vector<float>;

float round_to(DType dtype, float x) {
  return dtype == DType::f16    ? to_float(to_half(x))
         : dtype == DType::bf16 ? to_float(to_bfloat16(x))
                                : x;
}

/// Sixteen running sums, so that the compiler may use vectors.
float dot(const float* a, const float* b, std::size_t n) {
  std::array<float, 16> sum{};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (std::size_t l = 0; l < 16; ++l) sum[l] += a[i + l] * b[i + l];
  float total = 0;
  for (const float x : sum) total += x;
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}
float dot_abs(const float* a, const float* b, std::size_t n) {
  std::array<float, 16> sum{};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (std::size_t l = 0; l < 16; ++l) sum[l] += std::fabs(a[i + l] * b[i + l]);
  float total = 0;
  for (const float x : sum) total += x;
  for (; i < n; ++i) total += std::fabs(a[i] * b[i]);
  return total;
}
void axpy(float scale, const float* x, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += scale * x[i];
}
void axpy_square(double scale, const float* x, double* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += scale * x[i] * (scale * x[i]);
}

/// One sequence and one query head, with everything as float.
class Head {
 public:
  Head(const Problem& p, std::int64_t b, std::int64_t h)
      : p_(p),
        b_(b),
        h_(h),
        s(sequence(p.spec, p.args, b)),
        d(static_cast<std::size_t>(p.spec.dqk)),
        dv(static_cast<std::size_t>(p.spec.dv)),
        nk(static_cast<std::size_t>(s.k_len)) {
    const std::int64_t kv_head = h / p.spec.group;
    for (std::int64_t j = 0; j < s.k_len; ++j) {
      append(k, key_run(p.spec, p.args.kv, p.args.kv.k, s, b, kv_head, j).data, d);
      append(v, key_run(p.spec, p.args.kv, p.args.kv.v, s, b, kv_head, j).data, dv);
    }
    trivial_mask_ = p.spec.mask->root().op == expr::Op::constant && p.spec.mask->root().integer;
    trivial_score_ = p.spec.score->root().op == expr::Op::score;
    const auto nodes = std::max(p.spec.mask->nodes.size(), p.spec.score->nodes.size());
    scratch_.resize(nodes);
    sink = p.spec.sink ? static_cast<const float*>(p.args.sink.data)[h * p.args.sink.step(0)]
                       : -infinity;
  }

  /// Keys that are not in the sample count as masked, unless the row is in it.
  void load(std::int64_t i, const Sample& sample) {
    row = i;
    taken = sample.takes(b_, h_, i, s.q_len);
    q.clear();
    append(q, row_address(p_.spec, p_.args.q.data, s, b_, h_, i), d);
    raw.assign(nk, 0);
    score.assign(nk, -infinity);
    keep_scale.assign(nk, 1);
    const auto threshold = philox::dropout_threshold(p_.args.dropout);
    const auto scale = static_cast<float>(p_.args.scale);
    for (std::size_t j = 0; j < nk; ++j) {
      if (!taken && !takes_key(j, sample)) continue;
      raw[j] = scale * dot(q.data(), &k[j * d], d);
      const expr::Point at = point(j);
      double keep = 1, value = raw[j];
      if (!trivial_mask_)
        expr::evaluate(*p_.spec.mask, p_.args.mask->bound, at, scratch_.data(), &keep);
      if (keep == 0) continue;
      if (!trivial_score_)
        expr::evaluate(*p_.spec.score, p_.args.score->bound, at, scratch_.data(), &value);
      score[j] = static_cast<float>(value);
      if (p_.spec.dropout)
        keep_scale[j] = philox::keep(p_.args.seed, threshold, b_, h_, at.q, at.k)
                            ? static_cast<float>(1 / (1 - p_.args.dropout))
                            : 0;
    }
  }
  bool takes_key(std::size_t j, const Sample& sample) const {
    return sample.takes(0, h_ / p_.spec.group, static_cast<std::int64_t>(j), s.k_len);
  }
  expr::Point point(std::size_t j) const {
    return {b_,
            h_,
            s.q_origin + row,
            s.k_origin + static_cast<std::int64_t>(j),
            s.q_len,
            s.k_len,
            static_cast<double>(raw[j])};
  }

  /// Softmax and the second product of the loaded row; fills o and lse.
  void forward(double nudge) {
    float top = sink;
    for (const float x : score) top = std::max(top, x);
    o.assign(dv, 0);
    lse = -infinity;
    if (top == -infinity) return;
    const float shift = top + static_cast<float>(nudge);
    float sum = p_.spec.sink ? std::exp(sink - shift) : 0.0f;
    for (std::size_t j = 0; j < nk; ++j) {
      if (score[j] == -infinity) continue;
      const float w = std::exp(score[j] - shift);
      sum += w;
      const Precision& format = p_.spec.precision;
      axpy(round_to(format.follow ? p_.spec.dtype : format.pv, w * keep_scale[j]),
           &v[j * dv],
           o.data(),
           dv);
    }
    for (float& x : o) x /= sum;
    lse = shift + std::log(sum);
  }

  /// O and LSE of the loaded row as a backward problem has them.
  void read() {
    const View& from = p_.args.o;
    const std::byte* at = row_address(p_.spec, from, s, b_, h_, row);
    o.clear();
    for (std::size_t c = 0; c < dv; ++c)
      o.push_back(static_cast<float>(load_element(from.dtype, at + c * size_of(from.dtype))));
    lse = static_cast<float>(
        load_element(p_.args.lse.dtype, row_scalar_address(p_.spec, p_.args.lse, s, b_, h_, row)));
  }

  const Problem& p_;
  std::int64_t b_, h_, row = 0;
  bool taken = true;
  Sequence s;
  std::size_t d, dv, nk;
  Floats k, v, q, raw, score, keep_scale, o;
  float sink = -infinity, lse = 0;

 private:
  void append(Floats& out, const std::byte* from, std::size_t n) const {
    const auto size = size_of(p_.spec.dtype);
    for (std::size_t i = 0; i < n; ++i)
      out.push_back(static_cast<float>(load_element(p_.spec.dtype, from + i * size)));
  }
  bool trivial_mask_ = false, trivial_score_ = false;
  std::vector<double> scratch_;
};

template <class F>
void each_head(const Problem& p, F&& body) {
  for (std::int64_t b = 0; b < batch_of(p.spec, p.args); ++b)
    for (std::int64_t h = 0; h < query_heads(p.args); ++h) {
      Head head(p, b, h);
      body(head, b, h);
    }
}

}  // namespace

std::vector<Reading> twin_forward(const Problem& p, double nudge, const Sample& sample) {
  const DType out = p.spec.out_dtype;
  Reading o{"o", out, {}, 0}, lse{"lse", DType::f32, {}, 0}, most{"max_logit", DType::f32, {}, 0},
      mass{"key_mass", DType::f32, {}, 0};
  each_head(p, [&](Head& head, std::int64_t b, std::int64_t h) {
    float top = -infinity;
    Floats column(head.nk, 0);
    for (std::int64_t i = 0; i < head.s.q_len; ++i) {
      if (!sample.takes(b, h, i, head.s.q_len)) continue;
      head.load(i, sample);
      head.forward(nudge);
      for (const float x : head.o) o.values.push_back(round_to(out, x));
      lse.values.push_back(head.lse);
      for (std::size_t j = 0; j < head.nk; ++j) {
        top = std::max(top, head.score[j]);
        if (head.score[j] != -infinity) column[j] += std::exp(head.score[j] - head.lse);
      }
    }
    most.values.push_back(top);
    mass.values.insert(mass.values.end(), column.begin(), column.end());
  });
  std::vector<Reading> all{o, lse};
  if (p.spec.max_logit && sample.whole()) all.push_back(most);
  if (p.spec.key_mass && sample.whole()) all.push_back(mass);
  return all;
}

namespace {

/// A gradient tensor in float, and the squared sizes of what was added, before any cancelled.
struct Gathered {
  Floats sum;
  std::vector<double> squares;  // floats would underflow
  explicit Gathered(std::size_t n = 0) : sum(n, 0), squares(n, 0) {}
};

/// `unit` is the relative error of one contribution; those of many add in squares.
Reading finish(const std::string& name, DType dtype, const Gathered& g, double unit) {
  Reading r{name, dtype, {}, 0};
  for (std::size_t i = 0; i < g.sum.size(); ++i) {
    r.values.push_back(round_to(dtype, g.sum[i]));
    r.floor = std::max(r.floor, unit * std::sqrt(g.squares[i]));
  }
  return r;
}
constexpr double few_float_roundings = 0x1p-22;

/// The backward of one problem: shares K and V gradients between the heads of a group.
class Backward {
 public:
  Backward(const Problem& p, double nudge, const Sample& sample)
      : p_(p),
        sample_(sample),
        grid_(1 + static_cast<float>(nudge)),
        gradient_(expr::differentiate(*p.spec.score)) {
    scratch_.resize(gradient_.program.nodes.size());
    parts_.resize(gradient_.program.roots.size());
    sink_ = Gathered(static_cast<std::size_t>(query_heads(p.args)));
    params_ = Gathered(p.spec.score->params.size());
    for (const auto& ref : p.args.score->bound.arrays) {
      std::size_t n = 1;
      for (const auto extent : ref.shape) n *= static_cast<std::size_t>(extent);
      arrays_.emplace_back(n);
    }
  }

  std::vector<Reading> run(double nudge) {
    each_head(p_, [&](Head& head, std::int64_t b, std::int64_t h) {
      if (h % p_.spec.group == 0) start_group(head, b);
      for (std::int64_t i = 0; i < head.s.q_len; ++i) row(head, b, h, i, nudge);
      if ((h + 1) % p_.spec.group == 0) end_group(head);
    });
    return collect();
  }

 private:
  void start_group(const Head& head, std::int64_t) {
    dk_ = Gathered(head.nk * head.d);
    dv_ = Gathered(head.nk * head.dv);
  }
  void append(Reading& r, const Gathered& g) {
    const Reading part = finish(r.name, r.dtype, g, few_float_roundings);
    r.values.insert(r.values.end(), part.values.begin(), part.values.end());
    r.floor = std::max(r.floor, part.floor);
  }
  void end_group(const Head& head) {
    append(all_dk_, taken_keys(head, dk_, head.d));
    append(all_dv_, taken_keys(head, dv_, head.dv));
  }
  Gathered taken_keys(const Head& head, const Gathered& all, std::size_t width) const {
    if (sample_.whole()) return all;
    Gathered out;
    for (std::size_t j = 0; j < head.nk; ++j)
      if (head.takes_key(j, sample_))
        for (std::size_t c = j * width; c < (j + 1) * width; ++c) {
          out.sum.push_back(all.sum[c]);
          out.squares.push_back(all.squares[c]);
        }
    return out;
  }
  float rounded(float x) const { return round_to(p_.spec.dtype, x * grid_) / grid_; }

  void row(Head& head, std::int64_t b, std::int64_t h, std::int64_t i, double nudge) {
    head.load(i, sample_);
    if (head.taken)
      head.forward(nudge);
    else
      head.read();
    const View& dout = p_.args.dout.data;
    const std::byte* from = row_address(p_.spec, dout, head.s, b, h, i);
    Floats g;
    for (std::size_t c = 0; c < head.dv; ++c)
      g.push_back(static_cast<float>(load_element(dout.dtype, from + c * size_of(dout.dtype))));
    for (float& x : head.o) x = round_to(dout.dtype, x);
    const float dlse =
        p_.spec.dlse
            ? static_cast<float>(load_element(
                  p_.args.dlse.dtype, row_scalar_address(p_.spec, p_.args.dlse, head.s, b, h, i)))
            : 0.0f;
    const float delta = dot(g.data(), head.o.data(), head.dv) - dlse;
    const float delta_size = dot_abs(g.data(), head.o.data(), head.dv) + std::fabs(dlse);
    // A 16-bit product has 16-bit operands, also where dO came as float32.
    for (float& x : g) x = round_to(p_.spec.dtype, x);
    Gathered dq(head.d);
    if (head.lse != -infinity) {
      if (p_.spec.sink) {
        const float p_sink = std::exp(head.sink - head.lse);
        const auto at = static_cast<std::size_t>(h);
        sink_.sum[at] -= p_sink * delta;
        const double size = static_cast<double>(p_sink) * delta_size;
        sink_.squares[at] += size * size;
      }
      for (std::size_t j = 0; j < head.nk; ++j)
        if (head.score[j] != -infinity) pair(head, j, g, delta, delta_size, dq);
    }
    if (head.taken) append(all_dq_, dq);
  }

  void pair(const Head& head,
            std::size_t j,
            const Floats& g,
            float delta,
            float delta_size,
            Gathered& dq) {
    const float w = std::exp(head.score[j] - head.lse);
    const float* v = &head.v[j * head.dv];
    const float* k = &head.k[j * head.d];
    const float dropped = rounded(w * head.keep_scale[j]);
    axpy(dropped, g.data(), &dv_.sum[j * head.dv], head.dv);
    axpy_square(dropped, g.data(), &dv_.squares[j * head.dv], head.dv);
    const float dp = dot(g.data(), v, head.dv) * head.keep_scale[j];
    const float dp_size = dot_abs(g.data(), v, head.dv) * head.keep_scale[j];
    const float dscore = w * (dp - delta), size = w * (dp_size + delta_size);
    expr::evaluate(
        gradient_.program, p_.args.score->bound, head.point(j), scratch_.data(), parts_.data());
    const auto slope = static_cast<float>(parts_[0]);
    const auto scale = static_cast<float>(p_.args.scale);
    const float ds = rounded(dscore * slope) * scale;
    const float ds_size = size * std::fabs(slope * scale);
    axpy(ds, k, dq.sum.data(), head.d);
    axpy_square(ds_size, k, dq.squares.data(), head.d);
    axpy(ds, head.q.data(), &dk_.sum[j * head.d], head.d);
    axpy_square(ds_size, head.q.data(), &dk_.squares[j * head.d], head.d);
    for (std::size_t t = 0; t < gradient_.terms.size(); ++t) captured(t, dscore, size);
  }

  void captured(std::size_t t, float dscore, float size) {
    const auto& term = gradient_.terms[t];
    const auto slot = static_cast<std::size_t>(term.slot);
    const auto part = static_cast<float>(parts_[t + 1]);
    Gathered* to = &params_;
    std::size_t at = slot;
    if (!term.is_param) {
      const auto& ref = p_.args.score->bound.arrays[slot];
      to = &arrays_[slot];
      at = 0;
      for (int axis = 0; axis < p_.spec.score->slots[slot].rank; ++axis) {
        const auto a = static_cast<std::size_t>(axis);
        const auto index =
            static_cast<std::int64_t>(scratch_[static_cast<std::size_t>(term.index[a])]);
        at = at * static_cast<std::size_t>(ref.shape[a]) +
             static_cast<std::size_t>(std::clamp<std::int64_t>(index, 0, ref.shape[a] - 1));
      }
    }
    to->sum[at] += dscore * part;
    to->squares[at] += static_cast<double>(size) * part * (static_cast<double>(size) * part);
  }

  std::vector<Reading> collect() {
    // P and O, rounded once each, spoil each contribution by itself: their noise adds in squares.
    const double unit = p_.spec.dtype == DType::bf16  ? 0x1p-8
                        : p_.spec.dtype == DType::f16 ? 0x1p-11
                                                      : few_float_roundings;
    std::vector<Reading> out;
    if (p_.spec.want_dq) out.push_back(all_dq_);
    if (p_.spec.want_dk) out.push_back(all_dk_);
    if (p_.spec.want_dv) out.push_back(all_dv_);
    if (!sample_.whole()) return out;
    if (p_.spec.sink) out.push_back(finish("dsink", DType::f32, sink_, unit));
    if (!p_.spec.captured) return out;
    const expr::Program& score = *p_.spec.score;
    for (std::size_t s = 0; s < score.slots.size(); ++s)
      if (score.slots[s].dtype == DType::f32)
        out.push_back(finish("d " + score.slots[s].name, DType::f32, arrays_[s], unit));
    for (std::size_t s = 0; s < score.params.size(); ++s)
      if (score.params[s].type == expr::Type::f32 && !score.params[s].lifted) {
        Gathered one(1);
        one.sum[0] = params_.sum[s];
        one.squares[0] = params_.squares[s];
        out.push_back(finish("d " + score.params[s].name, DType::f32, one, unit));
      }
    return out;
  }

  const Problem& p_;
  Sample sample_;
  float grid_;
  expr::Gradient gradient_;
  std::vector<double> scratch_, parts_;
  Gathered dk_, dv_, sink_, params_;
  std::vector<Gathered> arrays_;
  Reading all_dq_{"dq", p_.spec.out_dtype, {}, 0}, all_dk_{"dk", p_.spec.out_dtype, {}, 0},
      all_dv_{"dv", p_.spec.out_dtype, {}, 0};
};

}  // namespace

std::vector<Reading> twin_backward(const Problem& p, double nudge, const Sample& sample) {
  return Backward(p, nudge, sample).run(nudge);
}

}  // namespace undivided::check
