// SPDX-License-Identifier: Apache-2.0
// The oracle: exact attention in float64, forward and backward, for every kind of input. No
// cleverness.
//
//   s_ij = mask(score(scale * q_i . k_j)),  p_ij = exp(s_ij - lse_i),  o_i = sum_j drop(p_ij) v_j
//   dv_j = sum_i drop(p_ij) do_i,  dp_ij = drop(do_i . v_j),  ds_ij = p_ij (dp_ij - do_i . o_i +
//   dlse_i)
// (Vaswani et al. 2017, eq. 1; the softmax gradient as in Dao et al. 2022, appendix B.2.)
#include "ref/reference.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "core/philox.hpp"
#include "problem/bound.hpp"
#include "problem/sequence.hpp"

namespace undivided::ref {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

double at(DType dtype, const std::byte* row, std::int64_t i) {
  return load_element(dtype, row + i * static_cast<std::int64_t>(size_of(dtype)));
}

/// A row of `n` numbers as float64.
void read_row(DType dtype, const std::byte* row, int n, double* to) {
  for (int i = 0; i < n; ++i) to[i] = at(dtype, row, i);
}

/// One query row against every key: scores, keep flags, and what the gradient needs.
class Row {
 public:
  Row(const Spec& spec, const Args& args)
      : spec_(spec),
        args_(args),
        mask_scratch_(args.mask->program->nodes.size()),
        score_scratch_(args.score->program->nodes.size()) {}

  std::vector<double> score, raw;    // final score, scale * q.k
  std::vector<double> q;             // the row itself
  std::vector<char> kept, survives;  // by the mask; by dropout
  Sequence s;
  std::int64_t b = 0, h = 0, i = 0, kv_head = 0;

  /// A sequence and a head: K and V of all its keys, read once.
  void enter(std::int64_t batch, std::int64_t head) {
    b = batch, h = head, kv_head = head / spec_.group;
    keys_.resize(static_cast<std::size_t>(s.k_len * spec_.dqk));
    values_.resize(static_cast<std::size_t>(s.k_len * spec_.dv));
    for (std::int64_t j = 0; j < s.k_len; ++j) {
      const auto address = [&](const View& v) {
        return key_run(spec_, args_.kv, v, s, b, kv_head, j).data;
      };
      read_row(spec_.dtype, address(args_.kv.k), spec_.dqk, keys_.data() + j * spec_.dqk);
      read_row(spec_.dtype, address(args_.kv.v), spec_.dv, values_.data() + j * spec_.dv);
    }
  }
  const double* key(std::int64_t j) const { return keys_.data() + j * spec_.dqk; }
  const double* value(std::int64_t j) const { return values_.data() + j * spec_.dv; }

  /// Keys that are not in the sample count as masked, unless the row is in it.
  void load(std::int64_t row, const Sample& sample) {
    i = row;
    const auto n = static_cast<std::size_t>(s.k_len);
    score.assign(n, 0);
    raw.assign(n, 0);
    kept.assign(n, 0);
    survives.assign(n, 1);
    q.resize(static_cast<std::size_t>(spec_.dqk));
    read_row(spec_.dtype, row_address(spec_, args_.q.data, s, b, h, i), spec_.dqk, q.data());
    const bool whole = sample.takes(b, h, i, s.q_len);
    for (std::int64_t j = 0; j < s.k_len; ++j) {
      if (!whole && !sample.takes(0, kv_head, j, s.k_len)) continue;
      const auto c = static_cast<std::size_t>(j);
      double dot = 0;
      const double* k = key(j);
      for (std::size_t d = 0; d < q.size(); ++d) dot += q[d] * k[d];
      raw[c] = args_.scale * dot;
      const expr::Point point = point_of(j);
      double keep = 0;
      expr::evaluate(
          *args_.score->program, args_.score->bound, point, score_scratch_.data(), &score[c]);
      expr::evaluate(*args_.mask->program, args_.mask->bound, point, mask_scratch_.data(), &keep);
      kept[c] = keep != 0 && (!s.first || (s.first[i] <= j && j < s.end[i]));
      if (spec_.dropout)
        survives[c] = philox::keep(
            args_.seed, philox::dropout_threshold(args_.dropout), b, h, point.q, point.k);
    }
  }

  expr::Point point_of(std::int64_t j) const {
    return {
        b, h, s.q_origin + i, s.k_origin + j, s.q_len, s.k_len, raw[static_cast<std::size_t>(j)]};
  }
  double sink() const { return spec_.sink ? at(DType::f32, sink_address(), 0) : -infinity; }

