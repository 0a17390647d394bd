// SPDX-License-Identifier: Apache-2.0
// Which integers of a mask are lines in q and k.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "expr/internal.hpp"
#include "mask/plan.hpp"

namespace undivided::masks {

/// An integer is q * (this) + k * (that) + something uniform of magnitude at most `rest`, and never
/// wraps.
struct Slope {
  std::int64_t q = 0, k = 0, rest = 0;
};
using Slopes = std::vector<std::optional<Slope>>;

/// Reads those of nodes whose operands are known.
class SlopeReader {
 public:
  SlopeReader(const expr::Bound& bound, const Sequence& s, std::int64_t batch, std::int64_t head)
      : bound_(bound), sequence_(s), batch_(batch), head_(head) {
    farthest_ = 4 * block_size + std::max({std::abs(s.q_origin),
                                           std::abs(s.q_origin + s.q_len),
                                           std::abs(s.k_origin),
                                           std::abs(s.k_origin + s.k_len)});
  }

  std::optional<Slope> read(const expr::Node& n, bool uniform, const Slopes& known) const {
    const auto of = [&](int i) {
      return known[static_cast<std::size_t>(n.operand[static_cast<std::size_t>(i)])];
    };
    switch (n.op) {
      case expr::Op::q:
        return checked({1, 0, 0});
      case expr::Op::k:
        return checked({0, 1, 0});
      case expr::Op::batch:
        return checked({0, 0, batch_});
      case expr::Op::head:
        return checked({0, 0, head_});
      case expr::Op::q_len:
        return checked({0, 0, sequence_.q_len});
      case expr::Op::k_len:
        return checked({0, 0, sequence_.k_len});
      case expr::Op::constant:
        return checked({0, 0, std::abs(n.integer)});
      case expr::Op::param:
        return checked(
            {0,
             0,
             std::abs(static_cast<std::int64_t>(bound_.params[static_cast<std::size_t>(n.slot)]))});
      case expr::Op::load: {
        const auto& array = bound_.arrays[static_cast<std::size_t>(n.slot)];
        if (!uniform) return {};
        return checked({0, 0, std::max(std::abs(array.low), std::abs(array.high))});
      }
      case expr::Op::neg:
        if (const auto a = of(0)) return checked({-a->q, -a->k, a->rest});
        return {};
      case expr::Op::add:
      case expr::Op::sub: {
        const auto a = of(0), b = of(1);
        if (!a || !b) return {};
        const std::int64_t s = n.op == expr::Op::add ? 1 : -1;
        return checked({a->q + s * b->q, a->k + s * b->k, a->rest + b->rest});
      }
      default:
        return {};
    }
  }

 private:
  std::optional<Slope> checked(const Slope& s) const {
    const std::int64_t steep = std::abs(s.q) + std::abs(s.k);
    if (steep > 64 || s.rest > INT32_MAX || steep * farthest_ + s.rest > INT32_MAX) return {};
    return s;
  }
  const expr::Bound& bound_;
  const Sequence& sequence_;
  std::int64_t batch_, head_, farthest_ = 0;
};

}  // namespace undivided::masks
