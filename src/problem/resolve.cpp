// SPDX-License-Identifier: Apache-2.0
// resolve: a call becomes Spec + Bounds + Args, and every user error of shapes and options is
// raised.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "expr/program.hpp"
#include "problem/bound.hpp"
#include "problem/sequence.hpp"

namespace undivided {
namespace {

template <class... T>
[[noreturn]] void refuse(fmt::format_string<T...> format, T&&... args) {
  throw Error(
      Code::invalid_argument, Stage::resolve, fmt::format(format, std::forward<T>(args)...));
}

bool on_host(const View& v) { return v.device.kind == Device::Kind::cpu; }

void want_unit_stride(const char* name, const View& v) {
  if (v.size(-1) > 1 && v.step(-1) != 1)
    refuse("the last stride of {} ({}) is {}; it must be 1: make a dense copy",
           name,
           v.describe(),
           v.step(-1));
}

/// A rank-1 index view: lengths, offsets, origins. Host contents may be read afterwards.
void want_index(const char* name, const View& v, std::int64_t size, Device device) {
  if (v.dtype != DType::i32 && v.dtype != DType::i64)
    refuse("{} is {}; i32 or i64 is allowed", name, name_of(v.dtype));
  if (v.rank != 1 || v.size(0) != size)
    refuse("{} is {}; a vector of {} elements is expected", name, v.describe(), size);
  if (!on_host(v) && v.device != device)
    refuse("{} is on {}; it must be on the host or on {} like Q",
           name,
           to_string(v.device),
           to_string(device));
}

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

/// Offsets ascend from 0 to at most `total`; returns the largest length.
std::int64_t check_offsets(const char* name, const View& offsets, std::int64_t total) {
  std::int64_t longest = 0, previous = index_at(offsets, 0);
  if (previous != 0) refuse("{} must begin with 0; it begins with {}", name, previous);
  for (std::int64_t i = 1; i < offsets.size(0); ++i) {
    const std::int64_t next = index_at(offsets, i);
    if (next < previous || next > total)
      refuse("{}[{}] is {}; offsets must ascend and stay within the {} packed rows",
             name,
             i,
             next,
             total);
    longest = std::max(longest, next - previous);
    previous = next;
  }
  return longest;
}

std::int64_t check_lengths(const char* name, const View& lengths, std::int64_t most) {
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < lengths.size(0); ++i) {
    const std::int64_t n = index_at(lengths, i);
    if (n < 0 || n > most) refuse("{}[{}] is {}; 0 to {} is allowed", name, i, n, most);
    longest = std::max(longest, n);
  }
  return longest;
}

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

/// One sequence may be given without its batch axis.
void add_batch_axis(View& v) {
  if (v && v.rank == 3) v = v.unsqueezed(0);
}

class Resolver {
 public:
  Problem problem;
  Spec& spec = problem.spec;
  Args& args = problem.args;
  Bounds& bounds = problem.bounds;

  void rows(const Rows& q) {
    if (!q.data) refuse("Q is not given");
    args.q = q;
    if (q.offsets) {
      spec.rows = RowKind::ragged;
      if (q.data.rank != 3)
        refuse("ragged Q is {}; [total, head, dim] is expected", q.data.describe());
      if (q.lengths) refuse("ragged Q has offsets; lengths belong to dense rows only");
      if (q.offsets.rank != 1 || q.offsets.size(0) < 1)
        refuse("Q offsets are {}; a vector of batch + 1 elements is expected",
               q.offsets.describe());
    } else if (q.data.rank != 3 && q.data.rank != 4) {
      refuse("Q is {}; [batch, head, token, dim] or [head, token, dim] is expected",
             q.data.describe());
    } else {
      add_batch_axis(args.q.data);
    }
    problem.device = q.data.device;
    spec.dtype = q.data.dtype;
    switch (spec.dtype) {
      case DType::f64:
      case DType::f32:
      case DType::f16:
      case DType::bf16:
        break;
      default:
        refuse("Q has dtype {}; f32, f16, bf16 (and f64 for the oracle) are allowed",
               name_of(spec.dtype));
    }
  }

