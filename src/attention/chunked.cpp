// SPDX-License-Identifier: Apache-2.0
// Attention in chunks (Rabe and Staats 2021). For each chunk of queries, each chunk c of keys is
// summarised alone:  m_c = max s,  w_c = sum e^(s - m_c),  v_c = sum e^(s - m_c) v.  Then, over c,
//   M = max m_c,  O = sum e^(m_c - M) v_c / sum e^(m_c - M) w_c,  LSE = M + log sum e^(m_c - M) w_c
// (section 4), or a running (m, w, v) is rescaled chunk by chunk (section 3).
#include "attention/chunked.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/execute.hpp"

namespace undivided {
namespace {

constexpr std::int64_t query_rows_of_task = 16;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Sizes {
  std::int64_t q, k, chunks, kept, dv;  // a chunk never exceeds the sequence
};
Sizes sizes(std::int64_t q_len, std::int64_t k_len, std::int64_t dv, const Chunks& c) {
  const std::int64_t chunks = ceil_div(k_len, c.k);
  return {std::min(c.q, q_len),
          std::min(c.k, k_len),
          chunks,
          c.accumulate == Accumulate::summaries ? std::max<std::int64_t>(1, chunks) : 1,
          dv};
}

/// e^(a - b) for a <= b, where both may be -inf.
template <class T>
T shrink(T a, T b) {
  return a == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(a - b);
}

/// Summaries of query rows: values [n, q, dv], weights [n, q], maxima [n, q].
template <class T>
class Summaries {
 public:
  Summaries(const Sizes& z, DType dtype, const Context& context)
      : rows_(z.q), dv_(z.dv), memory_(allocate(context, {}, dtype, {z.kept * z.q * (z.dv + 2)})) {
    values_ = memory_.ptr<T>();
    weights_ = values_ + z.kept * z.q * z.dv;
    maxima_ = weights_ + z.kept * z.q;
  }
  T* values(std::int64_t n, std::int64_t row) const { return values_ + (n * rows_ + row) * dv_; }
  T& weight(std::int64_t n, std::int64_t row) const { return weights_[n * rows_ + row]; }
  T& maximum(std::int64_t n, std::int64_t row) const { return maxima_[n * rows_ + row]; }

