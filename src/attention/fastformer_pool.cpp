// SPDX-License-Identifier: Apache-2.0
// Pooling in linear time. With a the logits, L_i the LSE of row i's pool and p_ij = e^(a_j - L_i):
//   dx_j = sum_i p_ij dg_i,  da_j = sum_i p_ij dg_i.(x_j - g_i).
// A running pool keeps S_i = dg_i + e^(L_i - L_i+1) S_i+1 (and the same of dg.g) from the end, so
// no exponent is positive: L ascends with i.
#include "attention/fastformer_pool.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/head_rows.hpp"

namespace undivided {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

double* row(const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t i) {
  return row<double>(t, b, h, i);
}

/// The heads that a logit of head h reads, and where in w its part begins.
struct Span {
  std::int64_t begin, end;
};
Span heads_read(const Pooling& p, const Tensor& x, std::int64_t h) {
  return p.scoring == FastformerScoring::official ? Span{0, x.size(1)} : Span{h, h + 1};
}

double shrink(double a, double b) { return a == -infinity ? 0 : std::exp(a - b); }

Tensor zeros3(const Tensor& x) {
  return Tensor::zeros(DType::f64, {x.size(0), x.size(1), x.size(2)});
}

}  // namespace

Tensor pool_logits(const Pooling& p, const Tensor& x, const Tensor& w) {
  Tensor logits = zeros3(x);
  const std::int64_t d = x.size(3), tokens = x.size(2);
  // Rows that fit the cache serve the logits of all heads.
  constexpr std::int64_t chunk = 64;
  const std::int64_t chunks = (tokens + chunk - 1) / chunk;
  p.executor->parallel_for(x.size(0) * chunks, [&](std::int64_t n, int) {
    const std::int64_t b = n / chunks, first = n % chunks * chunk,
                       end = std::min(first + chunk, tokens);
    for (std::int64_t h = 0; h < x.size(1); ++h) {
      const Span span = heads_read(p, x, h);
      double* out = row(logits, b, h, 0);
      for (std::int64_t head = span.begin; head < span.end; ++head) {
        const double* weight = w.ptr<double>() + h * w.stride[0] + (head - span.begin) * d;
        for (std::int64_t i = first; i < end; ++i) {
          const double* at = row(x, b, head, i);
          double sum = 0;
          for (std::int64_t c = 0; c < d; ++c) sum += weight[c] * at[c];
          out[i] += p.scale * sum;
        }
      }
    }
  });
  return logits;
}

void pool_logits_backward(const Pooling& p,
                          const Tensor& dlogits,
                          const Tensor& x,
                          const Tensor& w,
                          Tensor& dx,
                          Tensor& dw) {
  const std::int64_t d = x.size(3), heads = x.size(1);
  // dx: one task per (batch, head) of x. dw: one task per row of w; both sum in a fixed order.
  for_each_head(x, *p.executor, [&](std::int64_t b, std::int64_t head) {
    for (std::int64_t h = 0; h < heads; ++h) {
      const Span span = heads_read(p, x, h);
      if (head < span.begin || head >= span.end) continue;
      const double* weight = w.ptr<double>() + h * w.stride[0] + (head - span.begin) * d;
      for (std::int64_t i = 0; i < x.size(2); ++i) {
        const double g = p.scale * row(dlogits, b, h, 0)[i];
        if (g == 0) continue;
        double* to = row(dx, b, head, i);
        for (std::int64_t c = 0; c < d; ++c) to[c] += g * weight[c];
      }
    }
  });
  p.executor->parallel_for(heads, [&](std::int64_t h, int) {
    const Span span = heads_read(p, x, h);
    for (std::int64_t b = 0; b < x.size(0); ++b)
      for (std::int64_t head = span.begin; head < span.end; ++head) {
        double* to = dw.ptr<double>() + h * dw.stride[0] + (head - span.begin) * d;
        for (std::int64_t i = 0; i < x.size(2); ++i) {
          const double g = p.scale * row(dlogits, b, h, 0)[i];
          if (g == 0) continue;
          const double* at = row(x, b, head, i);
          for (std::int64_t c = 0; c < d; ++c) to[c] += g * at[c];
        }
      }
  });
}

