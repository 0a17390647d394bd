// SPDX-License-Identifier: Apache-2.0
// resolve: a call becomes Spec + Bounds + Args. Here: options, positions, outputs, and the entries.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "expr/program.hpp"
#include "problem/bound.hpp"
#include "problem/resolve_data.hpp"
#include "problem/sequence.hpp"

namespace undivided {
namespace {

void want_like(const char* name, const View& v, const View& shape, std::int64_t dim) {
  bool same = v.rank == shape.rank;
  for (int axis = 0; same && axis < v.rank; ++axis)
    same = v.size(axis) == (axis == v.rank - 1 ? dim : shape.size(axis));
  if (!same) {
    View expected = shape;
    expected.shape[static_cast<std::size_t>(shape.rank - 1)] = dim;
    refuse("{} is {}; its shape must be that of {}", name, v.describe(), expected.describe());
  }
}

struct Range {
  std::int64_t low = std::numeric_limits<std::int64_t>::max();
  std::int64_t high = std::numeric_limits<std::int64_t>::min();
  void include(std::int64_t a, std::int64_t b) {
    low = std::min(low, a);
    high = std::max(high, b);
  }
};

std::int64_t extent(const View& v) {
  std::int64_t last = 0;
  for (int axis = 0; axis < v.rank; ++axis)
    if (v.size(axis) > 0) last += (v.size(axis) - 1) * std::abs(v.step(axis));
  return last;
}

bool aligned16(const View& v) {
  if (!v) return true;
  const auto bytes = static_cast<std::int64_t>(size_of(v.dtype));
  bool ok = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int axis = 0; axis + 1 < v.rank; ++axis)
    if (v.size(axis) > 1) ok &= v.step(axis) * bytes % 16 == 0;
  return ok;
}

class Resolver : public DataResolver {
 public:
  void positions(const Options& o) {
    const bool read = o.mask.program()->reads_positions() || o.score.program()->reads_positions() ||
                      o.dropout > 0;
    const bool given = o.q_origin || o.k_origin;
    if (given && o.align) refuse("both align and explicit origins are given; one of them decides");
    for (const auto& [name, v] :
         {std::pair{"q_origin", &o.q_origin}, std::pair{"k_origin", &o.k_origin}})
      if (*v) want_index(name, *v, bounds.batch, problem.device);
    bool equal = lengths_on_host();
    for (std::int64_t b = 0; equal && b < bounds.batch; ++b) {
      const Sequence s = sequence(spec, args, b);
      equal = s.q_len == s.k_len;
    }
    if (!read) return;
    if (given) {
      spec.origin = Origin::given;
      args.q_origin = o.q_origin;
      args.k_origin = o.k_origin;
    } else if (o.align) {
      spec.origin = *o.align == Align::start ? Origin::start : Origin::end;
    } else if (equal) {
      spec.origin = Origin::start;
    } else {
      refuse(
          "a mask, score or dropout reads positions and q_len may differ from k_len: say align = "
          "start "
          "(first query with first key) or end (last with last), or give origins");
    }
  }

  /// Positions that the programs can meet; exact when lengths are on the host.
  Positions reach() const {
    Positions p{
        bounds.batch, bounds.kv_heads * spec.group, 0, 0, 0, 0, bounds.max_q_len, bounds.max_k_len};
    Range q, k;
    const bool origins_on_host =
        (!args.q_origin || on_host(args.q_origin)) && (!args.k_origin || on_host(args.k_origin));
    if (lengths_on_host() && origins_on_host) {
      for (std::int64_t b = 0; b < bounds.batch; ++b) {
        const Sequence s = sequence(spec, args, b);
        if (s.q_len == 0 || s.k_len == 0) continue;
        q.include(s.q_origin, s.q_origin + s.q_len - 1);
        k.include(s.k_origin, s.k_origin + s.k_len - 1);
      }
    } else {
      // Lengths that live on a device are only known by their bounds; no sequence has more queries
      // than keys when it is aligned at the end, or its first positions are negative and refused by
      // contents.
      q.include(0,
                std::max(bounds.max_q_len, spec.origin == Origin::end ? bounds.max_k_len : 0) - 1);
      k.include(0, bounds.max_k_len - 1);
    }
    p.q_low = q.low;
    p.q_high = q.high;
    p.k_low = k.low;
    p.k_high = k.high;
    return p;
  }