 private:
  std::int64_t rows_, dv_;
  Tensor memory_;
  T *values_, *weights_, *maxima_;
};

template <class F>
void for_each_row(std::int64_t rows, Executor& executor, F&& fn) {
  executor.parallel_for(ceil_div(rows, query_rows_of_task), [&](std::int64_t task, int) {
    for (std::int64_t r = task * query_rows_of_task;
         r < std::min(rows, (task + 1) * query_rows_of_task);
         ++r)
      fn(r);
  });
}

/// Adds the summary of `scores` (made into weights in place) to summary n, scaled to its maximum.
template <class T>
void summarise(const ChunkedHead<T>& head,
               const Summaries<T>& sum,
               std::int64_t n,
               std::int64_t row,
               std::int64_t begin,
               std::int64_t end,
               std::int64_t dv,
               T most,
               T* scores) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const T before = sum.maximum(n, row), after = most <= before ? before : most;
  if (after == -infinity) return;
  T* values = sum.values(n, row);
  const T factor = shrink(before, after);
  T weight = factor * sum.weight(n, row);
  for (std::int64_t c = 0; c < dv; ++c) values[c] *= factor;
  for (std::int64_t j = begin; j < end; ++j) {
    const T e = shrink(scores[j - begin], after);
    if (e == 0) continue;
    const T* v = head.value(j);
    weight += e;
    for (std::int64_t c = 0; c < dv; ++c) values[c] += e * v[c];
  }
  sum.weight(n, row) = weight;
  sum.maximum(n, row) = after;
}

template <class T>
void clear(const Summaries<T>& sum, std::int64_t n, std::int64_t row, std::int64_t dv) {
  std::fill(sum.values(n, row), sum.values(n, row) + dv, T(0));
  sum.weight(n, row) = 0;
  sum.maximum(n, row) = -std::numeric_limits<T>::infinity();
}

/// All key chunks for query rows [q0, q0 + rows); afterwards summary 0 is that of all keys.
template <class T>
void summarise_all(const ChunkedHead<T>& head,
                   const Sizes& z,
                   std::int64_t q0,
                   std::int64_t rows,
                   const Summaries<T>& sum,
                   T* scores,
                   Executor& executor) {
  for_each_row(rows, executor, [&](std::int64_t r) {
    for (std::int64_t n = 0; n < z.kept; ++n) clear(sum, n, r, z.dv);
  });
  for (std::int64_t c = 0; c * z.k < head.s.k_len; ++c) {
    const std::int64_t begin = c * z.k, end = std::min(head.s.k_len, begin + z.k);
    for_each_row(rows, executor, [&](std::int64_t r) {
      T* row = scores + r * z.k;
      const T most = head.scores(q0 + r, begin, end, row);
      summarise(head, sum, std::min(c, z.kept - 1), r, begin, end, z.dv, most, row);
    });
  }
  if (z.kept > 1)
    for_each_row(rows, executor, [&](std::int64_t r) {
      T most = sum.maximum(0, r);
      for (std::int64_t n = 1; n < z.kept; ++n)
        if (!(sum.maximum(n, r) <= most)) most = sum.maximum(n, r);
      for (std::int64_t n = 0; n < z.kept; ++n) {
        const T factor = shrink(sum.maximum(n, r), most);
        const T* from = sum.values(n, r);
        T* to = sum.values(0, r);
        for (std::int64_t c = 0; c < z.dv; ++c)
          to[c] = n == 0 ? factor * from[c] : to[c] + factor * from[c];
        sum.weight(0, r) = (n == 0 ? T(0) : sum.weight(0, r)) + factor * sum.weight(n, r);
      }
      sum.maximum(0, r) = most;
    });
}

template <class T>
T* row_of(const View& v, std::int64_t b, std::int64_t h, std::int64_t i) {
  return static_cast<T*>(v.data) + b * v.stride[0] + h * v.stride[1] + i * v.stride[2];
}

Executor& executor_in(const Context& context) {
  return context.executor ? *context.executor : default_executor();
}

template <class T>
void zero(const View& v) {
  std::fill(static_cast<T*>(v.data), static_cast<T*>(v.data) + v.count(), T(0));
}

template <class T>
void forward(const Problem& p, const Chunks& chunks, const Context& context) {
  const View& q = p.args.q.data;
  const Sizes z = sizes(q.size(2), p.args.kv.k.size(2), p.spec.dv, chunks);
  Executor& executor = executor_in(context);
  const Tensor scores = allocate(context, {}, p.spec.dtype, {z.q * z.k});
  const Summaries<T> sum(z, p.spec.dtype, context);
  zero<T>(p.args.o);
  std::fill(static_cast<float*>(p.args.lse.data),
            static_cast<float*>(p.args.lse.data) + p.args.lse.count(),
            -std::numeric_limits<float>::infinity());
  for (std::int64_t b = 0; b < q.size(0); ++b)
    for (std::int64_t h = 0; h < q.size(1); ++h) {
      const ChunkedHead<T> head(p, b, h);
      for (std::int64_t q0 = 0; q0 < head.s.q_len; q0 += z.q) {
        const std::int64_t rows = std::min(z.q, head.s.q_len - q0);
        summarise_all(head, z, q0, rows, sum, scores.ptr<T>(), executor);
        for (std::int64_t r = 0; r < rows; ++r) {
          const T weight = sum.weight(0, r);
          if (weight == 0) continue;
          T* o = row_of<T>(p.args.o, b, h, q0 + r);
          for (std::int64_t c = 0; c < z.dv; ++c) o[c] = sum.values(0, r)[c] / weight;
          *row_of<float>(p.args.lse, b, h, q0 + r) =
              static_cast<float>(sum.maximum(0, r) + std::log(weight));
        }
      }
    }
}

/// With e = exp(s - M), W = sum e, O = sum e v / W: the gradient of e_j is (dO.v_j - dO.O) / W, and
/// none goes through the maximum.
template <class T>
void backward(const Problem& p,
              const View& dout,
              const Gradients& g,
              const Chunks& chunks,
              const Context& context) {
  const View& q = p.args.q.data;
  const Sizes z = sizes(q.size(2), p.args.kv.k.size(2), p.spec.dv, chunks);
  const std::int64_t dqk = p.spec.dqk;
  Executor& executor = executor_in(context);
  const Tensor weights = allocate(context, {}, p.spec.dtype, {z.q * z.k}),
               slopes = allocate(context, {}, p.spec.dtype, {z.q * z.k});
  const Summaries<T> sum(z, p.spec.dtype, context);
  for (const Tensor* t : {&g.q, &g.k, &g.v}) zero<T>(*t);
  for (std::int64_t b = 0; b < q.size(0); ++b)
    for (std::int64_t h = 0; h < q.size(1); ++h) {
      const ChunkedHead<T> head(p, b, h);
      const std::int64_t kv_head = h / p.spec.group;
      for (std::int64_t q0 = 0; q0 < head.s.q_len; q0 += z.q) {
        const std::int64_t rows = std::min(z.q, head.s.q_len - q0);
        summarise_all(head, z, q0, rows, sum, weights.ptr<T>(), executor);
        for (std::int64_t begin = 0; begin < head.s.k_len; begin += z.k) {
          const std::int64_t end = std::min(head.s.k_len, begin + z.k);
          // Weights and score gradients of this chunk, and dQ: rows are independent.
          for_each_row(rows, executor, [&](std::int64_t r) {
            T *weight = weights.ptr<T>() + r * z.k, *ds = slopes.ptr<T>() + r * z.k;
            head.scores(q0 + r, begin, end, weight);
            head.slopes(q0 + r, begin, end, ds);
            const T total = sum.weight(0, r), most = sum.maximum(0, r);
            const T* d = row_of<const T>(dout, b, h, q0 + r);
            T* dq = row_of<T>(g.q, b, h, q0 + r);
            T inner = 0;
            for (std::int64_t c = 0; c < z.dv; ++c) inner += d[c] * sum.values(0, r)[c];
            if (total != 0) inner /= total;
            for (std::int64_t j = begin; j < end; ++j) {
              T& w = weight[j - begin];
              w = total == 0 ? T(0) : shrink(w, most) / total;
              if (w == 0) {
                ds[j - begin] = 0;
                continue;
              }
              const T *v = head.value(j), *k = head.key(j);
              T dot = 0;
              for (std::int64_t c = 0; c < z.dv; ++c) dot += d[c] * v[c];
              const T x = ds[j - begin] *= w * (dot - inner);
              for (std::int64_t c = 0; c < dqk; ++c) dq[c] += x * k[c];
            }
          });
          // dK and dV: keys are independent.
          for_each_row(end - begin, executor, [&](std::int64_t j) {
            T *dk = row_of<T>(g.k, b, kv_head, begin + j),
              *dv = row_of<T>(g.v, b, kv_head, begin + j);
            for (std::int64_t r = 0; r < rows; ++r) {
              const T w = weights.ptr<T>()[r * z.k + j], x = slopes.ptr<T>()[r * z.k + j];
              if (w == 0) continue;
              const T *d = row_of<const T>(dout, b, h, q0 + r), *qr = head.query(q0 + r);
              for (std::int64_t c = 0; c < z.dv; ++c) dv[c] += w * d[c];
              for (std::int64_t c = 0; c < dqk; ++c) dk[c] += x * qr[c];
            }
          });
        }
      }
    }
}

std::size_t bytes(
    std::int64_t q_len, std::int64_t k_len, std::int64_t dv, const Chunks& c, DType dtype, int n) {
  const Sizes z = sizes(q_len, k_len, dv, c);
  return static_cast<std::size_t>(n * z.q * z.k + z.kept * z.q * (dv + 2)) * size_of(dtype);
}

}  // namespace

