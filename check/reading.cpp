// SPDX-License-Identifier: Apache-2.0
// Reads results through the addressing of problem/sequence.hpp.
#include "check/reading.hpp"

#include "problem/sequence.hpp"

namespace undivided::check {
namespace {

View with_batch(View v, int rank) { return v.rank == rank - 1 ? v.unsqueezed(0) : v; }

void append(Reading& r, const View& v, const std::byte* at, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i)
    r.values.push_back(load_element(v.dtype, at + static_cast<std::size_t>(i) * size_of(v.dtype)));
}

template <class F>
void each_row(const Problem& p, std::int64_t heads, F&& body) {
  for (std::int64_t b = 0; b < batch_of(p.spec, p.args); ++b) {
    const Sequence s = sequence(p.spec, p.args, b);
    for (std::int64_t h = 0; h < heads; ++h) body(s, b, h);
  }
}

}  // namespace

Reading read_rows(const Problem& p,
                  const std::string& name,
                  const View& given,
                  const Sample& sample) {
  Reading r{name, given.dtype, {}, 0};
  const View v = p.spec.rows == RowKind::ragged ? given : with_batch(given, 4);
  each_row(p, v.size(1), [&](const Sequence& s, std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < s.q_len; ++i)
      if (sample.takes(b, h, i, s.q_len))
        append(r, v, row_address(p.spec, v, s, b, h, i), v.size(-1));
  });
  return r;
}

Reading read_keys(const Problem& p,
                  const std::string& name,
                  const View& given,
                  const Sample& sample) {
  Reading r{name, given.dtype, {}, 0};
  const View v = p.spec.kv == KvKind::dense ? with_batch(given, 4) : given;
  each_row(p, v.size(1), [&](const Sequence& s, std::int64_t b, std::int64_t h) {
    for (std::int64_t j = 0; j < s.k_len; ++j)
      if (sample.takes(0, h, j, s.k_len))
        append(r, v, key_run(p.spec, p.args.kv, v, s, b, h, j).data, v.size(-1));
  });
  return r;
}

Reading read_scalars(const Problem& p,
                     const std::string& name,
                     const View& given,
                     const Sample& sample) {
  Reading r{name, given.dtype, {}, 0};
  const View v = p.spec.rows == RowKind::ragged ? given : with_batch(given, 3);
  each_row(p, query_heads(p.args), [&](const Sequence& s, std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < s.q_len; ++i)
      if (sample.takes(b, h, i, s.q_len))
        append(r, v, row_scalar_address(p.spec, v, s, b, h, i), 1);
  });
  return r;
}

Reading read_key_mass(const Problem& p, const View& given) {
  Reading r{"key_mass", given.dtype, {}, 0};
  const View v = p.spec.kv == KvKind::ragged ? given : with_batch(given, 3);
  each_row(p, query_heads(p.args), [&](const Sequence& s, std::int64_t b, std::int64_t h) {
    for (std::int64_t j = 0; j < s.k_len; ++j)
      append(r, v, key_scalar_address(p.spec, v, s, b, h, j), 1);
  });
  return r;
}

Reading read_all(const std::string& name, const View& v) {
  Reading r{name, v.dtype, {}, 0};
  const Tensor dense = converted(v, DType::f64);
  r.values.assign(dense.ptr<double>(), dense.ptr<double>() + dense.count());
  return r;
}

RowCount count_rows(const Problem& p, const Sample& sample) {
  RowCount n;
  each_row(p, query_heads(p.args), [&](const Sequence& s, std::int64_t b, std::int64_t h) {
    n.all += s.q_len;
    for (std::int64_t i = 0; i < s.q_len; ++i) n.taken += sample.takes(b, h, i, s.q_len);
  });
  return n;
}

std::vector<Reading> readings(const Problem& p, const Outputs& o, const Sample& sample) {
  std::vector<Reading> out;
  if (o.o) out.push_back(read_rows(p, "o", o.o, sample));
  if (o.lse) out.push_back(read_scalars(p, "lse", o.lse, sample));
  if (o.max_logit && sample.whole()) out.push_back(read_all("max_logit", o.max_logit));
  if (o.key_mass && sample.whole()) out.push_back(read_key_mass(p, o.key_mass));
  return out;
}

std::vector<Reading> readings(const Problem& p, const Forward& f, const Sample& sample) {
  return readings(p, Outputs{f.o, f.lse, f.max_logit, f.key_mass}, sample);
}

std::vector<Reading> readings(const Problem& p, const Gradients& g, const Sample& sample) {
  std::vector<Reading> out;
  if (g.q) out.push_back(read_rows(p, "dq", g.q, sample));
  if (g.k) out.push_back(read_keys(p, "dk", g.k, sample));
  if (g.v) out.push_back(read_keys(p, "dv", g.v, sample));
  if (!sample.whole()) return out;
  if (g.sink) out.push_back(read_all("dsink", g.sink));
  for (const auto& [name, tensor] : g.captured) out.push_back(read_all("d " + name, tensor));
  return out;
}

}  // namespace undivided::check