  void keys(const Kv& kv) {
    args.kv = kv;
    spec.kv = kv.kind;
    if (!kv.k || !kv.v) refuse("{} is not given", kv.k ? "V" : "K");
    const int rank = kv.kind == KvKind::ragged ? 3 : 4;
    if (kv.kind == KvKind::dense) {
      add_batch_axis(args.kv.k);
      add_batch_axis(args.kv.v);
    }
    for (const auto& [name, v] : {std::pair{"K", &args.kv.k}, std::pair{"V", &args.kv.v}}) {
      if (v->rank != rank)
        refuse("{} is {}; {} is expected",
               name,
               v->describe(),
               kv.kind == KvKind::dense    ? "[batch, kv head, token, dim] or [kv head, token, dim]"
               : kv.kind == KvKind::ragged ? "ragged [total, kv head, dim]"
                                           : "paged [page, kv head, token, dim]");
      if (v->dtype != spec.dtype)
        refuse("{} has dtype {} and Q has {}; they must be the same",
               name,
               name_of(v->dtype),
               name_of(spec.dtype));
      if (v->device != problem.device)
        refuse("{} is on {} and Q is on {}", name, to_string(v->device), to_string(problem.device));
      want_unit_stride(name, *v);
    }
    const View &k = args.kv.k, &v = args.kv.v;
    for (int axis = 0; axis + 1 < rank; ++axis)
      if (k.size(axis) != v.size(axis))
        refuse("K is {} and V is {}; all axes but the last must agree", k.describe(), v.describe());
  }

  void shapes() {
    const View &q = args.q.data, &k = args.kv.k, &v = args.kv.v;
    want_unit_stride("Q", q);
    if (q.size(-1) != k.size(-1))
      refuse("Q has head dim {} and K has {}; they must be equal (V may differ)",
             q.size(-1),
             k.size(-1));
    if (q.size(-1) < 1 || v.size(-1) < 1) refuse("head dim 0 is not allowed");
    const std::int64_t hq = q.size(1), hkv = k.size(1);
    if (hkv < 1 || hq < 1) refuse("Q has {} heads and K has {}; at least one each", hq, hkv);
    if (hq % hkv != 0)
      refuse(
          "Q has {} heads and K has {}; the number of query heads must be a multiple of the KV "
          "heads "
          "(nearest: {})",
          hq,
          hkv,
          std::max<std::int64_t>(1, (hq + hkv / 2) / hkv) * hkv);
    if (hq > 65535) refuse("Q has {} heads; at most 65535", hq);
    spec.dqk = static_cast<int>(q.size(-1));
    spec.dv = static_cast<int>(v.size(-1));
    spec.group = static_cast<int>(hq / hkv);
    bounds.kv_heads = hkv;
  }

  void lengths() {
    const View& q = args.q.data;
    const Kv& kv = args.kv;
    const Device device = problem.device;
    const bool ragged_q = spec.rows == RowKind::ragged;
    bounds.batch = ragged_q ? args.q.offsets.size(0) - 1 : q.size(0);
    const std::int64_t batch = bounds.batch;
    // queries
    if (ragged_q) {
      want_index("Q offsets", args.q.offsets, batch + 1, device);
      bounds.total_q = q.size(0);
      bounds.max_q_len = on_host(args.q.offsets)
                             ? check_offsets("Q offsets", args.q.offsets, q.size(0))
                         : args.q.max_length ? args.q.max_length
                                             : q.size(0);
    } else {
      bounds.max_q_len = q.size(2);
      bounds.total_q = batch * q.size(2);
      spec.q_lengths = static_cast<bool>(args.q.lengths);
      if (spec.q_lengths) {
        want_index("Q lengths", args.q.lengths, batch, device);
        if (on_host(args.q.lengths)) check_lengths("Q lengths", args.q.lengths, q.size(2));
      }
    }
    // keys
    if (spec.kv != KvKind::ragged && kv.offsets) refuse("offsets belong to ragged K and V only");
    if (spec.kv != KvKind::paged && kv.page_table)
      refuse("a page table belongs to paged K and V only");
    switch (spec.kv) {
      case KvKind::dense:
        if (kv.k.size(0) != batch)
          refuse("Q has batch {} and K has {}; they must be equal", batch, kv.k.size(0));
        bounds.max_k_len = kv.k.size(2);
        bounds.total_k = batch * kv.k.size(2);
        spec.k_lengths = static_cast<bool>(kv.lengths);
        if (spec.k_lengths) {
          want_index("K lengths", kv.lengths, batch, device);
          if (on_host(kv.lengths)) check_lengths("K lengths", kv.lengths, kv.k.size(2));
        }
        break;
      case KvKind::ragged:
        if (kv.lengths) refuse("ragged K has offsets; lengths belong to dense and paged K only");
        if (!kv.offsets) refuse("ragged K and V need offsets");
        want_index("K offsets", kv.offsets, batch + 1, device);
        bounds.total_k = kv.k.size(0);
        bounds.max_k_len = on_host(kv.offsets)
                               ? check_offsets("K offsets", kv.offsets, kv.k.size(0))
                           : kv.max_length ? kv.max_length
                                           : kv.k.size(0);
        break;
      case KvKind::paged:
        pages(batch);
        break;
    }
  }

