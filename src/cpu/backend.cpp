// SPDX-License-Identifier: Apache-2.0
// What the CPU backend can do, and which part of it does it.
#include "cpu/backend.hpp"

#include <fmt/format.h>

#include "cpu/backward.hpp"
#include "cpu/forward.hpp"
#include "cpu/isa.hpp"
#include "cpu/merge.hpp"
#include "expr/program.hpp"
#include "undivided/error.hpp"

namespace undivided::cpu {
namespace {

bool computes_in(DType dtype) { return dtype == DType::f32 || is_float16(dtype); }

}  // namespace

Support support(const Spec& spec, const Bounds& bounds, const Context&) {
  const auto no = [](const char* reason, std::string limit, std::string got) {
    return Support::no(reason, std::move(limit), std::move(got));
  };
  if (spec.op != Operation::forward && spec.op != Operation::backward &&
      spec.op != Operation::merge)
    return no("the CPU backend has no such operation", "forward, backward, merge", describe(spec));
  if (!computes_in(spec.dtype))
    return no("this dtype is not computed on the CPU", "f32, f16, bf16", name_of(spec.dtype));
  if (!computes_in(spec.out_dtype))
    return no("this output dtype is not written", "f32, f16, bf16", name_of(spec.out_dtype));
  for (const int d : {spec.dqk, spec.dv})
    if (d < 1 || d > max_dim)
      return no("head dim", fmt::format("1 to {}", max_dim), fmt::format("{}", d));
  if (spec.listed && (spec.mask->root().op != expr::Op::constant || spec.mask->root().integer != 1))
    return no("rows by lists say themselves which keys they keep", "a mask of all pairs", "a mask");
  constexpr std::int64_t most = std::int64_t{1} << 30;
  if (bounds.max_q_len > most || bounds.max_k_len > most)
    return no("sequence length",
              fmt::format("{}", most),
              fmt::format("{}", std::max(bounds.max_q_len, bounds.max_k_len)));
  try {
    const Precision& p = spec.precision;
    const bool values = p.pv == DType::f32 || p.pv == DType::bf16;
    if (!p.follow && p.qk == DType::i8) {
      if (spec.op == Operation::backward)
        return no("int8 scores have no backward",
                  "a precision that follows the inputs",
                  fmt::format("qk i8, pv {}", name_of(p.pv)));
      if (!values)
        return no("int8 scores go with values of this format only",
                  "pv bf16 or f32",
                  fmt::format("qk i8, pv {}", name_of(p.pv)));
      return Support::yes();
    }
    const bool both = p.qk == p.pv, dots = chosen_kernels().dots && spec.dtype == DType::bf16;
    if (!p.follow && !(both && (p.qk == DType::f32 || (p.qk == DType::bf16 && dots))))
      return no("products of this format are not computed on the CPU",
                dots ? "f32 or bf16 for both; qk i8 with pv bf16 or f32"
                     : "f32 for both; qk i8 with pv bf16 or f32; bf16 for both for bf16 inputs "
                       "where UNDIVIDED_ISA can be avx512_bf16 or amx",
                fmt::format("qk {}, pv {}", name_of(p.qk), name_of(p.pv)));
  } catch (const Error& e) {
    return no(e.what(), "an instruction set of this processor", "UNDIVIDED_ISA");
  }
  return Support::yes();
}

std::unique_ptr<Prepared> prepare(const Spec& spec,
                                  const Bounds& bounds,
                                  Device,
                                  const Context& context) {
  if (spec.op == Operation::merge) return prepare_merge(spec, bounds, context);
  if (spec.op == Operation::backward) return prepare_backward(spec, bounds, context);
  return prepare_forward(spec, bounds, context);
}

}  // namespace undivided::cpu