  /// The mean that K is rounded without: [batch, kv head, dim], the same for all with a stride of
  /// 0.
  void key_mean() {
    View& mean = args.kv.k_mean;
    if (!mean) return;
    if (spec.precision.follow || spec.precision.qk != DType::i8)
      refuse(
          "k_mean is given, which only int8 scores take off K: ask for precision qk i8, or leave "
          "it out");
    const std::int64_t heads = bounds.kv_heads, d = spec.dqk;
    if (mean.rank == 2 && mean.size(0) == heads) {
      mean = mean.unsqueezed(0);
      mean.shape[0] = bounds.batch;
      mean.stride[0] = 0;
    }
    if (mean.dtype != DType::f32 || mean.rank != 3 || mean.size(0) != bounds.batch ||
        mean.size(1) != heads || mean.size(2) != d)
      refuse("k_mean is {}; f32 [{}, {}] or [{}, {}, {}] is expected",
             args.kv.k_mean.describe(),
             heads,
             d,
             bounds.batch,
             heads,
             d);
    want_unit_stride("k_mean", mean);
    if (mean.device != problem.device)
      refuse("k_mean is on {} and Q is on {}", to_string(mean.device), to_string(problem.device));
  }

  void options(const Options& o) {
    const double scale = o.scale.value_or(1.0 / std::sqrt(static_cast<double>(spec.dqk)));
    if (!std::isfinite(scale)) refuse("scale is {}; a finite number is expected", scale);
    args.scale = scale;
    if (!(o.dropout >= 0 && o.dropout < 1))
      refuse("dropout is {}; 0 <= p < 1 is allowed", o.dropout);
    spec.dropout = o.dropout > 0;
    args.dropout = o.dropout;
    args.seed = o.seed;
    if (o.sink) {
      if (o.sink.dtype != DType::f32 || o.sink.rank != 1 || o.sink.size(0) != args.q.data.size(1))
        refuse("sink is {}; f32 [{}] (one per query head) is expected",
               o.sink.describe(),
               args.q.data.size(1));
      if (o.sink.device != problem.device)
        refuse("sink is on {} and Q is on {}", to_string(o.sink.device), to_string(problem.device));
      if (o.partial) refuse("a partial result excludes the sink: give the sink to finish()");
      spec.sink = true;
      args.sink = o.sink;
    }
    spec.partial = o.partial;
    spec.out_dtype = o.partial ? DType::f32 : o.out_dtype.value_or(spec.dtype);
    if (spec.dtype == DType::f64 && o.partial) spec.out_dtype = DType::f64;
    if (o.partial && o.out_dtype && *o.out_dtype != spec.out_dtype)
      refuse("a partial result is {}; out_dtype {} cannot hold it",
             name_of(spec.out_dtype),
             name_of(*o.out_dtype));
    if (spec.out_dtype != spec.dtype && spec.out_dtype != DType::f32)
      refuse("out_dtype is {}; {} or f32 is allowed for {} inputs",
             name_of(spec.out_dtype),
             name_of(spec.dtype),
             name_of(spec.dtype));
    spec.max_logit = o.max_logit;
    spec.key_mass = o.key_mass;
    spec.determinism = o.determinism;
    spec.precision = o.precision;
    key_mean();
    positions(o);
    const Positions p = reach();
    args.mask = bind(o.mask, p);
    args.score = bind(o.score, p);
    spec.mask = args.mask->program;
    spec.score = args.score->program;
    spec.inside = o.inside;
    if (o.inside == Inside::automatic)
      spec.inside = expr::by_columns(*spec.mask).loads ? Inside::program : Inside::bits;
  }

  void classes() {
    const Args& a = args;
    spec.aligned = true;
    for (const View* v : {&a.q.data, &a.kv.k, &a.kv.v, &a.o, &a.dout.data, &a.dq, &a.dk, &a.dv})
      spec.aligned &= aligned16(*v);
    spec.wide_index = false;
    for (const View* v : {&a.q.data, &a.kv.k, &a.kv.v, &a.o})
      spec.wide_index |= *v && extent(*v) > std::numeric_limits<std::int32_t>::max();
  }

  void output(
      const char* name, View v, View& to, DType dtype, std::initializer_list<std::int64_t> shape) {
    if (!v) return;
    if (v.rank == static_cast<int>(shape.size()) - 1 && spec.rows == RowKind::dense)
      v = v.unsqueezed(0);
    bool same = v.rank == static_cast<int>(shape.size()) &&
                std::equal(shape.begin(), shape.end(), v.shape.begin());
    // The oracle keeps everything in float64.
    const bool oracle = v.dtype == DType::f64;
    if (!same || (v.dtype != dtype && !oracle))
      refuse("{} is {}; {} of shape [{}] is expected",
             name,
             v.describe(),
             name_of(dtype),
             fmt::join(shape, ", "));
    if (v.device != problem.device)
      refuse("{} is on {} and Q is on {}", name, to_string(v.device), to_string(problem.device));
    to = v;
  }