  void pages(std::int64_t batch) {
    const Kv& kv = args.kv;
    if (!kv.page_table || !kv.lengths) refuse("paged K and V need a page table and lengths");
    if (kv.page_table.rank != 2 || kv.page_table.size(0) != batch)
      refuse("the page table is {}; [batch {}, max pages] is expected",
             kv.page_table.describe(),
             batch);
    if (kv.page_table.dtype != DType::i32 && kv.page_table.dtype != DType::i64)
      refuse("the page table is {}; i32 or i64 is allowed", name_of(kv.page_table.dtype));
    want_index("K lengths", kv.lengths, batch, problem.device);
    const std::int64_t size = kv.k.size(2), most = kv.page_table.size(1) * size;
    if (size < 1) refuse("pages of 0 tokens are not allowed");
    bounds.pages = kv.k.size(0);
    std::int64_t longest = kv.max_length ? std::min(kv.max_length, most) : most;
    if (on_host(kv.lengths)) longest = check_lengths("K lengths", kv.lengths, most);
    bounds.max_k_len = longest;
    bounds.total_k = batch * longest;
    spec.page = size % 64 == 0 ? PageClass::multiple_of_64
                : size == 32   ? PageClass::of_32
                : size == 16   ? PageClass::of_16
                               : PageClass::other;
    if (!on_host(kv.page_table) || !on_host(kv.lengths)) return;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i * size < index_at(kv.lengths, b); ++i) {
        const std::int64_t page = index_at(kv.page_table.selected(0, b), i);
        if (page < 0 || page >= bounds.pages)
          refuse("page_table[{}, {}] is {}; pages 0 to {} exist", b, i, page, bounds.pages - 1);
      }
  }

  bool lengths_on_host() const {
    return (!args.q.offsets || on_host(args.q.offsets)) &&
           (!args.q.lengths || on_host(args.q.lengths)) &&
           (!args.kv.offsets || on_host(args.kv.offsets)) &&
           (!args.kv.lengths || on_host(args.kv.lengths));
  }

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
    positions(o);
    const Positions p = reach();
    args.mask = bind(o.mask, p);
    args.score = bind(o.score, p);
    spec.mask = args.mask->program;
    spec.score = args.score->program;
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
  if (d.dtype != o_dtype && d.dtype != DType::f64)
    refuse("the gradient of O has dtype {}; {} like O is expected",
           name_of(d.dtype),
           name_of(o_dtype));
  want_unit_stride("the gradient of O", d);
  if (d.device != r.problem.device)
    refuse("the gradient of O is on {} and Q is on {}",
           to_string(d.device),
           to_string(r.problem.device));
  r.args.dout = Rows(d);
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
  spec.want_dq = backward.q;
  spec.want_dk = backward.k;
  spec.want_dv = backward.v;
  bool floats = false;
  for (const auto& slot : spec.score->slots) floats |= slot.dtype == DType::f32;
  for (const auto& param : spec.score->params)
    floats |= param.type == expr::Type::f32 && !param.lifted;
  spec.captured = backward.captured && floats;
  r.classes();
  return std::move(r.problem);
}

}  // namespace undivided
