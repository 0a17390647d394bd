// SPDX-License-Identifier: Apache-2.0
// The abstract reading is sound for every operation, and plans of random masks are exact.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/detail/Configuration.h>
#include <rapidcheck/detail/TestParams.h>

#include <iostream>
#include <random>
#include <set>

#include "expr/internal.hpp"
#include "expr_random.hpp"
#include "mask/abstract.hpp"
#include "mask/plan.hpp"
#include "reduced.hpp"

namespace undivided {
namespace {

using expr::Op;
using masks::Value;

std::vector<Value> all_sets() {  // sets around every corner of int32
  std::vector<Value> out{Value::any()};
  const std::int64_t ends[] = {INT32_MIN,
                               INT32_MIN + 1,
                               -65,
                               -64,
                               -8,
                               -3,
                               -1,
                               0,
                               1,
                               2,
                               5,
                               7,
                               8,
                               31,
                               63,
                               64,
                               1000,
                               INT32_MAX - 1,
                               INT32_MAX};
  for (const auto a : ends)
    for (const auto b : ends)
      if (a <= b) out.push_back(Value::between(a, b));
  for (const std::uint32_t unknown : {1u, 4u, 0x55u, 0x80000001u})
    for (const std::int64_t base : {0, 8, -128})
      out.push_back(masks::apply(Op::bit_xor,
                                 Value::point(base),
                                 masks::apply(Op::bit_and,
                                              Value::any(),
                                              Value::point(static_cast<std::int32_t>(unknown)),
                                              Value{},
                                              false),
                                 Value{},
                                 false));
  return out;
}

std::vector<std::int64_t> members(const Value& v) {
  std::set<std::int64_t> out;
  for (std::int64_t x : {std::int64_t{v.low},
                         std::int64_t{v.low} + 1,
                         std::int64_t{v.high},
                         std::int64_t{v.high} - 1,
                         (std::int64_t{v.low} + v.high) / 2,
                         std::int64_t{0},
                         std::int64_t{-1},
                         std::int64_t{1},
                         std::int64_t{33},
                         static_cast<std::int64_t>(static_cast<std::int32_t>(v.ones | v.unknown)),
                         static_cast<std::int64_t>(static_cast<std::int32_t>(v.ones))})
    if (v.contains(x)) out.insert(x);
  return {out.begin(), out.end()};
}

TEST(MaskAnalysis, every_operation_is_sound_at_the_corners_of_int32) {
  const auto sets = all_sets();
  for (const Op op : {Op::add,
                      Op::sub,
                      Op::mul,
                      Op::floordiv,
                      Op::mod,
                      Op::min,
                      Op::max,
                      Op::abs,
                      Op::neg,
                      Op::shl,
                      Op::shr,
                      Op::bit_and,
                      Op::bit_or,
                      Op::bit_xor}) {
    for (int number = 0; const Value& a : sets)
      for (const Value& b : sets) {
        if (!taken(number++, 7)) continue;
        const Value r = masks::apply(op, a, b, Value{}, false);
        ASSERT_LE(r.low, r.high) << expr::name_of(op);
        for (const auto x : members(a))
          for (const auto y : members(b)) {
            const std::int64_t exact = expr::wrap(expr::integer_result(op, x, y));
            ASSERT_TRUE(r.contains(exact))
                << expr::name_of(op) << "(" << x << ", " << y << ") = " << exact << " is outside ["
                << r.low << ", " << r.high << "] from [" << a.low << ", " << a.high << "], ["
                << b.low << ", " << b.high << "]";
          }
      }
  }
  for (const Op op : {Op::lt, Op::le, Op::gt, Op::ge, Op::eq, Op::ne})
    for (int number = 0; const Value& a : sets)
      for (const Value& b : sets) {
        if (!taken(number++, 7)) continue;
        const Value r = masks::apply(op, a, b, Value{}, false);
        for (const auto x : members(a))
          for (const auto y : members(b))
            ASSERT_TRUE(r.contains(
                expr::compare_result(op, static_cast<double>(x), static_cast<double>(y))))
                << expr::name_of(op) << "(" << x << ", " << y << ")";
      }
}

TEST(MaskAnalysis, a_range_table_equals_a_scan) {
  std::mt19937 random(5);
  for (const int n : {1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096}) {
    std::vector<std::int32_t> x(n);
    for (auto& v : x) v = static_cast<std::int32_t>(random());
    expr::Bound::ArrayRef ref;
    ref.data = x.data();
    ref.shape[0] = n;
    ref.stride[0] = 1;
    const masks::RangeTable table(ref);
    for (int i = 0; i < 400; ++i) {
      const int a = random() % n, b = a + random() % (n - a);
      const Value v = table.between(a, b);
      ASSERT_EQ(v.low, *std::min_element(x.begin() + a, x.begin() + b + 1)) << n;
      ASSERT_EQ(v.high, *std::max_element(x.begin() + a, x.begin() + b + 1)) << n;
    }
  }
}

TEST(MaskAnalysis, a_strided_boolean_table_is_read_through_its_strides) {
  const std::uint8_t data[] = {0, 9, 1, 9, 0, 9, 0, 9, 0, 9, 0, 9};  // 2 x 3, column stride 2
  expr::Bound::ArrayRef ref;
  ref.data = data;
  ref.dtype = DType::boolean;
  ref.shape = {2, 3, 1, 1};
  ref.stride = {6, 2, 0, 0};
  const masks::RangeTable table(ref);
  EXPECT_EQ(table.between(0, 2).high, 1);
  EXPECT_EQ(table.between(1, 1).low, 1);
  EXPECT_EQ(table.between(2, 5).high, 0);
}

// Ten thousand cases each (a reduced grid: a thousand), unless RC_PARAMS says otherwise.
template <class F>
bool many(F&& claim) {
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = std::max(params.maxSuccess, reduced_grid() ? 1000 : 10000);
  const auto result =
      rc::detail::checkTestable(std::forward<F>(claim), rc::detail::TestMetadata{}, params);
  rc::detail::printResultMessage(result, std::cerr);
  return result.template is<rc::detail::SuccessResult>();
}

// Random programs may overflow and read out of range: the language defines both.
BoundProgram random_mask(const testing::Contents& contents,
                         const std::vector<std::uint32_t>& recipe) {
  BoundProgram out;
  out.program =
      std::make_shared<const expr::Program>(testing::random_program(recipe, expr::Type::boolean));
  out.bound = contents.bound(*out.program);
  return out;
}

TEST(MaskAnalysis, values_of_random_programs_stay_inside) {
  const testing::Contents contents;
  EXPECT_TRUE(many([&](const std::vector<std::uint32_t>& recipe, int a, int b) {
    const BoundProgram m = random_mask(contents, recipe);
    const auto tables = masks::range_tables(*m.program, m.bound);
    masks::AbstractMask mask(*m.program, m.bound, tables, 1);
    std::vector<double> scratch(m.program->nodes.size());
    double result = 0;
    const std::int64_t q = a % 50, k = b % 50, rows = 1 + std::abs(a) % 7,
                       columns = 1 + std::abs(b) % 7;
    mask.begin(1, 2, 40, 30);
    mask.query(0, q, q + rows - 1);
    mask.key(0, k, k + columns - 1);
    mask.evaluate(0, 0);
    for (std::int64_t i = q; i < q + rows; ++i)
      for (std::int64_t j = k; j < k + columns; ++j) {
        expr::evaluate(*m.program, m.bound, {1, 2, i, j, 40, 30, 0}, scratch.data(), &result);
        for (std::size_t n = 0; n < scratch.size(); ++n) {
          const auto node = static_cast<std::int32_t>(n);
          const bool inside =
              m.program->nodes[n].type == expr::Type::f32
                  ? mask.real(node).contains(scratch[n])
                  : mask.value(node).contains(static_cast<std::int64_t>(scratch[n]));
          RC_ASSERT(inside);
        }
      }
  }));
}

TEST(MaskAnalysis, floats_are_sound_at_their_corners) {
  const double inf = INFINITY;
  const std::vector<double> ends{
      -inf, -1e300, -700, -3.5, -1, -1e-300, -0.0, 0, 5e-324, 0.25, 1, 2, 709, 710, 1e300, inf};
  std::vector<masks::Real> sets{{}};
  for (const double a : ends)
    for (const double b : ends)
      if (a <= b) sets.push_back({a, b, false});
  const auto inside = [](const masks::Real& s) {
    std::vector<double> x{s.low, s.high};
    if (s.finite()) x.push_back(std::clamp(s.low / 2 + s.high / 2, s.low, s.high));
    if (s.low <= 0 && s.high >= 0) x.insert(x.end(), {0.0, -0.0});
    if (s.nan) x.push_back(NAN);
    return x;
  };
  const auto exact = [](Op op, double x, double y) {
    switch (op) {
      case Op::add:
        return x + y;
      case Op::sub:
        return x - y;
      case Op::mul:
        return x * y;
      case Op::div:
        return x / y;
      case Op::min:
        return x < y ? x : y;
      case Op::max:
        return x > y ? x : y;
      case Op::neg:
        return -x;
      case Op::abs:
        return std::fabs(x);
      case Op::sqrt:
        return std::sqrt(x);
      case Op::exp:
        return std::exp(x);
      case Op::log:
        return std::log(x);
      default:
        return std::tanh(x);
    }
  };
  for (const Op op : {Op::add,
                      Op::sub,
                      Op::mul,
                      Op::div,
                      Op::min,
                      Op::max,
                      Op::neg,
                      Op::abs,
                      Op::sqrt,
                      Op::exp,
                      Op::log,
                      Op::tanh})
    for (const auto& a : sets)
      for (const auto& b : sets) {
        const masks::Real r = masks::apply(op, a, b);
        for (const double x : inside(a))
          for (const double y : inside(b))
            ASSERT_TRUE(r.contains(exact(op, x, y))) << expr::name_of(op) << "(" << x << ", " << y;
      }
  for (const Op op : {Op::lt, Op::le, Op::gt, Op::ge, Op::eq, Op::ne})
    for (const auto& a : sets)
      for (const auto& b : sets) {
        const Value r = masks::compared(op, a, b);
        for (const double x : inside(a))
          for (const double y : inside(b))
            ASSERT_TRUE(
                r.contains(expr::compare_result(op, static_cast<float>(x), static_cast<float>(y))))
                << expr::name_of(op) << "(" << x << ", " << y;
      }
}

// Two roundings of one number: equal as float32, and not as float64.
TEST(MaskAnalysis, floats_are_compared_as_the_scalar_reading_compares_them) {
  const Mask m = Mask::parse("sqrt(0.375) == 0.375 / sqrt(0.375 + 0.0 * float(q))");
  const auto p = bind(m, {1, 1, 0, 99, 0, 99, 100, 100});
  Sequence s;
  s.q_len = s.k_len = 100;
  const std::vector<Sequence> one{s};
  std::vector<double> scratch(p->program->nodes.size());
  double kept = 0;
  expr::evaluate(*p->program, p->bound, {0, 0, 5, 7, 100, 100, 0}, scratch.data(), &kept);
  EXPECT_EQ(kept, 1);
  EXPECT_EQ(make_mask_plan(*p, 1, one, inline_executor())->kept_pairs(), 100 * 100);
  EXPECT_EQ(masks::exhaustive_mask_plan(*p, 1, one, inline_executor())->kept_pairs(), 100 * 100);
}

// The share of blocks that are evaluated falls as for integers: a float mask costs its edges.
TEST(MaskAnalysis, a_mask_of_floats_is_classed_without_its_elements) {
  const Mask decay =
      mask([](auto, auto, auto q, auto k) { return k <= q && exp((k - q) * 0.01) > 0.05; });
  Sequence s;
  s.q_len = s.k_len = 2000;
  const auto p = bind(decay, {1, 1, 0, 1999, 0, 1999, 2000, 2000});
  const std::vector<Sequence> one{s};
  const auto plan = make_mask_plan(*p, 1, one, inline_executor());
  const auto exact = masks::exhaustive_mask_plan(*p, 1, one, inline_executor());
  EXPECT_EQ(plan->tile_ids, exact->tile_ids);
  EXPECT_EQ(plan->tiles_by_query, exact->tiles_by_query);
  const auto tables = masks::range_tables(*p->program, p->bound);
  masks::AbstractMask mask(*p->program, p->bound, tables, 1);
  mask.begin(0, 0, 2000, 2000);
  int undecided = 0;
  for (int i = 0; i < 32; ++i)
    for (int j = 0; j < 32; ++j) {
      mask.query(0, 64 * i, std::min(64 * i + 63, 1999));
      mask.key(0, 64 * j, std::min(64 * j + 63, 1999));
      undecided += !mask.evaluate(0, 0).single();
    }
  EXPECT_LE(undecided, 3 * 32) << "only blocks on the two edges";
}

std::vector<std::int64_t> contents_of(const MaskPlan& p) {
  const auto& e = p.entries.at(0);
  std::vector<std::int64_t> out{e.empty, e.partial, e.full, e.kept_pairs, e.rows_without_key};
  for (const auto& r : p.runs) out.insert(out.end(), {r.begin, r.end, r.tiles});
  out.insert(out.end(), p.run_offsets.begin(), p.run_offsets.end());
  out.insert(out.end(), p.tile_ids.begin(), p.tile_ids.end());
  return out;
}

TEST(MaskAnalysis, plans_of_random_masks_equal_brute_force) {
  const testing::Contents contents;
  int mixed = 0;
  EXPECT_TRUE(many([&](const std::vector<std::uint32_t>& recipe, std::uint32_t seed) {
    std::mt19937 random(seed);
    const BoundProgram m = random_mask(contents, recipe);
    Sequence s;
    s.q_len = 1 + random() % 150;
    s.k_len = 1 + random() % 150;
    s.q_origin = static_cast<std::int64_t>(random() % 200) - 100;
    s.k_origin = static_cast<std::int64_t>(random() % 200) - 100;
    const std::vector<Sequence> one{s};
    const auto plan = make_mask_plan(m, 1, one, inline_executor());
    const auto exact = masks::exhaustive_mask_plan(m, 1, one, inline_executor());
    RC_ASSERT(contents_of(*plan) == contents_of(*exact));
    RC_ASSERT(plan->tiles_by_query == exact->tiles_by_query);
    // A few pairs by the scalar reading, which shares nothing with either.
    std::vector<double> scratch(m.program->nodes.size());
    for (int i = 0; i < 20; ++i) {
      const std::int64_t q = random() % s.q_len, k = random() % s.k_len;
      double kept = 0;
      expr::evaluate(*m.program,
                     m.bound,
                     {0, 0, s.q_origin + q, s.k_origin + k, s.q_len, s.k_len, 0},
                     scratch.data(),
                     &kept);
      const bool same = masks::keeps(*plan, plan->entries[0], q, k) == (kept != 0);
      RC_ASSERT(same);
    }
    mixed += plan->entries[0].partial > 0;
  }));
  EXPECT_GT(mixed, reduced_grid() ? 100 : 1000) << "the masks are not all constant";
}

}  // namespace
}  // namespace undivided
