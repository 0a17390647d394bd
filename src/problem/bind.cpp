// SPDX-License-Identifier: Apache-2.0
// bind: attaches arrays and parameters to a lifted program and proves that it stays in range.
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "problem/bound.hpp"

namespace undivided {
namespace {

expr::Bound::ArrayRef reference_to(const Array& array) {
  const View& v = array.view();
  expr::Bound::ArrayRef ref{v.data, v.dtype, {1, 1, 1, 1}, {0, 0, 0, 0}, 0, 0};
  for (int axis = 0; axis < v.rank; ++axis) {
    ref.shape[static_cast<std::size_t>(axis)] = v.size(axis);
    ref.stride[static_cast<std::size_t>(axis)] = v.step(axis);
  }
  if (v.dtype == DType::i32) std::tie(ref.low, ref.high) = array.range();
  if (v.dtype == DType::boolean) ref.high = 1;
  return ref;
}

std::string names_of(const Captures& captures) {
  std::string names;
  for (const Array& a : captures.arrays) names += (names.empty() ? "" : ", ") + a.name();
  return names.empty() ? "none" : names;
}

}  // namespace

namespace {

std::shared_ptr<const BoundProgram> bind_lifted(expr::ProgramPtr lifted,
                                                const Captures& captures,
                                                const Positions& reach) {
  auto out = std::make_shared<BoundProgram>();
  out->program = std::move(lifted);
  out->captures = captures;
  for (const expr::Slot& slot : out->program->slots) {
    const Array* found = nullptr;
    for (const Array& a : captures.arrays)
      if (a.name() == slot.name) found = &a;
    if (!found)
      throw Error(Code::invalid_argument,
                  Stage::bind,
                  fmt::format("the program reads array '{}', which is not bound; bound arrays: {}",
                              slot.name,
                              names_of(captures)));
    const View& v = found->view();
    if (v.rank != slot.rank || v.dtype != slot.dtype)
      throw Error(Code::invalid_argument,
                  Stage::bind,
                  fmt::format("array '{}' is {}; the program wants {} of rank {}",
                              slot.name,
                              v.describe(),
                              name_of(slot.dtype),
                              slot.rank));
    out->on_device |= v.device.kind == Device::Kind::cuda;
    out->bound.arrays.push_back(reference_to(*found));
  }
  for (const expr::ParamDecl& param : out->program->params) {
    double value = param.value;
    if (!param.lifted)
      for (const auto& [name, given] : captures.params)
        if (name == param.name) value = given;
    if (param.type == expr::Type::i32 &&
        value != static_cast<double>(static_cast<std::int32_t>(value)))
      throw Error(Code::invalid_argument,
                  Stage::bind,
                  fmt::format("parameter '{}' is an int32 and was given {}", param.name, value));
    out->bound.params.push_back(value);
  }
  for (const auto& [name, given] : captures.params) {
    bool used = false;
    for (const expr::ParamDecl& param : out->program->params) used |= param.name == name;
    (void)given;
    if (!used)
      throw Error(
          Code::invalid_argument,
          Stage::bind,
          fmt::format("parameter '{}' is given, but the program has no such parameter", name));
  }
  const auto upto = [](std::int64_t n) { return expr::Interval{0, std::max<std::int64_t>(n, 0)}; };
  if (reach.batch > 0 && reach.heads > 0 && reach.q_low <= reach.q_high &&
      reach.k_low <= reach.k_high)
    expr::prove(*out->program,
                out->bound,
                expr::Box{upto(reach.batch - 1),
                          upto(reach.heads - 1),
                          {reach.q_low, reach.q_high},
                          {reach.k_low, reach.k_high},
                          upto(reach.max_q_len),
                          upto(reach.max_k_len)});
  if (out->program->root().type == expr::Type::boolean)
    out->band = expr::recognise_band(*out->program, out->bound.params);
  return out;
}

template <class T>
std::shared_ptr<const BoundProgram> bind_any(const T& function, const Positions& reach) {
  return bind_lifted(std::make_shared<const expr::Program>(expr::lift(*function.program())),
                     function.captures(),
                     reach);
}

}  // namespace

std::shared_ptr<const BoundProgram> bind(const Mask& mask, const Positions& reach) {
  return bind_any(mask, reach);
}
std::shared_ptr<const BoundProgram> bind(const Score& score, const Positions& reach) {
  return bind_any(score, reach);
}

}  // namespace undivided