Pooled pool(const Pooling& p, const Tensor& x, const Tensor& logits) {
  const std::int64_t tokens = x.size(2), d = x.size(3), rows = p.running ? tokens : 1;
  Pooled out{Tensor::zeros(DType::f64, {x.size(0), x.size(1), rows, d}),
             Tensor::empty(DType::f64, {x.size(0), x.size(1), rows})};
  for_each_head(x, *p.executor, [&](std::int64_t b, std::int64_t h) {
    const double* a = row(logits, b, h, 0);
    double* lse = row(out.lse, b, h, 0);
    double most = -infinity, sum = 0;
    std::vector<double> g(static_cast<std::size_t>(d));
    const auto store = [&](std::int64_t i) {
      lse[i] = most == -infinity ? -infinity : most + std::log(sum);
      double* to = row(out.g, b, h, i);
      for (std::int64_t c = 0; c < d; ++c)
        to[c] = most == -infinity ? 0 : g[static_cast<std::size_t>(c)] / sum;
    };
    for (std::int64_t j = 0; j < tokens; ++j) {
      if (p.kept(b, j)) {
        const double after = a[j] <= most ? most : a[j];
        const double factor = shrink(most, after), e = shrink(a[j], after);
        const double* at = row(x, b, h, j);
        for (std::int64_t c = 0; c < d; ++c) {
          double& cell = g[static_cast<std::size_t>(c)];
          cell = factor * cell + e * at[c];
        }
        sum = factor * sum + e;
        most = after;
      }
      if (p.running) store(j);
    }
    if (!p.running) store(0);
  });
  return out;
}

Tensor pool_backward(const Pooling& p,
                     const Tensor& dg,
                     const Tensor& x,
                     const Tensor& logits,
                     const Pooled& pooled,
                     Tensor& dx) {
  Tensor dlogits = zeros3(x);
  const std::int64_t tokens = x.size(2), d = x.size(3);
  for_each_head(x, *p.executor, [&](std::int64_t b, std::int64_t h) {
    const double *a = row(logits, b, h, 0), *lse = row(pooled.lse, b, h, 0);
    double* da = row(dlogits, b, h, 0);
    std::vector<double> sum(static_cast<std::size_t>(d));  // S
    double inner = 0;                                      // the same sum of dg.g
    const auto include = [&](std::int64_t i, double factor) {
      const double *from = row(dg, b, h, i), *g = row(pooled.g, b, h, i);
      inner *= factor;
      for (std::int64_t c = 0; c < d; ++c) {
        double& cell = sum[static_cast<std::size_t>(c)];
        cell = factor * cell + from[c];
        inner += from[c] * g[c];
      }
    };
    if (!p.running) include(0, 0);
    for (std::int64_t j = tokens; j-- > 0;) {
      if (p.running) include(j, j + 1 < tokens ? shrink(lse[j], lse[j + 1]) : 0);
      if (!p.kept(b, j)) continue;
      const double weight = shrink(a[j], lse[p.running ? j : 0]);
      const double* at = row(x, b, h, j);
      double* to = row(dx, b, h, j);
      double dot = -inner;
      for (std::int64_t c = 0; c < d; ++c) {
        dot += sum[static_cast<std::size_t>(c)] * at[c];
        to[c] += weight * sum[static_cast<std::size_t>(c)];
      }
      da[j] = weight * dot;
    }
  });
  return dlogits;
}

Tensor broadcast_product(const Tensor& g, const Tensor& x, Executor& executor) {
  Tensor y = Tensor::empty_like(x, DType::f64);
  for_each_head(x, executor, [&](std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < x.size(2); ++i) {
      const double *s = row(g, b, h, g.size(2) == 1 ? 0 : i), *from = row(x, b, h, i);
      double* to = row(y, b, h, i);
      for (std::int64_t c = 0; c < x.size(3); ++c) to[c] = s[c] * from[c];
    }
  });
  return y;
}

void broadcast_product_backward(const Tensor& dy,
                                const Tensor& g,
                                const Tensor& x,
                                Tensor& dg,
                                Tensor& dx,
                                Executor& executor) {
  for_each_head(x, executor, [&](std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < x.size(2); ++i) {
      const std::int64_t r = g.size(2) == 1 ? 0 : i;
      const double *d = row(dy, b, h, i), *s = row(g, b, h, r), *from = row(x, b, h, i);
      double *to_g = row(dg, b, h, r), *to_x = row(dx, b, h, i);
      for (std::int64_t c = 0; c < x.size(3); ++c) {
        to_g[c] += d[c] * from[c];
        to_x[c] += d[c] * s[c];
      }
    }
  });
}

}  // namespace undivided
