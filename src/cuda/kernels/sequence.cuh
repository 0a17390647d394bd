// SPDX-License-Identifier: Apache-2.0
// Lengths, origins and addresses of one sequence. Device memory is clamped, never trusted.
#pragma once

#include "device/math.cuh"
#include "kernels/policy.cuh"

namespace undivided::cuda {

__device__ inline long long index_at(const IndexRef& r, long long i) {
  return r.wide ? static_cast<const long long*>(r.data)[i * r.stride]
                : static_cast<const int*>(r.data)[i * r.stride];
}

struct Sequence {
  int q_len, k_len;
  long long q_first, k_first;  // first packed row (ragged), else 0
  int q_origin, k_origin;      // position of local index 0
};

/// k - q of local query i and key j.
__device__ inline float distance_of(const Sequence& s, int i, int j) {
  return static_cast<float>(s.k_origin + j - (s.q_origin + i));
}

__device__ inline int bounded(long long x, int high) {
  return static_cast<int>(clamped<long long>(x, 0, high));
}

/// Packed rows [first, first + length) of sequence b.
__device__ inline int packed_rows(
    const IndexRef& offsets, int b, long long total, int bound, long long& first) {
  first = clamped<long long>(index_at(offsets, b), 0, total);
  return bounded(clamped<long long>(index_at(offsets, b + 1), 0, total) - first, bound);
}

template <class C>
__device__ Sequence sequence(const Params& p, int b) {
  Sequence s{};
  if constexpr (C::rows == RowKind::ragged) {
    s.q_len = packed_rows(p.q_offsets, b, p.total_q, p.max_q_len, s.q_first);
  } else {
    s.q_len = p.q_lengths.data ? bounded(index_at(p.q_lengths, b), p.max_q_len) : p.max_q_len;
  }
  if constexpr (C::kv == KvKind::ragged) {
    s.k_len = packed_rows(p.k_offsets, b, p.total_k, p.max_k_len, s.k_first);
  } else {
    s.k_len = p.k_lengths.data ? bounded(index_at(p.k_lengths, b), p.max_k_len) : p.max_k_len;
  }
  if (p.origin == origin_end) s.q_origin = s.k_len - s.q_len;
  if (p.origin == origin_given) {
    s.q_origin = p.q_origin.data ? static_cast<int>(index_at(p.q_origin, b)) : 0;
    s.k_origin = p.k_origin.data ? static_cast<int>(index_at(p.k_origin, b)) : 0;
  }
  return s;
}

/// Offset of a row of Q, O, dO or dQ, in elements.
template <class C>
__device__ long long row_offset(const MatrixRef& m, const Sequence& s, int b, int h, int i) {
  if constexpr (C::rows == RowKind::ragged)
    return (s.q_first + i) * m.token + h * m.head;
  else
    return b * m.batch + h * m.head + i * m.token;
}

template <class C>
__device__ float* row_scalar(const ScalarRef& r, const Sequence& s, int b, int h, int i) {
  if constexpr (C::rows == RowKind::ragged)
    return r.data + h * r.head + (s.q_first + i) * r.token;
  else
    return r.data + b * r.batch + h * r.head + i * r.token;
}

/// Row of partial_o, partial_lse and delta.
template <class C>
__device__ long long row_index(const Params& p, const Sequence& s, int b, int h, int i) {
  if constexpr (C::rows == RowKind::ragged)
    return h * p.total_q + s.q_first + i;
  else
    return (static_cast<long long>(b) * p.heads + h) * p.max_q_len + i;
}

template <class C>
__device__ long long rows_of(const Params& p) {
  return C::rows == RowKind::ragged ? p.heads * p.total_q
                                    : static_cast<long long>(p.batch) * p.heads * p.max_q_len;
}

/// Offset of key j of K, V, dK or dV, in elements; j is inside the length.
template <class C>
__device__ long long key_offset(
    const Params& p, const MatrixRef& m, const Sequence& s, int b, int h, int j) {
  if constexpr (C::kv == KvKind::ragged) {
    return (s.k_first + j) * m.token + h * m.head;
  } else if constexpr (C::kv == KvKind::dense) {
    return b * m.batch + h * m.head + j * m.token;
  } else {
    const unsigned size = static_cast<unsigned>(p.pages.size);
    const unsigned slot = static_cast<unsigned>(j) / size, inside = static_cast<unsigned>(j) % size;
    return p.pages.page(b, slot) * m.batch + h * m.head + inside * m.token;
  }
}

}  // namespace undivided::cuda