std::size_t chunked_bytes(
    std::int64_t q_len, std::int64_t k_len, std::int64_t dv, const Chunks& chunks, DType dtype) {
  return bytes(q_len, k_len, dv, chunks, dtype, 1);
}

std::size_t chunked_backward_bytes(
    std::int64_t q_len, std::int64_t k_len, std::int64_t dv, const Chunks& chunks, DType dtype) {
  return bytes(q_len, k_len, dv, chunks, dtype, 2);
}

Forward chunked_attention(const View& q,
                          const View& k,
                          const View& v,
                          const Options& options,
                          const Chunks& chunks,
                          const Context& context) {
  Problem p = chunked_problem(q, k, v, options, chunks, context);
  const View& rows = p.args.q.data;
  Forward f;
  f.options = options;
  f.o = allocate(context, {}, p.spec.dtype, {rows.size(0), rows.size(1), rows.size(2), p.spec.dv});
  f.lse = allocate(context, {}, DType::f32, {rows.size(0), rows.size(1), rows.size(2)});
  p.args.o = f.o;
  p.args.lse = f.lse;
  (p.spec.dtype == DType::f64 ? forward<double> : forward<float>)(p, chunks, context);
  if (q.rank == 3) {
    drop_batch(f.o);
    drop_batch(f.lse);
  }
  return f;
}

Gradients chunked_attention_backward(const View& dout,
                                     const View& q,
                                     const View& k,
                                     const View& v,
                                     const Options& options,
                                     const Chunks& chunks,
                                     const Context& context) {
  const Problem p = chunked_problem(q, k, v, options, chunks, context);
  const View& rows = p.args.q.data;
  View d = dout;
  if (d.rank == 3) d = d.unsqueezed(0);
  bool same = d.rank == 4 && d.dtype == p.spec.dtype && d.size(3) == p.spec.dv &&
              (d.size(3) == 1 || d.step(3) == 1) && d.device == p.device;
  for (int axis = 0; same && axis < 3; ++axis) same = d.size(axis) == rows.size(axis);
  if (!same)
    throw Error(Code::invalid_argument,
                Stage::resolve,
                "chunked attention: the gradient of O is " + dout.describe() + "; " +
                    name_of(p.spec.dtype) + " [" + std::to_string(rows.size(0)) + ", " +
                    std::to_string(rows.size(1)) + ", " + std::to_string(rows.size(2)) + ", " +
                    std::to_string(p.spec.dv) + "] with unit last stride is expected");
  Gradients g;
  g.q = allocate(context, {}, p.spec.dtype, shape_of(rows));
  g.k = allocate(context, {}, p.spec.dtype, shape_of(p.args.kv.k));
  g.v = allocate(context, {}, p.spec.dtype, shape_of(p.args.kv.v));
  (p.spec.dtype == DType::f64 ? backward<double> : backward<float>)(p, d, g, chunks, context);
  if (q.rank == 3) drop_batch(g.q);
  if (k.rank == 3) {
    drop_batch(g.k);
    drop_batch(g.v);
  }
  return g;
}

}  // namespace undivided