  /// Natural-log sum of exponentials of the kept scores and the sink.
  double log_sum() const {
    double top = sink(), sum = 0;
    for (std::size_t j = 0; j < score.size(); ++j)
      if (kept[j] && !(score[j] <= top)) top = score[j];
    if (top == -infinity) return -infinity;
    for (std::size_t j = 0; j < score.size(); ++j)
      if (kept[j]) sum += std::exp(score[j] - top);
    if (spec_.sink) sum += std::exp(sink() - top);
    return top + std::log(sum);
  }
  double probability(std::size_t j, double lse) const {
    return kept[j] && lse != -infinity ? std::exp(score[j] - lse) : 0;
  }
  double drop(std::size_t j) const { return survives[j] ? 1 / (1 - args_.dropout) : 0; }

 private:
  const std::byte* sink_address() const {
    return static_cast<const std::byte*>(args_.sink.data) + h * args_.sink.step(0) * 4;
  }
  const Spec& spec_;
  const Args& args_;
  std::vector<double> mask_scratch_, score_scratch_;
  std::vector<double> keys_, values_;
};

template <class F>
void for_each_row(const Spec& spec, const Args& args, const Sample& sample, F&& body) {
  Row row(spec, args);
  for (std::int64_t b = 0; b < batch_of(spec, args); ++b) {
    for (std::int64_t h = 0; h < query_heads(args); ++h) {
      row.s = sequence(spec, args, b, h);
      row.enter(b, h);
      for (std::int64_t i = 0; i < row.s.q_len; ++i) {
        if (spec.op == Operation::forward && !sample.takes(b, h, i, row.s.q_len)) continue;
        row.load(i, sample);
        body(row);
      }
    }
  }
}

void fill(const View& v, double value) {
  if (!v) return;
  Tensor one = Tensor::empty(DType::f64, {1});
  *one.ptr<double>() = value;
  View broadcast = v;
  broadcast.data = one.data;
  broadcast.dtype = DType::f64;
  broadcast.stride = {};
  copy(broadcast, v);
}

/// A float64 twin of an output; store() rounds it once into the caller's view.
struct Sum {
  Tensor tensor;
  View to;
  explicit Sum(const View& v) : to(v) {
    if (!v) return;
    tensor = Tensor::empty_like(v, DType::f64);
    fill(tensor, 0);
  }
  explicit operator bool() const { return static_cast<bool>(to); }
  void store() const {
    if (to) copy(tensor, to);
  }
};

void add(std::byte* row, std::int64_t i, double x) { reinterpret_cast<double*>(row)[i] += x; }
void add_row(double* row, double factor, const double* x, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) row[i] += factor * x[i];
}

}  // namespace

void forward(const Spec& spec, const Args& args, const Sample& sample) {
  fill(args.o, 0);
  fill(args.lse, -infinity);  // rows past a length, or of no list, keep it
  fill(args.max_logit, -infinity);
  const Sum mass(args.key_mass);
  std::vector<double> o(static_cast<std::size_t>(spec.dv));
  for_each_row(spec, args, sample, [&](Row& row) {
    const double lse = row.log_sum();
    o.assign(o.size(), 0);
    for (std::int64_t j = 0; j < row.s.k_len; ++j) {
      const auto c = static_cast<std::size_t>(j);
      if (!row.kept[c]) continue;
      const double p = row.probability(c, lse);
      const double weight = p * row.drop(c);
      const double* v = row.value(j);
      for (std::size_t d = 0; d < o.size(); ++d) o[d] += weight * v[d];
      if (mass) add(key_scalar_address(spec, mass.tensor, row.s, row.b, row.h, j), 0, p);
      if (args.max_logit) {
        void* most = args.max_logit.at({row.b, row.h});
        if (row.score[c] > load_element(args.max_logit.dtype, most))
          store_element(args.max_logit.dtype, most, row.score[c]);
      }
    }
    if (args.lse)
      store_element(
          args.lse.dtype, row_scalar_address(spec, args.lse, row.s, row.b, row.h, row.i), lse);
    if (!args.o) return;
    std::byte* out = row_address(spec, args.o, row.s, row.b, row.h, row.i);
    for (int d = 0; d < spec.dv; ++d)
      store_element(args.o.dtype,
                    out + static_cast<std::size_t>(d) * size_of(args.o.dtype),
                    o[static_cast<std::size_t>(d)]);
  });
  mass.store();
}