  void outputs(const Outputs& out) {
    const View& q = args.q.data;
    const std::int64_t hq = q.size(1), dv = spec.dv;
    if (spec.rows == RowKind::ragged) {
      output("O", out.o, args.o, spec.out_dtype, {q.size(0), hq, dv});
      output("LSE", out.lse, args.lse, DType::f32, {hq, q.size(0)});
    } else {
      output("O", out.o, args.o, spec.out_dtype, {q.size(0), hq, q.size(2), dv});
      output("LSE", out.lse, args.lse, DType::f32, {q.size(0), hq, q.size(2)});
    }
    if (args.o) want_unit_stride("O", args.o);
    if (out.max_logit && !spec.max_logit)
      refuse("a max_logit output is given; ask for it with options.max_logit");
    if (out.key_mass && !spec.key_mass)
      refuse("a key_mass output is given; ask for it with options.key_mass");
    if (out.max_logit)
      output("max_logit", out.max_logit, args.max_logit, DType::f32, {bounds.batch, hq});
    if (out.key_mass && spec.kv == KvKind::ragged)
      output("key_mass", out.key_mass, args.key_mass, DType::f32, {hq, bounds.total_k});
    else if (out.key_mass)
      output("key_mass",
             out.key_mass,
             args.key_mass,
             DType::f32,
             {bounds.batch, hq, bounds.max_k_len});
  }
};

}  // namespace

Problem resolve(const Rows& q, const Kv& kv, const Options& options, const Outputs& out) {
  Resolver r;
  r.rows(q);
  r.keys(kv);
  r.shapes();
  r.lengths();
  r.options(options);
  r.outputs(out);
  r.classes();
  return std::move(r.problem);
}

Problem resolve_backward(const Rows& dout,
                         const Rows& q,
                         const Kv& kv,
                         const View& o,
                         const View& lse,
                         const Options& options,
                         const BackwardOptions& backward) {
  Resolver r;
  Spec& spec = r.spec;
  r.rows(q);
  r.keys(kv);
  r.shapes();
  r.lengths();
  Options forward = options;
  if (options.partial)
    refuse("the gradient of a partial result is that of the whole: give the merged O and LSE");
  forward.max_logit = forward.key_mass = false;
  r.options(forward);
  spec.op = Operation::backward;
  const DType o_dtype = spec.out_dtype;
  r.outputs({o, lse, {}, {}});
  if (!o) refuse("O of the forward is not given");
  if (!lse) refuse("LSE of the forward is not given");
  if (!dout.data) refuse("the gradient of O is not given");
  View d = dout.data;
  if (spec.rows == RowKind::dense) add_batch_axis(d);
  want_like("the gradient of O", d, r.args.q.data, spec.dv);
  if (d.dtype != o_dtype && d.dtype != spec.dtype && d.dtype != DType::f64)
    refuse("the gradient of O has dtype {}; {} like O{} is expected",
           name_of(d.dtype),
           name_of(o_dtype),
           o_dtype == spec.dtype ? "" : fmt::format(", or {} like Q,", name_of(spec.dtype)));
  want_unit_stride("the gradient of O", d);
  if (d.device != r.problem.device)
    refuse("the gradient of O is on {} and Q is on {}",
           to_string(d.device),
           to_string(r.problem.device));
  r.args.dout = Rows(d);
  spec.dout_dtype = d.dtype;
  if (backward.dlse) {
    const View& l = r.args.lse;
    if (spec.rows == RowKind::ragged)
      r.output(
          "the gradient of LSE", backward.dlse, r.args.dlse, DType::f32, {l.size(0), l.size(1)});
    else
      r.output("the gradient of LSE",
               backward.dlse,
               r.args.dlse,
               DType::f32,
               {l.size(0), l.size(1), l.size(2)});
    spec.dlse = true;
  }
  spec.out_dtype = backward.gradient_dtype.value_or(spec.dtype);
  if (spec.out_dtype != spec.dtype && spec.out_dtype != DType::f32)
    refuse(
        "gradient_dtype is {}; {} or f32 is allowed", name_of(spec.out_dtype), name_of(spec.dtype));
  spec.shared_pages = r.shares_pages();
  spec.want_dq = backward.q;
  spec.want_dk = backward.k;
  spec.want_dv = backward.v;
  bool floats = false;
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < spec.score->slots.size(); ++i) {
    if (spec.score->slots[i].dtype != DType::f32) continue;
    floats = true;
    const auto& shape = r.args.score->bound.arrays[i].shape;
    std::int64_t count = 1;
    for (int axis = 0; axis < spec.score->slots[i].rank; ++axis)
      count *= shape[static_cast<std::size_t>(axis)];
    elements += count;
  }
  for (const auto& param : spec.score->params)
    floats |= param.type == expr::Type::f32 && !param.lifted;
  spec.captured = backward.captured && floats;
  if (spec.captured) r.problem.bounds.captured = elements;
  r.classes();
  return std::move(r.problem);
}

}  // namespace undivided
