// SPDX-License-Identifier: Apache-2.0
// The oracle and the twin beside what a backend made.
#include "check/evidence.hpp"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "attention/execute.hpp"
#include "check/quantised.hpp"
#include "check/twin.hpp"
#include "ref/reference.hpp"

namespace undivided::check {
namespace {

/// The twin's error on a tensor of few elements is a small sample: several rounding grids make it a
/// larger one.
std::vector<std::vector<Reading>> twins_of(const Case& c, const Problem& p, const Sample& sample) {
  std::vector<std::vector<Reading>> out;
  const bool sixteen = is_float16(multiplied_as(c)), backward = p.spec.op == Operation::backward;
  if (!backward && !sixteen) return {twin_forward(p, 0, sample)};
  // The first has weights relative to the largest, which is 1 and needs no rounding: a backend
  // whose references lag behind rounds it, so that forwards take a second.
  const bool large = c.cost() > 4e6 || c.cost() == 0;
  const int runs = !sixteen ? 1 : large ? (backward ? 1 : 2) : c.cost() > 4e5 ? 3 : 8;
  for (int r = 0; r < runs; ++r)
    out.push_back(backward ? twin_backward(p, 0.087 * r, sample)
                           : twin_forward(p, 0.087 * r, sample));
  return out;
}

/// What a case is compared with, whoever computed it.
struct Truth {
  std::vector<Reading> oracle, exact;
  std::vector<std::vector<Reading>> twins;
};

/// The truth of the last case is kept: tests run one case again with faults planted in it. Cases
/// run one at a time.
template <class F>
Evidence beside_truth(const Case& c,
                      const char* direction,
                      const Sample& sample,
                      std::vector<Reading> got,
                      F&& make) {
  static std::string last;
  static Truth truth;
  const std::string name = fmt::format("{} {} step {}", direction, c.name(), sample.step);
  if (name != last) {
    last.clear();
    truth = make();
    last = name;
  }
  return {std::move(got), truth.oracle, truth.exact, truth.twins};
}

/// O and LSE of the sample, in float64.
std::vector<Reading> sampled_forward(const Inputs& in, const Sample& sample) {
  if (sample.whole())
    return readings(resolve(in.q, in.kv, in.options), reference(in.q, in.kv, in.options));
  Problem p = resolve(in.q, in.kv, in.options);
  Forward f;
  const View& q = p.args.q.data;
  std::vector<std::int64_t> o(q.shape.begin(), q.shape.begin() + q.rank);
  const auto rows = p.spec.rows == RowKind::ragged ? std::vector<std::int64_t>{o[1], o[0]}
                                                   : std::vector<std::int64_t>{o[0], o[1], o[2]};
  o.back() = p.spec.dv;
  p.args.o = f.o = allocate({}, {}, DType::f64, o);
  p.args.lse = f.lse = allocate({}, {}, DType::f64, rows);
  ref::forward(p.spec, p.args, sample);
  return readings(p, f, sample);
}

/// Gradients of the sample in float64, from the backend's own O and LSE.
std::vector<Reading> sampled_gradients(Problem p, const Sample& sample) {
  Gradients g;
  const auto make = [](Tensor& t, View& to, const View& like) {
    to = t = Tensor::empty_like(like, DType::f64);
  };
  if (p.spec.want_dq) make(g.q, p.args.dq, p.args.q.data);
  if (p.spec.want_dk) make(g.k, p.args.dk, p.args.kv.k);
  if (p.spec.want_dv) make(g.v, p.args.dv, p.args.kv.v);
  ref::backward(p.spec, p.args, sample);
  return readings(p, g, sample);
}

}  // namespace

Evidence of_forward(const Case& c, const Inputs& in, const Forward& f, const Sample& sample) {
  const Problem problem = resolve(in.q, in.kv, in.options);
  const auto truth = [&] {
    Truth t;
    Problem plain = problem;  // what the twin computes
    Quantised rounded;
    t.oracle = sampled_forward(in, sample);
    if (c.quantised()) {
      rounded = quantised(in.q, in.kv, in.options);
      plain = resolve(rounded.q, rounded.kv, rounded.options);
      plain.spec.precision = problem.spec.precision;
      plain.spec.out_dtype = problem.spec.out_dtype;
      Inputs same = in;
      same.q = rounded.q;
      same.kv = rounded.kv;
      same.options = rounded.options;
      t.exact = std::exchange(t.oracle, sampled_forward(same, sample));
    }
    t.twins = twins_of(c, plain, sample);
    return t;
  };
  return beside_truth(c, "forward", sample, readings(problem, f, sample), truth);
}

Evidence of_backward(const Case& c,
                     const Inputs& in,
                     const Forward& forward,
                     const Gradients& gradients,
                     const Sample& sample) {
  const auto resolved = [&](const Forward& f) {
    return resolve_backward(in.dout, in.q, in.kv, f.o, f.lse, in.options, in.backward);
  };
  const Problem problem = resolved(forward);
  std::vector<Reading> got = readings(problem, gradients, sample);
  if (!sample.whole())
    return {std::move(got), sampled_gradients(problem, sample), {}, twins_of(c, problem, sample)};
  return beside_truth(c, "backward", sample, std::move(got), [&] {
    const Forward exact = reference(in.q, in.kv, in.options);
    const Problem p = resolved(exact);
    return Truth{readings(p, reference_backward(in.dout, in.q, in.kv, in.options, in.backward)),
                 {},
                 twins_of(c, p, sample)};
  });
}

DType multiplied_as(const Case& c) { return c.precision == "i8/bf16" ? DType::bf16 : c.dtype; }

}  // namespace undivided::check
