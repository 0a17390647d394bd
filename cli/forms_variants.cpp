// SPDX-License-Identifier: Apache-2.0
// Rows of the demo for verbs other than attention(): each beside its meaning in float64.
#include <cmath>
#include <functional>

#include "cli/device.hpp"
#include "cli/forms.hpp"
#include "core/generator.hpp"
#include "undivided/sparse.hpp"

namespace undivided::cli {
namespace {

struct Variant {
  std::string name, note;
  double flops = 0;
  std::function<Tensor(const Context&)> run;
  std::function<Tensor()> exact;  // in float64
};

/// [1, heads, tokens, dim] as heads of twice the width: the values of a differential head.
Tensor wide_heads(const Tensor& v) {
  const std::int64_t heads = v.size(1) / 2, tokens = v.size(2), d = v.size(3);
  const Tensor wide = Tensor::empty(v.dtype, {1, heads, tokens, 2 * d});
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t half = 0; half < 2; ++half) {
      View to = wide.sliced(1, h, h + 1);
      to.data = static_cast<float*>(to.data) + half * d;
      to.shape[3] = d;
      copy(v.sliced(1, 2 * h + half, 2 * h + half + 1), to);
    }
  return wide;
}

std::vector<Variant> variants_of(const Input& in) {
  const std::int64_t heads = in.q.size(1), tokens = in.q.size(2), d = in.q.size(3);
  const double pairs =
      static_cast<double>(heads) * static_cast<double>(tokens) * static_cast<double>(tokens);
  const auto wide = [](const View& x) { return converted(x, DType::f64); };
  std::vector<Variant> all;
  if (heads % 2 == 0) {
    const Tensor v = wide_heads(in.v), a = random_normal(DType::f32, {d}, 1, .1),
                 b = random_normal(DType::f32, {d}, 2, .1);
    const auto call =
        [=](const View& q, const View& k, const View& values, const Context& context) {
          DifferentialV1 p;
          p.q1 = p.k1 = a;
          p.q2 = p.k2 = b;
          return Tensor(differential(q, dense(k, values), p, {}, context).o);
        };
    all.push_back({"diff",
                   "differential attention: two softmaxes, values read once",
                   2 * pairs * 3 * static_cast<double>(d),
                   [=](const Context& c) { return call(in.q, in.k, v, c); },
                   [=] { return call(wide(in.q), wide(in.k), wide(v), {}); }});
  }
  const Tensor w = random_normal(DType::f32, {heads, heads * d}, 3, .1);
  const auto fast = [=](const View& q, const View& k, const View& v, const Context& context) {
    FastformerOptions o;
    o.w_query = o.w_key = w;
    return Tensor(fastformer(q, k, v, o, context).o);
  };
  all.push_back({"fastformer",
                 "pooled queries and keys, linear time; sums in float64",
                 static_cast<double>(heads * tokens * d) * (8 + 4 * static_cast<double>(heads)),
                 [=](const Context& c) { return fast(in.q, in.k, in.v, c); },
                 [=] { return fast(wide(in.q), wide(in.k), wide(in.v), {}); }});
  all.push_back({"chunked",
                 "Rabe and Staats' chunks of 256 queries and 256 keys",
                 4 * pairs * static_cast<double>(d),
                 [=](const Context& c) {
                   Chunks chunks;
                   chunks.q = chunks.k = 256;
                   return chunked_attention(in.q, in.k, in.v, {}, chunks, c).o;
                 },
                 [=] { return reference(in.q, dense(in.k, in.v)).o; }});
  // Every third key is dropped.
  Tensor keep = Tensor::zeros(DType::i32, {1, heads, tokens});
  std::vector<std::int32_t> mine(static_cast<std::size_t>(tokens));
  double kept = 0, seen = 0;
  for (std::int64_t i = 0; i < tokens; ++i) {
    const std::int32_t on = i % 3 != 1;
    mine[static_cast<std::size_t>(i)] = on;
    for (std::int64_t h = 0; h < heads; ++h) keep.ptr<std::int32_t>()[h * tokens + i] = on;
    seen += on;
    kept += seen;
  }
  const Tensor ones = Tensor::zeros(DType::i32, {1, heads, tokens});
  std::fill_n(ones.ptr<std::int32_t>(), ones.count(), 1);
  all.push_back({"sparse",
                 "a third of the keys dropped, causal (SCFA)",
                 4 * kept * static_cast<double>(heads * d),
                 [=](const Context& c) {
                   return sparse_attention(in.q, in.k, in.v, QkSparse{ones, keep}, {}, c).o;
                 },
                 [=] {
                   Options o;
                   const Array on(mine, "on");
                   o.mask = mask([=](auto, auto, auto q, auto k) { return k <= q && on[k] != 0; });
                   return reference(in.q, dense(in.k, in.v), o).o;
                 }});
  return all;
}

}  // namespace

double error_of(const Tensor& result, const Tensor& oracle) {
  const Tensor mine = converted(on_host(result), DType::f64);
  const auto *a = mine.ptr<double>(), *b = oracle.ptr<double>();
  double worst = 0, largest = 0;
  for (std::int64_t i = 0; i < oracle.count(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    worst = difference <= worst ? worst : difference;  // a NaN stays
    largest = std::max(largest, std::fabs(b[i]));
  }
  return largest > 0 ? worst / largest : worst;
}

std::vector<DemoRow> variant_rows(const Input& input, const Context& context, const Peak& peak) {
  std::vector<DemoRow> rows;
  for (const Variant& variant : variants_of(input)) {
    double start = now();
    const Tensor exact = variant.exact();
    DemoRow r;
    r.form = variant.name;
    r.note = variant.note;
    r.backend = name_of(context.backend);
    const double exact_seconds = now() - start;
    r.error = error_of(variant.run(context), exact);
    std::vector<double> times;
    const double begin = now();
    while (times.size() < 3 || now() - begin < .1) {
      start = now();
      variant.run(context);
      times.push_back(now() - start);
    }
    r.seconds = median(times);
    r.gflops = variant.flops / r.seconds * 1e-9;
    r.of_peak = peak.gflops > 0 ? r.gflops / peak.gflops : 0;
    r.speedup = exact_seconds / r.seconds;
    r.passed = r.error <= 1e-5;
    rows.push_back(r);
  }
  return rows;
}

}  // namespace undivided::cli