void backward(const Spec& spec, const Args& args, const Sample& sample) {
  const Sum dq(args.dq), dk(args.dk), dv(args.dv), dsink(args.dsink), dparams(args.d_params);
  std::vector<Sum> darrays;
  for (const View& v : args.d_arrays) darrays.emplace_back(v);
  const expr::Gradient gradient = expr::differentiate(*args.score->program);
  std::vector<double> scratch(gradient.program.nodes.size()),
      partial(gradient.program.roots.size());
  std::vector<double> g(static_cast<std::size_t>(spec.dv)), o(g.size());
  for_each_row(spec, args, sample, [&](Row& row) {
    const double lse = load_element(args.lse.dtype,
                                    row_scalar_address(spec, args.lse, row.s, row.b, row.h, row.i));
    const double dlse =
        args.dlse ? load_element(args.dlse.dtype,
                                 row_scalar_address(spec, args.dlse, row.s, row.b, row.h, row.i))
                  : 0;
    const View& dout = args.dout.data;
    const auto address = [&](const View& v) {
      return row_address(spec, v, row.s, row.b, row.h, row.i);
    };
    read_row(dout.dtype, address(dout), spec.dv, g.data());
    read_row(args.o.dtype, address(args.o), spec.dv, o.data());
    double delta = -dlse;
    for (std::size_t d = 0; d < g.size(); ++d) delta += g[d] * o[d];
    if (dsink && lse != -infinity)
      add(static_cast<std::byte*>(dsink.tensor.data), row.h, -std::exp(row.sink() - lse) * delta);
    for (std::int64_t j = 0; j < row.s.k_len; ++j) {
      const auto c = static_cast<std::size_t>(j);
      const double p = row.probability(c, lse);
      if (!row.kept[c]) continue;
      const auto sum_of = [&](const Sum& sum) {
        return reinterpret_cast<double*>(
            key_run(spec, args.kv, sum.tensor, row.s, row.b, row.kv_head, j).data);
      };
      const double* v = row.value(j);
      double dp = 0;
      for (std::size_t d = 0; d < g.size(); ++d) dp += g[d] * v[d];
      if (dv) add_row(sum_of(dv), p * row.drop(c), g.data(), g.size());
      const double dscore = p * (dp * row.drop(c) - delta);
      expr::evaluate(
          gradient.program, args.score->bound, row.point_of(j), scratch.data(), partial.data());
      const double draw = dscore * partial[0] * args.scale;
      if (dq)
        add_row(reinterpret_cast<double*>(address(dq.tensor)), draw, row.key(j), row.q.size());
      if (dk) add_row(sum_of(dk), draw, row.q.data(), row.q.size());
      for (std::size_t t = 0; t < gradient.terms.size(); ++t) {
        const auto& term = gradient.terms[t];
        const auto slot = static_cast<std::size_t>(term.slot);
        if (term.is_param) {
          if (dparams)
            add(static_cast<std::byte*>(dparams.tensor.data), term.slot, dscore * partial[t + 1]);
        } else if (slot < darrays.size() && darrays[slot]) {
          const View& to = darrays[slot].tensor;
          std::int64_t offset = 0;
          for (int axis = 0; axis < to.rank; ++axis) {
            const double index =
                scratch[static_cast<std::size_t>(term.index[static_cast<std::size_t>(axis)])];
            offset +=
                std::clamp(static_cast<std::int64_t>(index), std::int64_t{0}, to.size(axis) - 1) *
                to.step(axis);
          }
          add(static_cast<std::byte*>(to.data), offset, dscore * partial[t + 1]);
        }
      }
    }
  });
  for (const Sum* sum : {&dq, &dk, &dv, &dsink, &dparams}) sum->store();
  for (const Sum& sum : darrays) sum.store();
}

void merge(const Spec& spec, const Args& args) {
  const View& o = args.o;
  const bool ragged = spec.rows == RowKind::ragged;
  for (std::int64_t b = 0; b < (ragged ? 1 : o.size(0)); ++b)
    for (std::int64_t h = 0; h < o.size(1); ++h)
      for (std::int64_t i = 0; i < (ragged ? o.size(0) : o.size(2)); ++i) {
        const Sequence s;
        const auto lse_of = [&](const View& v) {
          return v ? load_element(v.dtype, row_scalar_address(spec, v, s, b, h, i)) : -infinity;
        };
        const double x = lse_of(args.a_lse);
        const double y =
            spec.sink ? load_element(DType::f32, args.sink.at({h})) : lse_of(args.b_lse);
        const double top = std::max(x, y);
        const double lse =
            top == -infinity ? top : top + std::log(std::exp(x - top) + std::exp(y - top));
        store_element(args.lse.dtype, row_scalar_address(spec, args.lse, s, b, h, i), lse);
        for (int d = 0; d < spec.dv; ++d) {
          const auto part = [&](const View& v, double part_lse) {
            if (!v || part_lse == -infinity) return 0.0;
            return std::exp(part_lse - lse) * at(v.dtype, row_address(spec, v, s, b, h, i), d);
          };
          store_element(
              o.dtype,
              row_address(spec, o, s, b, h, i) + static_cast<std::size_t>(d) * size_of(o.dtype),
              part(args.a_o, x) + part(args.b_o, y));
        }
      }
}

}  // namespace undivided::ref
