// SPDX-License-Identifier: Apache-2.0
// Scores of the chunked algorithm, and what a call may ask of it.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "attention/chunked.hpp"
#include "problem/bound.hpp"

namespace undivided {
namespace {

/// A dot product in sixteen lanes, so that the compiler may use vectors.
template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  constexpr int lanes = 16;
  T sum[lanes] = {};
  std::int64_t c = 0;
  for (; c + lanes <= n; c += lanes)
    for (int l = 0; l < lanes; ++l) sum[l] += a[c + l] * b[c + l];
  T rest = 0;
  for (; c < n; ++c) rest += a[c] * b[c];
  for (const T x : sum) rest += x;
  return rest;
}

template <class T>
const T* base(const View& v, std::int64_t b, std::int64_t h) {
  return static_cast<const T*>(v.data) + b * v.stride[0] + h * v.stride[1];
}

}  // namespace

Problem chunked_problem(const View& q,
                        const View& k,
                        const View& v,
                        const Options& options,
                        const Chunks& chunks,
                        const Context& context) {
  const auto refuse = [](Code code, const std::string& message) {
    throw Error(code, Stage::resolve, "chunked attention: " + message);
  };
  if (chunks.q < 1 || chunks.k < 1)
    refuse(Code::invalid_argument,
           fmt::format("chunks are q {} and k {}; each must be at least 1", chunks.q, chunks.k));
  const std::pair<const char*, bool> not_here[] = {
      {"sink", static_cast<bool>(options.sink)},
      {"dropout", options.dropout > 0},
      {"partial", options.partial},
      {"max_logit", options.max_logit},
      {"key_mass", options.key_mass},
      {"determinism invariant", options.determinism == Determinism::invariant},
      {"a precision other than that of the inputs", !options.precision.follow},
  };
  for (const auto& [name, asked] : not_here)
    if (asked)
      refuse(Code::unsupported,
             fmt::format("{} is not part of this algorithm; attention() has it", name));
  Problem p = resolve(q, dense(k, v), options);
  if (p.device.kind != Device::Kind::cpu)
    refuse(Code::unsupported,
           fmt::format("Q is on {}; it runs on the CPU: attention() is for devices",
                       to_string(p.device)));
  if (p.spec.dtype != DType::f32 && p.spec.dtype != DType::f64)
    refuse(Code::unsupported,
           fmt::format("Q has dtype {}; f32 or f64 is allowed", name_of(p.spec.dtype)));
  if (p.spec.out_dtype != p.spec.dtype)
    refuse(Code::unsupported,
           fmt::format("out_dtype is {}; {} like the inputs is allowed",
                       name_of(p.spec.out_dtype),
                       name_of(p.spec.dtype)));
  if (context.backend == Backend::cuda || context.backend == Backend::reference)
    refuse(Code::unsupported,
           fmt::format("backend {} was asked for; it is a loop of its own on the CPU: automatic "
                       "or cpu is allowed",
                       name_of(context.backend)));
  return p;
}

template <class T>
ChunkedHead<T>::ChunkedHead(const Problem& p, std::int64_t b, std::int64_t h)
    : s(sequence(p.spec, p.args, b)),
      p_(p),
      b_(b),
      h_(h),
      q_(base<T>(p.args.q.data, b, h)),
      k_(base<T>(p.args.kv.k, b, h / p.spec.group)),
      v_(base<T>(p.args.kv.v, b, h / p.spec.group)),
      q_step_(p.args.q.data.stride[2]),
      k_step_(p.args.kv.k.stride[2]),
      v_step_(p.args.kv.v.stride[2]) {
  const expr::Band& band = p.args.mask->band;
  masked_ = !band.is_band || band.has_left || band.has_right;
  scored_ = !(Score(p.spec.score, {}) == Score());
  if (scored_) gradient_ = expr::differentiate(*p.args.score->program);
}

template <class T>
expr::Point ChunkedHead<T>::point(std::int64_t i, std::int64_t j) const {
  return {b_, h_, s.q_origin + i, s.k_origin + j, s.q_len, s.k_len, 0};
}

template <class T>
void ChunkedHead<T>::products(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const {
  const T* q = query(i);
  const T scale = static_cast<T>(p_.args.scale);
  for (std::int64_t j = begin; j < end; ++j) out[j - begin] = scale * dot(q, key(j), p_.spec.dqk);
}

template <class T>
T ChunkedHead<T>::scores(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  products(i, begin, end, out);
  if (scored_) {
    const expr::Program& program = *p_.args.score->program;
    std::vector<double> scratch(program.nodes.size());
    for (std::int64_t j = begin; j < end; ++j) {
      expr::Point at = point(i, j);
      at.score = static_cast<double>(out[j - begin]);
      double final_score = 0;
      expr::evaluate(program, p_.args.score->bound, at, scratch.data(), &final_score);
      out[j - begin] = static_cast<T>(final_score);
    }
  }
  const expr::Band& band = p_.args.mask->band;
  if (masked_ && band.is_band) {
    const std::int64_t q = s.q_origin + i;
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t k = s.k_origin + j;
      if ((band.has_left && q - k > band.left) || (band.has_right && k - q > band.right))
        out[j - begin] = -infinity;
    }
  } else if (masked_) {
    const expr::Program& program = *p_.args.mask->program;
    std::vector<double> scratch(program.nodes.size());
    for (std::int64_t j = begin; j < end; ++j) {
      double keep = 0;
      expr::evaluate(program, p_.args.mask->bound, point(i, j), scratch.data(), &keep);
      if (keep == 0) out[j - begin] = -infinity;
    }
  }
  T most = -infinity;
  for (std::int64_t j = 0; j < end - begin; ++j)
    if (!(out[j] <= most)) most = out[j];  // a NaN stays
  return most;
}

template <class T>
void ChunkedHead<T>::slopes(std::int64_t i, std::int64_t begin, std::int64_t end, T* out) const {
  const T scale = static_cast<T>(p_.args.scale);
  if (!scored_) {
    std::fill(out, out + (end - begin), scale);
    return;
  }
  products(i, begin, end, out);
  const expr::Gradient& gradient = *gradient_;
  std::vector<double> scratch(gradient.program.nodes.size()), roots(gradient.program.roots.size());
  for (std::int64_t j = begin; j < end; ++j) {
    expr::Point at = point(i, j);
    at.score = static_cast<double>(out[j - begin]);
    expr::evaluate(gradient.program, p_.args.score->bound, at, scratch.data(), roots.data());
    out[j - begin] = scale * static_cast<T>(roots[0]);
  }
}

template class ChunkedHead<float>;
template class ChunkedHead<double>;

}  // namespace undivided
