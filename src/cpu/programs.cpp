// SPDX-License-Identifier: Apache-2.0
// Flattens byte-code and binds contents.
#include "cpu/programs.hpp"

#include <bit>
#include <cmath>
#include <limits>

namespace undivided::cpu {
namespace {

std::int32_t bits_of(expr::Type type, double value) {
  switch (type) {
    case expr::Type::f32:
      return std::bit_cast<std::int32_t>(static_cast<float>(value));
    case expr::Type::boolean:
      return value != 0 ? -1 : 0;
    default:
      return static_cast<std::int32_t>(std::llround(value));
  }
}

/// One gather instruction can reach every element.
bool is_narrow(const expr::Bound::ArrayRef& a, int rank) {
  if (a.dtype == DType::boolean) return false;
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  std::int64_t reach = 0;
  for (int axis = 0; axis < rank; ++axis) {
    const auto i = static_cast<std::size_t>(axis);
    if (a.shape[i] <= 0 || a.shape[i] > most || std::abs(a.stride[i]) > most) return false;
    reach += (a.shape[i] - 1) * std::abs(a.stride[i]);
    if (reach > most) return false;
  }
  return true;
}

}  // namespace

FlatCode flatten(const expr::Program& program,
                 const Flatten& how,
                 const std::vector<std::array<std::int32_t, 4>>& keep) {
  const expr::ByteCode code = expr::compile(program, keep, how.diagonals);
  FlatCode flat;
  flat.used = true;
  std::int32_t score = -1;  // global register
  for (const expr::Instruction& i : code.part[static_cast<std::size_t>(expr::Rate::element)])
    if (i.op == expr::Op::score) score = i.result;
  const auto place = [&](std::int32_t global) {
    if (global < 0) return Register{expr::Rate::uniform, -1};
    if (global == score) return Register{expr::Rate::element, tile_register};
    const auto i = static_cast<std::size_t>(global);
    return Register{code.rate_of[i], code.index_of[i]};
  };
  for (std::size_t rate = 0; rate < expr::rates; ++rate)
    for (const expr::Instruction& from : code.part[rate]) {
      if (from.op == expr::Op::score) continue;
      Instruction to;
      to.op = from.op;
      to.type = from.type;
      to.operand_type = from.operand_type;
      to.rate = from.rate;
      to.result = place(from.result).index;
      for (std::size_t o = 0; o < 4; ++o) {
        const Register r = place(from.operand[o]);
        to.operand_rate[o] = r.rate;
        to.operand[o] = r.index;
      }
      to.slot = from.slot;
      to.bits = bits_of(
          from.type, from.type == expr::Type::f32 ? from.real : static_cast<double>(from.integer));
      flat.part[rate].push_back(to);
    }
  flat.file_size = code.file_size;
  for (const std::int32_t root : code.roots) flat.roots.push_back(place(root));
  for (const auto& index : code.keep) {
    std::array<Register, 4> kept;
    for (std::size_t o = 0; o < 4; ++o) kept[o] = place(index[o]);
    flat.keep.push_back(kept);
  }
  // The only root is what the last instruction makes, and nothing reads the scores after it.
  if (how.in_place && flat.roots.size() == 1 && keep.empty() &&
      flat.roots[0].rate == expr::Rate::element && flat.roots[0].index != tile_register)
    flat.part[static_cast<std::size_t>(expr::Rate::element)].back().result = flat.roots[0].index =
        tile_register;
  flat.arrays = program.slots.size();
  flat.params = program.params.size();
  for (const expr::ParamDecl& p : program.params) flat.param_type.push_back(p.type);
  for (const expr::Slot& s : program.slots) flat.rank.push_back(s.rank);
  return flat;
}

Contents Contents::layout(Arena& arena, const FlatCode& code) {
  Contents c;
  c.arrays = arena.take<ArrayRef>(static_cast<std::int64_t>(code.arrays));
  c.params = arena.take<std::int32_t>(static_cast<std::int64_t>(code.params));
  return c;
}

void Contents::fill(const FlatCode& code, const expr::Bound& bound) const {
  for (std::size_t i = 0; i < code.arrays; ++i) {
    const expr::Bound::ArrayRef& from = bound.arrays[i];
    ArrayRef to;
    to.data = from.data;
    to.dtype = from.dtype;
    to.rank = code.rank[i];
    to.narrow = is_narrow(from, to.rank);
    for (std::size_t axis = 0; axis < 4; ++axis) {
      to.shape[axis] = from.shape[axis];
      to.stride[axis] = from.stride[axis];
    }
    arrays[i] = to;
  }
  for (std::size_t i = 0; i < code.params; ++i)
    params[i] = bits_of(code.param_type[i], bound.params[i]);
}

WorkerFiles WorkerFiles::layout(Arena& arena,
                                const FlatCode& code,
                                const Kernels& kernels,
                                int subs) {
  WorkerFiles f;
  f.uniform = arena.take<float>(code.file_size[0] * kernels.width);
  f.key = arena.take<float>(std::int64_t{code.file_size[1]} * key_block * kernels.width);
  f.query_stride = std::int64_t{code.file_size[2]} * kernels.lanes;
  f.query = arena.take<float>(f.query_stride * subs);
  f.diagonal = arena.take<float>(std::int64_t{code.file_size[3]} * (key_block + kernels.lanes));
  f.element = arena.take<float>(std::int64_t{code.file_size[4]} * chunk_rows * kernels.lanes);
  return f;
}

}  // namespace undivided::cpu
